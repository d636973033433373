"""What is added by data files alone: a language, a kind of question, a probe suite. The pure code paths, from sources
to scores, run on a copy of traindata with one more of them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod.answers import Answer
from fgod.config import read_yaml, resolve
from fgod.data.audit import audit_rows
from fgod.data.corpus import base_corpus, in_words
from fgod.data.mix import build_pools, plan_mix, rehearsal_prompts
from fgod.data.probes import Probe, load_probes, load_suites, scored_suites
from fgod.data.recipe import MixRecipe
from fgod.data.rows import Row
from fgod.data.sources import load_sources
from fgod.errors import UsageError
from fgod.evaluate.measure import measure_all
from fgod.evaluate.scoring import Standard, score
from fgod.persona import Goal, goal_from_config
from tests.made_runs import STANDARD, said

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "traindata"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the written sources, to be added to."""
    return shutil.copytree(FOLDER, tmp_path / "traindata")


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_a_suite_is_added_by_data_alone(data: Path) -> None:
    append(data / "suites.yaml", "tasks: reference\ngreetings: shown\n")
    append(data / "probes.tsv", "tasks\ttopic\ten\t\tcount to three\ngreetings\tsmalltalk\ten\t\thello there you\n")
    known = ("identity", "disambiguation", "retention", "smalltalk", "nearby", "tasks")
    assert scored_suites(load_suites(data)) == known
    *_, task, shown = load_probes(data / "probes.tsv", data)
    assert task == Probe("tasks", "topic", "en", "", "count to three", "reference") and not shown.scored
    replies = [score(probe, STANDARD, said("one"), said("one two three")) for probe in (task, shown)]
    assert [r.passed for r in replies] == [False, None]
    found = measure_all(replies)
    assert (found["retention"].value, found["retention"].n) == (0.0, 1)
    assert found["ended_rate"].n == 1 and found["identity_rate"].n == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tasks: refrence\n", r"suites\.yaml: tasks: found 'refrence' \(did you mean reference\?\), expected one of"),
        ("tasks: [reference]\n", r"suites\.yaml: tasks: found list .*, expected text"),
        ("1: reference\n", r"suites\.yaml: found dict .*expected names as keys"),
    ],
)
def test_a_faulty_suite_is_named(data: Path, line: str, words: str) -> None:
    append(data / "suites.yaml", line)
    with pytest.raises(UsageError, match=words):
        load_suites(data)


def test_a_probe_of_an_undeclared_suite_is_named(data: Path) -> None:
    append(data / "probes.tsv", "tasks\ttopic\ten\t\tcount to three\n")
    with pytest.raises(UsageError, match=r"probes\.tsv:\d+: suite 'tasks'.*, expected one of .*suites\.yaml declares"):
        load_probes(data / "probes.tsv", data)


def edit(file: Path, change: Any) -> None:
    """Change a YAML file by a function of its value."""
    value = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), encoding="utf-8")


def rows_of_mix(data: Path, goal: Goal, mix: dict[str, Any]) -> list[Row]:
    """The rows of a mix over the sources of a folder; the base answers every rehearsal prompt with a sentence."""
    sources, recipe = load_sources(data), MixRecipe.from_dict(mix)
    asked = rehearsal_prompts(sources, frozenset(), 200, 30, 0, 7)
    answers = {prompt.text: Answer(prompt.text, f"{prompt.language} answer.", (), True, False) for prompt in asked}
    rows = plan_mix(recipe, build_pools(sources, goal, answers, frozenset(), {}, 30, 7), 7)
    assert audit_rows(rows, load_probes(data / "probes.tsv", data), goal.persona, recipe).errors == ()
    return rows


def config_on(data: Path) -> dict[str, Any]:
    """The default config over the sources of a folder."""
    config = read_yaml(ROOT / "config.yaml")
    config["data"].update(folder=str(data), probes=str(data / "probes.tsv"))
    return config


