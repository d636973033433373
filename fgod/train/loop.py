"""One stage: start folder and rows in, master folder and records out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fgod import files
from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.guard.phases import write_phase
from fgod.model.load import load_tokenizer
from fgod.nvfp4.codec import NonFiniteError
from fgod.nvfp4.folders import copy_side_files, open_weights, read_plain_config, write_config, write_weights
from fgod.nvfp4.load import load_masters
from fgod.train.batches import Batch, Sample, batches, encode, micro_batches
from fgod.train.optimizer import AdamW, lr_factors
from fgod.train.participation import Participant, check_holes, participation, write_participation
from fgod.train.recipe import TrainRecipe
from fgod.train.record import Progress, StepRow, StepTable, publish, resident_mib

TRAINED = "trained"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `weights_sha256` is that of the master folder, empty without one; `reason` is in words."""

    status: str
    reason: str
    weights_sha256: str
    steps_done: int
    wall_s: float
    threads: int
    cpu: str = field(default_factory=torch.backends.cpu.get_cpu_capability)
    """What the kernels were chosen by: AVX2 and AVX512 give other bits after a few steps."""
    torch_version: str = torch.__version__

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _DivergedError(Exception):
    """Training cannot go on. The message is the reason."""


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """A thread count, deterministic kernels and a seeded generator inside; all as before afterwards."""
    fill: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fill.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # every new tensor would be filled with NaN first, a tenth of the time; nothing here reads what it did not write
        fill.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])
            fill.fill_uninitialized_memory = before[2]


def answer_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Sum of the cross entropy over labels. The head sees only their positions: other logits never exist."""
    hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1).index_select(0, batch.positions))
    return F.cross_entropy(logits.float(), batch.labels, reduction="sum")


@dataclass
class _Trainer:
    """What one step needs. `phase` is called with the name of what was just done."""

    model: PreTrainedModel
    optimizer: AdamW
    recipe: TrainRecipe
    pad: int
    phase: Callable[[str], None]

    def backward(self, pieces: list[Batch]) -> float:
        """Gradients of the mean loss over all labels of the pieces, which is returned."""
        labels = sum(len(piece.labels) for piece in pieces)
        total = 0.0
        for piece in pieces:
            loss = answer_loss(self.model, piece) / labels
            total += loss.item()
            if not math.isfinite(total):
                raise _DivergedError(f"the loss is {total}")
            loss.backward()
        return total

    def step(self, step: int, samples: Sequence[Sample]) -> StepRow:
        """One optimizer step (0 is the first).

        Raises:
            _DivergedError: loss, gradient or update is not finite.
        """
        begin = time.perf_counter()
        pieces = micro_batches(samples, self.recipe.micro_batch, self.pad)
        self.phase("batch_ready")
        self.optimizer.zero_grad()
        self.phase("zero_grad_done")
        try:
            loss = self.backward(pieces)
        except NonFiniteError as error:
            raise _DivergedError(str(error)) from error
        self.phase("backward_done")
        grad_norm = self.optimizer.grad_norm()
        if not math.isfinite(grad_norm):
            raise _DivergedError(f"the gradient's norm is {grad_norm}")
        lr = self.recipe.lr_at(step)
        facts = self.optimizer.step(lr, grad_norm)
        self.phase("optimizer_step_done")
        if not facts.whole.finite():
            raise _DivergedError("the weights' update is not finite, or too large to be squared")
        tokens = sum(piece.tokens for piece in pieces)
        seconds = round(time.perf_counter() - begin, 6)
        return StepRow(step + 1, loss, lr, grad_norm, facts.update_efficiency, tokens, seconds, resident_mib())


def _fit(trainer: _Trainer, plan: Iterator[list[Sample]], table: StepTable, progress: Progress) -> str:
    """All steps; returns why training diverged, or nothing."""
    steps = trainer.recipe.steps
    begin = time.perf_counter()
    for step, samples in enumerate(plan):
        try:
            row = trainer.step(step, samples)
        except _DivergedError as error:
            return f"step {step + 1} of {steps}: {error}"
        table.add(row)
        progress(row.step, steps, row.loss, (time.perf_counter() - begin) / row.step * (steps - row.step))
    return ""


def save_masters(start: Path, masters: Mapping[str, Tensor], out: Path) -> str:
    """A Hugging Face folder of float32 masters with the start's tokenizer and config, by rename; returns its sha256."""
    config = read_plain_config(start)
    with files.atomic_folder(out) as folder:
        write_weights(folder, list(masters), lambda n: masters[n].nbytes, lambda n: {n: masters[n]})
        copy_side_files(start, folder)
        write_config(folder, config, "float32")
    return files.sha256_folder(out)


