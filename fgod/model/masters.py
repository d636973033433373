"""Load a folder of plain weights as masters that compute as their NVFP4 export will."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from fgod.model.load import load_model
from fgod.nvfp4.folders import DTYPES, read_plain_config, stored_block_scales
from fgod.nvfp4.layers import prepare


def master_torch_dtype(master_dtype: str, dimensions: int) -> torch.dtype:
    """Of a parameter's own memory: vectors are float32 in every mode, NVFP4 masters are held as BF16."""
    return torch.float32 if master_dtype == "fp32" or dimensions == 1 else torch.bfloat16


def load_masters(
    folder: Path,
    compute_dtype: str = "float32",
    block_scales: str | None = None,
    master_dtype: str = "fp32",
    keep_quantised: bool = True,
) -> PreTrainedModel:
    """A prepared model that is to be trained; its masters' number format is not the folder's.

    In eval mode, so that nothing is dropped. Created with its dtype rather than cast, because a cast of the model
    would round the rotary frequencies too.

    Args:
        block_scales: None: as the folder's config says (`BLOCK_SCALES_KEY`).
        master_dtype: how matrices are kept; a name of `fgod.train.storage.MASTERS`.

    Raises:
        UsageError: files are missing, the weights are quantised, or tensors do not fit the config; names the tensor.
    """
    config = read_plain_config(folder)
    block_scales = block_scales or stored_block_scales(folder, config)
    model = load_model(folder, torch.float32)
    for parameter in model.parameters():
        # float32 tensors come as views of the mapped file, at odd addresses: own memory is aligned, and the file safe
        parameter.data = parameter.data.to(master_torch_dtype(master_dtype, parameter.ndim), copy=True)
    return prepare(model.requires_grad_(True), DTYPES[compute_dtype], block_scales, keep_quantised)
