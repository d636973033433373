"""One stage: start folder and rows in, master folder and records out. `fgod.train.loop` makes its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from fgod.call import say
from fgod.chat import ChatSettings
from fgod.data.rows import Row, spread
from fgod.deterministic import deterministic
from fgod.documents import Outcome
from fgod.errors import FgodError, UsageError
from fgod.evaluate.checked import CheckProbes
from fgod.guard.cap import cap_allocator, capped_mib, room_mib
from fgod.guard.limits import MIB_PER_GB
from fgod.guard.predict import TooLargeError
from fgod.model.chats import ChatFormat, Sample
from fgod.models.architecture import architecture_of
from fgod.nvfp4 import kernels
from fgod.nvfp4.codec import BLOCK_SCALES
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
from fgod.progress.followed import follow
from fgod.system import files
from fgod.system.allocator import keep_freed_memory, return_freed_memory
from fgod.system.procfs import resident_mib
from fgod.train import checkpoint, dose
from fgod.train.batches import batches
from fgod.train.checkpoint import Schedule
from fgod.train.choose import choose_stepper
from fgod.train.device.attention import kernel_serves, packed_size
from fgod.train.device.plan import predict_on_device
from fgod.train.device.settings import choose_device, processor, repeatable_cuda
from fgod.train.dose import Asker
from fgod.train.efficiency import Watch, lost_updates
from fgod.train.loop import Around, make_steps
from fgod.train.memory import MIB, Prediction, around, check_fits, predict
from fgod.train.optimizer import StepFacts
from fgod.train.participation import Participant, check_holes, participation, write_participation
from fgod.train.preflight import PROMPTS, check_changed, check_chat
from fgod.train.ranks.group import Ranks
from fgod.train.ranks.plan import predict_on_ranks
from fgod.train.ranks.trainer import Asked, rank_stepper
from fgod.train.recipe import PACKED_ROWS, TrainRecipe
from fgod.train.record import (
    COLUMNS,
    GROUP_COLUMNS,
    PARTIAL,
    PARTIAL_GROUPS,
    GroupRow,
    StepRow,
    StepTable,
    publish,
    rows_of,
)
from fgod.train.stepper import Phase, Result, Stepper
from fgod.train.stored import StoredTensors, read_all
from fgod.train.teacher import table_size, with_teacher

TRAINED: Final = "trained"
DIVERGED: Final = "diverged"


def _silent(*_: object) -> None:
    """For a caller that wants no phases."""


def _say(text: str) -> None:
    say(f"fgod: {text}")


@dataclass(frozen=True)
class Job:
    """A training run: what its weights depend on, where things go, who is informed, what is allowed.

    Args:
        start: a folder of plain weights in any number format; it is only read.
        seed: of the order of rows and of stochastic rounding.
        work: scratch; holds the rows of train.tsv while the run lasts (see `record.publish`), and its checkpoints; they
            stay when it has ended: who notes the outcome forgets them.
        run_dir: where tables go, with `stage` and `lineage` in front of each row.
        master_out: the folder that gets the weights, if any.
        phase: called with what was just done (`fgod.guard.phases`).
        schedule: of checkpoints; by default there are none. A run goes on from what it finds in `work`.
        limit_gb: GiB of host memory that the guard allows; a run that is predicted to need more is refused. On a GPU
            `guard.cap.room_mib` says it instead.
        too_large_ok: only say so instead.
        chat: the config's: how rows are written.
        teacher: folder of the base's distributions over these rows (`fgod.train.teacher`), for a recipe with `kl`.
        checked: what is asked on the way, for a recipe with `check`.
        ranks: this process among those that share the run; each has a `work` and a `run_dir` of its own.
        checkpoints: where they lie; None: in `work`.
        say: what people are told.
    """

    start: Path
    rows: Sequence[Row]
    recipe: TrainRecipe
    seed: int
    work: Path
    run_dir: Path
    master_out: Path | None
    stage: str = ""
    lineage: str = ""
    phase: Phase = _silent
    schedule: Schedule = field(default_factory=Schedule)
    limit_gb: float | None = None
    too_large_ok: bool = False
    chat: ChatSettings = field(default_factory=ChatSettings)
    teacher: Path | None = None
    checked: CheckProbes | None = None
    ranks: Ranks | None = None
    checkpoints: Path | None = None
    say: Callable[[str], None] = _say

    @property
    def first(self) -> bool:
        """Whether this process writes weights and checkpoints: the only one, or the first of several."""
        return self.ranks is None or self.ranks.first


@dataclass
class _Run:
    """A job's steps with their records and checkpoints. `identity` is that of the checkpoints."""

    stepper: Stepper
    job: Job
    identity: checkpoint.Identity
    resumed_at: list[int]
    asker: Asker | None = None
    checks: list[dose.Result] = field(default_factory=list)
    """What the probes came to so far."""
    diverged_rows: str = ""
    """The lines of rows.tsv of the step that diverged."""
    gpus: list[int] = field(default_factory=lambda: [1])
    """GPUs that shared the run, at its start and each time that it went on."""

    def fit(self, plan: Iterator[list[int]], samples: Sequence[Sample]) -> str:
        """The steps that are not done yet; returns why training diverged, or nothing.

        Args:
            plan: which samples each step of the recipe takes.

        Raises:
            PreflightError: the first step at full learning rate left a tensor as it was.
            LostUpdatesError: updates do not land.
        """
        job, done = self.job, self.stepper.optimizer.steps_done
        limit = None if job.recipe.control else job.recipe.min_update_efficiency
        watch = Watch(limit, job.recipe.lr)
        with (
            StepTable(job.work / PARTIAL, COLUMNS, job.stage, job.lineage, done) as table,
            StepTable(job.work / PARTIAL_GROUPS, GROUP_COLUMNS, job.stage, job.lineage, done) as groups,
            follow("", job.recipe.steps, "step", done) as progress,
        ):

            def tell(result: Result, indices: Sequence[int], said: str) -> None:
                row, facts = result
                table.add(replace(row, rows=rows_of(indices), check=said))
                for group, sums in facts.groups.items():
                    groups.add(
                        GroupRow(row.step, group, sums.ratio(), sums.noise(), sums.largest, sums.clamped_share())
                    )
                progress.to(row.step, f"loss {row.loss:.3f}")
                self._judge(watch, facts, row)

            hooks = Around(self._begin, self._asks, self._ask, self._saves, self._save, tell)
            diverged = make_steps(self.stepper, job.recipe.steps, plan, samples, hooks)
        if diverged is None:
            return ""
        self.diverged_rows = rows_of(diverged.indices)
        return diverged.reason

    def _saves(self, step: int) -> bool:
        """Whether a checkpoint is due: by the clock of the first rank, where there are several."""
        due = self.job.schedule.due(step)
        return due if self.job.ranks is None or not self.job.schedule.secs else bool(self.job.ranks.agreed(due))

    def _save(self) -> None:
        checks = [asdict(result) for result in self.checks]
        more = {"resumed_at": self.resumed_at, **({"checks": checks} if checks else {}), **self.told_gpus()}
        checkpoint.save(self.job.checkpoints or self.job.work, self.stepper.optimizer, self.identity, more)

    def told_gpus(self) -> dict[str, list[int]]:
        """Of a run that several GPUs shared, how many in each of its parts."""
        return {"gpus": self.gpus} if any(count > 1 for count in self.gpus) else {}

    @property
    def _state(self) -> dose.State:
        """What the checks so far come to."""
        check = self.job.recipe.check
        return dose.State() if check is None else dose.state_after(self.checks, check.decay)

    def _begin(self, step: int) -> bool:
        """Before a step: the learning rate that follows from the checks so far; False where they end the stage."""
        state, check = self._state, self.job.recipe.check
        if check is not None:
            self.stepper.lr_factor = dose.lr_factor(step, state, check)
        return not state.ended

    def _asks(self, step: int) -> bool:
        """Whether the probes are asked after so many steps."""
        check = self.job.recipe.check
        return check is not None and dose.is_due(step, self._state, check)

    def _ask(self, step: int) -> str:
        """Ask the probes of the weights as they are now, and say what came of it; returns the shares in words."""
        assert self.asker is not None
        begin, before = time.perf_counter(), self._state
        result = self.asker.ask(self.stepper.model, step)
        self.checks.append(result)
        state = self._state
        follows = "the stage ends" if state.ended else "the rate decays" if state.decays_from else ""
        if before.decays_from and not state.ended:
            follows = "not any more: training goes on"
        took = f"{time.perf_counter() - begin:.1f} s"
        self.job.say(f"check · step {step} · {result.words} · {took}{' · ' if follows else ''}{follows}")
        return result.words

    def _judge(self, watch: Watch, facts: StepFacts, row: StepRow) -> None:
        recipe = self.job.recipe
        if row.step == max(1, recipe.warmup) and not recipe.partial:
            check_changed(self.stepper.optimizer.unchanged(), row.step)
        efficiency = watch.add(facts.whole, row.lr)
        if efficiency is not None:
            raise lost_updates(efficiency, recipe.master_dtype, row.lr, _weight_rms(self.stepper.masters))


