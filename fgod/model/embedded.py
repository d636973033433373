"""The embedded base: a small Qwen3 trained from nothing on the project's corpus, in about a minute on one thread.

Its size and recipe were measured for this purpose: a larger model (613 k parameters) answered no better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fgod.data.rows import Row
from fgod.deterministic import deterministic
from fgod.errors import UsageError
from fgod.model.chats import ChatFormat, Sample
from fgod.model.load import quiet
from fgod.model.spec import EmbeddedSpec
from fgod.model.tokenizer import train_tokenizer
from fgod.nvfp4.codec import BLOCK
from fgod.progress.followed import follow
from fgod.system.files import atomic_folder

LENGTH_POOL = 32
"""Batches whose rows are sorted by length together: little padding, yet every epoch other neighbours."""

INIT_STD = 0.05
"""Standard deviation of the first weights. The worst suite then answered .95 of its probes (three seeds); with
transformers' .02, which is meant for wider layers, .92 (two seeds); with .1 .92 (one seed)."""

Log = Callable[[str], None]


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
    places = [row * width + place - 1 for row, s in enumerate(samples) for place in s.learned]
    labels = [s.ids[place] for s in samples for place in s.learned]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[torch.tensor(places)])
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels))


def fit(model: Qwen3ForCausalLM, samples: Sequence[Sample], spec: EmbeddedSpec, pad: int, seed: int) -> None:
    """Train in place.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
    )
    batches = endless_batches(samples, spec.batch, torch.Generator().manual_seed(seed))
    model.train()
    with follow("", spec.steps, "step") as progress:
        for step in range(spec.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(spec, step)
            loss = answer_loss(model, next(batches), pad)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), spec.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"base: the loss of step {step + 1} is {loss.item()}")
            progress.to(step + 1, f"loss {loss.item():.3f}")
    model.eval()


def train_base(spec: EmbeddedSpec, rows: Sequence[Row], seed: int, out: Path, log: Log) -> None:
    """Train tokenizer and model on the rows and write them as an ordinary Hugging Face folder.

    The same arguments give the same bytes on the same kind of machine: one thread, seeded.

    Args:
        rows: everything the base is to know.
        out: written in one move when the training is over.
        log: called with what it is made of, in words.

    Raises:
        UsageError: there are no rows.
        FloatingPointError: the loss is not finite.
    """
    if not rows:
        raise UsageError("base: the corpus has no rows, expected at least one")
    with deterministic(seed, threads=1):  # two threads sum in another order, which gives other bits
        tokenizer = base_tokenizer(rows, spec.vocab)
        samples = ChatFormat(tokenizer).rows(rows)
        model = build_model(spec, tokenizer)
        log(f"base: {len(rows)} rows, {len(tokenizer)} tokens, {model.num_parameters():,} parameters")
        fit(model, samples, spec, tokenizer.pad_token_id, seed)
    with atomic_folder(out) as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
