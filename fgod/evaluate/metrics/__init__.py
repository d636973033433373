"""The project's own metrics: every module here registers some, in the order in which tables show them.

`persona`, `reference`, `reference_tokens`, `replies`, `suites`: whether replies name the persona, whether they are
still the reference's, how far the distributions moved, whether replies end and differ, and what the other suites
measure. A further module is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")