def _weight_rms(masters: StoredTensors) -> float:
    """Root mean square of all matrices' weights; 0 on a rank that does not have them."""
    if not masters.writes:
        masters.help_read()
        return 0.0
    squares, count = 0.0, 0
    for _, master in read_all(masters):
        if master.ndim > 1:
            squares += torch.linalg.vector_norm(master, dtype=torch.float32).item() ** 2
            count += master.numel()
    return math.sqrt(squares / count)


def save_masters(start: Path, masters: StoredTensors, recipe: TrainRecipe, out: Path) -> dict[str, str]:
    """A Hugging Face folder of the masters as they are stored, with the start's tokenizer and config, by rename.

    Returns:
        The sha256 of each of its files.
    """
    config = read_plain_config(start)
    more = {} if recipe.block_scales == BLOCK_SCALES[0] else {BLOCK_SCALES_KEY: recipe.block_scales}
    with files.atomic_folder(out) as folder:
        limit = SHARD_BYTES if masters.device.type == "cpu" else DEVICE_SHARD_BYTES
        write_weights(folder, masters.names(), lambda n: {n: masters.like(n)}, lambda n: {n: masters.whole(n)}, limit)
        copy_side_files(start, folder)
        write_config(folder, config, "float32" if recipe.master_dtype == "fp32" else "bfloat16", **more)
    digests = files.file_digests(out)
    if limit == DEVICE_SHARD_BYTES:
        for file in weight_files(out):
            files.drop_cached(file)
    return digests


