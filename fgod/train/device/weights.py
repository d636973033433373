"""Masters on a device: matrices that share a global scale lie in one piece of memory, and so do all vectors.

Streamed in from a folder shard by shard (at most one tensor besides the final size), or made at random on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fgod.errors import UsageError
from fgod.model.load import model_from_tensors, quiet
from fgod.model.masters import master_torch_dtype
from fgod.models.architecture import architecture_of, wrong
from fgod.nvfp4.folders import DTYPES, open_weights, stored_names, weight_files
from fgod.nvfp4.layers import prepare
from fgod.system.files import drop_cached

ROPE_TYPES = ("default", "linear", "llama3")
"""Ways of scaling rotary positions whose frequencies are constants, and which leave the attention's scale alone."""

RANDOM_STD = 0.02
"""Standard deviation of random matrices, about that of Qwen3's."""


@dataclass(frozen=True)
class Bank:
    """Vectors of one width, a row each: [R, K] float32."""

    names: tuple[str, ...]
    rows: Tensor


@dataclass(frozen=True)
class Masters:
    """`tensors` by name are views of `groups` (matrices, by scale group) and `banks` (vectors, by width)."""

    config: Mapping[str, Any]
    tensors: dict[str, Tensor]
    groups: dict[str, Tensor]
    members: dict[str, tuple[str, ...]]
    banks: dict[int, Bank]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.groups.values()) + sum(b.rows.nbytes for b in self.banks.values())


def allocate(config: Mapping[str, Any], master_dtype: str, device: torch.device, where: str) -> Masters:
    """Memory for all masters of a model, not yet written."""
    family = architecture_of(config, where)
    wanted = family.tensors(config, where)
    members: dict[str, list[str]] = {}
    vectors: dict[int, list[str]] = {}
    for name, shape in wanted.items():
        if len(shape) == 1:
            vectors.setdefault(shape[0], []).append(name)
        else:
            members.setdefault(family.scale_group(name) or name, []).append(name)
    tensors: dict[str, Tensor] = {}
    groups = {}
    for group, names in members.items():
        height, width = sum(wanted[n][0] for n in names), wanted[names[0]][1]
        groups[group] = torch.empty(height, width, dtype=master_torch_dtype(master_dtype, 2), device=device)
        tensors.update(zip(names, groups[group].split([wanted[n][0] for n in names]), strict=True))
    banks = {}
    for width, names in vectors.items():
        banks[width] = Bank(tuple(names), torch.empty(len(names), width, device=device))
        tensors.update(zip(names, banks[width].rows.unbind(), strict=True))
    ordered = {name: tensors[name] for name in wanted}
    return Masters(config, ordered, groups, {g: tuple(n) for g, n in members.items()}, banks)


def stream_in(folder: Path, config: Mapping[str, Any], master_dtype: str, device: torch.device) -> Masters:
    """Masters of a folder of plain weights; host memory holds one tensor at a time, and the page cache is given back.

    Raises:
        UsageError: a tensor is missing, too many, or of another shape.
    """
    masters = allocate(config, master_dtype, device, str(folder))
    read_into(folder, masters, {name: (slice(None), master) for name, master in masters.tensors.items()})
    return masters


def read_into(folder: Path, whole: Masters, targets: Mapping[str, tuple[slice, Tensor]]) -> None:
    """Rows of the tensors of a folder into memory that is there; `whole` says what the folder must have."""
    with open_weights(folder) as weights:
        stored = set(stored_names(weights, whole.config))
        for names, words in ((whole.tensors.keys() - stored, "is missing from"),
                             (stored - whole.tensors.keys(), "has no place in the config of")):  # fmt: skip
            if names:
                raise UsageError(f"{folder}: the tensor {min(names)} {words} the weights ({len(names)} such)")
        for name, master in whole.tensors.items():
            if weights.shape(name) != tuple(master.shape):
                found = list(weights.shape(name))
                raise UsageError(f"{folder}: {name}: found shape {found}, expected {list(master.shape)}")
            if name in targets:
                rows, target = targets[name]
                target.copy_(weights.read(name)[rows])
    for file in weight_files(folder):
        drop_cached(file)


def randomise(masters: Masters, seed: int) -> None:
    """Gaussian matrices, norms' weights of one, biases of zero: for measurements of speed and memory."""
    generator = torch.Generator(masters.device).manual_seed(seed)
    for group in masters.groups.values():
        group.normal_(0, RANDOM_STD, generator=generator)
    for bank in masters.banks.values():
        for name, row in zip(bank.names, bank.rows, strict=True):
            row.fill_(0.0 if name.endswith(".bias") else 1.0)


def as_module(masters: Masters, compute_dtype: str, block_scales: str) -> PreTrainedModel:
    """transformers' model on these very masters, computing as their export will: what preflight compares with."""
    model = model_from_tensors(masters.config, masters.tensors)
    prepare(model.eval(), DTYPES[compute_dtype], block_scales, keep_quantised=False)
    return model


def frequencies(config: Mapping[str, Any]) -> Tensor:
    """Rotary frequencies float32 [D/2], as transformers computes them on the host.

    Raises:
        UsageError: positions are scaled in a way that depends on their number, or that scales the attention.
    """
    known = {key: value for key, value in config.items() if key != "model_type"}
    with quiet():
        model = AutoConfig.for_model(config["model_type"], **known)
    rope: dict[str, Any] = dict(model.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise wrong("config.json", "rope_type", kind, f"one of {', '.join(ROPE_TYPES)} on this device")
    if kind != "default":
        return ROPE_INIT_FUNCTIONS[kind](model, torch.device("cpu"))[0].float()
    width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    return 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float) / width))


def split_rows(group: Tensor, names: tuple[str, ...], masters: Masters) -> Iterator[tuple[str, Tensor]]:
    """Name and rows of each member of a group, of something shaped as the group is."""
    parts = group.split([len(masters.tensors[name]) for name in names])
    yield from zip(names, parts, strict=True)
