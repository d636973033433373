"""One stage: start folder and rows in, master folder and records out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fgod.data.rows import Row, spread
from fgod.deterministic import deterministic
from fgod.errors import FgodError, UsageError
from fgod.guard.cap import cap_allocator, capped_mib, room_mib
from fgod.guard.limits import MIB_PER_GB, Request
from fgod.guard.predict import TooLargeError
from fgod.guard.requests import STOPPED_EXIT, RequestReader
from fgod.model.chats import Sample, encode
from fgod.model.load import load_tokenizer, quiet
from fgod.model.masters import load_masters
from fgod.models.architecture import architecture_of
from fgod.nvfp4.codec import BLOCK_SCALES, NonFiniteError
from fgod.nvfp4.folders import (
    BLOCK_SCALES_KEY,
    DEVICE_SHARD_BYTES,
    DTYPES,
    SHARD_BYTES,
    copy_side_files,
    open_weights,
    read_plain_config,
    weight_files,
    write_config,
    write_weights,
)
from fgod.registry import ARCHITECTURES
from fgod.system import files
from fgod.system.procfs import forget_peak, peak_mib, resident_mib
from fgod.train import checkpoint
from fgod.train.batches import Batch, batches, micro_batches
from fgod.train.checkpoint import Schedule
from fgod.train.device.network import Network
from fgod.train.device.ops import choose_ops
from fgod.train.device.optimizer import device_adamw
from fgod.train.device.plan import predict_on_device
from fgod.train.device.settings import choose_device, repeatable_cuda
from fgod.train.device.trainer import DeviceTrainer
from fgod.train.device.weights import as_module, stream_in
from fgod.train.efficiency import Watch, lost_updates
from fgod.train.memory import MIB, Prediction, check_fits, predict, trained_names
from fgod.train.optimizer import AdamW, StepFacts, lr_factors
from fgod.train.participation import Participant, check_holes, participation, write_participation
from fgod.train.preflight import PROMPTS, check_changed, check_forward, check_network, check_tokens
from fgod.train.recipe import TrainRecipe
from fgod.train.record import (
    COLUMNS,
    GROUP_COLUMNS,
    PARTIAL,
    PARTIAL_GROUPS,
    GroupRow,
    Progress,
    StepRow,
    StepTable,
    publish,
)

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
    weights_files: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of each file of the master folder."""
    full_parameter: bool = True
    """Every tensor was trained, on answers, with masters that accumulate; else `partial` says what is missing."""
    partial: tuple[str, ...] = ()
    resumed_at: tuple[int, ...] = ()
    """Steps after which a killed run went on from its checkpoint."""
    first_loss: float = 0.0
    """Nats a token of the starting model's own answers (see `preflight`)."""
    memory_predicted_mib: Mapping[str, float] = field(default_factory=dict)
    memory_measured_mib: float = 0.0
    """The most that was resident while steps were made."""
    cpu: str = field(default_factory=torch.backends.cpu.get_cpu_capability)
    """What torch chose its kernels by. CPUs of one class may still give other bits: MKL chooses by the maker, too."""
    torch_version: str = torch.__version__
    device: str = "cpu"
    """Where it trained: cpu, or the name of the GPU."""


class StoppedError(FgodError):
    """Training was asked to stop, and saved a checkpoint. Exit code 75."""

    exit_code = STOPPED_EXIT


class _DivergedError(Exception):
    """Training cannot go on. The message is the reason; `step`, from 1, which step it was."""

    def __init__(self, reason: str, step: int = 0) -> None:
        super().__init__(reason)
        self.step = step


def answer_loss(model: PreTrainedModel, batch: Batch, kind: str = "ce") -> Tensor:
    """Sum over labels of the cross entropy; the head sees only their positions: other logits never exist.

    Of the kind `scalar`, a debugging baseline, the sum over labels of mean |hidden state|.
    """
    device = model.lm_head.weight.device
    ids, positions, labels = (t.to(device) for t in (batch.input_ids, batch.positions, batch.labels))
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1).index_select(0, positions)
    if kind == "scalar":
        return hidden.float().abs().mean(-1).sum()
    return F.cross_entropy(model.lm_head(hidden).float(), labels, reduction="sum")


