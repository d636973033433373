"""Imported before any test, and so before torch."""

from fgod.system.threads import spin_briefly

spin_briefly()
