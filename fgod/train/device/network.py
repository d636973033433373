"""A dense decoder with its backward pass written out: what is saved, what is computed again, when gradients are done.

Llama, Mistral, Qwen2 and Qwen3 are one network: projections of the attention may have biases, queries and keys may be
normed, the head may be the embedding. Which of these a model has is read from the names of its masters.

Forward it computes what the NVFP4 export will (`fgod.nvfp4.layers`), in one matrix product for q, k and v and one for
gate and up. A layer keeps its input and what the attention added to it; with room its queries, keys, values and
attention too, or gate and up. Quantised weights are never saved: they are made again under the forward pass's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fgod.models.architecture import architecture_of
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.codec import device_global_scale
from fgod.train.device.attention import PackedRows, attention, kernel_serves
from fgod.train.device.head import WHOLE, SoftTargets, Vocabulary, head_loss, soft_head_loss
from fgod.train.device.ops import Ops
from fgod.train.device.weights import Masters, frequencies
from fgod.train.update import Factors

OnGrad = Callable[[str, Tensor | Factors], None]
"""Called with a scale group (or the width of a bank of vectors, as text) and its gradient, once it is complete. Factors
must be used at once: what they are views of may be freed or written."""


class SavePolicy(NamedTuple):
    """What a layer saves besides its input and the middle of its residual stream."""

    attention: bool
    mlp: bool


@dataclass
class SavedActivations:
    """Of one layer, for its backward pass. Without `qkv` or `gate_up` these are computed again."""

    entered: Tensor
    middle: Tensor
    attended: Attended | None = None
    gate_up: Tensor | None = None


class Attended(NamedTuple):
    """qkv [B, S, heads, D]; queries, keys, values and what came of them, joined by autograd; out [T, heads·D]."""

    qkv: Tensor
    parts: tuple[Tensor, Tensor, Tensor]
    out: Tensor


class Inputs(NamedTuple):
    """Of one step, all on the device. ids int64 [B, S]; positions and labels int64 [L]; weights float32 [L]: 0 where
    a label only fills up, else 1 over the count of labels (times what it counts, with `soft`). packed: where rows lie
    in ids [1, T]; None: each is a row of ids."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    soft: SoftTargets | None = None
    packed: PackedRows | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return (*self[:4], *(self.soft or ()), *(self.packed[:1] if self.packed else ()))

    def empty_like(self, device: torch.device) -> Inputs:
        """Room for others of the same shapes."""

        def room(part: Tensor) -> Tensor:
            return torch.empty_like(part, device=device)

        soft = None if self.soft is None else SoftTargets(*map(room, self.soft))
        packed = None if self.packed is None else self.packed._replace(starts=room(self.packed.starts))
        return Inputs(room(self.ids), room(self.positions), room(self.labels), room(self.weights), soft, packed)

    def summed(self, each: Tensor) -> Tensor:
        """The loss that labels [L] add up to: no dimension; with `soft` [2], of taught ones and of rehearsed ones."""
        if self.soft is None:
            return each.sum()
        return torch.stack(((each * (1 - self.soft.rehearsed)).sum(), (each * self.soft.rehearsed).sum()))


class _Weight:
    """A group's quantised weight Q(W) [N, K] as a factor: made within the product for few tokens, else beforehand."""

    def __init__(self, network: Network, group: str, tokens: int) -> None:
        self.network, self.group = network, group
        products = network.ops.products
        within = products is not None and tokens <= products.MOST_TOKENS and network.dtype == torch.bfloat16
        self._products = products if within else None
        self._master = network.masters.groups[group], network.scales[group]

    @cached_property
    def _matrix(self) -> Tensor:
        return self.network.quantised(self.group)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [T, K] · Q(W)ᵀ, and a residual [T, N] added."""
        if self._products is not None:
            return self._products.forward(x, *self._master, residual, self.network.block_scales)
        return x @ self._matrix.t() if residual is None else torch.addmm(residual, x, self._matrix.t())

    def backward(self, grad: Tensor) -> Tensor:
        """grad [T, N] · Q(W)."""
        if self._products is not None:
            return self._products.backward(grad, *self._master, self.network.block_scales)
        return grad @ self._matrix


class VectorGradients:
    """Hands gradients of matrices on as they come, and those of vectors together at the end, by bank."""

    def __init__(self, masters: Masters, on_grad: OnGrad) -> None:
        self.masters, self.matrix = masters, on_grad
        self._rows = {width: torch.zeros_like(bank.rows) for width, bank in masters.banks.items()}

    def vector(self, name: str, grad: Tensor) -> None:
        """grad [K] of a norm's weight or a bias."""
        self._rows[len(grad)][self.masters.banks[len(grad)].names.index(name)] = grad

    def vectors(self, names: Sequence[str], to_output: Tensor) -> None:
        """Of biases that were added side by side, from the gradient [T, N] of what they were added to."""
        if names:
            parts = to_output.sum(0, dtype=torch.float32).split([len(self.masters.tensors[name]) for name in names])
            for name, grad in zip(names, parts, strict=True):
                self.vector(name, grad)

    def finish(self) -> None:
        for width, rows in self._rows.items():
            self.matrix(str(width), rows)


