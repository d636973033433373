"""How fast a small model trains and answers here: a few seconds of steps, by the path that training takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from fgod.deterministic import deterministic
from fgod.doctor.told import Benchmark, Speed
from fgod.model.chats import Sample
from fgod.model.decode import decode
from fgod.model.generate import own_settings
from fgod.model.load import load_model
from fgod.model.random import random_tensor
from fgod.models.architecture import tensors_of
from fgod.nvfp4.folders import DTYPES, described, write_config, write_weights
from fgod.train.choose import choose_stepper
from fgod.train.device.settings import repeatable_cuda
from fgod.train.recipe import TrainRecipe

SECONDS = 3.0
"""How long steps are timed."""

WARM_UP = 2
"""Steps before that: the second of a shape is captured as a CUDA graph."""

PROMPT, NEW = 24, 8
"""Tokens of a prompt and of a reply, where answers are timed."""

Say = Callable[[str], None]


def width_of(recipe: TrainRecipe) -> int:
    """Tokens of the rows that are timed: a third of what the recipe allows, as rows of chats mostly are shorter."""
    wanted = max(12, recipe.seq_len // 3)
    return min(recipe.seq_len, wanted + -wanted % recipe.length_bucket)


def measure(benchmark: Benchmark, say: Say) -> Speed:
    """Time a benchmark; whatever goes wrong is raised."""
    recipe = replace(TrainRecipe.from_dict(benchmark.recipe), lr=1e-6, steps=10**6, kl=None, check=None)
    device = torch.device(recipe.device)
    with (
        tempfile.TemporaryDirectory(prefix="fgod-") as made,
        deterministic(1, threads=recipe.threads),
        repeatable_cuda(device),
    ):
        folder = Path(made)
        write_model(folder, benchmark.config)
        step_s = _seconds_of_a_step(folder, recipe, device, int(benchmark.config["vocab_size"]), say)
        token_s = 0.0
        if benchmark.ask:
            model = load_model(folder, DTYPES[recipe.compute_dtype], benchmark.ask_device)
            token_s = _seconds_of_a_token(model, benchmark.ask)
    return Speed(benchmark.name, step_s, recipe.batch * width_of(recipe), token_s)


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    """Random BF16 weights of a config's shapes."""
    shapes, texts = tensors_of(config, "benchmark"), range(int(config["vocab_size"]))
    write_config(folder, config, "bfloat16")
    write_weights(
        folder,
        list(shapes),
        lambda name: {name: described(shapes[name], torch.bfloat16)},
        lambda name: {name: random_tensor(name, shapes[name], 1, texts, config)},
    )


def _rows(recipe: TrainRecipe, vocabulary: int) -> list[Sample]:
    """Rows of the same length, a third of each answer."""
    width = width_of(recipe)
    ids = [[(7 * row + 13 * place) % vocabulary for place in range(width)] for row in range(recipe.batch)]
    return [Sample(tuple(row), width - width // 3) for row in ids]


def _seconds_of_a_step(folder: Path, recipe: TrainRecipe, device: torch.device, vocabulary: int, say: Say) -> float:
    stepper = choose_stepper(device, folder, recipe, 1, 0, lambda phase: None, say)
    rows = _rows(recipe, vocabulary)
    for step in range(WARM_UP):
        stepper.launch(step, rows)
        stepper.completed(wait=True)
    begin, step = time.perf_counter(), WARM_UP
    while time.perf_counter() - begin < SECONDS or step == WARM_UP:
        stepper.launch(step, rows)
        stepper.completed(wait=False)
        step += 1
    stepper.completed(wait=True)
    return (time.perf_counter() - begin) / (step - WARM_UP)


@torch.inference_mode()
def _seconds_of_a_token(model: PreTrainedModel, rows: int) -> float:
    """Of the next token of so many rows at once, by the path that answers take."""
    ids = torch.arange(rows * PROMPT, device=model.device).view(rows, PROMPT) % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)

    def once() -> None:
        if model.device.type == "cuda":
            decode(model, inputs, NEW, [-1], 0)
            return
        with own_settings(model, settings):
            model.generate(**inputs)  # type: ignore[operator]

    once()
    begin = time.perf_counter()
    once()
    return (time.perf_counter() - begin) / NEW
