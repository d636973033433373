"""What snakemake says of a run, in a line for each start and end of a job, and with live lines in a terminal.

Snakemake's own log of the run (.snakemake/log/) keeps all of it, and so does --verbose on the screen; -n leaves out
what is of every run, and shows the jobs in full. A line that is not known here is shown as it is: only snakemake's
header and what is listed in `CHATTER` are left out, and what is said in fewer words.
Another logger (`snakemake --logger NAME`) is left alone. So are --quiet and what it leaves out.

Snakemake finds a logger plugin only where a package of a certain name lies in site-packages, which an editable
installation does not have; a profile that names one it does not find stops snakemake. So the Snakefile sets the
handler itself (`shorten`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFormatter, get_event, is_quiet_about, logger
from snakemake.settings.types import OutputSettings
from snakemake_interface_logger_plugins.common import LogEvent

from fgod.progress.jobs import Drawing
from fgod.progress.reached import duration
from fgod.system import terminal

STREAM_HANDLER = "DefaultStreamHandler"
"""The name of snakemake's own handler for the screen."""

CHATTER = (
    "Assuming unrestricted shared filesystem usage.",
    "Building DAG of jobs...",
    "DAG of jobs will be updated after completion.",
    "Select jobs to execute...",
    "Updating checkpoint dependencies.",
    "Using shell: ",
)
"""How lines without an event begin that are of every run, and say nothing of this one."""

EXPECTED = ("Missing output files: ", "Input files updated by another job: ", "Rules with a run or shell declaration ")
"""How reasons begin that tell nothing: a job runs as what it makes is not there yet."""

REASON_LENGTH = 120
"""Characters of a reason; `fgod plan` says more."""

FIRST = ("stage", "lineage")
"""Wildcards that are shown before others."""

_ENDED = re.compile(
    r"RuleException:\nCalledProcessError in file .*?:\nCommand '.*' "
    r"(?:returned non-zero exit status (\d+)|died with <Signals\.(\w+): \d+>)\.",
    re.DOTALL,
)


def job_name(rule: str, wildcards: Mapping[str, Any]) -> str:
    """`train · B-nudge 8d503d5b518c`: a rule and what it is about."""
    named = [*(key for key in FIRST if key in wildcards), *(key for key in wildcards if key not in FIRST)]
    return f"{rule} · {' '.join(str(wildcards[key]) for key in named)}" if named else rule


