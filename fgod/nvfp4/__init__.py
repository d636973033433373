"""NVFP4: reference quantiser, straight-through layers, compressed-tensors export.

What is named here needs torch alone; `layers` and `load` import transformers, which takes seconds.
"""

from fgod.nvfp4.codec import (
    BadScaleError,
    NonFiniteError,
    Quantised,
    dequantise,
    fake_quantise,
    pack,
    power_of_two_global_scale,
    quantise,
    unpack,
)
from fgod.nvfp4.export import export
from fgod.nvfp4.reader import dequantised, read_export

__all__ = [
    "BadScaleError",
    "NonFiniteError",
    "Quantised",
    "dequantise",
    "dequantised",
    "export",
    "fake_quantise",
    "pack",
    "power_of_two_global_scale",
    "quantise",
    "read_export",
    "unpack",
]