class _Path(Protocol):
    """How steps are made: on the CPU each is done when it was launched, on a GPU results land a step later."""

    @property
    def recipe(self) -> TrainRecipe: ...
    @property
    def optimizer(self) -> AdamW: ...
    @property
    def model(self) -> PreTrainedModel:
        """transformers' model on the masters as they are."""

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        """Start one optimizer step (0 is the first)."""

    def landed(self, all_of_them: bool) -> list[tuple[StepRow, StepFacts]]:
        """Results that are there, or those of every step that was launched.

        Raises:
            _DivergedError: loss, gradient or update of one is not finite.
        """

    def peak_mib(self) -> float:
        """The most memory that steps took."""


@dataclass
class _Trainer:
    """What one step needs. `phase` is called with the name of what was just done."""

    model: PreTrainedModel
    optimizer: AdamW
    recipe: TrainRecipe
    pad: int
    phase: Callable[[str], None]
    done: list[tuple[StepRow, StepFacts]] = field(default_factory=list)

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        try:
            self.done.append(self.step(step, samples))
        except _DivergedError as error:
            raise _DivergedError(str(error), step + 1) from error

    def landed(self, all_of_them: bool) -> list[tuple[StepRow, StepFacts]]:
        done, self.done = self.done, []
        return done

    def peak_mib(self) -> float:
        return peak_mib()

    def backward(self, pieces: list[Batch]) -> float:
        """Gradients of the mean loss over all labels of the pieces, which is returned."""
        labels = sum(len(piece.labels) for piece in pieces)
        total = 0.0
        for piece in pieces:
            loss = answer_loss(self.model, piece, self.recipe.loss) / labels
            total += loss.item()
            if not math.isfinite(total):
                raise _DivergedError(f"the loss is {total}")
            loss.backward()
        return total

    def step(self, step: int, samples: Sequence[Sample]) -> tuple[StepRow, StepFacts]:
        """One optimizer step (0 is the first).

        Raises:
            _DivergedError: loss, gradient or update is not finite.
        """
        begin = time.perf_counter()
        pieces = micro_batches(samples, self.recipe.micro_batch, self.pad, self.recipe.length_bucket)
        self.phase("batch_ready")
        self.optimizer.zero_grad()
        self.phase("zero_grad_done")
        lr = self.recipe.lr_at(step)
        try:
            loss, facts = self._update(pieces, lr)
        except NonFiniteError as error:
            raise _DivergedError(str(error)) from error
        self.phase("optimizer_step_done")
        if not facts.whole.finite():
            raise _DivergedError("the weights' update is not finite, or too large to be squared")
        seconds = round(time.perf_counter() - begin, 6)
        tokens, whole = sum(piece.tokens for piece in pieces), facts.whole
        row = StepRow(
            step + 1, loss, lr, facts.grad_norm, whole.ratio(), tokens, seconds, resident_mib(), whole.noise(),
            whole.largest, whole.clamped_share(),
        )  # fmt: skip
        return row, facts

    def _update(self, pieces: list[Batch], lr: float) -> tuple[float, StepFacts]:
        """Backward pass and optimizer, the second inside the first or after it."""
        if self.recipe.step_in_backward:
            self.optimizer.begin(lr)
            loss = self.backward(pieces)
            self.phase("backward_done")
            facts = self.optimizer.finish()
            _check_norm(facts.grad_norm)
            return loss, facts
        loss = self.backward(pieces)
        self.phase("backward_done")
        facts = self.optimizer.step(lr)
        _check_norm(facts.grad_norm)
        return loss, facts


def _check_norm(grad_norm: float) -> None:
    if not math.isfinite(grad_norm):
        raise _DivergedError(f"the gradient's norm is {grad_norm}")


