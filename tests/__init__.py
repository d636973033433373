"""Imported before any test, and so before torch."""

from fgod.system.threads import sleep_while_waiting

sleep_while_waiting()
