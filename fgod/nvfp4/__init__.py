"""NVFP4: reference quantiser, straight-through layers, compressed-tensors export."""

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
from fgod.nvfp4.layers import prepare
from fgod.nvfp4.load import load_masters
from fgod.nvfp4.reader import dequantised, read_export

__all__ = [
    "BadScaleError",
    "NonFiniteError",
    "Quantised",
    "dequantise",
    "dequantised",
    "export",
    "fake_quantise",
    "load_masters",
    "pack",
    "power_of_two_global_scale",
    "prepare",
    "quantise",
    "read_export",
    "unpack",
]