@dataclass
class _DevicePath:
    """Steps on a device; see `fgod.train.device`."""

    trainer: DeviceTrainer
    phase: Callable[[str], None]

    @property
    def recipe(self) -> TrainRecipe:
        return self.trainer.recipe

    @property
    def optimizer(self) -> AdamW:
        return self.trainer.optimizer

    @property
    def model(self) -> PreTrainedModel:
        return as_module(self.trainer.network.masters, self.recipe.compute_dtype, self.recipe.block_scales)

    def launch(self, step: int, samples: Sequence[Sample]) -> None:
        self.phase("batch_ready")
        self.trainer.launch(step, samples)
        self.phase("optimizer_step_done")

    def landed(self, all_of_them: bool) -> list[tuple[StepRow, StepFacts]]:
        out = self.trainer.landed(0) if all_of_them else self.trainer.landed()
        for row, facts in out:
            for found, words in ((row.loss, "the loss is"), (row.grad_norm, "the gradient's norm is")):
                if not math.isfinite(found):
                    raise _DivergedError(f"{words} {found}", row.step)
            if not facts.whole.finite():
                raise _DivergedError("the weights' update is not finite, or too large to be squared", row.step)
        return out

    def peak_mib(self) -> float:
        device = self.trainer.device
        if device.type != "cuda":
            return peak_mib()
        return round(torch.cuda.max_memory_allocated(device) / MIB, 1)


@dataclass
class _Run:
    """A trainer with its records and checkpoints. `identity` is that of `checkpoint.identity`."""

    trainer: _Path
    work: Path
    schedule: Schedule
    identity: str
    resumed_at: list[int]
    request_reader: RequestReader

    def fit(self, plan: Iterator[list[Sample]], stage: str, lineage: str, progress: Progress) -> str:
        """The steps that are not done yet; returns why training diverged, or nothing.

        Raises:
            PreflightError: the first step at full learning rate left a tensor as it was.
            LostUpdatesError: updates do not land.
            StoppedError: the guard asked for it; a checkpoint is there.
        """
        recipe, optimizer = self.trainer.recipe, self.trainer.optimizer
        done, begin = optimizer.steps_done, time.perf_counter()
        watch = Watch(recipe.min_update_efficiency)
        with (
            StepTable(self.work / PARTIAL, COLUMNS, stage, lineage, done) as table,
            StepTable(self.work / PARTIAL_GROUPS, GROUP_COLUMNS, stage, lineage, done) as groups,
        ):
            for step, samples in enumerate(islice(plan, done, None), start=done):
                last = step + 1 == recipe.steps
                try:
                    self.trainer.launch(step, samples)
                    due, stop = not last and self.schedule.due(step + 1), self._asked_to_stop()
                    results = self.trainer.landed(last or due or stop)
                except _DivergedError as error:
                    return f"step {error.step} of {recipe.steps}: {error}"
                for row, facts in results:
                    table.add(row)
                    for group, sums in facts.groups.items():
                        groups.add(
                            GroupRow(row.step, group, sums.ratio(), sums.noise(), sums.largest, sums.clamped_share())
                        )
                    left = (time.perf_counter() - begin) / (row.step - done) * (recipe.steps - row.step)
                    progress(row.step, recipe.steps, row.loss, left)
                    self._judge(watch, facts, row)
                if due or stop:
                    checkpoint.save(self.work, optimizer, self.identity, {"resumed_at": self.resumed_at})
                if stop:
                    self.request_reader.done()
                    raise StoppedError(f"step {step + 1} of {recipe.steps}: the guard asked to save and stop")
        return ""

    def _asked_to_stop(self) -> bool:
        """Look whether the guard asks for something; empty the cache if that is it."""
        match self.request_reader.poll():
            case Request.EMPTY_CACHE:
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                self.request_reader.done()
            case Request.SAVE_AND_STOP:
                return True
        return False

    def _judge(self, watch: Watch, facts: StepFacts, row: StepRow) -> None:
        recipe = self.trainer.recipe
        if row.step == max(1, recipe.warmup) and not recipe.partial:
            check_changed(self.trainer.optimizer.unchanged(), row.step)
        efficiency = watch.add(facts.whole)
        if efficiency is not None:
            raise lost_updates(efficiency, recipe.master_dtype, row.lr, _weight_rms(self.trainer.model))


