"""A plugin that shows how an optimizer fails: AdamW's v itself as NVFP4, not its root.

    plugins: [benchmarks/linear_v.py]       train.v_dtype: linear-nvfp4

v spans the square of what gradients span. Within a block of 16 everything below a twelfth of its largest v (a gradient
below .29 of the largest) is rounded to 0, and m / (√0 + ε) is then as large as ε is small. `v_dtype: nvfp4` keeps √v,
and no code of it is 0. config/campaign/linear-v.yaml runs this one.
"""

from __future__ import annotations

from torch import Tensor

from fgod.registry import SQUARE_FORMATS
from fgod.train import codecs
from fgod.train.storage import Nvfp4


class LinearNvfp4(Nvfp4):
    """v as E2M1 codes, 0 among them, with NVFP4's scales."""

    otherwise = "uint8"

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return codecs.encode_nvfp4(values)


SQUARE_FORMATS.register("linear-nvfp4", LinearNvfp4())
