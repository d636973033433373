"""Commands that gather what runs left: the walk, its tables, the report, the release."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fgod import layout
from fgod.arguments import Input, JsonObject, Option, Output
from fgod.call import Call, say
from fgod.cli.command import Command, ReadOnly
from fgod.errors import FgodError, UsageError
from fgod.escape import html_text
from fgod.layout import RunRecords
from fgod.system.files import read_json, write_json

if TYPE_CHECKING:
    from fgod.promotion import Promotion, WalkEntry
    from fgod.tables import Context


@dataclass(frozen=True, kw_only=True)
class Walk(Command):
    """Write the sequence of fits, verdicts and refits, and what reports say besides the records."""

    json: Annotated[JsonObject, Option("the walk")]
    context: Annotated[JsonObject, Option("what reports say besides the records")]
    out: Annotated[Path, Output("walk.json to write")]

    def run(self, call: Call) -> None:
        write_json(self.out, {"walk": self.json, "context": self.context})


def _walk_and_context(file: Path) -> tuple[list[WalkEntry], Context]:
    from fgod.promotion import WalkEntry
    from fgod.tables import Context

    decided = read_json(file)
    walk, context = decided["walk"], decided["context"]
    entries = [WalkEntry(**visit) for visit in walk["visits"]]
    adjustments = tuple(tuple(lines) for lines in walk["adjustments"])
    context |= {"stages": tuple(context["stages"]), "suites": tuple(context["suites"])}
    context |= {"engines": tuple((engine, format) for engine, format in context.get("engines", ()))}
    context |= {"spent": walk["spent"], "adjustments": adjustments, "fold": walk["fold"]}
    return entries, Context(**context)


def _results(out: Path, context: Context) -> Path:
    """The folder results/ of a path that lies directly where a chain's tables and report do.

    Raises:
        UsageError: it lies elsewhere.
    """
    results = layout.View(out.parent).results
    if context.told(results).folder != out.parent:
        raise UsageError(f"--out: found {out}, expected {context.told(results).folder / out.name}")
    return results


@dataclass(frozen=True, kw_only=True)
class Tables(Command):
    """Gather the records of the walk into tables."""

    walk: Annotated[Path, Input("walk.json")]
    out: Annotated[Path, Output("folder of the tables")]

    def run(self, call: Call) -> None:
        from fgod.gather import gather

        entries, context = _walk_and_context(self.walk)
        results = _results(self.out, context)
        walked = [entry.records(results).folder for entry in entries if entry.state != "pending"]
        call.note(inputs=list(dict.fromkeys(walked)))
        gather(entries, results, layout.ARTIFACTS, context)


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write the report from the tables."""

    tables: Annotated[Path, Input("folder of the tables")]
    out: Annotated[Path, Output("report.html to write")]

    def run(self, call: Call) -> None:
        from fgod.report import write_report

        write_report(self.tables, self.out)


METRICS = Input("metrics.json, beside probes.tsv")


@dataclass(frozen=True, kw_only=True)
class Comparison(Command):
    """Write the base, the base rounded, the placebo and the tuned run side by side."""

    base: Annotated[Path, METRICS]
    rounded: Annotated[Path, METRICS]
    placebo: Annotated[Path, METRICS]
    tuned: Annotated[Path, METRICS]
    out: Annotated[Path, Output("comparison.tsv to write")]

    def sides(self) -> dict[str, Path]:
        """The metrics of each side by its name."""
        return {"base": self.base, "rounded": self.rounded, "placebo": self.placebo, "tuned": self.tuned}

    def inputs(self) -> list[Path]:
        return [*super().inputs(), *(RunRecords(metrics.parent).probes for metrics in self.sides().values())]

    def run(self, call: Call) -> None:
        from fgod.comparison import write_comparison

        write_comparison(self.out, self.sides())