def _weight_rms(model: PreTrainedModel) -> float:
    """Root mean square of all matrices' weights."""
    matrices = [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]
    squares = sum(torch.linalg.vector_norm(matrix, dtype=torch.float32).item() ** 2 for matrix in matrices)
    return math.sqrt(squares / sum(matrix.numel() for matrix in matrices))


def save_masters(start: Path, masters: Mapping[str, Tensor], recipe: TrainRecipe, out: Path) -> dict[str, str]:
    """A Hugging Face folder of the masters as they are stored, with the start's tokenizer and config, by rename.

    Returns:
        The sha256 of each of its files.
    """
    config = read_plain_config(start)
    more = {} if recipe.block_scales == BLOCK_SCALES[0] else {BLOCK_SCALES_KEY: recipe.block_scales}
    with files.atomic_folder(out) as folder:
        limit = SHARD_BYTES if all(m.device.type == "cpu" for m in masters.values()) else DEVICE_SHARD_BYTES
        write_weights(folder, list(masters), lambda n: masters[n].nbytes, lambda n: {n: masters[n]}, limit)
        copy_side_files(start, folder)
        write_config(folder, config, "float32" if recipe.master_dtype == "fp32" else "bfloat16", **more)
    digests = files.file_digests(out)
    if limit == DEVICE_SHARD_BYTES:
        for file in weight_files(out):
            files.drop_cached(file)
    return digests


def _silent(*_: object) -> None:
    """For a caller that wants neither progress nor phases."""


def _checkpoint_layers(model: PreTrainedModel) -> None:
    """Compute each layer again in the backward pass. Only layers themselves count as training: nothing drops out."""
    with quiet():  # newer versions of transformers have another name for it
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in model.model.layers:
        layer.training = True


def _say(text: str) -> None:
    print(f"fgod: {text}", file=sys.stderr, flush=True)


def _set_up_on(
    device: torch.device, start: Path, recipe: TrainRecipe, seed: int, pad: int, phase: Callable[[str], None]
) -> _DevicePath:
    """Stream masters to a device, with a network and an optimizer for all of them."""
    config, where = read_plain_config(start), start / "config.json"
    family = architecture_of(config, where)
    if not family.hand_written(config):
        raise UsageError(f"{where}: architectures: found {family.name}, which trains on the CPU alone; expected "
                         "train.device: cpu for it")  # fmt: skip
    masters = stream_in(start, config, recipe.master_dtype, device)
    ops = choose_ops(device, _say)
    factors = lr_factors(masters.tensors, recipe.lr_scale, masters.config.get("tie_word_embeddings", False))
    network = Network(masters, ops, DTYPES[recipe.compute_dtype], recipe.block_scales)
    optimizer = device_adamw(masters, recipe, factors, seed, ops)
    return _DevicePath(DeviceTrainer(network, optimizer, recipe, pad, _say), phase)


