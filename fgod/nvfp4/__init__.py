"""NVFP4: reference quantiser, random bits, straight-through layers, folders of weights.

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

__all__ = [
    "BadScaleError",
    "NonFiniteError",
    "Quantised",
    "dequantise",
    "fake_quantise",
    "pack",
    "power_of_two_global_scale",
    "quantise",
    "unpack",
]
