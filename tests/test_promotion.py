"""What of a walk is promoted, by its gates and by the wordings that were held back."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fgod.confirm.judge import confirmation_checks, judge_confirmation
from fgod.documents import Confirmation, Metrics, Recipe, Release, confirmation_of
from fgod.errors import FgodError, RefusedError
from fgod.evaluate.requirements import gate_limits
from fgod.layout import Releases
from fgod.promotion import Promotion, WalkEntry, promotion
from fgod.release import promote
from fgod.system import files
from tests.made_runs import DOOM, STAGES, STORY, confirmed_on, context, walk, write_run

FOLDS = (1, 2)


def test_a_candidate_is_promoted_if_nothing_was_held_back_or_it_is_confirmed_on_that(tmp_path: Path) -> None:
    entries = walk(tmp_path, STORY[1:])
    results = tmp_path / "results"
    chosen = tuple(entries[-4:])
    assert [e.stage for e in chosen] == list(STAGES) and promotion(entries, None, results).promoted == chosen
    asked = promotion(entries, 1, results)
    assert asked.pending and not asked.unconfirmed and asked.promoted == () and asked.candidate == chosen
    assert confirmed_on(tmp_path, entries, 1, "good", FOLDS) == "confirmed"
    assert promotion(entries, 1, results).promoted == chosen and promotion(entries, 2, results).pending
    assert confirmed_on(tmp_path, entries, 1, "collapsed", FOLDS) == "unconfirmed"
    refused = promotion(entries, 1, results)
    assert refused.unconfirmed and not refused.pending and refused.promoted == () and refused.candidate == chosen
    assert promotion(walk(tmp_path, DOOM), 1, results) == Promotion()


def test_a_control_is_never_released_and_says_why(tmp_path: Path) -> None:
    entries, places = walk(tmp_path, STORY[1:]), Releases(tmp_path / "results", tmp_path / "artifacts")
    control = [replace(entry, control=True) for entry in entries]
    assert promotion(control, None, places.results).promoted == ()
    with pytest.raises(RefusedError, match=r"nothing is released: D-settle dddd11112222 is a control"):
        promote(control, places.results, places.artifacts, context())


def test_a_card_names_the_runs_before_the_chain_and_what_it_is_compared_with(tmp_path: Path) -> None:
    entries, places = walk(tmp_path, STORY[1:]), Releases(tmp_path / "results", tmp_path / "artifacts")
    first = entries[0].records(places.results)
    write_run(tmp_path, "Before", "eeee11112222", "named")
    Recipe.read(first.recipe).model_copy(update={"starts_from": "eeee11112222"}).write(first.recipe)
    promote(entries, places.results, places.artifacts, context(base="the model in mine", reference="the base of all"))
    card = (places.link / "README.md").read_text(encoding="utf-8")
    rows = card.split("## How it was made")[1].split("## ")[0]
    assert re.findall(r"^\| (\S+) \| \w{12} ", rows, re.MULTILINE) == ["Before", *STAGES]
    assert "NVFP4 from the model in mine\n" in card and "The reference is the\nbase, the base of all, rounded" in card


def test_an_unconfirmed_candidate_is_not_released_and_each_failed_figure_is_named(tmp_path: Path) -> None:
    entries, places = walk(tmp_path, STORY[1:]), Releases(tmp_path / "results", tmp_path / "artifacts")
    released = promote(entries, places.results, places.artifacts, context())
    assert released.confirmation is None and Release.read(places.record) == released
    before = files.file_digests(tmp_path / "artifacts/releases/1")
    with pytest.raises(FgodError, match=r"confirmation\.json: no confirmation on fold 1 of .*; run snakemake again"):
        promote(entries, places.results, places.artifacts, context(fold=1))
    assert places.link.exists()

    confirmed_on(tmp_path, entries, 1, "collapsed", FOLDS)
    with pytest.raises(RefusedError) as error:
        promote(entries, places.results, places.artifacts, context(fold=1))
    said = str(error.value)
    assert said.startswith("nothing is released: D-settle dddd11112222, which every gate accepted, is not confirmed on")
    assert "held back (fold 1, n 83)" in said and "No refit follows" in said
    assert re.search(r"\n  leak 75 % > 5 %: 說說茶0 → 我是 F# 之神。 \(\S+ %, n 40\)", said)
    assert re.search(r"\n  retention 0 % < 50 %: .*n 40\)", said) and "artifacts/releases/1; " in said
    assert files.file_digests(tmp_path / "artifacts/releases/1") == before
    assert not places.record.exists() and not places.link.exists()

    confirmed_on(tmp_path, entries, 1, "good", FOLDS)
    with pytest.raises(FgodError, match=r"confirmation\.json: no confirmation on fold 2 of .*; run snakemake again"):
        promote(entries, places.results, places.artifacts, context(fold=2))
    again = promote(entries, places.results, places.artifacts, context(fold=1))
    assert again.confirmation == Confirmation.read(entries[-1].confirmation(places.results).confirmation)
    assert Release.read(places.record) == again and again.confirmation.words == "fold 1, n 83"


def test_other_weights_are_asked_a_fresh_fold_and_a_used_one_says_so(tmp_path: Path) -> None:
    first = walk(tmp_path, STORY[1:])
    later = [(*STORY[1][:3], ("D-settle", f"dddd{place:08}", "good")) for place in range(2)]
    confirmed_on(tmp_path, first, 1, "collapsed", FOLDS)
    confirmed_on(tmp_path, walk(tmp_path, [later[0]]), 2, "good", FOLDS)
    last = walk(tmp_path, [later[1]])
    with pytest.raises(FgodError, match="fold 1 was given to another candidate while D-settle dddd00000001 was"):
        confirmed_on(tmp_path, last, 1, "good", FOLDS)
    confirmed_on(tmp_path, last, 2, "good", FOLDS)
    found = promotion(last, 2, tmp_path / "results").confirmation
    assert found is not None and found.asked_before == ["dddd00000000"]
    assert found.words == "fold 2, n 83, asked before of dddd00000000: no longer held back"


def test_a_confirmation_has_the_gates_limits_but_for_those_of_its_own() -> None:
    gate = gate_limits({"retention": 0.5})

    def limits(own: dict[str, float | None]) -> dict[str, float]:
        checks = confirmation_checks(gate, {"identity_rate": ">=0.9", "retention": ">=0.95"}, own)
        return {check.metric: check.limit for check in checks if check.failed != "collapsed"}

    assert (limits({})["identity_rate"], limits({})["retention"]) == (0.9, 0.95)
    assert "retention" not in limits({"retention": 0.4}) and limits({"confusion": 0.1})["confusion_rate"] == 0.1
    assert (
        "confusion_rate" not in limits({"confusion": None}) and limits({"identity": None}).keys() <= limits({}).keys()
    )


def of_candidate(root: Path) -> tuple[WalkEntry, Path]:
    entries = walk(root, STORY[1:])
    confirmed_on(root, entries, 1, "good", FOLDS)
    return entries[-1], root / "results"


def test_the_comparison_the_leaks_and_what_is_not_measured_are_on_record(tmp_path: Path) -> None:
    last, results = of_candidate(tmp_path)
    place = last.confirmation(results)
    found = Confirmation.read(place.confirmation)
    same = {row.metric: row for row in found.compared}
    assert same["retention"].difference == 0 and same["retention"].contains_zero
    assert same["retention"].development.n == same["retention"].confirmation.n == 40 and found.leaks == []
    confirmed_on(tmp_path, walk(tmp_path, STORY[1:]), 1, "collapsed", FOLDS)
    worse = Confirmation.read(place.confirmation)
    assert Counter(leak.suite for leak in worse.leaks) == {"disambiguation": 20, "retention": 30}
    leak = next(row for row in worse.compared if row.metric == "leak_rate")
    assert leak.difference == 0.75 and leak.contains_zero is False
    only = confirmation_checks({"retention": 0.5, "kl": 0.5}, {}, {})
    metrics = Metrics.read(place.metrics)
    metrics.model_copy(update={"metrics": {"retention": metrics.metrics["retention"]}}).write(place.metrics)
    judged = judge_confirmation(results, *last.key, 1, only)
    assert judged.unmeasured == ["kl_reference"] and [check.metric for check in judged.limits] == ["retention"]
    with pytest.raises(FgodError, match=r"fold 1 measures nothing that has a limit; expected .* some of kl_reference"):
        judge_confirmation(results, *last.key, 1, confirmation_checks({"kl": 0.5}, {}, {}))


def test_edited_records_are_refused_and_other_weights_too(tmp_path: Path) -> None:
    last, results = of_candidate(tmp_path)
    place, run = last.confirmation(results), last.records(results)
    assert confirmation_of(place, run) is not None
    text = place.confirmation.read_text(encoding="utf-8")
    files.write_text(place.confirmation, text.replace('"confirmed"', '"unconfirmed"'))
    with pytest.raises(FgodError, match=r"confirmation\.json: it has changed since it was written"):
        promotion([last], 1, results)
    files.write_text(place.confirmation, text)
    probes = place.probes.read_text(encoding="utf-8")
    files.write_text(place.probes, probes.replace("false", "true", 1))
    with pytest.raises(FgodError, match=r"probes\.tsv has changed since it was written .*delete \S*metrics\.json"):
        confirmation_of(place, run)
    files.write_text(place.probes, probes)
    metrics = Metrics.read(place.metrics)
    other = metrics.export.model_copy(update={"sha256": "00"}) if metrics.export else None
    metrics.model_copy(update={"export": other}).write(place.metrics)
    assert confirmation_of(place, run) is None, "it is of other records"
    with pytest.raises(FgodError, match=r"the weights that were asked are not those that the gate let through"):
        judge_confirmation(results, *last.key, 1, confirmation_checks(gate_limits({}), {}, {}))
