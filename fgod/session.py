"""What the snakemake at work here expects to do: it writes that itself, `fgod status` reads it. No record of results.

    .snakemake/fgod/session.json    {"process", "start", "end", "config", "walk", "after", "ended"}

`walk` are the visits of the walk (fit, stage, lineage, alpha; of an experiment its name, and whether it is a control)
with pending gates counted as accepted: written when snakemake starts, and again when a gate decides. `after` are the
commands that follow the last gate (`after_gates`). `ended`: done or failed; null while it is at work, or if it was
killed, which its process tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgod.call import say
from fgod.errors import StorageError
from fgod.layout import SESSION
from fgod.manifest import own_process
from fgod.seal import read_object
from fgod.system.files import write_json
from fgod.system.times import now_iso

if TYPE_CHECKING:
    from fgod.chain import Walk


AFTER_GATES = ("confirm", "export", "served", "engine", "tables", "report", "promote")
"""The commands that follow the last gate, in their order; `export` is that of a release's further formats."""


def after_gates(confirms: bool, formats: bool, engines: bool) -> list[str]:
    """Those of `AFTER_GATES` that a config calls: whether wordings are held back, a release has further formats, and
    engines judge it."""
    asked = {"confirm": confirms, "export": formats, "engine": engines}
    return [name for name in AFTER_GATES if asked.get(name, True)]


def visits_of(walk: Walk, experiment: str = "") -> list[dict[str, Any]]:
    """The visits of a walk, as they stand in the file."""
    from fgod.records import is_control  # `fgod status` imports this module, and is to answer at once

    of = {"experiment": experiment} if experiment else {}
    return [
        {
            **{**of, "fit": v.fit, "stage": v.run.stage, "lineage": v.run.lineage, "alpha": v.run.alpha},
            **({"control": True} if is_control(v.run) else {}),
        }
        for v in walk.visits
    ]


@dataclass
class Session:
    """One snakemake, from its start to its end."""

    path: Path = SESSION
    content: dict[str, Any] = field(default_factory=dict)
    """Empty before the start: a dry-run, or a snakemake that only makes a report, is none."""

    def begin(self, config: str, visits: list[dict[str, Any]], after: list[str]) -> None:
        """Called with the names of the config's files, when this snakemake alone is at work here."""
        expected = {"walk": visits, "after": after}
        ended = {"end": None, "ended": None}
        self.content = {"process": own_process(), "start": now_iso(), "config": config, **expected, **ended}
        self._write()

    def expects(self, visits: list[dict[str, Any]]) -> None:
        """The walk as it is expected now."""
        if self.content and self.content["walk"] != visits:
            self.content["walk"] = visits
            self._write()

    def end(self, how: Literal["done", "failed"]) -> None:
        if self.content:
            self.content |= {"end": now_iso(), "ended": how}
            self._write()

    def _write(self) -> None:
        try:
            write_json(self.path, self.content)
        except StorageError as fault:  # the work does not depend on it, and a full disk stops it with its own message
            say(f"fgod: {fault}. `fgod status` will not know what comes next")


def read_session(path: Path = SESSION) -> Mapping[str, Any] | None:
    """The newest session; None where none is on record.

    Raises:
        FgodError: the file is no JSON object.
    """
    return read_object(path) if path.exists() else None
