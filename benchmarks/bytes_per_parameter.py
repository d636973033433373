"""Count the bytes of all live tensors at the widest moment of full-parameter steps, on random weights.

    python benchmarks/bytes_per_parameter.py [--hidden 768 --layers 12 --mlp 3072 --vocab 32000 --tokens 64]

Not by formula: a dispatch mode sees every tensor that torch makes during two steps and adds up the storages that are
alive. Printed beside it: what stays between steps, the largest gradient, and what `fgod.train.memory` predicts.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from fgod.nvfp4 import prepare
from fgod.train import TrainRecipe
from fgod.train.batches import Sample
from fgod.train.loop import _checkpoint_layers, _Trainer
from fgod.train.memory import predict
from fgod.train.optimizer import AdamW
from fgod.train.storage import master_kind

MODES: dict[str, dict[str, Any]] = {
    "fp32 masters and moments, stepped after backward": {"memory": "cpu"},
    "bf16-SR, int8 m, uint8 √v, in backward": {"memory": "80gb", "step_chunk_rows": 256},
    "bf16-SR, NVFP4 m, uint8 √v, in backward": {"memory": "24gb", "step_chunk_rows": 256},
}


class LiveBytes(TorchDispatchMode):
    """Bytes of storages that are alive, and the most there ever were."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen: set[int] = set()
        for tensor in known:
            self.note(tensor)

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen or tensor.device.type == "meta":
            return
        self.seen.add(key)
        self.live += storage.nbytes()
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out


def build(config: Qwen3Config, recipe: TrainRecipe) -> _Trainer:
    """A trainer of random weights, Gaussian of .02, in the recipe's masters."""
    model = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
        parameter.data = parameter.data.to(master_kind(recipe.master_dtype, parameter.shape).dtype)
    prepare(model, torch.bfloat16, keep_quantised=not recipe.step_in_backward)
    if recipe.activation_checkpointing:
        _checkpoint_layers(model)
    parameters = dict(model.named_parameters())
    return _Trainer(model, AdamW(parameters, recipe, dict.fromkeys(parameters, 1.0)), recipe, 0, lambda _: None)


def measure(config: Qwen3Config, name: str, changes: dict[str, Any], tokens: int) -> None:
    """One line of the table."""
    recipe = TrainRecipe(steps=2, lr=1e-4, batch=1, compute_dtype="bfloat16", **changes)
    trainer = build(config, recipe)
    optimizer = trainer.optimizer
    states = [t for tensor in optimizer.tensors.values() for part in (tensor.m, tensor.v) for t in part.tensors]
    parameters = [parameter.data for parameter in trainer.model.parameters()]
    count = sum(parameter.numel() for parameter in parameters)
    sample = Sample(tuple(range(10, 10 + tokens)), tokens // 2)
    with LiveBytes([*parameters, *states, *trainer.model.buffers()]) as bytes_alive:
        for step in range(2):
            trainer.step(step, [sample])
        widest = bytes_alive.most
    resident = sum(t.untyped_storage().nbytes() for t in (*parameters, *states))
    held = recipe.step_in_backward
    gradient = (max if held else sum)(p.numel() * (p.element_size() if held else 4) for p in parameters)
    predicted = predict(config.to_dict(), recipe, tokens - 1, tokens - tokens // 2)
    print(
        f"{name}\n  parameters {count:,}; between steps {resident / count:.4f} bytes a parameter; widest moment "
        f"{widest / count:.4f}\n  widest less gradients ({gradient / count:.4f}): {(widest - gradient) / count:.4f}; "
        f"of that activations and temporaries {(widest - gradient - resident) / count:.4f}\n"
        f"  predicted {predicted.total / count:.4f}, measured / predicted {widest / predicted.total:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for key, default in (("hidden", 768), ("layers", 12), ("mlp", 3072), ("vocab", 32000), ("tokens", 64)):
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
        measure(config, name, changes, args.tokens)


if __name__ == "__main__":
    main()