def told_reason(reason: str) -> str:
    """Why a job runs, as far as it is not that nothing of it is there yet."""
    told = "; ".join(part for part in reason.split("; ") if part and not part.startswith(EXPECTED))
    line = " ".join(told.split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"


def how_it_ended(text: str) -> str | None:
    """Of what snakemake says of a command that failed: `exit code 100`, `SIGKILL`; None where it says another thing."""
    found = _ENDED.fullmatch(text.strip())
    return None if found is None else (found[2] or f"exit code {found[1]}")


def counted(stats: Mapping[str, int]) -> str:
    """`23 jobs to do: 4 mix, 4 audit, base, …`."""
    jobs = {name: number for name, number in stats.items() if name != "total"}
    named = [name if number == 1 else f"{number} {name}" for name, number in jobs.items()]
    total = sum(jobs.values())
    return f"{total} job{'' if total == 1 else 's'} to do: {', '.join(named)}"


def of_every_run(record: logging.LogRecord) -> bool:
    """Whether it says nothing of this run: snakemake's header (versions, folders), and `CHATTER`."""
    event = get_event(record)
    if event is None:
        return record.levelno <= logging.INFO and str(record.msg or "").startswith(CHATTER)
    return event is LogEvent.WORKFLOW_STARTED


class Full(DefaultFormatter):
    """All that snakemake says but what is of every run: for a dry-run."""

    def format(self, record: logging.LogRecord) -> str:
        return "" if of_every_run(record) else super().format(record)


class Brief(DefaultFormatter):
    """Says in a line what snakemake says in several; an empty text is nothing to say. One run, in the order of time."""

    def __init__(self, settings: OutputSettings, log_files: Callable[[], Sequence[str]] = tuple) -> None:
        super().__init__(settings.quiet, settings.show_failed_logs)
        self._log_files = log_files
        self._begun: dict[int, tuple[str, float]] = {}
        self._ended: dict[int | None, str] = {}
        """How a command ended, by the thread that said it: the job's own failure follows there."""

        self._finished = ""
        """The job that is finished, until it is said how many are."""

        self._said_last = ""

    def format(self, record: logging.LogRecord) -> str:
        text = self._format(record)
        if get_event(record) is not LogEvent.JOB_FINISHED and self._finished:  # nobody said how many are finished
            text, self._finished = "\n".join(filter(None, [self._finished, text])), ""
        repeated, self._said_last = text == self._said_last, text or self._said_last
        return "" if repeated else text

    def _format(self, record: logging.LogRecord) -> str:
        if of_every_run(record):
            return ""
        match get_event(record):
            case LogEvent.RESOURCES_INFO | LogEvent.JOB_STARTED:
                return ""
            case LogEvent.RUN_INFO:
                return counted(record.__dict__["stats"])
            case LogEvent.JOB_INFO:
                return self._start(record)
            case LogEvent.JOB_FINISHED:
                return self._finish(record)
            case LogEvent.PROGRESS:
                return self._count(record)
            case LogEvent.ERROR:
                return self._error(record)
            case LogEvent.JOB_ERROR:
                return self._failure(record)
        return super().format(record)

    def _start(self, record: logging.LogRecord) -> str:
        told = record.__dict__
        name = job_name(told["rule_name"], told["wildcards"] or {})
        self._begun[told["jobid"]] = name, record.created
        reason = "" if is_quiet_about(self.quiet, "reason") else told_reason(told["reason"])
        return self._line(record, "start", name, reason)

    def _finish(self, record: logging.LogRecord) -> str:
        before, self._finished = self._finished, self._line(record, "done", *self._took(record, "job_id"))
        return before

    def _count(self, record: logging.LogRecord) -> str:
        told, finished = record.__dict__, self._finished
        self._finished = ""
        return f"{finished} · {told['done']} of {told['total']}" if finished else ""

    def _error(self, record: logging.LogRecord) -> str:
        how = how_it_ended(str(record.msg))
        if how is None or is_quiet_about(self.quiet, "rules"):  # the job's own failure is not shown
            return super().format(record)
        self._ended[record.thread] = how
        return ""

    def _failure(self, record: logging.LogRecord) -> str:
        told = record.__dict__
        how = self._ended.pop(record.thread, "")
        more = [f"       its command and files: {os.path.relpath(file)}" for file in self._log_files()]
        more += [f"       its log: {log}" for log in told["log"]]
        name, took = self._took(record, "jobid")
        return "\n".join([self._line(record, "FAILED", name or told["rule_name"], how, took), *more])

    def _took(self, record: logging.LogRecord, key: str) -> tuple[str, str]:
        """A job's name, and how long it took; empty where its start was not seen."""
        name, begun = self._begun.pop(record.__dict__[key], ("", record.created))
        return name, duration(record.created - begun)

    def _line(self, record: logging.LogRecord, word: str, *parts: str) -> str:
        time = self.formatTime(record, "%H:%M:%S")
        return f"{time} {word:6} {' · '.join(filter(None, parts))}"


class Screen(ColorizingTextHandler):
    """Writes what a formatter says above the live lines of the jobs, and draws these from the first job on."""

    def __init__(self, settings: OutputSettings, log_files: Callable[[], Sequence[str]]) -> None:
        super().__init__(settings.nocolor, formatter=Brief(settings, log_files))
        self._drawing = Drawing(self.stream)

    def emit(self, record: logging.LogRecord) -> None:
        with self._output_lock:
            if get_event(record) is LogEvent.JOB_INFO:
                self._drawing.begin()
            if text := self.format(record):
                terminal.line(self.decorate(record, text), self.stream)

    def close(self) -> None:
        self._drawing.end()
        super().close()


def shorten(settings: OutputSettings, log_files: Callable[[], Sequence[str]]) -> None:
    """Let a run say less on the screen; a dry-run leaves out what is of every run. Not with --verbose.

    Args:
        settings: snakemake's.
        log_files: gives the files where its whole log goes; none before they are known.
    """
    if settings.verbose or settings.debug_dag or (settings.stdout and not settings.dryrun):
        return
    own = next((handler for handler in logger.handlers if handler.name == STREAM_HANDLER), None)
    if own is None or isinstance(own, Screen):
        return
    if settings.dryrun:
        own.setFormatter(Full(settings.quiet, settings.show_failed_logs))
        return
    screen = Screen(settings, log_files)
    screen.name = STREAM_HANDLER
    screen.setLevel(own.level)
    for one in own.filters:
        screen.addFilter(one)
    logger.removeHandler(own)
    logger.addHandler(screen)
