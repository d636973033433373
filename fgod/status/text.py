"""A status in words, and losses as a curve of characters. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from fgod.progress.reached import duration
from fgod.status.commands import WORKFLOW
from fgod.status.facts import Facts, Running
from fgod.status.gpus import GpuUse
from fgod.status.judge import Status, hangs, told, unseen
from fgod.status.records import PoolUse, Training
from fgod.system.times import seconds_of

WIDTH = 10
"""Of the words in front of each line."""

CURVE_WIDTH, CURVE_HEIGHT = 72, 8


def lines(status: Status) -> list[str]:
    """A status for people, a fact a line."""
    facts = status.facts
    found = [*_head(status), *(_running_lines(status)), *_training_lines(status), *_gpu_lines(facts)]
    if facts.verdict:
        verdict, ago = facts.verdict, duration(facts.now - facts.verdict.at)
        found.append(_line("verdict", f"{verdict.stage} {verdict.lineage}: {verdict.decision}, {ago} ago"))
        found += [_line("", reason) for reason in verdict.reasons]
    found += [_line("next", text) for text in _next_lines(status)]
    return [*found, *(_line("problem", text) for text in facts.problems)]


def line(status: Status) -> str:
    """The same in one line, for a log."""
    facts, training = status.facts, status.facts.training
    if status.why:
        return f"stopped · {status.why.words.splitlines()[0]}"
    if status.trains and training and training.begun:
        return f"running · train · {_progress(status, training)}"
    if not facts.running:
        return f"{status.state} · {_snakemake(facts)}"
    return "running · " + ", ".join(_in_a_word(facts, one) for one in facts.running)


def _in_a_word(facts: Facts, one: Running) -> str:
    return told(one.command) if one.reached is None else one.reached.words(facts.now)


def _line(word: str, text: str) -> str:
    return f"{word:{WIDTH}}" + text.replace("\n", "\n" + " " * WIDTH)


def _head(status: Status) -> Iterator[str]:
    facts = status.facts
    if status.state == "between":
        yield _line("between", f"no command runs; {_snakemake(facts)} starts the next one")
    if away := unseen(facts) if status.state == "elsewhere" else None:
        yield _line("elsewhere", f"it was started on {away.host}: whether it lives cannot be seen from here")
    if status.why:
        yield _line("stopped", status.why.words)
        if facts.locked and facts.snakemake and facts.snakemake.state == "killed":
            yield _line("", "its lock stays: run `fgod recover` first")


def _snakemake(facts: Facts) -> str:
    if facts.snakemake is None:
        return "no snakemake is on record"
    return f"snakemake (process {facts.snakemake.pid})"


def _running_lines(status: Status) -> Iterator[str]:
    facts = status.facts
    for one in facts.running:
        command = one.command
        fit = "" if command.fit is None else f" · fit {command.fit}"
        of = f"{fit} · {command.run}" if command.run else ""
        what = WORKFLOW.get(command.name, "a command of your own")
        ran = duration(facts.now - seconds_of(command.start))
        yield _line("running", f"{command.name}{of} · {what} · for {ran}")
        yield from _alive(facts, one)
    if facts.running and facts.snakemake and facts.snakemake.state == "running":
        yield _line("", f"under {_snakemake(facts)}")


def _alive(facts: Facts, one: Running) -> Iterator[str]:
    named = [f"{process.role} {process.pid}" for process in one.processes if process.role != "helper"]
    helpers = len(one.processes) - len(named)
    more = f" · {helpers} helpers" if helpers else ""
    resident = [process.resident_mib for process in one.processes if process.resident_mib is not None]
    limit = "" if one.command.limit_mib is None else f", the limit is {one.command.limit_mib:.0f} MiB"
    if named:
        yield _line("processes", f"{' · '.join(named)}{more} · {sum(resident):.0f} MiB resident{limit}")
    if one.heartbeat_at is not None:
        ago = duration(facts.now - one.heartbeat_at)
        hung = ": it may hang" if hangs(facts, one) is not None else ""
        yield _line("heartbeat", f"{ago} ago, in phase {one.phase}{hung}")
    if one.reached is not None and one.command.name != "train":  # of a training its own table says more
        yield _line("progress", one.reached.words(facts.now))


def _training_lines(status: Status) -> Iterator[str]:
    training = status.facts.training
    if training is None or (status.why and status.why.kind == "released"):
        return
    name = f"{training.stage} {training.lineage}"
    if not status.trains:
        ended = f"{training.status} after step" if training.status else "ended after step"
        saved = "" if training.status else f"; {_saved(training)}"
        yield _line("training", f"{name}: {ended} {training.made.step} of {training.steps}{saved}")
    elif not training.begun:
        yield _line("training", f"{name}: no step yet; {_saved(training)}")
    else:
        yield _line("training", _progress(status, training))
    speed = training.made.tokens_per_second
    if status.trains and training.begun and speed is not None and training.made.recent:
        mean, pace = training.made.mean_loss, training.made.seconds_per_step or 0.0
        last = training.made.recent[-1]
        averaged = "" if mean is None else f" · mean loss of the last {len(training.made.recent)} steps {mean:.4g}"
        yield _line("", f"{pace:.3g} s a step · {speed:.0f} tokens/s · lr {last.lr:.3g}{averaged}")
    yield from (_line("memory", _pool(pool)) for pool in training.pools)


def _saved(training: Training) -> str:
    return f"it goes on from step {training.saved}" if training.saved else "nothing of it is saved"


def _progress(status: Status, training: Training) -> str:
    last = training.made.recent[-1] if training.made.recent else None
    loss = f" · loss {last.loss:.4g}" if last else ""
    left = "" if status.left_s is None else f" · {duration(status.left_s)} left"
    return f"{training.stage} {training.lineage} · step {training.made.step} of {training.steps}{loss}{left}"


def _pool(pool: PoolUse) -> str:
    used = "unknown" if pool.used_mib is None else f"{pool.used_mib:.0f}"
    peak = "" if pool.peak_mib is None else f" · at most {pool.peak_mib:.0f}"
    return f"{pool.source}: {used} of {pool.limit_mib:.0f} MiB{peak} · phase {pool.phase}"


def _gpu_lines(facts: Facts) -> Iterator[str]:
    if facts.gpus.unknown:
        yield _line("gpu", f"unknown: {facts.gpus.unknown}")
    ours = {process.pid for one in facts.running for process in one.processes}
    commands = {one.command.pid: told(one.command) for one in facts.running}
    for gpu in facts.gpus.found:
        yield _line("gpu", _gpu(gpu, ours, commands))


def _gpu(gpu: GpuUse, ours: set[int], commands: Mapping[int, str]) -> str:
    known = gpu.used_mib is not None and gpu.total_mib is not None
    memory = f"{gpu.used_mib:.0f} of {gpu.total_mib:.0f} MiB" if known else "memory unknown"
    users = [
        f"{user.pid} ({user.name or 'not visible here'}{', ours' if user.pid in ours else ''}) "
        f"{'an unknown amount' if user.mib is None else f'{user.mib:.0f} MiB'}"
        for user in gpu.users
    ]
    taken = f" · taken by {commands.get(gpu.holder.pid) or f'process {gpu.holder}'}" if gpu.holder else ""
    part = f" {gpu.uuid}" if gpu.part else ""
    return f"{gpu.number} {gpu.name}{part}: {memory}{taken} · {', '.join(users) or 'NVML names no user'}"


def _next_lines(status: Status) -> Iterator[str]:
    """What is to follow, run by run."""
    if status.why and status.next:
        yield "run snakemake again; it goes on with"
    of_run = groupby(status.next, key=lambda n: (n.experiment, n.fit, n.stage, n.lineage))
    for (experiment, fit, stage, lineage), steps in of_run:
        names = ", ".join(step.step for step in steps)
        of = f" ({experiment})" if experiment else ""
        yield f"{names} of fit {fit} {stage} {lineage}{of}" if stage else f"{names}{of}"
    if not status.next and not status.facts.walk and status.why and status.why.kind != "never_ran":
        yield "`fgod plan` says what comes next"


# ------------------------------------------------------------------------------------------------- the curve

EIGHTHS = " ▁▂▃▄▅▆▇█"


def curve(losses: Sequence[tuple[int, float]], width: int = CURVE_WIDTH, height: int = CURVE_HEIGHT) -> list[str]:
    """Losses as columns of blocks, the first step at the left, with the scale at the left and the steps below.

    Each column is the mean of its steps; what is not a number leaves a gap.

    Args:
        losses: (step, nats a label).
        width, height: in characters, without the scale.
    """
    columns = [_mean(part) for part in _cut([loss for _, loss in losses], width)]
    known = [value for value in columns if value is not None]
    if not known:
        return []
    low, high = min(known), max(known)
    span = high - low or 1.0
    levels = [None if v is None else 1 + round((v - low) / span * (8 * height - 1)) for v in columns]
    rows = [
        "".join(" " if level is None else EIGHTHS[min(max(level - 8 * row, 0), 8)] for level in levels)
        for row in reversed(range(height))
    ]
    scale = [f"{high:.4g}", *[""] * (height - 2), *([f"{low:.4g}"] if height > 1 else [])]
    margin = max(map(len, [*scale, "step"]))
    first, last = str(losses[0][0]), str(losses[-1][0])
    below = f"{first}{last:>{max(len(columns) - len(first), len(last) + 1)}}"
    return [
        *(f"{mark:>{margin}} │{row}" for mark, row in zip(scale, rows, strict=True)),
        f"{'step':>{margin}}  {below}",
    ]


def _cut(values: Sequence[float], count: int) -> list[Sequence[float]]:
    """At most `count` parts, as even as can be."""
    parts = min(count, len(values))
    return [values[i * len(values) // parts : (i + 1) * len(values) // parts] for i in range(parts)]


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
