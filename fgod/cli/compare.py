"""The command that puts runs side by side: a module of its own, as it is to answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Annotated

from fgod.arguments import Option, Output
from fgod.call import Call
from fgod.cli.command import Personal
from fgod.system.files import write_text


@dataclass(frozen=True, kw_only=True)
class Compare(Personal):
    """Put runs side by side by their records: settings that differ, metrics in pairs, replies that changed."""

    runs: Annotated[
        tuple[str, ...],
        Option(
            "two or more, each compared with the first: STAGE (its newest run), STAGE@LINEAGE, release, or the folder "
            "of a release, of a run's records or of a project",
            "RUN",
            positional=True,
        ),
    ]
    html: Annotated[Path | None, Output("page to write")] = None
    json: Annotated[bool, Option("print JSON")] = False

    @property
    def recorded(self) -> bool:
        return self.html is not None and super().recorded

    def run(self, call: Call) -> None:
        from fgod.compare.document import compare
        from fgod.compare.operands import operand
        from fgod.compare.words import text

        found = [operand(name) for name in self.runs]
        compared = compare(found)
        call.note(inputs=[one.records.folder for one in found])
        if self.html:
            from fgod.report.compare import page

            write_text(self.html, page(compared))
        print(dumps(compared.to_dict(), ensure_ascii=False, indent=2) if self.json else text(compared))