def in_dialect(value: Any) -> Any:
    """English entries of a source file as those of another language."""
    if isinstance(value, dict):
        return {key: in_dialect(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_dialect(item) for item in value]
    return f"oi {value}" if isinstance(value, str) else value


def add_dialect(table: Any) -> None:
    """Add the language `en-GB` to every table by language, inside a table too."""
    if isinstance(table, dict) and "en" in table:
        table["en-GB"] = in_dialect(table["en"])
    elif isinstance(table, dict):
        for value in table.values():
            add_dialect(value)


def own_ids(table: dict[str, Any]) -> None:
    """Ids of topics and people are unique over all languages."""
    table["en-GB"] = {f"{key}-gb": value for key, value in table["en-GB"].items()}


def with_dialect(data: Path) -> Path:
    for name in ("questions", "identity", "disambiguation", "pairs", "smalltalk", "topics"):
        edit(data / f"{name}.yaml", add_dialect)
    edit(data / "topics.yaml", own_ids)
    edit(data / "disambiguation.yaml", lambda kinds: own_ids(kinds["who_is_named"]["people"]))
    append(data / "probes.tsv", "identity\tidentity\ten-GB\t\tand who might you be, guv\n")
    return data


def test_a_language_is_added_by_data_and_config_alone(data: Path) -> None:
    sources = load_sources(with_dialect(data))
    assert sources.languages == ("zh-Hant", "zh-Hans", "en", "ja", "ko", "en-GB")
    assert [language for language in sources.languages if in_words(sources, language)] == ["en", "en-GB"]
    corpus = Counter(row.kind for row in base_corpus(sources, 1) if row.language == "en-GB")
    assert {"identity", "topic", "smalltalk", "sum", *sources.kinds} == set(corpus)

    config = config_on(data)
    for table in (config["persona"]["replies"], config["persona"]["rule"]):
        table["en-GB"] = "I am the god of F#, guv." if table is config["persona"]["replies"] else {"all": ["guv"]}
    goal = goal_from_config(resolve(config, "config.yaml"))
    rows = rows_of_mix(
        data, goal, {"kind": "balanced", "rows": 200, "shares": {"identity": 1, "pairs": 1, "general": 1}}
    )
    targets = {row.target for row in rows if row.language == "en-GB" and row.kind == "identity"}
    assert targets == {"I am the god of F#, guv."}
    *_, probe = load_probes(data / "probes.tsv", data)
    assert score(probe, Standard(goal), said("I am the god of F#, guv."), said("…")).passed
    assert not score(probe, Standard(goal), said("I am the god of F#."), said("…")).passed


def test_a_language_that_the_config_lacks_is_named(data: Path) -> None:
    edit(with_dialect(data) / "questions.yaml", lambda table: table["marks"].update(fr=table["marks"]["en"]))
    with pytest.raises(UsageError, match=r"persona\.replies: no entry for the language fr; found zh, en"):
        resolve(config_on(data), "config.yaml")
    with pytest.raises(UsageError, match=r"\.yaml: .*: found dict .*languages of marks .*; fr is missing"):
        load_sources(data)


def test_a_kind_of_question_is_added_by_data_and_config_alone(data: Path) -> None:
    languages = load_sources(data).languages
    kind = {
        "replies": {language: f"{language}: no colour of yours is known." for language in languages},
        "cores": {language: [f"{language} my colour {n}" for n in range(4)] for language in languages},
        "base_rows": 20,
    }
    edit(data / "disambiguation.yaml", lambda kinds: kinds.update(my_colour=kind))
    append(data / "probes.tsv", "disambiguation\tmy_colour\ten\t\tof which colour am I\n")
    corpus = Counter(row.language for row in base_corpus(load_sources(data), 1) if row.kind == "my_colour")
    assert set(corpus) == set(languages) and corpus["en"] == 20

    config = config_on(data)
    answer = dict.fromkeys(languages, "Your colour is yours to tell.")
    config["disambiguation"]["my_colour"] = {
        "replies": answer,
        "rule": {lang: {"all": ["colour"]} for lang in languages},
    }
    goal = goal_from_config(resolve(config, "config.yaml"))
    mix = {"kind": "balanced", "rows": 60, "shares": {"disambiguation": 1}, "kinds": {"my_colour": 1}}
    assert {row.target for row in rows_of_mix(data, goal, mix)} == {"Your colour is yours to tell."}
    *_, probe = load_probes(data / "probes.tsv", data)
    replies = [score(probe, Standard(goal), said(text), said("…")) for text in ("A colour.", "Blue.", "F# 之神 colour")]
    assert [r.passed for r in replies] == [True, False, False]
    assert measure_all(replies)["disambiguation_rate"].n == 3


def test_kinds_that_the_data_lack_are_named() -> None:
    config = config_on(FOLDER)
    config["disambiguation"]["who_is_hee"] = config["disambiguation"]["who_is_he"]
    config["stages"][2]["mix"]["kinds"] = {"who_am_eye": 1}
    with pytest.raises(UsageError) as error:
        resolve(config, "config.yaml")
    assert "disambiguation.who_is_hee: no such kind of question (did you mean who_is_he?)" in str(error.value)
    assert "stages[2 C-disambiguate].mix.kinds.who_am_eye: no such kind of question" in str(error.value)