def _set_up(start: Path, recipe: TrainRecipe, seed: int, pad: int, phase: Callable[[str], None]) -> _Trainer:
    """Load masters and an optimizer for all of them, or those that a debugging recipe trains."""
    model = load_masters(
        start, recipe.compute_dtype, recipe.block_scales, recipe.master_dtype, not recipe.step_in_backward
    )
    if recipe.activation_checkpointing:
        _checkpoint_layers(model)
    names = set(trained_names(model.config.to_dict(), recipe, str(start)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if not recipe.step_in_backward:
            parameter.grad_dtype = torch.float32
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    factors = lr_factors(parameters, recipe.lr_scale, model.config.tie_word_embeddings)
    return _Trainer(model, AdamW(parameters, recipe, factors, seed), recipe, pad, phase)


def _largest(recipe: TrainRecipe, samples: Sequence[Sample]) -> tuple[int, int, int]:
    """Rows, tokens of each and labels in all of the largest batch that the longest rows can make."""
    rows = recipe.micro_batch or recipe.batch
    labels = sorted((len(s.ids) - s.prompt_length for s in samples), reverse=True)
    rounds, rest = divmod(rows, len(samples))  # few rows meet themselves in a large batch
    width = max(len(sample.ids) for sample in samples) - 1
    return rows, width + -width % recipe.length_bucket, rounds * sum(labels) + sum(labels[:rest])


def _predictor(
    config: Mapping[str, Any], samples: Sequence[Sample], device: torch.device, process: int
) -> Callable[[TrainRecipe], Prediction]:
    """What a recipe will need for the longest rows that can meet in one batch."""

    def predicted(recipe: TrainRecipe) -> Prediction:
        return prediction(config, recipe, device, *_largest(recipe, samples), process)

    return predicted


def prediction(
    config: Mapping[str, Any],
    recipe: TrainRecipe,
    device: torch.device,
    rows: int,
    width: int,
    labels: int,
    process: int,
) -> Prediction:
    """What a step on a device will need: GPU memory there, all of this process (`process` bytes by now) on the CPU.

    Args:
        rows, width: at once, and tokens of each.
        labels: of all of them.
    """
    if device.type == "cuda":
        return predict_on_device(config, recipe, rows, width, labels)
    return predict(config, recipe, width, labels, process)


def _refuse_or_say(
    recipe: TrainRecipe, predicted: Callable[[TrainRecipe], Prediction], limit: float, too_large_ok: bool
) -> None:
    try:
        check_fits(recipe, predicted, limit)
    except TooLargeError as error:
        if not too_large_ok:
            raise
        _say(f"{error} It is tried all the same (guard.too_large_ok).")


def _masters(model: PreTrainedModel) -> dict[str, Tensor]:
    """By name: the weights as they are stored now."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _participants(trainer: _Path, start: Path) -> list[Participant]:
    """Who took part, by comparing the masters with the start folder."""
    model, got_gradient = trainer.model, trainer.optimizer.got_gradient()
    family, tied = ARCHITECTURES[type(model).__name__], model.config.tie_word_embeddings
    with open_weights(start) as weights:
        return participation(_masters(model), weights, got_gradient, family, tied, trainer.recipe.compute_dtype)


def run(
    start: Path,
    rows: Sequence[Row],
    recipe: TrainRecipe,
    seed: int,
    work: Path,
    run_dir: Path,
    master_out: Path | None,
    stage: str = "",
    lineage: str = "",
    progress: Progress = _silent,
    phase: Callable[[str], None] = _silent,
    schedule: Schedule | None = None,
    limit_gb: float | None = None,
    too_large_ok: bool = False,
) -> Outcome:
    """Train every tensor of `start` on `rows` and write the weights to `master_out`, if any; the same bits every time.

    Writes train.tsv, efficiency.tsv and participation.tsv to `run_dir`, `stage` and `lineage` in front of each row. A
    run that diverges ends with that status and leaves no weights.

    Args:
        start: a folder of plain weights in any number format; it is only read.
        seed: of the order of rows.
        work: scratch; holds the rows of train.tsv while the run lasts (see `record.publish`), and its checkpoints; they
            stay when it has ended: who notes the outcome forgets them.
        phase: called with what was just done (`fgod.guard.phases`).
        schedule: of checkpoints; without one there are none. A run goes on from what it finds in `work`.
        limit_gb: GiB of host memory that the guard allows; a run that is predicted to need more is refused. On a GPU
            `guard.cap.room_mib` says it instead.
        too_large_ok: only say so instead.

    Raises:
        UsageError: rows, recipe or start folder do not fit.
        TooLargeError: it is predicted to need more than is allowed.
        PreflightError: a check before training, or after its first step at full learning rate, failed.
        StoppedError: the guard asked for it; a checkpoint is there.
        LostUpdatesError: updates do not land; train.tsv shows since when.
        HoleError: a tensor got no gradient or did not change; train.tsv and participation.tsv are there, no weights.
    """
    if not rows:
        raise UsageError("no rows to train on; expected at least one")
    begin = time.perf_counter()
    phase("start")
    process = int(resident_mib() * MIB)
    device = choose_device(recipe, _say)
    room = room_mib()
    cap_allocator(room if device.type == "cuda" else None)
    with deterministic(seed, recipe.threads), repeatable_cuda(device):
        tokenizer = load_tokenizer(start)
        config = read_plain_config(start)
        check_tokens(tokenizer, config["vocab_size"], rows[0].prompt)
        samples = encode(tokenizer, rows, recipe.seq_len)
        predicted = _predictor(config, samples, device, process)
        if device.type == "cuda":
            limit_gb = None if room is None else capped_mib(room) / MIB_PER_GB
        if limit_gb is not None:
            _refuse_or_say(recipe, predicted, limit_gb * 2**30, too_large_ok)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        trainer: _Path
        if device.type == "cuda":
            trainer = _set_up_on(device, start, recipe, seed, pad, phase)
        else:
            trainer = _set_up(start, recipe, seed, pad, phase)
        phase("model_loaded")
        chats = [list(sample.ids[: sample.prompt_length]) for sample in spread(samples, PROMPTS)]
        first_loss = check_forward(trainer.model, chats)
        if isinstance(trainer, _DevicePath):
            trainer.trainer.measure()
            check_network(trainer.trainer.network.logits, trainer.model, chats, recipe.length_bucket)
        training = _resume(trainer, work, schedule or Schedule(), checkpoint.identity(recipe, rows, seed, start))
        plan = ([samples[i] for i in indices] for indices in batches(rows, recipe, seed))
        forget_peak()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            reason = training.fit(plan, stage, lineage, progress)
        except FgodError:
            publish(work, run_dir, keep=True)
            raise
        measured = trainer.peak_mib()
        publish(work, run_dir)
        phase("saving")
        participants = _participants(trainer, start)
        write_participation(run_dir / "participation.tsv", participants, stage, lineage)
        written = {} if reason or master_out is None else _finish(trainer, participants, start, master_out)
    return Outcome(
        status=DIVERGED if reason else TRAINED,
        reason=reason,
        weights_sha256=files.sha256_listing(written) if written else "",
        weights_files=written,
        steps_done=trainer.optimizer.steps_done,
        wall_s=round(time.perf_counter() - begin, 3),
        threads=recipe.threads,
        full_parameter=not recipe.partial,
        partial=recipe.partial,
        resumed_at=tuple(training.resumed_at),
        first_loss=round(first_loss, 6),
        memory_predicted_mib=predicted(recipe).to_mib(),
        memory_measured_mib=measured,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )


def _resume(trainer: _Path, work: Path, schedule: Schedule, identity: str) -> _Run:
    """Go on from the newest checkpoint of this very run, if there is one."""
    saved = checkpoint.restore(work, trainer.optimizer, identity)
    resumed_at = [] if saved is None else [*saved["resumed_at"], trainer.optimizer.steps_done]
    return _Run(trainer, work, schedule, identity, resumed_at, RequestReader.from_environment())


def _finish(trainer: _Path, participants: list[Participant], start: Path, master_out: Path) -> dict[str, str]:
    """Check that no tensor of a full-parameter run was left out, save the masters, return their files' sha256."""
    if not trainer.recipe.partial:
        check_holes(participants)
    return save_masters(start, _masters(trainer.model), trainer.recipe, master_out)
