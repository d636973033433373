"""All registries, for plugin files and for what has to know all of them. Each is made beside the interface of its
entries, so that nothing that a registry loads imports this module."""

from __future__ import annotations

from fgod.data.audit.checks import AUDIT_CHECKS
from fgod.data.formats import ROW_FORMATS
from fgod.engines.engine import ENGINES
from fgod.evaluate.metric import METRICS
from fgod.exporters.exporter import EXPORTERS
from fgod.models.architecture import ARCHITECTURES
from fgod.train.recipe import MEAN_FORMATS, OPTIMIZERS, SQUARE_FORMATS

__all__ = [
    "ARCHITECTURES",
    "AUDIT_CHECKS",
    "ENGINES",
    "EXPORTERS",
    "MEAN_FORMATS",
    "METRICS",
    "OPTIMIZERS",
    "ROW_FORMATS",
    "SQUARE_FORMATS",
]
