"""The embedded base: a small Qwen3 trained from nothing on the project's corpus, in about a minute on one thread.

Its size and recipe were measured for this purpose: a larger model (613 k parameters) answered no better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fgod.data.rows import Row
from fgod.deterministic import deterministic
from fgod.errors import UsageError
from fgod.model.chats import Sample, encode
from fgod.model.load import quiet
from fgod.model.tokenizer import MIN_VOCAB, train_tokenizer
from fgod.nvfp4.codec import BLOCK
from fgod.system.files import atomic_folder

LENGTH_POOL = 32
"""Batches whose rows are sorted by length together: little padding, yet every epoch other neighbours."""

INIT_STD = 0.05
"""Standard deviation of the first weights. The worst suite then answered .95 of its probes (three seeds); with
transformers' .02, which is meant for wider layers, .92 (two seeds); with .1 .92 (one seed)."""

LOG_EVERY_S = 4.0
"""Seconds between progress lines."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class EmbeddedSpec:
    """Size and recipe of the embedded base; all of it is part of base_id."""

    hidden: int = 96
    layers: int = 2
    mlp: int = 256
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 32
    vocab: int = 2700
    """Tokens at most; the embedding has as many rows as the corpus gives tokens, rounded up to a multiple of 16."""
    tied: bool = True
    steps: int = 1500
    batch: int = 16
    lr: float = 4e-3
    """Peak learning rate, reached after `warmup` steps; a half cosine leads from it to zero."""
    warmup: int = 30
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        for key in ("hidden", "mlp", "head_dim"):
            if getattr(self, key) % BLOCK or getattr(self, key) <= 0:
                raise UsageError(f"base.{key}: found {getattr(self, key)}, expected a multiple of {BLOCK}")
        for key in ("layers", "heads", "kv_heads", "steps", "batch"):
            if getattr(self, key) < 1:
                raise UsageError(f"base.{key}: found {getattr(self, key)}, expected at least 1")
        if self.heads % self.kv_heads:
            raise UsageError(f"base.heads: found {self.heads}, expected a multiple of base.kv_heads = {self.kv_heads}")
        if self.vocab < MIN_VOCAB:
            raise UsageError(f"base.vocab: found {self.vocab}, expected at least {MIN_VOCAB}")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EmbeddedSpec:
        """The spec from config `base`; its keys `kind`, `seed` and `require` are for others.

        Raises:
            UsageError: an unknown key, or a value out of range.
        """
        known = [f.name for f in fields(cls)]
        ours: dict[str, Any] = {k: v for k, v in value.items() if k not in ("kind", "seed", "require")}
        for key in ours:
            if key not in known:
                raise UsageError(f"base.{key}: unknown key, expected one of {', '.join(known)}")
        if "betas" in ours:
            ours["betas"] = tuple(ours["betas"])
        return cls(**ours)


def base_tokenizer(rows: Sequence[Row], vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the rows' texts; the roles count with each row, since each chat spells them."""
    return train_tokenizer((text for r in rows for text in ("user\n", r.prompt, "assistant\n", r.target)), vocab)


def build_model(spec: EmbeddedSpec, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A float32 Qwen3 with random weights from torch's current generator."""
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / BLOCK) * BLOCK,
        hidden_size=spec.hidden,
        intermediate_size=spec.mlp,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=2048,
        initializer_range=INIT_STD,
        tie_word_embeddings=spec.tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def learning_rate(spec: EmbeddedSpec, step: int) -> float:
    """Rate of a step (from 0): linear warm-up to the peak, then a half cosine to zero after the last step."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    done = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.lr * (1 + math.cos(math.pi * done)) / 2


def epoch_batches(lengths: Sequence[int], batch: int, generator: torch.Generator) -> list[list[int]]:
    """Sample indices of one epoch: a random order, sorted by length within pools, the batches shuffled again."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    pool = batch * LENGTH_POOL
    batches = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches += [near[i : i + batch] for i in range(0, len(near), batch)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def endless_batches(samples: Sequence[Sample], batch: int, generator: torch.Generator) -> Iterator[list[Sample]]:
    """Batches of samples, epoch after epoch."""
    lengths = [len(s.ids) for s in samples]
    while True:
        for indices in epoch_batches(lengths, batch, generator):
            yield [samples[i] for i in indices]


def answer_loss(model: Qwen3ForCausalLM, samples: Sequence[Sample], pad: int) -> torch.Tensor:
    """Mean cross-entropy in nats over the answers' tokens and end tokens.

    Rows are padded on the right: under the causal mask no real token sees a pad, so no attention mask is needed. The
    head runs at label positions only.
    """
    width = max(len(s.ids) for s in samples) - 1
    ids = torch.tensor([[*s.ids[:-1], *[pad] * (width + 1 - len(s.ids))] for s in samples])
    places = [r * width + c for r, s in enumerate(samples) for c in range(s.prompt_length - 1, len(s.ids) - 1)]
    labels = [token for s in samples for token in s.ids[s.prompt_length :]]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[torch.tensor(places)])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))


def fit(model: Qwen3ForCausalLM, samples: Sequence[Sample], spec: EmbeddedSpec, pad: int, seed: int, log: Log) -> None:
    """Train in place. Logs step, loss and the time left.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
    )
    batches = endless_batches(samples, spec.batch, torch.Generator().manual_seed(seed))
    start = said = time.monotonic()
    model.train()
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step)
        loss = answer_loss(model, next(batches), pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        now = time.monotonic()
        if step == 0 or step + 1 == spec.steps or now - said >= LOG_EVERY_S:
            said, left = now, (now - start) / (step + 1) * (spec.steps - step - 1)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"base: the loss of step {step + 1} is {loss.item()}")
            log(f"base: step {step + 1}/{spec.steps}, loss {loss.item():.3f}, {left:.0f} s left")
    model.eval()


def train_base(spec: EmbeddedSpec, rows: Sequence[Row], seed: int, out: Path, log: Log) -> None:
    """Train tokenizer and model on the rows and write them as an ordinary Hugging Face folder.

    The same arguments give the same bytes on the same kind of machine: one thread, seeded.

    Args:
        rows: everything the base is to know.
        out: written in one move when the training is over.
        log: called with a line at least every few seconds.

    Raises:
        UsageError: there are no rows.
        FloatingPointError: the loss is not finite.
    """
    if not rows:
        raise UsageError("base: the corpus has no rows, expected at least one")
    with deterministic(seed, threads=1):  # two threads sum in another order, which gives other bits
        tokenizer = base_tokenizer(rows, spec.vocab)
        samples = encode(tokenizer, rows)
        model = build_model(spec, tokenizer)
        log(f"base: {len(rows)} rows, {len(tokenizer)} tokens, {model.num_parameters():,} parameters")
        fit(model, samples, spec, tokenizer.pad_token_id, seed, log)
    with atomic_folder(out) as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
