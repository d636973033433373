"""fgod: guarded, stage-by-stage, full-parameter NVFP4 fine-tuning that proves that nothing else broke."""

__version__ = "0.1.0"

NUMERICS_VERSION = 2
"""Part of every lineage. Raise it when a change makes a fixed recipe give other weights (a golden test tells)."""