class Network:
    """Loss and gradients of masters on a device."""

    def __init__(
        self, masters: Masters, ops: Ops, dtype: torch.dtype, block_scales: str, head_gradient: float = 1.0
    ) -> None:
        """`head_gradient`: factor on the gradient that the head gives its table."""
        self.masters, self.ops, self.dtype, self.block_scales = masters, ops, dtype, block_scales
        self.head_gradient = head_gradient
        self.tokens: Vocabulary = WHOLE
        sizes = architecture_of(masters.config, "config.json").sizes(masters.config, "config.json")
        self.layers, self.heads, self.kv_heads = sizes.layers, sizes.heads, sizes.kv_heads
        self.head_dim, self.tied = sizes.head_dim, sizes.tied
        self.eps: float = masters.config["rms_norm_eps"]
        self.frequencies = frequencies(masters.config).to(masters.device)
        self.scaled = [group for group in masters.groups if group not in (EMBEDDING, TIED_HEAD)]
        self.scales: dict[str, Tensor] = {}
        self.rope_cos_sin: tuple[Tensor, Tensor]
        """cos and sin of the step that is computed."""
        self.packed: PackedRows | None
        """Where its rows lie."""
        self._arrange(torch.zeros(1, 0))

    @property
    def packs(self) -> bool:
        """Whether it computes rows that are packed."""
        return self.masters.device.type != "cuda" or kernel_serves(self.dtype, self.head_dim)

    def measure_scales(self, amaxes: Tensor, members: Tensor) -> None:
        """Global scales of all groups at once, before a forward pass.

        Args:
            amaxes: float32 [tensors], the largest magnitude of each matrix now.
            members: int64 [groups, most members]: places of the members of each of `scaled`, one perhaps repeated.
        """
        scales = device_global_scale(amaxes[members].amax(1))
        self.scales = dict(zip(self.scaled, scales.unbind(), strict=True))

    def quantised(self, group: str) -> Tensor:
        """Q(W) of a group in the compute dtype."""
        return self.ops.quantise(self.masters.groups[group], self.scales[group], self.dtype, self.block_scales)

    def norm_weight(self, layer: int, name: str) -> Tensor:
        return self.masters.tensors[f"model.layers.{layer}.{name}.weight"]

    def _head_norms(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the norms of queries and keys, where the model has them."""
        q, k = (self.masters.tensors.get(name) for name in self._head_norm_names(layer))
        return q, k

    @staticmethod
    def _head_norm_names(layer: int) -> tuple[str, str]:
        at = f"model.layers.{layer}.self_attn"
        return f"{at}.q_norm.weight", f"{at}.k_norm.weight"

    def _biases(self, layer: int, projections: str) -> tuple[str, ...]:
        """Names of the biases that the projections of a layer's attention have: `projections` is "qkv" or "o"."""
        names = (f"model.layers.{layer}.self_attn.{one}_proj.bias" for one in projections)
        return tuple(name for name in names if name in self.masters.tensors)

    def _add_bias(self, x: Tensor, layer: int, projections: str) -> Tensor:
        """x [T, N], to which the biases of all these projections are added in place, if there are any."""
        names = self._biases(layer, projections)
        return x.add_(torch.cat([self.masters.tensors[name] for name in names]).to(x.dtype)) if names else x

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.norm(x, weight, self.eps)

    def _arrange(self, ids: Tensor, packed: PackedRows | None = None) -> None:
        """Before a step on ids [B, S]: where its rows lie, and cos and sin float32 [S, D] of the places of tokens in
        them, rounded to the compute dtype."""
        width = ids.shape[1]
        places = torch.arange(width, device=self.frequencies.device) if packed is None else packed.places(width)
        angles = places.float()[:, None] * self.frequencies
        both = torch.cat((angles, angles), -1)
        self.packed = packed
        self.rope_cos_sin = both.cos().to(self.dtype).float(), both.sin().to(self.dtype).float()

    # -------------------------------------------------------------------------------------------------------- forward

    def embed(self, ids: Tensor) -> Tensor:
        """[T, H] of ids [B, S]."""
        return F.embedding(ids, self.masters.tensors[EMBEDDING]).to(self.dtype).flatten(0, 1)

    def _attend(self, layer: int, entered: Tensor, weight: _Weight, shape: torch.Size, graph: bool) -> Attended:
        """Attention of a layer's input [T, H]; with `graph` autograd remembers it."""
        hidden = self._norm(entered, self.norm_weight(layer, "input_layernorm"))
        qkv = self._add_bias(weight.forward(hidden), layer, "qkv").view(*shape, -1, self.head_dim)
        q, k = self.ops.heads(qkv, *self._head_norms(layer), *self.rope_cos_sin, self.heads, self.kv_heads, self.eps)
        parts = q, k, qkv[:, :, self.heads + self.kv_heads :].detach()
        if graph:
            for part in parts:
                part.requires_grad_()
        with torch.set_grad_enabled(graph):
            return Attended(qkv, parts, attention(*parts, self.packed).reshape(len(entered), -1))

    def layer(self, layer: int, x: Tensor, shape: torch.Size, policy: SavePolicy) -> tuple[Tensor, SavedActivations]:
        """One layer on the residual stream x [T, H]."""
        at, tokens = f"model.layers.{layer}", len(x)
        attended = self._attend(layer, x, _Weight(self, f"{at}.self_attn.qkv_proj", tokens), shape, policy.attention)
        out = attended.out.detach()
        middle = self._add_bias(_Weight(self, f"{at}.self_attn.o_proj", tokens).forward(out, x), layer, "o")
        hidden = self._norm(middle, self.norm_weight(layer, "post_attention_layernorm"))
        gate_up = _Weight(self, f"{at}.mlp.gate_up_proj", tokens).forward(hidden)
        leaving = _Weight(self, f"{at}.mlp.down_proj", tokens).forward(self.ops.swiglu(gate_up), middle)
        saved = SavedActivations(x, middle, attended if policy.attention else None, gate_up if policy.mlp else None)
        return leaving, saved

    @torch.no_grad()
    def logits(self, ids: Tensor, packed: PackedRows | None = None) -> Tensor:
        """float32 [B, S, V], for comparisons."""
        self._arrange(ids, packed)
        x = self.embed(ids)
        for layer in range(self.layers):
            x, _ = self.layer(layer, x, ids.shape, SavePolicy(False, False))
        hidden = self._norm(x, self.masters.tensors["model.norm.weight"])
        return (hidden @ self._head().to(self.dtype).t()).float().view(*ids.shape, -1)

    def _head(self) -> Tensor:
        return self.masters.tensors[EMBEDDING if self.tied else TIED_HEAD]

    # ------------------------------------------------------------------------------------------------------- backward

    @torch.no_grad()
    def label_losses(self, inputs: Inputs, policies: Sequence[SavePolicy], on_grad: OnGrad) -> Tensor:
        """weight · cross entropy of each label (float32 [L]), which `Inputs.summed` adds up.

        `on_grad` gets each gradient of that sum as soon as it is complete.

        With soft targets it is weight · KL.
        """
        shape = inputs.ids.shape
        self._arrange(inputs.ids, inputs.packed)
        grads = VectorGradients(self.masters, on_grad)
        saved: list[SavedActivations] = []
        x = self.embed(inputs.ids)
        for layer in range(self.layers):
            x, one = self.layer(layer, x, shape, policies[layer])
            saved.append(one)
        final = self.masters.tensors["model.norm.weight"]
        chosen = x.index_select(0, inputs.positions)
        to_head: Tensor | None
        each, to_hidden, to_head = self._head_losses(self._norm(chosen, final), inputs)
        to_chosen, to_norm = self.ops.joined_norm_backward(
            chosen, final, self.eps, to_hidden, torch.zeros_like(to_hidden)
        )
        grads.vector("model.norm.weight", to_norm)
        grad = torch.zeros_like(x).index_put_((inputs.positions,), to_chosen, accumulate=True)
        del x, chosen, to_hidden, to_chosen
        if not self.tied and to_head is not None:
            on_grad(TIED_HEAD, to_head)
            to_head = None
        for layer in reversed(range(self.layers)):
            grad = self._layer_backward(layer, grad, saved.pop(), shape, grads)
        on_grad(EMBEDDING, self._table_gradient(inputs.ids.flatten(), grad, to_head))
        grads.finish()
        return each

    def _head_losses(self, hidden: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """What each label adds to the loss, and the gradients of hidden states [L, H] and of the head."""
        head = self._head()
        to_head = torch.empty(head.shape, dtype=self.dtype, device=head.device)
        if inputs.soft is None:
            each, to_hidden = head_loss(self.ops, hidden, head, inputs.labels, inputs.weights, to_head, self.tokens)
        else:
            each, to_hidden = soft_head_loss(self.ops, hidden, head, inputs.soft, inputs.weights, to_head, self.tokens)
        if self.head_gradient != 1:
            to_head *= self.head_gradient
        return each, to_hidden, to_head

    def _table_gradient(self, ids: Tensor, grad: Tensor, to_head: Tensor | None) -> Tensor:
        """The embedding's gradient, from that of what ids [T] gave, [T, H], and the head's where it is that too."""
        table = self.masters.tensors[EMBEDDING]
        to_table = torch.zeros_like(table, dtype=self.dtype) if to_head is None else to_head
        return to_table.index_put_((ids,), grad, accumulate=True)

    def _layer_backward(
        self, layer: int, grad: Tensor, saved: SavedActivations, shape: torch.Size, grads: VectorGradients
    ) -> Tensor:
        """The gradient of a layer's input from that of its output, both [T, H]."""
        return self._attention_backward(layer, self._mlp_backward(layer, grad, saved, grads), saved, shape, grads)

    def _mlp_backward(self, layer: int, grad: Tensor, saved: SavedActivations, grads: VectorGradients) -> Tensor:
        at = f"model.layers.{layer}"
        norm = self.norm_weight(layer, "post_attention_layernorm")
        hidden = self._norm(saved.middle, norm)
        up = _Weight(self, f"{at}.mlp.gate_up_proj", len(grad))
        gate_up = up.forward(hidden) if saved.gate_up is None else saved.gate_up
        to_active = _Weight(self, f"{at}.mlp.down_proj", len(grad)).backward(grad)
        to_both, active = self.ops.swiglu_backward(gate_up, to_active)
        saved.gate_up = None
        del gate_up
        grads.matrix(f"{at}.mlp.down_proj", Factors(grad, active))
        del active, to_active
        to_hidden = up.backward(to_both)
        grads.matrix(f"{at}.mlp.gate_up_proj", Factors(to_both, hidden))
        to_middle, to_norm = self.ops.joined_norm_backward(saved.middle, norm, self.eps, to_hidden, grad)
        grads.vector(f"{at}.post_attention_layernorm.weight", to_norm)
        return to_middle

    def _attention_backward(
        self, layer: int, grad: Tensor, saved: SavedActivations, shape: torch.Size, grads: VectorGradients
    ) -> Tensor:
        at, norm = f"model.layers.{layer}", self.norm_weight(layer, "input_layernorm")
        weight = _Weight(self, f"{at}.self_attn.qkv_proj", len(grad))
        attended = saved.attended or self._attend(layer, saved.entered, weight, shape, True)
        out = attended.out.detach()
        to_out = _Weight(self, f"{at}.self_attn.o_proj", len(grad)).backward(grad)
        grads.matrix(f"{at}.self_attn.o_proj", Factors(grad, out))
        grads.vectors(self._biases(layer, "o"), grad)
        to_parts = torch.autograd.grad(attended.out, attended.parts, to_out)
        to_qkv, *to_head_norms = self.ops.heads_backward(
            attended.qkv, *self._head_norms(layer), *self.rope_cos_sin, self.eps, *to_parts
        )
        saved.attended = None
        del attended, out, to_parts
        to_qkv = to_qkv.view(len(grad), -1)
        to_hidden = weight.backward(to_qkv)
        hidden = self._norm(saved.entered, norm)
        grads.matrix(f"{at}.self_attn.qkv_proj", Factors(to_qkv, hidden))
        grads.vectors(self._biases(layer, "qkv"), to_qkv)
        to_entered, to_norm = self.ops.joined_norm_backward(saved.entered, norm, self.eps, to_hidden, grad)
        grads.vector(f"{at}.input_layernorm.weight", to_norm)
        for name, to_head_norm in zip(self._head_norm_names(layer), to_head_norms, strict=True):
            if to_head_norm is not None:
                grads.vector(name, to_head_norm)
        return to_entered