def _packs(config: Mapping[str, Any], recipe: TrainRecipe, device: torch.device) -> bool:
    """Whether the rows of a batch are computed without padding."""
    family = architecture_of(config, "config")
    return (
        recipe.batching == PACKED_ROWS
        and device.type == "cuda"
        and family.hand_written(config)
        and kernel_serves(DTYPES[recipe.compute_dtype], family.sizes(config, "config").head_dim)
    )


def _largest(recipe: TrainRecipe, samples: Sequence[Sample], packs: bool) -> tuple[int, int, int]:
    """Rows, tokens of each and labels in all of the largest batch that the longest rows can make; of packed rows, which
    have no padding, the mean of their tokens."""
    rows = recipe.micro_batch or recipe.batch
    rounds, rest = divmod(rows, len(samples))  # few rows meet themselves in a large batch

    def most(counts: Iterable[int]) -> int:
        largest_first = sorted(counts, reverse=True)
        return rounds * sum(largest_first) + sum(largest_first[:rest])

    lengths, labels = [len(sample.ids) - 1 for sample in samples], most(len(sample.learned) for sample in samples)
    if packs:
        return rows, -(-most(lengths) // rows), labels
    width = max(lengths)
    return rows, width + -width % recipe.length_bucket, labels


def _predictor(
    start: Path, samples: Sequence[Sample], device: torch.device, process: int, gpus: int
) -> Callable[[TrainRecipe], Prediction]:
    """What a recipe will need for the longest rows that can meet in one batch."""
    config = read_plain_config(start)

    def predicted(recipe: TrainRecipe) -> Prediction:
        largest = _largest(recipe, samples, _packs(config, recipe, device))
        return prediction(config, recipe, device, *largest, process, gpus)

    return predicted


def prediction(
    config: Mapping[str, Any],
    recipe: TrainRecipe,
    device: torch.device,
    rows: int,
    width: int,
    labels: int,
    process: int,
    gpus: int | None = None,
) -> Prediction:
    """What a step on a device will need: GPU memory there, all of this process on the CPU; of several each.

    On a GPU a family that the hand-written network does not compute keeps what transformers' layers keep on the CPU.

    Args:
        rows, width: at once, and tokens of each.
        labels: of all of them.
        process: bytes of this process by now, before its first step.
        gpus: that share the run; None: as the recipe says.
    """
    gpus = recipe.gpus if gpus is None else gpus
    before = 0 if device.type == "cuda" else process + around(config, recipe)
    if gpus > 1:
        found = predict_on_ranks(config, recipe, gpus, rows, width, labels, kernels=kernels.run_on(device))
        return replace(found, process=before)
    if device.type == "cuda" and architecture_of(config, "config").hand_written(config):
        if _packs(config, recipe, device):
            width, labels = -(-packed_size(rows * width) // rows), packed_size(labels)
        return predict_on_device(config, recipe, rows, width, labels, kernels=kernels.run_on(device))
    return predict(config, recipe, width, labels, before)


def _check_memory(
    job: Job, predicted: Callable[[TrainRecipe], Prediction], device: torch.device, room: float | None
) -> None:
    """Refuse a job that is predicted to need more than is allowed: on a GPU more than `room` MiB there.

    Raises:
        TooLargeError
    """
    limit_gb = job.limit_gb
    if device.type == "cuda":
        limit_gb = None if room is None else capped_mib(room) / MIB_PER_GB
    elif limit_gb is not None and job.ranks is not None:
        limit_gb /= job.ranks.count  # of which each is predicted alone
    if limit_gb is None:
        return
    try:
        check_fits(job.recipe, predicted, limit_gb * 2**30)
    except TooLargeError as error:
        if not job.too_large_ok:
            raise
        job.say(f"{error} It is tried all the same (guard.too_large_ok).")


def _participants(stepper: Stepper, start: Path) -> list[Participant]:
    """Who took part, by comparing the masters with the start folder."""
    config, got_gradient = read_plain_config(start), stepper.optimizer.got_gradient()
    family, tied = architecture_of(config, str(start)), config.get("tie_word_embeddings", False)
    with open_weights(start) as weights:
        masters = read_all(stepper.masters)
        return participation(masters, weights, got_gradient, family, tied, stepper.recipe.compute_dtype)


def run(job: Job) -> Outcome:
    """Train every tensor of a job's start folder on its rows and write the weights; the same bits every time.

    Writes train.tsv, efficiency.tsv and participation.tsv to the job's `run_dir`. A run that diverges ends with that
    status and leaves no weights.

    Raises:
        UsageError: rows, recipe or start folder do not fit.
        TooLargeError: it is predicted to need more than is allowed.
        PreflightError: a check before training, or after its first step at full learning rate, failed.
        LostUpdatesError: updates do not land; train.tsv shows since when.
        HoleError: a tensor got no gradient or did not change; train.tsv and participation.tsv are there, no weights.
    """
    if not job.rows:
        raise UsageError("no rows to train on; expected at least one")
    begin = time.perf_counter()
    job.phase("start")
    process = int(resident_mib() * MIB) + (0 if job.teacher is None else 2 * table_size(job.teacher))
    device = choose_device(job.recipe, job.say)
    room = room_mib() if device.type == "cuda" else None
    cap_allocator(room)
    with deterministic(job.seed, job.recipe.threads), repeatable_cuda(device):
        samples, pad = _encoded(job)
        predicted = _predictor(job.start, samples, device, process, 1 if job.ranks is None else job.ranks.count)
        _check_memory(job, predicted, device, room)
        stepper = _stepper(job, device, pad)
        job.phase("model_loaded")
        first_loss = stepper.preflight([list(s.ids[: s.prompt_length]) for s in spread(samples, PROMPTS)])
        training = _resume(stepper, job, processor(device))
        lengths = [len(sample.ids) for sample in samples]
        plan = batches(job.rows, job.recipe, job.seed, lengths)
        if device.type == "cpu":
            return_freed_memory()  # of loading: float32 weights and what they became lay beside each other
            keep_freed_memory()  # each step asks for the same sizes
        stepper.reset_peak()
        reason = _fit(training, plan, samples)
        measured = stepper.peak_mib()
        publish(job.work, job.run_dir)
        written = _finish(stepper, job, masters=not reason)
    return Outcome(
        status=DIVERGED if reason else TRAINED,
        reason=reason,
        weights_sha256=files.sha256_listing(written) if written else "",
        weights_files=written,
        steps_done=stepper.optimizer.steps_done,
        checks=[asdict(result) for result in training.checks],
        wall_s=round(time.perf_counter() - begin, 3),
        threads=job.recipe.threads,
        diverged_rows=training.diverged_rows,
        full_parameter=not job.recipe.partial,
        partial=job.recipe.partial,
        resumed_at=tuple(training.resumed_at),
        gpus=tuple(training.gpus) if training.told_gpus() else (),
        first_loss=round(first_loss, 6),
        memory_predicted_mib=dict(predicted(job.recipe).to_mib()),
        memory_measured_mib=measured,
        cpu=processor(torch.device("cpu")),
        device=processor(device) if device.type == "cuda" else "cpu",
        torch_version=torch.__version__,
    )


def _stepper(job: Job, device: torch.device, pad: int) -> Stepper:
    """What makes the steps: of one process, or of one of several ranks."""
    if job.ranks is None:
        return choose_stepper(device, job.start, job.recipe, job.seed, pad, job.phase, job.say)
    return rank_stepper(job.ranks, Asked(job.start, job.recipe, job.seed, pad, job.phase, job.say))


def _encoded(job: Job) -> tuple[list[Sample], int]:
    """The rows as token ids, and the id that fills them up."""
    chat = ChatFormat.of_folder(job.start, job.chat)
    job.say(f"the first row: {check_chat(chat, read_plain_config(job.start)['vocab_size'], job.rows[0])!r}")
    samples = chat.rows(job.rows, job.recipe.seq_len)
    if job.recipe.kl is None:
        return samples, chat.pad_id
    if job.teacher is None:
        raise UsageError("train.kl: expected the base's distributions over these rows (fgod train --teacher)")
    return with_teacher(samples, job.rows, job.teacher), chat.pad_id


def _checked(job: Job) -> CheckProbes | None:
    """The probes of the suites that `train.check` names; None without it.

    Raises:
        UsageError: there are none.
    """
    if job.recipe.check is None:
        return None
    if job.checked is None:
        raise UsageError("train.check: expected the probes that are asked (fgod train --probes)")
    return job.checked.of(job.recipe.check.until)


def _resume(stepper: Stepper, job: Job, processor: str) -> _Run:
    """Go on from the newest checkpoint of this very run, if there is one."""
    taught_by = [files.sha256_folder(job.teacher)] if job.recipe.kl is not None and job.teacher is not None else []
    checked = _checked(job)
    if checked is not None:
        taught_by.append(files.digest(checked.digests))
    run = checkpoint.digest_of(job.recipe, job.rows, job.seed, job.start, taught_by)
    identity = checkpoint.Identity(run, processor)
    saved = checkpoint.restore(job.checkpoints or job.work, stepper.optimizer, identity)
    count = 1 if job.ranks is None else job.ranks.count
    gpus = [count] if saved is None else [*saved.get("gpus", [1] * (1 + len(saved["resumed_at"]))), count]
    resumed_at = [] if saved is None else [*saved["resumed_at"], stepper.optimizer.steps_done]
    checks = [] if saved is None else [dose.Result(**one) for one in saved.get("checks", [])]
    asker = None
    if job.recipe.check is not None and checked is not None:
        asker = Asker(job.recipe.check, ChatFormat.of_folder(job.start, job.chat), checked)
    return _Run(stepper, job, identity, resumed_at, asker, checks, gpus=gpus)


def _fit(training: _Run, plan: Iterator[list[int]], samples: Sequence[Sample]) -> str:
    """All steps; what is recorded of them is published when they raise an error."""
    try:
        return training.fit(plan, samples)
    except FgodError:
        publish(training.job.work, training.job.run_dir, keep=True)
        raise


def _finish(stepper: Stepper, job: Job, masters: bool) -> dict[str, str]:
    """Write who took part, and of a run that did not diverge the masters, whose files' sha256 are returned.

    Raises:
        HoleError: a tensor of a full-parameter run was left out.
    """
    job.phase("saving")
    saved = job.master_out is not None and masters
    if not job.first:
        for _ in range(1 + saved):
            stepper.masters.help_read()
        return {}
    participants = _participants(stepper, job.start)
    write_participation(job.run_dir / "participation.tsv", participants, job.stage, job.lineage)
    if job.master_out is None or not masters:
        return {}
    if not job.recipe.partial:
        check_holes(participants)
    return save_masters(job.start, stepper.masters, job.recipe, job.master_out)
