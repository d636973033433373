"""`languages` of a config: rows, probes and the base are in these alone, and the config needs no others."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fgod import config as settings
from fgod import inputs
from fgod.chain import Chain
from fgod.data.corpus import base_corpus
from fgod.data.identity import identity_file
from fgod.data.probes import load_probes
from fgod.data.sources import load_sources
from fgod.errors import UsageError
from tests.mini import LANGUAGES, ROOT, Mini

DATA = ROOT / "traindata"


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def english(config: dict[str, Any]) -> dict[str, Any]:
    """The default config for English alone: no other language stands in it."""
    config = copy.deepcopy(config)
    config["languages"] = ["en"]
    for table in (config["persona"], *config["disambiguation"].values()):
        for key in ("replies", "rule"):
            if isinstance(table[key], dict):
                table[key] = {"en": table[key]["en"]}
    config["persona"]["marks"] = ["god of"]
    for stage in config["stages"]:
        stage["mix"]["styles"] = {"multilingual": 1}
    return config


def languages_in(value: Any) -> set[str]:
    """All languages that sources hold anything in."""
    if isinstance(value, Mapping):
        return {key for key in value if key in LANGUAGES}.union(*map(languages_in, value.values()))
    if isinstance(value, tuple):
        return set().union(*map(languages_in, value))
    return {value.language} if hasattr(value, "language") else set()


def test_sources_of_some_languages_hold_nothing_of_others() -> None:
    sources = load_sources(DATA, ["ja", "en"])
    assert sources.languages == ("en", "ja"), "in the order of the sources"
    for field in fields(sources):
        assert languages_in(getattr(sources, field.name)) <= {"en", "ja"}, field.name
    assert {row.language for row in base_corpus(sources, 1)} == {"en", "ja"}
    assert load_sources(DATA, []) == load_sources(DATA)


def test_probes_of_other_languages_are_left_out() -> None:
    every = load_probes(DATA / "probes.tsv", DATA)
    assert load_probes(DATA / "probes.tsv", DATA, ["ko"]) == [probe for probe in every if probe.language == "ko"]


def test_an_identity_file_without_chinese_has_the_styles_that_there_are() -> None:
    rows = identity_file(load_sources(DATA, ["en"]), 100, 1, "I am someone.")
    assert {(row.language, row.style) for row in rows} == {("en", "multilingual")}


def test_a_config_of_one_language_needs_that_one_alone() -> None:
    resolved = settings.resolve(english(settings.read_yaml(ROOT / "config.yaml")), "c")
    assert resolved["languages"] == ["en"]
    assert "languages" not in settings.load(ROOT / "config.yaml"), "of all: as before there was a choice"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c.update(languages=["en", "eng"]),
            "c: languages: found 'eng' (did you mean en?); the sources",
        ),
        (lambda c: c.update(languages=["en", "ja"]), "c: persona.replies: no entry for the language ja; found en"),
        (
            lambda c: c["stages"][1]["mix"].update(styles={"natural": 1, "multilingual": 1}),
            "c: stages[1 B-nudge].mix.styles.natural: no prompt in en has this style; expected weights of multilingual",
        ),
    ],
)
def test_what_does_not_go_with_the_languages_is_named(edit: Any, message: str) -> None:
    config = english(settings.read_yaml(ROOT / "config.yaml"))
    edit(config)
    with pytest.raises(UsageError) as caught:
        settings.resolve(config, "c")
    assert message in str(caught.value)


def lineages(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """What the base's answers are named by, base_id, and all lineages of a config over the sources of a folder."""
    inputs._sources.cache_clear()
    inputs.sources_digest.cache_clear()
    config = copy.deepcopy(config)
    config["data"].update(folder=str(folder), probes=str(folder / "probes.tsv"))
    resolved = settings.resolve(config, "c")
    gathered = inputs.gather(resolved)
    runs = Chain(resolved, gathered).fit([]).runs
    return (inputs.reference_id(resolved), gathered.base_id, *(run.lineage for run in runs))


def test_a_comment_in_the_data_trains_nothing_and_a_word_does(tmp_path: Path) -> None:
    folder, mine = tmp_path / "traindata", tmp_path / "mine.tsv"
    shutil.copytree(DATA, folder)
    mine.write_text("who\tme\n", encoding="utf-8")
    config = settings.read_yaml(ROOT / "config.yaml")
    config["data"]["sources"] = {"mine": str(mine)}
    config["stages"][0]["mix"]["shares"]["mine"] = 0.1
    before = lineages(config, folder)
    for file in (*folder.glob("*.yaml"), mine):
        file.write_text("# a comment\n\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert lineages(config, folder) == before
    mine.write_text("who\tI\n", encoding="utf-8")
    other = lineages(config, folder)
    assert other[:2] == before[:2] and not set(other[2:]) & set(before)
    topics = folder / "topics.yaml"
    topics.write_text(topics.read_text(encoding="utf-8").replace("UFO 是", "UFO 就是", 1), encoding="utf-8")
    assert not set(lineages(config, folder)[1:]) & {*before, *other}


def test_what_is_written_in_another_language_trains_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "traindata"
    shutil.copytree(DATA, folder)
    config = english(settings.read_yaml(ROOT / "config.yaml"))
    before = lineages(config, folder)
    topics = folder / "topics.yaml"
    topics.write_text(topics.read_text(encoding="utf-8").replace("UFO 是", "UFO 就是", 1), encoding="utf-8")
    assert lineages(config, folder) == before


def test_every_command_is_told_the_languages(tmp_path: Path) -> None:
    mini = Mini.create(tmp_path)
    mini.config = english(mini.config)
    said = mini.snakemake("-n", "-p")
    reading = [line for line in said.splitlines() if "--sources traindata" in line]
    assert len(reading) == 7 and all("--sources traindata --languages en " in line for line in reading)
    made = mini.run("fgod", "data", "identity", "--count", "20", "--out", "mine.tsv")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "mine.tsv").read_text(encoding="utf-8").isascii()
