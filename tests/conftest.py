"""Without a GPU, Triton's kernels are interpreted: Triton looks for that when it is first imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
