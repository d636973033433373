"""`fgod why-step`: which rows a step was made of, by the records of made-up runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fgod import layout, recipes, runs
from fgod.cli import main
from fgod.data.rows import Message, write_rows
from fgod.documents import MixStamp, Outcome
from fgod.errors import FgodError, UsageError
from fgod.layout import PLACEBO, run_records
from fgod.system.files import digest, sha256_file, write_json
from fgod.train.record import COLUMNS, PARTIAL, StepRow, StepTable, publish, rows_of
from fgod.why_step import find_run, read_step, text
from tests.tiny_model import tiny_rows

RUN, OTHER = "0123456789ab", "0123ffffffff"
STEP = StepRow(1, 2.0, 1e-3, 1.0, 1.0, 100, 0.5, 800.0, 0.0, 1.0, 0.0, rows=rows_of([3, 0]), row_losses="0.5 3.25")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(lineage: str = RUN, mix: dict[str, object] | None = None, steps: Sequence[StepRow] = (STEP,)) -> Path:
    """A run that is under way: its recipe, its mix, and the steps in its work folder, whose table is returned."""
    spec = {"kind": "balanced"} if mix is None else mix
    write_json(run_records("A", lineage).recipe, {"stage": "A", "mix": spec, "train": {"steps": 4}})
    place = layout.mix(digest(spec) + (PLACEBO if recipes.PLACEBO in spec else ""))
    first, *rows = tiny_rows(4)
    history = (Message("user", "a"), Message("assistant", "b"))
    write_rows(place.rows, [replace(first, prompt="two\nlines", history=history), *rows])
    MixStamp(spec=spec, rows_sha256=sha256_file(place.rows)).write(place.stamp)
    work = layout.work(lineage).folder
    with StepTable(work / PARTIAL, COLUMNS, "A", lineage) as table:
        for step in steps:
            table.add(step)
    return work / PARTIAL


@pytest.mark.parametrize("mix", [None, {"kind": "balanced", recipes.PLACEBO: {}}])
def test_the_rows_of_a_step_with_the_loss_of_each(mix: dict[str, object] | None) -> None:
    table = make_run(mix=mix)
    with table.open("a") as stream:
        stream.write("A\t0123")  # the next line, as it is written
    made = read_step(find_run("A"), 1)
    assert [(one.line, one.loss) for one in made.rows] == [(5, 0.5), (2, 3.25)]
    assert [one.row.prompt for one in made.rows] == [tiny_rows(4)[3].prompt, "two\nlines"]
    said = text(made).splitlines()
    assert said[0] == f"A {RUN} · step 1 · 2 rows · loss 2 nats a label"
    assert said.index(next(line for line in said if line.startswith("line 2 · loss 3.25"))) < said.index(
        next(line for line in said if line.startswith("line 5 · loss 0.5"))
    )
    assert "  user      a" in said and said[said.index("  prompt    two") + 1] == "            lines"


def test_a_run_that_has_ended_is_read_from_its_results(here: Path) -> None:
    make_run()
    publish(layout.work(RUN).folder, run_records("A", RUN).folder)
    assert read_step(find_run("A@0123"), 1).table == run_records("A", RUN).training


def test_a_run_is_named_by_its_stage_and_first_digits() -> None:
    make_run()
    make_run(OTHER)
    make_run(f"{RUN}-0.5")
    os.utime(layout.work(OTHER).folder / PARTIAL, (2e9, 2e9))
    assert find_run("A").folder.name == OTHER
    assert find_run(f"A@{RUN}").folder.name == RUN, "an interpolated run has its lineage in its name"
    assert find_run("A@0123f").folder.name == OTHER
    for words, said in (
        ("A@0123", f"3 have this name; expected one of A@{RUN}, A@{RUN}-0.5, A@{OTHER}"),
        ("A@9", f"no run in results/runs has this name; expected one of A@{RUN}, A@{RUN}-0.5, A@{OTHER}"),
        ("a", "is of stage 'a'"),
        ("", "found those of A"),
    ):
        with pytest.raises(UsageError, match=said):
            find_run(words)


def test_the_newest_is_the_last_that_ended_or_trains_now_and_no_placebo() -> None:
    for lineage in (RUN, OTHER):
        make_run(lineage)
        os.utime(layout.work(lineage).folder / PARTIAL, (2e9, 2e9))
        publish(layout.work(lineage).folder, run_records("A", lineage).folder)
        Outcome(status="killed", reason="too much").write(run_records("A", lineage).outcome)
    os.utime(run_records("A", OTHER).outcome, (1e9, 1e9))
    os.utime(run_records("A", RUN).recipe, (1e9, 1e9))
    assert find_run("A").folder.name == RUN == runs.resolve("A").folder.name, "it ended last, though it began first"
    os.utime(make_run("0" * 12, {"kind": "balanced", recipes.PLACEBO: {}}), (3e9, 3e9))
    assert find_run("A").folder.name == RUN
    os.utime(make_run("1" * 12), (2e9, 2e9))
    assert find_run("A").folder.name == "1" * 12 and runs.resolve("A").folder.name == RUN, "it trains now"


def test_a_step_that_diverged_has_its_rows_in_the_outcome() -> None:
    make_run()
    run = run_records("A", RUN)
    publish(layout.work(RUN).folder, run.folder)
    Outcome(status="diverged", reason="step 2 of 4: the loss is nan", diverged_rows="3 4").write(run.outcome)
    made = read_step(run, 2)
    assert made.loss is None and [(one.line, one.loss) for one in made.rows] == [(3, None), (4, None)]
    assert "not a number" in text(made) and "no row's is on record" in text(made)
    with pytest.raises(UsageError, match="STEP: found 3, expected 1 to 1"):
        read_step(run, 3)


def test_a_row_without_labels_has_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    make_run(steps=[replace(STEP, row_losses=f"{math.nan} 3.25")])
    assert main(["why-step", "A", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["loss"] for row in found["rows"]] == [None, 3.25] and found["rows"][1]["line"] == 2
    assert main(["why-step", "A", "1"]) == 0 and "line 2 · loss 3.25" in capsys.readouterr().out


def test_tables_of_older_versions_are_read_and_name_no_rows() -> None:
    table = make_run()
    lines = [line.split("\t")[:-2] for line in table.read_text().splitlines()]
    table.write_text("".join("\t".join(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match="no rows on record: an older version"):
        read_step(find_run("A"), 1)
    with StepTable(table, COLUMNS, "A", RUN, done=1) as goes_on:  # as a training does that was stopped before
        goes_on.add(replace(STEP, step=2))
    with pytest.raises(UsageError, match="no rows on record"):
        read_step(find_run("A"), 1)
    assert len(read_step(find_run("A"), 2).rows) == 2


def test_what_is_wrong_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_run(steps=[replace(STEP, rows="9 2"), replace(STEP, step=2)])
    with pytest.raises(FgodError, match=r"rows.tsv: 4 rows; the step's record names \[9, 2\]"):
        read_step(find_run("A"), 1)
    rows = layout.mix(digest({"kind": "balanced"})).rows
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[-1] + "\n")
    with pytest.raises(FgodError, match="its lines are not those of the step"):
        read_step(find_run("A"), 2)
    write_json(run_records("A", RUN).recipe, {"stage": "A", "interpolate": 0.5, "of": OTHER, "mix": {}})
    with pytest.raises(UsageError, match=f"made no steps: it lies between start and end of {OTHER}"):
        read_step(find_run("A"), 1)
    table.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["why-step", "B", "1"])
    assert ended.value.code == 2 and "is of stage 'B'" in capsys.readouterr().err
