"""A stock model that trains what will be served: quantised weights forward, straight-through gradients backward.

The parameters stay masters under their stock names. `prepare` only changes how modules read them: the projections
through the quantiser, and where masters have another dtype than computation all other modules through a cast.
The forward then equals that of the reloaded export bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fgod.errors import UsageError
from fgod.models.architecture import ARCHITECTURES, Architecture
from fgod.nvfp4 import kernels
from fgod.nvfp4.codec import BLOCK, CHUNK, fake_quantise, shared_global_scale


class _QuantisedLinear(torch.autograd.Function):
    """x [..., K] · Q(W [N, K])ᵀ (+ bias [N]) in the compute dtype; the gradient passes the quantiser as it comes.

    `keep` decides what waits for the backward pass: Q(W), or W itself, which is then quantised again under the global
    scale of the forward pass. So a tensor of its group that was stepped in the meantime changes nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        global_scale: float | Tensor,
        dtype: torch.dtype,
        block_scales: str,
        keep: bool,
    ) -> Tensor:
        quantised = _quantised(weight, global_scale, dtype, block_scales)
        ctx.save_for_backward(x, quantised if keep else weight)
        ctx.settings = global_scale, dtype, block_scales, keep
        return F.linear(x, quantised, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        global_scale, dtype, block_scales, keep = ctx.settings
        quantised = weight if keep else _quantised(weight, global_scale, dtype, block_scales)
        grad = grads[0].flatten(0, -2)
        to_x = (grad @ quantised).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = grad.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        to_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias, None, None, None, None


def _quantised(weight: Tensor, global_scale: float | Tensor, dtype: torch.dtype, block_scales: str) -> Tensor:
    if isinstance(global_scale, Tensor):
        from fgod.nvfp4.kernels import codec as on_gpu

        return on_gpu.fake_quantise(weight.detach(), global_scale, dtype, block_scales)
    rows = max(1, CHUNK // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    out = torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)
    for part, into in zip(weight.detach().split(rows), out.split(rows), strict=True):
        fake_quantise(part.float(), global_scale, block_scales=block_scales, out=into)
    return out


class Tie:
    """Carries the head's gradient of a tied table to the gather, which adds its rows to it: one table, not three."""

    grad: Tensor | None = None


class _CastLinear(torch.autograd.Function):
    """x [..., K] · W [N, K]ᵀ in the compute dtype; W's gradient is laid out as W is, so that nobody copies it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, tie: Tie | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.tie = tie
        if tie is not None:
            tie.grad = None
        return F.linear(x, weight.to(dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        to_x = (grad @ weight.to(grad.dtype)).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = grad.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        if ctx.tie is not None:
            ctx.tie.grad, to_weight = to_weight, None
        return to_x, to_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None, None


class _Gather(torch.autograd.Function):
    """Rows [..., K] of a table in the compute dtype. The gradients of a token that occurs often add up in float32."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype, tie: Tie | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table.shape, table.dtype, tie
        return F.embedding(ids, table).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        shape, dtype, tie = ctx.table
        if grads[0].is_cuda:
            return _gathered_without_waiting(ctx.saved_tensors[0], grads[0], shape, dtype, tie), None, None, None
        tokens, places = ctx.saved_tensors[0].flatten().unique(return_inverse=True)
        sums = torch.zeros(len(tokens), shape[1], device=grads[0].device)
        sums.index_add_(0, places, grads[0].flatten(0, -2).float())
        if tie is None or tie.grad is None:
            grad = torch.zeros(shape, dtype=dtype, device=sums.device)
        else:
            grad, tie.grad = tie.grad, None
        sums.add_(grad.index_select(0, tokens))
        return grad.index_copy_(0, tokens, sums.to(grad.dtype)), None, None, None


def _gathered_without_waiting(
    ids: Tensor, grad: Tensor, shape: torch.Size, dtype: torch.dtype, tie: Tie | None
) -> Tensor:
    """A table's gradient in its own dtype, without asking the device how many tokens there are: for CUDA graphs."""
    table = None if tie is None else tie.grad
    if tie is None or table is None:
        table = torch.zeros(shape, dtype=dtype, device=grad.device)
    else:
        tie.grad = None
    return table.index_put_((ids.flatten(),), grad.flatten(0, -2).to(table.dtype), accumulate=True)


class ScaleGroup:
    """Weights that share one global scale, which is recomputed from what they are now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[nn.Linear] = []
        self._scale: Tensor | None = None
        self._asked: set[int] = set()

    def global_scale(self) -> float:
        """Raises NonFiniteError naming the group."""
        return shared_global_scale([member.weight.detach() for member in self.members], self.name)

    def scale_for(self, member: nn.Linear) -> float | Tensor:
        """The scale that a member quantises by; with kernels a tensor [1] on the GPU, for which nobody waits.

        A forward pass asks once for each member: so a tensor serves all of them, until one asks again. It is NaN where
        `global_scale` raises, and the loss is then, too.
        """
        if not kernels.run_on(member.weight.device):
            return self.global_scale()
        if self._scale is None or id(member) in self._asked:
            from fgod.nvfp4.kernels import codec as on_gpu

            self._scale = on_gpu.global_scale([each.weight.detach() for each in self.members])
            self._asked.clear()
        self._asked.add(id(member))
        return self._scale


class StraightThroughLinear(nn.Linear):
    """x [..., K] → x · Q(weight [N, K])ᵀ + bias in the compute dtype."""

    group: ScaleGroup
    compute_dtype: torch.dtype
    block_scales: str
    keep_quantised: bool
    quantised: Tensor | None = None
    """See `quantised_once`."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        if self.quantised is not None:
            return F.linear(input, self.quantised, bias)
        scale = self.group.scale_for(self)
        return _QuantisedLinear.apply(
            input, self.weight, bias, scale, self.compute_dtype, self.block_scales, self.keep_quantised
        )


class CastLinear(nn.Linear):
    """A linear layer that computes in another dtype than that of its masters."""

    compute_dtype: torch.dtype
    tie: Tie | None

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _CastLinear.apply(input, self.weight, bias, self.compute_dtype, self.tie)


class CastEmbedding(nn.Embedding):
    """An embedding whose rows are cast once they are gathered."""

    compute_dtype: torch.dtype
    tie: Tie | None

    def forward(self, input: Tensor) -> Tensor:
        return _Gather.apply(self.weight, input, self.compute_dtype, self.tie)


def _cast_parameter(name: str) -> property:
    def read(module: nn.Module) -> Tensor:
        return module._parameters[name].to(module.compute_dtype)  # type: ignore[union-attr, arg-type]

    return property(read)


def _cast_kind(kind: type[nn.Module], parameters: Iterable[str]) -> type[nn.Module]:
    """A class whose stock forward reads its own parameters in the compute dtype, as a server that stores them so does.

    The parameters stay where they are: `named_parameters`, hooks and gradients see the masters.
    """
    return type(f"Cast{kind.__name__}", (kind,), {name: _cast_parameter(name) for name in parameters})


def _swap(module: nn.Module, kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Give a module another forward. Changing its class keeps parameters, their ties and their names as they are."""
    module.__class__ = kind
    module.compute_dtype = dtype  # type: ignore[assignment]


def _check_master(name: str, module: nn.Linear) -> None:
    if module.weight.dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(f"{name}: {module.weight.dtype}; expected float32 or bfloat16 master weights")
    if module.in_features % BLOCK:
        raise UsageError(f"{name}: {module.in_features} columns; NVFP4 needs a number divisible by {BLOCK}")


def _prepare_linears(
    model: nn.Module, family: Architecture, dtype: torch.dtype, block_scales: str, keep_quantised: bool
) -> None:
    groups: dict[str, ScaleGroup] = {}
    for path, module in model.named_modules():
        name = f"{path}.weight"
        shared = family.scale_group(name)
        if not isinstance(module, nn.Linear) or shared is None:
            continue
        _check_master(name, module)
        group = groups.setdefault(shared, ScaleGroup(shared))
        group.members.append(module)
        _swap(module, StraightThroughLinear, dtype)
        module.group = group  # type: ignore[assignment]
        module.block_scales = block_scales  # type: ignore[assignment]
        module.keep_quantised = keep_quantised  # type: ignore[assignment]
    if not groups:
        raise UsageError(f"{type(model).__name__}: found no layer to quantise, expected those that its family names")


def _prepare_casts(model: nn.Module, dtype: torch.dtype, tie: Tie | None) -> None:
    kinds: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: CastLinear, nn.Embedding: CastEmbedding}
    for module in list(model.modules()):
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if not own or isinstance(module, StraightThroughLinear):
            continue
        _swap(module, kinds.get(type(module)) or _cast_kind(type(module), own), dtype)
        if isinstance(module, CastEmbedding | CastLinear):
            module.tie = tie


def _tie(model: PreTrainedModel) -> Tie | None:
    """For a table that is both embedding and head, where both are of the kinds that add up their gradients."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = type(table) is nn.Embedding and type(head) is nn.Linear
    return Tie() if plain and table.weight is head.weight else None


def prepare(
    model: PreTrainedModel,
    compute_dtype: torch.dtype = torch.float32,
    block_scales: str = "amax",
    keep_quantised: bool = True,
) -> PreTrainedModel:
    """Make a causal language model of float32 or BF16 masters compute as its NVFP4 export will. Changes and returns it.

    Args:
        model: of a registered family (`fgod.models`).
        block_scales: see `codec.BLOCK_SCALES`.
        keep_quantised: keep quantised weights for the backward pass (faster), or make them again (smaller).

    Raises:
        UsageError: the family is not registered, parameters have another dtype, a projection's width is not divisible
            by 16, or there is none.
    """
    family = ARCHITECTURES[type(model).__name__]
    _prepare_linears(model, family, compute_dtype, block_scales, keep_quantised)
    if any(parameter.dtype != compute_dtype for parameter in model.parameters()):
        _prepare_casts(model, compute_dtype, _tie(model))
    return model


def quantised_once(model: PreTrainedModel) -> PreTrainedModel:
    """Let a prepared model, whose masters will not change any more, keep what they round to: the same products as when
    it quantises in each forward pass, a hundred times faster for one token. Changes and returns it."""
    for module in model.modules():
        if isinstance(module, StraightThroughLinear):
            scale = module.group.scale_for(module)
            module.quantised = _quantised(module.weight, scale, module.compute_dtype, module.block_scales)
    return model