def _silent(*_: object) -> None:
    """For a caller that wants no progress."""


def _phases(path: Path | None) -> Callable[[str], None]:
    """A function that tells a phase to the guard, if there is one that listens."""
    return _silent if path is None else partial(write_phase, path)


def _set_up(start: Path, recipe: TrainRecipe, pad: int, phase: Callable[[str], None]) -> _Trainer:
    """Load float32 masters and an optimizer for all of them."""
    model = load_masters(
        start, recipe.compute_dtype, recipe.block_scales, recipe.master_dtype, not recipe.step_in_backward
    )
    parameters = dict(model.named_parameters())
    factors = lr_factors(parameters, recipe.lr_scale, model.config.tie_word_embeddings)
    return _Trainer(model, AdamW(parameters, recipe, factors), recipe, pad, phase)


def _masters(model: PreTrainedModel) -> dict[str, Tensor]:
    """By name: the weights as they are stored now."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _participants(trainer: _Trainer, start: Path) -> list[Participant]:
    """Who took part, by comparing the masters with the start folder."""
    optimizer, tied = trainer.optimizer, trainer.model.config.tie_word_embeddings
    with open_weights(start) as weights:
        return participation(
            _masters(trainer.model), weights, optimizer.got_gradient(), tied, trainer.recipe.compute_dtype
        )


def run(
    start: Path,
    rows: Sequence[Row],
    recipe: TrainRecipe,
    seed: int,
    work: Path,
    run_dir: Path,
    master_out: Path,
    stage: str = "",
    lineage: str = "",
    progress: Progress = _silent,
    phase_file: Path | None = None,
) -> Outcome:
    """Train every tensor of `start` on `rows` and write the weights to `master_out`; the same bits every time.

    Writes train.tsv and participation.tsv to `run_dir`, `stage` and `lineage` in front of each row. A run that diverges
    ends with that status and leaves no weights.

    Args:
        start: a folder of plain weights in any number format; it is only read.
        seed: of the order of rows.
        work: scratch; holds the rows of train.tsv while the run lasts (see `record.publish`).
        phase_file: where the guard looks for what the run is doing.

    Raises:
        UsageError: rows, recipe or start folder do not fit.
        HoleError: a tensor got no gradient or did not change; train.tsv and participation.tsv are there, no weights.
    """
    if not rows:
        raise UsageError("no rows to train on; expected at least one")
    begin = time.perf_counter()
    phase = _phases(phase_file)
    phase("start")
    with deterministic(seed, recipe.threads):
        tokenizer = load_tokenizer(start)
        samples = encode(tokenizer, rows, recipe.seq_len)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        trainer = _set_up(start, recipe, pad, phase)
        phase("model_loaded")
        with StepTable(work, stage, lineage) as table:
            plan = ([samples[i] for i in indices] for indices in batches(rows, recipe, seed))
            reason = _fit(trainer, plan, table, progress)
        publish(work, run_dir)
        phase("saving")
        participants = _participants(trainer, start)
        write_participation(run_dir / "participation.tsv", participants, stage, lineage)
        digest = "" if reason else _finish(trainer, participants, start, master_out)
    wall_s = round(time.perf_counter() - begin, 3)
    status = DIVERGED if reason else TRAINED
    return Outcome(status, reason, digest, trainer.optimizer.steps_done, wall_s, recipe.threads)


def _finish(trainer: _Trainer, participants: list[Participant], start: Path, master_out: Path) -> str:
    """Check that no tensor was left out, save the masters, return their folder's sha256."""
    check_holes(participants)
    return save_masters(start, _masters(trainer.model), master_out)
