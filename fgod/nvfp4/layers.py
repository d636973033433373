"""A stock Qwen3 that trains what will be served: quantised weights forward, straight-through gradients backward.

The parameters stay float32 masters under their stock names. `prepare` only changes how modules read them: the
projections through the quantiser, and with a BF16 compute dtype embeddings, norms and head through a cast. The
forward then equals that of the reloaded export bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from fgod.errors import UsageError
from fgod.nvfp4 import names
from fgod.nvfp4.codec import BLOCK, fake_quantise, shared_global_scale


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantised weight in the compute dtype. Backward: the gradient as it comes, in float32."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, global_scale: float, dtype: torch.dtype) -> Tensor:
        return fake_quantise(weight, global_scale).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].float(), None, None


class ScaleGroup:
    """Weights that share one global scale, which is recomputed from what they are now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[nn.Linear] = []

    def global_scale(self) -> float:
        """Raises NonFiniteError naming the group."""
        return shared_global_scale([member.weight.detach() for member in self.members], self.name)


class StraightThroughLinear(nn.Linear):
    """x [..., K] → x · Q(weight [N, K])ᵀ in the compute dtype."""

    group: ScaleGroup
    compute_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        weight = _StraightThrough.apply(self.weight, self.group.global_scale(), self.compute_dtype)
        return F.linear(input, weight, None if self.bias is None else self.bias.to(self.compute_dtype))


class CastLinear(nn.Linear):
    """A linear layer of float32 masters that computes in another dtype."""

    compute_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(self.compute_dtype))


class CastEmbedding(nn.Embedding):
    """Rows are gathered before the cast: gradients of a token that occurs often add up in float32."""

    compute_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.compute_dtype)


class CastRMSNorm(Qwen3RMSNorm):
    """Qwen3's norm with its gain read in the compute dtype."""

    compute_dtype: torch.dtype

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight.to(self.compute_dtype) * x.to(hidden_states.dtype)


def _swap(module: nn.Module, kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Give a module another forward. Changing its class keeps parameters, their ties and their names as they are."""
    module.__class__ = kind
    module.compute_dtype = dtype  # type: ignore[assignment]


def _check_master(name: str, module: nn.Linear) -> None:
    if module.weight.dtype != torch.float32:
        raise UsageError(f"{name}: {module.weight.dtype}; expected float32 master weights")
    if module.in_features % BLOCK:
        raise UsageError(f"{name}: {module.in_features} columns; NVFP4 needs a number divisible by {BLOCK}")


def _prepare_linears(model: nn.Module, dtype: torch.dtype) -> None:
    groups: dict[str, ScaleGroup] = {}
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if not (isinstance(module, nn.Linear) and names.is_quantised(name)):
            continue
        _check_master(name, module)
        group = groups.setdefault(names.scale_group(name), ScaleGroup(names.scale_group(name)))
        group.members.append(module)
        _swap(module, StraightThroughLinear, dtype)
        module.group = group  # type: ignore[assignment]
    if not groups:
        raise UsageError(f"{type(model).__name__}: no layer to quantise; expected a Qwen3ForCausalLM")


def _prepare_casts(model: nn.Module, dtype: torch.dtype) -> None:
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: CastLinear,
        nn.Embedding: CastEmbedding,
        Qwen3RMSNorm: CastRMSNorm,
    }
    for module in model.modules():
        if type(module) in kinds:
            _swap(module, kinds[type(module)], dtype)


def prepare(model: PreTrainedModel, compute_dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Make a Qwen3ForCausalLM with float32 parameters compute as its NVFP4 export will. Changes and returns it.

    Raises:
        UsageError: parameters are not float32, a projection's width is not divisible by 16, or there is none.
    """
    _prepare_linears(model, compute_dtype)
    if compute_dtype != torch.float32:
        _prepare_casts(model, compute_dtype)
    return model
