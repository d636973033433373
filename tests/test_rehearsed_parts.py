"""Rehearsed parts of optional written sources: small talk, persons with a name, the persona's neighbourhood."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod import inputs
from fgod.chain import Chain
from fgod.config import resolve
from fgod.data.mix import build_pools, plan_mix, some_of
from fgod.data.optional import load_neighbours, load_people, load_talk
from fgod.data.probes import load_probes
from fgod.data.recipe import PART_ROWS, MixRecipe
from fgod.data.rows import Prompt, is_rehearsed, normalise
from fgod.data.sources import Sources, load_sources
from fgod.data.wordings import optional_prompts
from fgod.errors import UsageError
from fgod.persona import Goal, Persona
from tests.test_mix import Said

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "traindata"
MORE = {"words": {"zh": ["水煮魚"], "en": ["Rust"]}, "prompts": {"ja": ["錆びた鉄を見せて。"]}}
PARTS = tuple(PART_ROWS)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return load_sources(FOLDER)


@pytest.fixture(scope="module")
def prompts(sources: Sources) -> dict[str, list[Prompt]]:
    return optional_prompts(sources, FOLDER, PARTS, MORE)


def test_every_language_has_prompts_of_each_part(sources: Sources, prompts: dict[str, list[Prompt]]) -> None:
    assert set(prompts) == set(PARTS) and optional_prompts(sources, FOLDER, ("identity",), None) == {}
    for part, found in prompts.items():
        assert {prompt.part for prompt in found} == {part}
        assert {prompt.language for prompt in found} == set(sources.languages)
        assert len({normalise(prompt.text) for prompt in found}) == len(found)
        assert not any("$X" in prompt.text for prompt in found)
    people = load_people(FOLDER)
    assert {prompt.topic for prompt in prompts["named"] if prompt.language == "en"} == set(people.words["en"])
    assert {"neighbour", "field"} == {prompt.kind for prompt in prompts["neighbour"]}
    whole = {prompt.text.rstrip("?？。.") for prompt in prompts["talk"]}
    assert {core.rstrip("。.") for core in load_talk(FOLDER)["zh-Hant"]} <= whole


def test_a_config_adds_neighbours_of_its_own(prompts: dict[str, list[Prompt]]) -> None:
    found = Counter((prompt.language, prompt.topic) for prompt in prompts["neighbour"])
    cores = len(load_neighbours(FOLDER).cores["en"])
    assert found["en", "Rust"] > cores and found["zh-Hant", "水煮魚"] and not found["ja", "Rust"]
    assert any(prompt.text.startswith("錆びた鉄を見せて") for prompt in prompts["neighbour"])


def test_some_are_spread_over_languages_kinds_and_subjects(prompts: dict[str, list[Prompt]]) -> None:
    some = some_of(prompts["neighbour"], 60, 1)
    assert set(Counter(prompt.language for prompt in some).values()) == {12}
    assert set(Counter((prompt.language, prompt.kind) for prompt in some).values()) == {6}
    assert some_of(prompts["neighbour"], 60, 2) != some


def test_their_rows_have_the_base_s_own_answers(sources: Sources, prompts: dict[str, list[Prompt]]) -> None:
    said = {prompt.text: Said("Well.") for part in PARTS for prompt in prompts[part]}
    goal = Goal(Persona("X", dict.fromkeys(sources.languages, "I am X."), {}, ()), {})
    pools = build_pools(sources, goal, said, frozenset(), {}, rehearsed=prompts)
    rows = plan_mix(MixRecipe("balanced", 10 * (len(PARTS) + 1), {**dict.fromkeys(PARTS, 1), "identity": 1}), pools, 3)
    assert Counter(row.part for row in rows) == {**dict.fromkeys(PARTS, 10), "identity": 10}
    assert all(is_rehearsed(row) == (row.part in PARTS) for row in rows)
    for part in PARTS:
        assert set(Counter(row.language for row in rows if row.part == part).values()) == {2}


def test_no_prompt_of_theirs_is_a_probe(prompts: dict[str, list[Prompt]]) -> None:
    config = yaml.safe_load((ROOT / "config" / "qwen2.5-0.5b.yaml").read_text())
    named = config["data"].get("probes", "traindata/probes.tsv")
    files = [ROOT / name for name in ([named] if isinstance(named, str) else named)]
    probes = {normalise(probe.prompt) for probe in load_probes(files, FOLDER) if probe.scored}
    assert [prompt.text for part in PARTS for prompt in prompts[part] if normalise(prompt.text) in probes] == []


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "traindata").mkdir()
    for file in FOLDER.iterdir():
        (tmp_path / "traindata" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert isinstance(config, dict)
    return config


def spec_of(raw: dict[str, Any]) -> tuple[inputs.Inputs, dict[str, Any]]:
    config = resolve(raw, "config.yaml")
    found = inputs.gather(config)
    spec: dict[str, Any] = json.loads(Chain(config, found).fit([]).runs[0].mix_spec)
    return found, spec


def test_only_mixes_that_have_a_part_depend_on_its_file(raw: dict[str, Any]) -> None:
    without, spec = spec_of(raw)
    assert without.optional == {} and "optional" not in spec
    raw["persona"]["neighbours"] = MORE
    assert spec_of(raw) == (without, spec), "no mix has the part neighbour"
    raw["stages"][0]["mix"]["shares"] |= {"talk": 0.1, "neighbour": 0.1}
    used, with_parts = spec_of(raw)
    assert set(used.optional) == {"talk.yaml", "varied.yaml", "neighbours.yaml"} == set(with_parts["optional"])
    assert used.rehearsal_id != without.rehearsal_id and with_parts["neighbours"] == MORE
    talk = Path("traindata/talk.yaml")
    content = talk.read_text()
    talk.unlink()
    talk.write_text(f"# a comment\n{content}")
    assert spec_of(raw)[0] == used
    talk.write_text(content.replace("how has your day been", "what sort of day was it"))
    assert spec_of(raw)[0].rehearsal_id != used.rehearsal_id
    raw["data"]["rehearse"]["talk_rows"] = 30
    config = resolve(raw, "config.yaml")
    assert inputs.rehearsal_settings(config)["parts"]["talk"]["rows"] == 30


def test_prompts_are_asked_again_under_a_system_prompt_of_the_config(raw: dict[str, Any]) -> None:
    raw["persona"]["replaces"] = ["Qwen"]
    without, before = spec_of(raw)
    assert "replaces" not in inputs.rehearsal_settings(resolve(raw, "config.yaml"))
    raw["data"]["rehearse"]["neutral_system"] = None
    assert spec_of(raw) == (without, before), "null is the same as nothing"
    raw["data"]["rehearse"]["neutral_system"] = "You help."
    used, spec = spec_of(raw)
    settings = inputs.rehearsal_settings(resolve(raw, "config.yaml"))
    assert (settings["neutral_system"], settings["replaces"]) == ("You help.", ["Qwen"])
    assert used.rehearsal_id != without.rehearsal_id and spec["rehearse"]["neutral_system"] == "You help."


@pytest.mark.parametrize(
    ("neutral", "replaces", "words"),
    [
        ("You help.", [], "needs persona.replaces"),
        ("  ", ["Qwen"], "found '  ', expected the text of a system prompt"),
        ("default", ["Qwen"], "found 'default', expected the text of a system prompt"),
        ("You are QWEN.", ["Qwen"], "which names Qwen; expected a system prompt without a name"),
    ],
)
def test_a_system_prompt_that_cannot_be_neutral_is_refused(
    raw: dict[str, Any], neutral: str, replaces: list[str], words: str
) -> None:
    raw["persona"]["replaces"] = replaces
    raw["data"]["rehearse"]["neutral_system"] = neutral
    with pytest.raises(UsageError, match=rf"config\.yaml: data\.rehearse\.neutral_system: .*{re.escape(words)}"):
        resolve(raw, "config.yaml")


def test_a_part_that_a_refit_rule_adds_is_asked_from_the_first(raw: dict[str, Any]) -> None:
    raw["refits"]["rules"][1]["set"] = {"mix.shares.named": 0.2}
    assert set(inputs.gather(resolve(raw, "config.yaml")).optional) == {"people.yaml"}


def test_what_is_wrong_is_said_with_file_and_key(raw: dict[str, Any]) -> None:
    raw["stages"][0]["mix"]["shares"]["named"] = 1
    people = Path("traindata/people.yaml")
    content = people.read_text()
    people.unlink()
    with pytest.raises(UsageError, match=r"traindata/people\.yaml: no such file"):
        inputs.gather(resolve(raw, "config.yaml"))
    people.write_text(content.replace("what has $X done", "what has he done"))
    with pytest.raises(UsageError, match=r"people\.yaml: cores\.en\[4\]: .*\$X once each"):
        inputs.gather(resolve(raw, "config.yaml"))
    raw["persona"]["neighbours"] = {"words": {"eng": ["Rust"]}}
    with pytest.raises(UsageError, match=r"persona\.neighbours\.words: unknown language 'eng'"):
        resolve(raw, "config.yaml")
