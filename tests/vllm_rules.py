"""By which rules vLLM 0.33 takes a folder of compressed-tensors for NVFP4 with 16-bit activations, restated.

Read in its sources (model_executor/layers/quantization/compressed_tensors); vLLM itself does not run on a CPU here.

- Each config group's `weights` must be valid to compressed-tensors, and not reordered (`actorder` group or dynamic).
  They are NVFP4 by strategy tensor_group, type float, 4 bits, groups of 16, symmetric; else another scheme is chosen,
  or none. `format` has no part in that.
- `input_activations` null: 16-bit activations. Anything else must be NVFP4 too, and needs input scales.
- A layer has the scheme whose target its name equals or matches (`re:`), or whose target its class name contains: all
  linear layers have Linear in it, the head's has not. One that is neither ignored nor matched is an error.
- A linear layer has weight_packed uint8 [N, K/2], weight_scale E4M3 [N, K/16] and weight_global_scale float32, a
  divisor. Layers that are fused (q, k, v; gate, up) have one of the latter: the largest is taken for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from pydantic import ValidationError
from safetensors.torch import load_file

from fgod.system.files import read_json

NEEDED = {"strategy": "tensor_group", "type": "float", "num_bits": 4, "group_size": 16, "symmetric": True}
HEAD = "lm_head"
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def faults(folder: Path) -> list[str]:
    """Where a folder breaks a rule, in words."""
    tensors = load_file(folder / "model.safetensors")
    found = read_json(folder / "config.json").get("quantization_config", {})
    return [*config_faults(found, head=f"{HEAD}.weight_packed" in tensors), *tensor_faults(tensors)]


def config_faults(found: Mapping[str, Any], head: bool) -> Iterator[str]:
    """Those of a `quantization_config`. `head`: the head is stored quantised."""
    if found.get("quant_method") != "compressed-tensors":
        yield f"quant_method {found.get('quant_method')!r}"
    if found.get("sparsity_config", {}).get("targets"):
        yield "sparsity"
    groups = [*found.get("config_groups", {}).values()]
    targets = [target for group in groups for target in group["targets"]]
    for group in groups:
        try:
            weights = QuantizationArgs.model_validate(group["weights"])
        except ValidationError as error:
            yield f"weights: {error.errors()[0]['msg']}"
            continue
        for key, value in NEEDED.items():
            if getattr(weights, key) != value:
                yield f"weights.{key} {getattr(weights, key)!r}"
        if weights.actorder in ("group", "dynamic"):
            yield f"weights.actorder {weights.actorder!r}"
        if group.get("input_activations") is not None:
            yield "input_activations"
    if not any(target in "QKVParallelLinear" for target in targets):
        yield "no target is Linear"
    ignored = any(matches(HEAD, one) for one in found.get("ignore", []))
    if head and (ignored or not any(matches(HEAD, target) for target in targets)):
        yield "the head is quantised, and no target"
    if not head and not ignored and any(matches(HEAD, target) for target in targets):
        yield "the head is a target, and not quantised"


def matches(name: str, target: str) -> bool:
    return bool(re.match(target[3:], name)) if target.startswith("re:") else name == target


def tensor_faults(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Those of the stored tensors."""
    packed = [name.removesuffix("_packed") for name in tensors if name.endswith("_packed")]
    if not packed:
        yield "nothing is quantised"
    for name in packed:
        (rows, half), dtype = tensors[f"{name}_packed"].shape, tensors[f"{name}_packed"].dtype
        scale, divisor = tensors.get(f"{name}_scale"), tensors.get(f"{name}_global_scale")
        if dtype != torch.uint8 or half % 8:
            yield f"{name}_packed {dtype} {rows} x {half}"
        if scale is None or (scale.dtype, tuple(scale.shape)) != (torch.float8_e4m3fn, (rows, half // 8)):
            yield f"{name}_scale"
        if divisor is None or (divisor.dtype, divisor.numel()) != (torch.float32, 1):
            yield f"{name}_global_scale"
    for name in packed:
        for first, *others in FUSED:
            if name.endswith(f"{first}.weight"):
                same = [tensors[f"{name.replace(first, one)}_global_scale"] for one in (first, *others)]
                if len({one.item() for one in same}) > 1:
                    yield f"{name}_global_scale is not that of {', '.join(others)}"