@dataclass(frozen=True, kw_only=True)
class Promote(Command):
    """Release the last stage of an accepted fit."""

    walk: Annotated[Path, Input("walk.json")]
    formats: Annotated[
        tuple[str, ...], Option("further formats of the last stage's weights to release, exported beforehand", "NAME")
    ] = ()
    out: Annotated[Path, Output("promoted.json to write; release.json is written beside it")]

    def run(self, call: Call) -> None:
        from fgod.release import promote

        entries, context = _walk_and_context(self.walk)
        results = _results(self.out, context)
        places = layout.Releases(experiment=context.experiment)
        call.note(outputs=[places.record, places.link])  # which go where nothing is released
        released = promote(entries, results, layout.ARTIFACTS, context, self.formats)
        folder, last = places.link.resolve(), released.promoted[-1]
        weights = layout.run_weights(last.stage, last.lineage)
        call.note(inputs=[weights.exported, *map(weights.of, released.formats)], outputs=[folder])
        write_json(self.out, {"path": released.path, "release": folder.name, "lineage": last.lineage})


@dataclass(frozen=True, kw_only=True)
class Campaign(Command):
    """Write all experiments side by side, and print them as a tree."""

    experiments: Annotated[JsonObject, Option("note, start and fault of each experiment, by name")]
    walks: Annotated[tuple[Path, ...], Input("walk.json of each")]
    out: Annotated[Path, Output("experiments.tsv to write")]

    def run(self, call: Call) -> None:
        from fgod.campaign import retire_unpromoted, tree, unpromoted, write_campaign

        decided = {layout.View(file.parent).experiment: read_json(file)["walk"] for file in self.walks}
        if decided.keys() != self.experiments.keys():
            raise UsageError(f"--walks: found those of {', '.join(decided)}, expected {', '.join(self.experiments)}")
        told = {name: {**one, "walk": decided[name]} for name, one in self.experiments.items()}
        taken_back = [layout.Releases(experiment=name) for name in unpromoted(told, layout.RESULTS)]
        paths = [path for places in taken_back for path in (places.record, places.link)]
        call.note(outputs=[path for path in paths if os.path.lexists(path)])
        retired = list(retire_unpromoted(told, layout.RESULTS, layout.ARTIFACTS))
        for line in [*tree(write_campaign(self.out, told, layout.RESULTS)), *retired]:
            print(line)


@dataclass(frozen=True, kw_only=True)
class CampaignReport(Command):
    """Write the page of all experiments from their tables."""

    table: Annotated[Path, Input("experiments.tsv")]
    out: Annotated[Path, Output("experiments.html to write")]

    def run(self, call: Call) -> None:
        from fgod.report.campaign import write_campaign_report

        call.note(inputs=write_campaign_report(self.table, self.out))


@dataclass(frozen=True, kw_only=True)
class Summary(ReadOnly):
    """Join the manifest and say what was released, how good it is, where the report lies; or how far a run came."""

    walk: Annotated[JsonObject | None, Option("the walk: only what it promoted is reported as released")] = None
    experiments: Annotated[bool, Option("only experiments ran: nothing of the config's own chain is told")] = False
    stopped: Annotated[JsonObject | None, Option("the walk, where the run ended before its end")] = None

    def run(self, call: Call) -> None:
        from fgod.keep import inventory
        from fgod.manifest import torn, write_jsonl
        from fgod.plan import stopped
        from fgod.promotion import Promotion, of_walk

        decided = self.walk or self.stopped
        found = of_walk(decided, layout.RESULTS) if decided else Promotion()
        if self.stopped:
            print(stopped(self.stopped, found), flush=True)  # also where the disk is full
        write_jsonl(Path("."))
        for fault in torn(Path(".")):
            say(fault)
        try:
            inventory.write()
        except FgodError as error:  # what was released is said all the same
            say(f"{layout.INVENTORY} is as before: {error}")
        for line in self._released(found):
            print(line)

    def _released(self, found: Promotion) -> Sequence[str]:
        """What was released, in words; of a run that was stopped, where its report lies."""
        from fgod.documents import Release
        from fgod.release import summary_text

        released, report = layout.Releases().record, layout.view().report
        if self.stopped:
            tells = report.exists() and (self.stopped["spent"] or found.unconfirmed)
            return [f"Nothing was released. Report: {report}"] if tells else []
        if not released.exists() or self.experiments:
            return []
        document = Release.read(released)
        promoted = [entry.lineage for entry in found.promoted]
        if self.walk and promoted != [run.lineage for run in document.promoted]:
            persona = html_text(document.persona)
            return [f"Nothing was released by this run. {document.path} holds {persona}, of other runs."]
        return [summary_text(document, report)]
