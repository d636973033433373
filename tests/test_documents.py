"""Documents of results/ and artifacts/: edits by hand are refused, faults name file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgod.documents import (
    AnswersStamp,
    Audit,
    Metrics,
    MixStamp,
    Outcome,
    Recipe,
    Stamp,
    Verdict,
    check_answers,
    check_run,
    check_training_data,
    verdict_of,
)
from fgod.errors import FgodError, UsageError
from fgod.evaluate.requirements import gate_limits
from fgod.gate import judge_run
from fgod.layout import Answers, Mix, RunRecords, run_of_path, run_records, run_weights
from fgod.system.files import digest, file_digests, sha256_file, write_text
from tests.made_runs import write_run


@pytest.fixture
def collapsed(tmp_path: Path) -> RunRecords:
    assert write_run(tmp_path, "B", "bbbb00000000", "collapsed") == "collapsed"
    return run_records("B", "bbbb00000000", tmp_path / "results")


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_an_edited_verdict_is_refused_and_says_what_to_delete(collapsed: RunRecords) -> None:
    verdict = verdict_of(collapsed)
    assert (
        verdict is not None
        and verdict.decision == "collapsed"
        and set(verdict.judged) == {path.name for path in collapsed.judged}
    )
    text = collapsed.verdict.read_text(encoding="utf-8")
    collapsed.verdict.write_text(text.replace('"collapsed"', '"accepted"', 1), encoding="utf-8")
    with pytest.raises(FgodError, match=r"verdict\.json: it has changed since it was written.*or delete .*verdict"):
        verdict_of(collapsed)
    edit(collapsed.verdict, lambda document: document.pop("seal"))
    with pytest.raises(FgodError, match=r"verdict\.json: it has no seal"):
        verdict_of(collapsed)


def test_an_edited_metric_is_refused_by_the_gate_and_by_whoever_reads_the_verdict(collapsed: RunRecords) -> None:
    edit(collapsed.metrics, lambda document: document["metrics"]["identity_rate"].update(value=0.9999))
    for read in (
        lambda: judge_run(collapsed.folder, gate_limits({}), {}),
        lambda: check_run(collapsed),
        lambda: verdict_of(collapsed),
    ):
        with pytest.raises(FgodError, match=r"metrics\.json: it has changed .*delete .*metrics\.json and run "):
            read()


def test_an_edited_outcome_is_refused(collapsed: RunRecords) -> None:
    edit(collapsed.outcome, lambda document: document.update(status="diverged"))
    with pytest.raises(FgodError, match=r"outcome\.json: it has changed since it was written"):
        judge_run(collapsed.folder, gate_limits({}), {})


def test_a_verdict_on_records_that_were_made_anew_is_pending(collapsed: RunRecords) -> None:
    metrics = Metrics.read(collapsed.metrics)
    metrics.model_copy(update={"non_finite": 1}).write(collapsed.metrics)
    assert verdict_of(collapsed) is None
    assert judge_run(collapsed.folder, gate_limits({}), {}).decision == "diverged"
    again = verdict_of(collapsed)
    assert again is not None and again.decision == "diverged"
    collapsed.metrics.unlink()
    assert verdict_of(collapsed) is None


def test_a_document_keeps_what_was_written_and_names_the_key_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    Outcome(status="trained", wall_s=0.1, partial=("a",), weights_files={"之神": "00"}).write(path)  # type: ignore[call-arg]
    found = Outcome.read(path)
    assert (found.status, found.wall_s, found.content()["partial"]) == ("trained", 0.1, ["a"])
    found.write(path)
    assert Outcome.read(path) == found
    Stamp(status="killed").write(path)
    assert Outcome.read(path).status == "killed"
    Stamp(status="skipped").write(path)
    with pytest.raises(FgodError, match=r"outcome\.json: status: found 'skipped'; input should be 'trained', "):
        Outcome.read(path)
    Outcome(status="trained").write(path)
    with pytest.raises(FgodError, match=r"outcome\.json: the key 'decision' is missing"):
        Verdict.read(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(FgodError, match=r"outcome\.json: found list, expected an object"):
        Outcome.read(path)
    with pytest.raises(UsageError, match=r"none\.json: no such file"):
        Outcome.read(tmp_path / "none.json")


def test_a_path_names_its_run() -> None:
    assert run_of_path(run_records("A", "0123456789ab").outcome) == ("A", "0123456789ab")
    assert run_of_path(run_weights("A", "0123456789ab").stamp) == ("A", "0123456789ab")
    for other in ("results/report.html", "artifacts/base/1/base.json", "artifacts/mixes/1/rows.tsv", "a/b/c/d"):
        assert run_of_path(Path(other)) == ("", "")


SPEC = {"recipe": {"kind": "balanced"}, "seed": 1}


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, str, Mix, Path]:
    """A recipe, its lineage, the rows of its mix and their audit."""
    mix = Mix(tmp_path / "mix")
    write_text(mix.rows, "prompt\ttarget\n你是誰\t我是 F# 之神。\n")
    rows_sha256 = sha256_file(mix.rows)
    MixStamp(spec=SPEC, rows_sha256=rows_sha256).write(mix.stamp)
    audit = mix.folder / "audit-96.json"
    Audit(facts={}, findings=[], rows_sha256=rows_sha256).write(audit)
    recipe = Recipe(numerics=1, stage="A", starts_from="base", seed=1, mix=SPEC, train={"steps": 1})
    recipe.write(tmp_path / "recipe.json")
    return tmp_path / "recipe.json", digest(recipe.content()), mix, audit


def test_a_run_trains_on_the_rows_that_were_made_and_audited(prepared: tuple[Path, str, Mix, Path]) -> None:
    check_training_data(*prepared)


def test_edited_rows_recipes_and_audits_are_refused_before_training(prepared: tuple[Path, str, Mix, Path]) -> None:
    recipe, lineage, mix, audit = prepared
    for path, change, message in (
        (
            mix.rows,
            lambda text: text.replace("F#", "C#"),
            r"rows\.tsv: it has changed since the mix.*delete",
        ),
        (
            recipe,
            lambda text: text.replace('"steps": 1', '"steps": 2'),
            r"recipe\.json: it is not the recipe of",
        ),
        (
            mix.stamp,
            lambda text: text.replace("balanced", "curriculum"),
            r"mix\.json: it has changed",
        ),
        (
            audit,
            lambda text: text.replace('"findings": []', '"findings": [ ]').replace("{}", '{"rows": 2}'),
            "has changed",
        ),
    ):
        text = path.read_text(encoding="utf-8")
        changed = change(text)
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(FgodError, match=message):
            check_training_data(recipe, lineage, mix, audit)
        path.write_text(text, encoding="utf-8")
    Audit(facts={}, findings=[], rows_sha256="0" * 64).write(audit)
    with pytest.raises(FgodError, match=r"audit-96\.json: it is the audit of other rows"):
        check_training_data(recipe, lineage, mix, audit)
    MixStamp(spec={**SPEC, "seed": 2}, rows_sha256=sha256_file(mix.rows)).write(mix.stamp)
    with pytest.raises(FgodError, match=r"mix\.json: these rows were made by another mix"):
        check_training_data(recipe, lineage, mix, audit)


def test_edited_answers_of_the_base_are_refused(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "answers")
    write_text(answers.table, "prompt\treply\n")
    AnswersStamp(settings={}, files=file_digests(answers.folder)).write(answers.stamp)
    check_answers(answers)
    answers.table.write_text("prompt\tother\n", encoding="utf-8")
    with pytest.raises(FgodError, match=r"answers: answers\.tsv has changed since the base gave these answers.*delete"):
        check_answers(answers)
