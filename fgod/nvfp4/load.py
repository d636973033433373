"""Load a folder of plain weights as float32 masters that compute as their NVFP4 export will."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from fgod.model.load import load_model
from fgod.nvfp4.folders import DTYPES, read_plain_config
from fgod.nvfp4.layers import prepare


def load_masters(folder: Path, compute_dtype: str = "float32") -> PreTrainedModel:
    """A prepared Qwen3ForCausalLM that is to be trained; BF16 folders are widened to float32.

    In eval mode, so that nothing is dropped. Created with its dtype rather than cast, because a cast of the model
    would round the rotary frequencies too.

    Raises:
        UsageError: files are missing, the weights are quantised, or tensors do not fit the config; names the tensor.
    """
    read_plain_config(folder)
    model = load_model(folder, torch.float32)
    for parameter in model.parameters():
        # float32 tensors come as views of the mapped file, at odd addresses: own memory is aligned, and the file safe
        parameter.data = parameter.data.clone()
    return prepare(model.requires_grad_(True), DTYPES[compute_dtype])
