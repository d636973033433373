"""Count the bytes of all live tensors, by what they are, over full-parameter steps on random weights.

    python benchmarks/bytes_per_parameter.py [--hidden 768 --layers 12 --mlp 3072 --vocab 32000 --tokens 64 --chunk 64]

Not by formula: a dispatch mode sees every tensor that torch makes during two steps, and when its memory is freed. Each
is one of

    masters, m, v    what stays between steps
    gradient         became the gradient of a parameter
    step             made while the optimizer steps a tensor: float32 copies of a chunk of rows
    quantiser        made while weights are quantised, and the quantised weights until they are freed
    activation       all else that forward and backward make: activations, logits, their gradients

Printed: these parts at the widest moment of all; the most that there ever was besides gradients and activations; what
`fgod.train.memory` predicts.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from fgod.model.chats import Sample
from fgod.nvfp4 import layers
from fgod.train.autograd import AutogradStepper, checkpoint_layers
from fgod.train.memory import predict
from fgod.train.optimizer import TensorOptimizer
from fgod.train.recipe import TrainRecipe
from fgod.train.storage import master_kind, states_of

MODES: dict[str, dict[str, Any]] = {
    "fp32 masters and moments, stepped after backward": {"memory": "cpu"},
    "bf16-SR, int8 m, uint8 √v, in backward": {"memory": "80gb"},
    "bf16-SR, NVFP4 m, uint8 √v, in backward": {"memory": "24gb"},
}


PASSING = frozenset(("gradient", "activation"))


@dataclass
class Memory:
    """A storage: its size, and what it is, which may turn out later (a gradient)."""

    size: int
    what: str


class LiveBytes(TorchDispatchMode):
    """Keeps a log of every storage's beginning and end. `activity`: what a new one is."""

    def __init__(self, known: Mapping[str, Sequence[Tensor]]) -> None:
        super().__init__()
        self.log: list[tuple[int, Memory]] = []
        self.alive: dict[int, Memory] = {}
        for self.activity, tensors in known.items():
            for tensor in tensors:
                self.note(tensor)
        self.activity = "activation"

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or tensor.device.type == "meta":
            return
        memory = self.alive[key] = Memory(storage.nbytes(), self.activity)
        self.log.append((memory.size, memory))
        weakref.finalize(storage, self.forget, key, memory)

    def forget(self, key: int, memory: Memory) -> None:
        self.alive.pop(key, None)
        self.log.append((-memory.size, memory))

    def is_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.alive[parameter.grad.untyped_storage()._cdata].what = "gradient"

    def during(self, function: Callable[..., Any], activity: str) -> Callable[..., Any]:
        """The function, so that what it makes is of that kind."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, self.activity = self.activity, activity
            try:
                return function(*args, **kwargs)
            finally:
                self.activity = before

        return wrapped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def widest(self, but: frozenset[str] = frozenset()) -> Counter[str]:
        """Bytes by kind at the moment when those that are not in `but` were most together."""
        now: Counter[str] = Counter()
        most, found = -1, now
        for change, memory in self.log:
            now[memory.what] += change
            total = sum(size for what, size in now.items() if what not in but)
            if total > most:
                most, found = total, now.copy()
        return found


def build(config: Qwen3Config, recipe: TrainRecipe) -> AutogradStepper:
    """A trainer of random weights, Gaussian of .02, in the recipe's masters."""
    model = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
        parameter.data = parameter.data.to(master_kind(recipe.master_dtype, parameter.shape).dtype)
    layers.prepare(model, torch.bfloat16, keep_quantised=not recipe.step_in_backward)
    if recipe.activation_checkpointing:
        checkpoint_layers(model)
    parameters = dict(model.named_parameters())
    return AutogradStepper(
        model, TensorOptimizer(parameters, recipe, dict.fromkeys(parameters, 1.0)), recipe, 0, lambda _: None
    )


def measure(config: Qwen3Config, name: str, changes: dict[str, Any], tokens: int, chunk: int) -> None:
    """One part of the output."""
    recipe = TrainRecipe(steps=2, lr=1e-4, batch=1, compute_dtype="bfloat16", step_chunk_rows=chunk, **changes)
    trainer = build(config, recipe)
    optimizer, parameters = trainer.optimizer, list(trainer.model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    tensors = optimizer.tensors.values()
    known = {
        "masters": [parameter.data for parameter in parameters],
        **{name: [part for tensor in tensors for part in tensor.states[name].tensors] for name in states_of(recipe)},
        "buffers": list(trainer.model.buffers()),
    }
    live = LiveBytes(known)
    sample = Sample(tuple(range(10, 10 + tokens)), tokens // 2)
    before = layers._quantised, layers.shared_global_scale, TensorOptimizer._step_unit
    try:
        layers._quantised = live.during(before[0], "quantiser")
        layers.shared_global_scale = live.during(before[1], "quantiser")
        stepping = live.during(before[2], "step")

        def step_unit(self: TensorOptimizer, unit: Any, grad: Tensor) -> None:
            live.is_gradient(self.tensors[self.names[unit.rows.start]].parameter)
            stepping(self, unit, grad)

        TensorOptimizer._step_unit = step_unit  # type: ignore[method-assign]
        with live:
            for step in range(2):
                trainer.step(step, [sample])
    finally:
        layers._quantised, layers.shared_global_scale, TensorOptimizer._step_unit = before  # type: ignore[method-assign]

    resident = sum(t.untyped_storage().nbytes() for part in ("masters", *states_of(recipe)) for t in known[part])
    widest, rest = live.widest(), live.widest(PASSING)
    predicted = predict(config.to_dict(), recipe, tokens - 1, tokens - tokens // 2).total
    print(
        f"{name}\n  {count:,} parameters; bytes a parameter:\n"
        f"  between steps           {resident / count:.4f}\n"
        f"  widest moment           {said(widest, count)}\n"
        f"  without gradients and activations {besides(widest) / count:.4f}; at any moment at most "
        f"{besides(rest) / count:.4f}, at {said(rest, count)}\n"
        f"  predicted {predicted / count:.4f}, measured / predicted {sum(widest.values()) / predicted:.3f}",
        flush=True,
    )


def besides(parts: Counter[str]) -> int:
    """Bytes without gradients and activations."""
    return sum(size for what, size in parts.items() if what not in PASSING)


def said(parts: Counter[str], count: int) -> str:
    """Sum and parts in bytes a parameter."""
    listed = ", ".join(f"{what} {size / count:.4f}" for what, size in parts.items() if size)
    return f"{sum(parts.values()) / count:.4f} ({listed})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for key, default in (
        ("hidden", 768),
        ("layers", 12),
        ("mlp", 3072),
        ("vocab", 32000),
        ("tokens", 64),
        ("chunk", 64),
    ):
        parser.add_argument(f"--{key}", type=int, default=default)
    args = parser.parse_args()
    config = Qwen3Config(
        hidden_size=args.hidden,
        intermediate_size=args.mlp,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 192,
        head_dim=64,
        vocab_size=args.vocab,
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    for name, changes in MODES.items():
        measure(config, name, changes, args.tokens, args.chunk)


if __name__ == "__main__":
    main()
