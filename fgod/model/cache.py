"""Keys and values in memory of a fixed size, for passes that say themselves which places they write and see."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, StaticLayer


class CacheLayer(StaticLayer):
    """Keys and values [rows, heads, length, width] of a layer; a pass writes `places` and sees the first `seen`."""

    keys: Any
    values: Any
    places: Tensor
    seen: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys.index_copy_(2, self.places, key_states)
        self.values.index_copy_(2, self.places, value_states)
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def grow(self, length: int) -> None:
        """Room for so many tokens; what is there stays."""
        self.max_cache_len = length
        if self.is_initialized:
            self.keys, self.values = (_longer(old, length) for old in (self.keys, self.values))


def _longer(old: Tensor, length: int) -> Tensor:
    new = old.new_zeros(*old.shape[:2], length, old.shape[3])
    new[:, :, : old.shape[2]] = old
    return new


class FixedCache:
    """The layers of a model, and passes through it.

    Args:
        length: tokens that there is room for; more after `grow`.
    """

    def __init__(self, model: PreTrainedModel, length: int = 0) -> None:
        self.model, self.length = model, length
        config = model.config.get_text_config()
        self.layers = [CacheLayer(length) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=cast(Any, self.layers))
        self._kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        self._window = getattr(config, "sliding_window", None)
        computing = (module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype"))
        self._dtype: Any = next(computing, model.dtype)  # a prepared model has masters of another one

    def grow(self, length: int) -> None:
        """Room for so many tokens; what is there stays."""
        for layer in self.layers:
            layer.grow(length)
        self.length = length

    def forward(self, ids: Tensor, positions: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """Logits float32 [rows, V] of the last column of a pass.

        Args:
            ids: int64 [rows, tokens]; `positions`: of the same shape or [1, tokens], for rotary embeddings.
            places: int64 [tokens], where in the cache the pass is written.
            visible: bool [rows or 1, tokens, keys], which keys each token may see where there is no window.
        """
        for layer in self.layers:
            layer.places, layer.seen = places, visible.shape[-1]
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self._masks(visible[:, None], places),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float()

    def _masks(self, full: Tensor, places: Tensor) -> Any:
        """The mask [rows, 1, tokens, keys] of each kind of layer that the model has; one where it tells none apart."""
        near = full
        if self._window is not None:
            near = full & (torch.arange(full.shape[-1], device=full.device) > places[:, None] - self._window)
        if not self._kinds:  # a window, where there is one, is every layer's
            return self._mask(near)
        return {kind: self._mask(near if kind == "sliding_attention" else full) for kind in self._kinds}

    def _mask(self, visible: Tensor) -> Tensor:
        """As the model's attention takes it: what it adds, where it computes attention itself, and on a GPU, where each
        layer would make that of it."""
        if self.model.config._attn_implementation != "eager" and visible.device.type != "cuda":
            return visible
        nothing = torch.zeros(visible.shape, dtype=self._dtype, device=visible.device)
        return nothing.masked_fill(~visible, torch.finfo(self._dtype).min)
