"""Loss and gradients of any causal language model of transformers on a device: its own forward pass, torch's autograd.

The interface is that of `network.Network`, which computes dense decoders faster; a step of either can be a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgod.model.load import model_from_tensors
from fgod.models.names import EMBEDDING, TIED_HEAD
from fgod.nvfp4.layers import prepare
from fgod.train.autograd import checkpoint_layers, head_logits
from fgod.train.device.network import Inputs, OnGrad, SavePolicy, VectorGradients
from fgod.train.device.ops import PLAIN, Ops
from fgod.train.device.weights import Masters
from fgod.train.distil import SoftLabels, divergence


class ModuleNetwork:
    """transformers' model on these masters. Gradients go on as soon as autograd has completed them."""

    packs = False
    """Whether it computes rows that are packed."""

    def __init__(
        self,
        masters: Masters,
        dtype: torch.dtype,
        block_scales: str,
        ops: Ops = PLAIN,
        head_gradient: float = 1.0,
    ) -> None:
        """`head_gradient`: factor on the gradient that the head gives its table."""
        self.masters, self.ops, self.head_gradient = masters, ops, head_gradient
        self.scaled = [group for group in masters.groups if group not in (EMBEDDING, TIED_HEAD)]
        model = model_from_tensors(masters.config, masters.tensors).eval().requires_grad_(True)
        self.model = prepare(model, dtype, block_scales, keep_quantised=False)
        checkpoint_layers(self.model)
        self._grads: VectorGradients | None = None
        for name, parameter in self.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(partial(self._completed, name))

    def _completed(self, name: str, parameter: nn.Parameter) -> None:
        grad, parameter.grad = parameter.grad, None
        if self._grads is None or grad is None:
            return
        if grad.ndim == 1:
            self._grads.vector(name, grad)
        else:
            self._grads.matrix(name, grad)

    def measure_scales(self, amaxes: Tensor, members: Tensor) -> None:
        """Nothing: modules measure the scale of what they quantise when they compute."""

    def _hidden(self, ids: Tensor) -> Tensor:
        return self.model.model(input_ids=ids, use_cache=False).last_hidden_state

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """float32 [B, S, V], for comparisons."""
        return self.model.lm_head(self._hidden(ids)).float()

    def label_losses(self, inputs: Inputs, policies: Sequence[SavePolicy], on_grad: OnGrad) -> Tensor:
        """weight · cross entropy of each label (float32 [L]), which `Inputs.summed` adds up.

        `on_grad` gets each gradient of that sum as soon as it is complete.

        With soft targets it is weight · KL. Layers that are not to save both attention and MLP are computed again in
        the backward pass.
        """
        for layer, policy in zip(self.model.model.layers, policies, strict=True):
            layer.training = not all(policy)
        self._grads = VectorGradients(self.masters, on_grad)
        with torch.enable_grad():
            chosen = self._hidden(inputs.ids).flatten(0, 1).index_select(0, inputs.positions)
            each = self._losses(head_logits(self.model, chosen, self.head_gradient), inputs)
            inputs.summed(each).sum().backward()
        self._grads.finish()
        self._grads = None
        return each.detach()

    def _losses(self, logits: Tensor, inputs: Inputs) -> Tensor:
        if inputs.soft is None:
            return F.cross_entropy(logits.float(), inputs.labels, reduction="none") * inputs.weights
        ids, p, rest, rehearsed, cooling = inputs.soft
        soft = SoftLabels(ids, p, rest, rehearsed, torch.zeros_like(inputs.labels))  # places are in the weights
        return divergence(logits, soft, cooling, self.ops.take, self.ops.put) * inputs.weights
