"""A base of random weights in a real model's shape: it answers nonsense, and measures speed and memory as the real one.

    base: {kind: random, shape: qwen3-4b}

A Hugging Face folder of BF16 shards; the tokenizer is the embedded base's, in a vocabulary padded to the shape's.

The nonsense must not repeat itself, or there is nothing to rehearse. Attention averages over what was said, so in a
deep random network the part that all positions share grows from layer to layer until every reply is one token
repeated. And what two paths of computation round differently must not grow either, or training refuses to start:
its logits would not be those of the export. So what a layer adds to the residual stream is small in all layers but the
last, which alone decides the next token. Tokens that are no text of their own (padding, control tokens, parts of a
character) have small rows in the tables, and are not chosen. They are not 0: a chat's first token would stay 0 in every
layer, and there a norm's gradient is a thousand times as large as what it normed: after 36 layers beyond all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.model.embedded import base_tokenizer
from fgod.model.load import quiet
from fgod.model.spec import SHAPES
from fgod.models.architecture import tensors_of
from fgod.nvfp4.folders import DEVICE_SHARD_BYTES, described, write_weights
from fgod.system.files import atomic_folder, write_json

ADDED = 0.3
LAST_ADDED = {"o_proj": 0.5, "down_proj": 1.5}
"""Relative to `std_of`: the matrices whose products a layer adds to the residual stream, and those of the last layer.

Measured with 36 layers, 640 wide, 12 prompts: logits of two BF16 paths differ by .040
(relative norm), and no greedy reply of 64 tokens ends in a cycle of at most 5. With .3 for o_proj and 1 for down_proj
in every layer: .058, and none; that of 4 B parameters then differed by .056, where training allows .05. With .05 for
both in all layers, but 1 in the last: .035, and nine."""

TABLES = ("embed_tokens.weight", "lm_head.weight")
"""Tensors with a row for each token."""

SILENT = 0.05
"""Rows of tokens that are not to be chosen, relative to those of others."""

BROKEN = "\ufffd"
"""What a part of a character is decoded to."""

TOKENIZER_VOCAB = 2700
"""Tokens of the tokenizer at most."""


def model_config(shape: str) -> dict[str, Any]:
    """config.json of a shape, without its tokens.

    Raises:
        UsageError: there is no such shape.
    """
    if shape not in SHAPES:
        raise UsageError(f"base.shape: found {shape!r}, expected one of {', '.join(SHAPES)}")
    return {
        **SHAPES[shape],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": SHAPES[shape]["hidden_size"] ** -0.5,
        "use_cache": True,
        "dtype": "bfloat16",
    }


def random_tensor(
    name: str, shape: Sequence[int], seed: int, texts: Sequence[int], config: Mapping[str, Any]
) -> Tensor:
    """BF16 weights of one tensor of a model: the same for a seed on every CPU.

    In tables all rows but those of `texts` are small.
    """
    if len(shape) == 1 and not name.endswith(".bias"):
        return torch.ones(shape[0], dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(hash_of(name, seed))
    made = torch.empty(tuple(shape), dtype=torch.bfloat16).normal_(0, std_of(name, config), generator=generator)
    if name.endswith(TABLES):
        kept = made[list(texts)]
        made.mul_(SILENT)[list(texts)] = kept
    return made


def std_of(name: str, config: Mapping[str, Any]) -> float:
    """Standard deviation of a matrix: 1/√width (.02 at 2560), another one where a layer adds to the residual stream."""
    std: float = config["hidden_size"] ** -0.5
    for matrix, last in LAST_ADDED.items():
        if name.endswith(f".{matrix}.weight"):
            return std * (last if f".layers.{config['num_hidden_layers'] - 1}." in name else ADDED)
    return std


def is_text(token: str) -> bool:
    """Whether a token is whole characters that a reply may have: no part of one, no control token or character."""
    return BROKEN not in token and token.isprintable() and not token.startswith("<|")


def hash_of(name: str, seed: int) -> int:
    """A generator's seed for a tensor of this name."""
    from fgod.nvfp4.rounding import stream

    return stream(seed, name).k0


def write_random(
    base: Mapping[str, Any],
    rows: Sequence[Row],
    out: Path,
    log: Callable[[str], None],
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Write the folder of a config's base `{kind: random, shape, seed}`; returns its number of parameters.

    Raises what `write_shape` does.
    """
    log(f"base: random, {base['shape']}")
    return write_shape(base["shape"], base["seed"], base_tokenizer(rows, TOKENIZER_VOCAB), out, beat)


def write_shape(
    shape: str,
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    beat: Callable[[], None] = lambda: None,
) -> int:
    """Write a folder of a shape's random weights with a tokenizer; returns its number of parameters.

    One tensor is in memory. `beat` is called for each tensor.

    Raises:
        UsageError: there is no such shape.
    """
    config = model_config(shape)
    wanted = tensors_of(config, shape)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    texts = [token for token in range(len(tokenizer)) if token == end or is_text(str(tokenizer.decode([token])))]

    def planned(name: str) -> dict[str, Tensor]:
        return {name: described(wanted[name], torch.bfloat16)}

    def made(name: str) -> dict[str, Tensor]:
        beat()
        return {name: random_tensor(name, wanted[name], seed, texts, config)}

    with atomic_folder(out) as folder, quiet():
        tokenizer.save_pretrained(folder)
        GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad).save_pretrained(folder)
        write_json(folder / "config.json", {**config, "eos_token_id": end, "pad_token_id": pad})
        write_weights(folder, list(wanted), planned, made, DEVICE_SHARD_BYTES)
    return sum(map(prod, wanted.values()))
