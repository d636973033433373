"""The command that says whether this machine can do what the configs ask of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fgod.arguments import Input, Option
from fgod.call import Call
from fgod.cli.command import ReadOnly
from fgod.cli.status import reader_may_leave

REFUSED = 100


@dataclass(frozen=True, kw_only=True)
class Doctor(ReadOnly):
    """Look at machine, software and configs (exit 100: something would go wrong)."""

    config: Annotated[
        tuple[Path, ...], Input("configs that count (default: config.yaml here, and for notes those that fgod ships)")
    ] = ()
    json: Annotated[bool, Option("for programs: one object (docs/doctor.md)")] = False
    quick: Annotated[bool, Option("no benchmark, and no self-test of what torch compiles")] = False

    def run(self, call: Call) -> int:
        from fgod.doctor.finding import as_json, closing, faults, lines
        from fgod.doctor.look import look

        found = []
        with reader_may_leave():
            for one in look(self.config, self.quick):
                found.append(one)
                if not self.json:
                    print("\n".join(lines(one)), flush=True)
            print(json.dumps(as_json(found), ensure_ascii=False, indent=2) if self.json else f"\n{closing(found)}")
        return REFUSED if faults(found) else 0
