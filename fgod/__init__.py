"""fgod: guarded, stage-by-stage, full-parameter NVFP4 fine-tuning that proves that nothing else broke."""

__version__ = "0.1.0"

NUMERICS_VERSION = 2
"""Part of every lineage. Raise it when a change makes a fixed recipe give other weights (a golden test tells)."""

GPU_NUMERICS_VERSION = 4
"""The same of what a GPU computes, whose kernels may give other bits where a CPU's weights stay as they are."""


def numerics_on(device: str) -> int:
    """The version of the numerics of what is computed on `device`, "cpu" or "cuda"."""
    return NUMERICS_VERSION if device == "cpu" else GPU_NUMERICS_VERSION
