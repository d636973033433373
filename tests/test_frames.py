"""What is taught in more than one way: several wordings of a reply, denials of other names, foreign system prompts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod import inputs
from fgod.answers import COLUMNS
from fgod.chain import Chain
from fgod.cli import main
from fgod.config import resolve
from fgod.data.audit import audit_rows
from fgod.data.mix import Pools, build_pools, framed, plan_mix, wording
from fgod.data.optional import SYSTEMS_FILE, files_used, load_denials, load_systems
from fgod.data.recipe import MixRecipe
from fgod.data.rows import BASE, CONFIG, NO_SYSTEM, Prompt, Row, normalise, read_rows
from fgod.data.sources import Sources, load_sources
from fgod.data.wordings import denial_prompts, identity_prompts
from fgod.documents import AnswersStamp
from fgod.errors import UsageError
from fgod.layout import Answers
from fgod.persona import Goal, Persona
from fgod.system.files import file_digests
from fgod.system.table import write_table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "traindata"
Systems = dict[str, tuple[str, ...]]
TWO = ("I am the god of F#.", "The god of F#, that is what I am.")
NO = "No, I am the god of F#."
PERSONA = Persona(
    "X", dict.fromkeys(("zh", "en", "ja", "ko"), TWO), {}, ("god of F#",), {"zh": NO, "en": NO, "ja": NO, "ko": NO}
)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return load_sources(FOLDER)


@pytest.fixture(scope="module")
def pools(sources: Sources) -> Pools:
    denials = load_denials(FOLDER)
    return build_pools(sources, Goal(PERSONA, {}), {}, frozenset(), {}, seed=5, denials=denials)


@pytest.fixture(scope="module")
def systems() -> Systems:
    return load_systems(FOLDER)


def mixed(pools: Pools, systems: Systems, **keys: Any) -> tuple[MixRecipe, list[Row]]:
    """A planned mix of taught rows, and its recipe."""
    recipe = MixRecipe(**{"kind": "balanced", "rows": 200, "shares": {"identity": 1, "denial": 1}, **keys})
    return recipe, framed(plan_mix(recipe, pools, 5), recipe, systems, 5)


def test_each_prompt_gets_one_of_the_wordings_by_the_seed(pools: Pools, systems: Systems) -> None:
    _, rows = mixed(pools, systems, shares={"identity": 1})
    count = Counter(row.target for row in rows)
    assert set(count) == set(TWO) and min(count.values()) > 60, "200 draws of two"
    by_prompt: dict[str, set[str]] = {}
    for row in rows:
        by_prompt.setdefault(row.asked, set()).add(row.target)
    assert all(len(targets) == 1 for targets in by_prompt.values())
    prompt = Prompt("who are you", "en", "identity", "identity")
    assert {wording(TWO, prompt, seed) for seed in range(20)} == set(TWO)
    assert wording("one", prompt, 1) == "one"


def test_denials_ask_for_every_name_and_are_answered_by_the_config(
    sources: Sources, pools: Pools, systems: Systems
) -> None:
    denials = load_denials(FOLDER)
    prompts = denial_prompts(sources, denials)
    for language in ("zh-Hant", "en", "ja", "ko"):  # what simplified Chinese writes alike is traditional's
        assert {p.topic for p in prompts if p.language == language} == set(denials.assistants[language])
    assert all(p.topic in p.text for p in prompts) and len({normalise(p.text) for p in prompts}) == len(prompts)
    assert not {normalise(p.text) for p in prompts} & {normalise(p.text) for p in identity_prompts(sources)}
    recipe, rows = mixed(pools, systems)
    denied = [row for row in rows if row.part == "denial"]
    assert (
        len(denied) == 100
        and {row.target for row in denied} == {NO}
        and {row.answered_by for row in denied} == {CONFIG}
    )
    assert {row.language for row in denied} == set(sources.languages)
    assert not audit_rows(rows, (), PERSONA, recipe).errors


def test_frames_have_exact_shares_and_pairs_stay_under_one(pools: Pools, systems: Systems) -> None:
    recipe, rows = mixed(pools, systems, rows=100, frames={"default": 0.8, "none": 0.1, "foreign": 0.1})
    own = [row for row in rows if row.system not in ("", NO_SYSTEM)]
    assert (len(own), sum(row.system == NO_SYSTEM for row in rows)) == (10, 10)
    assert all(row.system in systems[row.language] for row in own) and len({row.system for row in own}) > 3
    assert audit_rows(rows, (), PERSONA, recipe).facts["frames"] == {"default": 80, "none": 10, "own": 10}
    plain = mixed(pools, systems, rows=100)[1]
    assert [(row.prompt, row.target) for row in rows] == [(row.prompt, row.target) for row in plain]
    assert all(row.plain for row in plain)
    pair = [Row(p, "t", "en", "pairs", "identity", group="g", answered_by=CONFIG) for p in ("a", "b")]
    base = Row("c", "t", "en", "general", "topic", answered_by=BASE)
    mended = framed([*pair, base], MixRecipe("balanced", 3, {"pairs": 1}, frames={"none": 1}), {}, 1)
    assert [row.system for row in mended] == [NO_SYSTEM, NO_SYSTEM, ""]
    kept = framed([pair[0], Row("b", "t", "en", "pairs", "x", group="g", answered_by=BASE)], recipe, systems, 1)
    assert [row.system for row in kept] == ["", ""], "half of a pair is the base's: it was asked under the default"


def test_rehearsed_rows_stand_under_frames_of_their_own(systems: Systems) -> None:
    taught = [Row(f"t{n}", "x", "en", "identity", "identity", answered_by=CONFIG) for n in range(10)]
    base = [Row(f"b{n % 20}", "y", "en", "general", "topic", answered_by=BASE) for n in range(60)]
    others = [
        replace(base[0], prompt="b", system="You are a cook."),
        replace(base[0], prompt="c", group="g"),
        replace(base[0], prompt="d", answered_by=""),
    ]
    weights = {"default": 2, "none": 1, "foreign": 1}
    recipe = MixRecipe("balanced", 73, {"identity": 1}, rehearsed_frames=weights)
    rows = framed([*taught, *base, *others], recipe, systems, 1)
    assert rows[:10] == taught and rows[70:] == others, "others' frames are their own"
    found = Counter(row.system for row in rows[10:70])
    assert (found[""], found[NO_SYSTEM]) == (30, 15)
    assert set(found) - {"", NO_SYSTEM} <= set(systems["en"]) and len(found) > 4
    by_prompt = [{row.system for row in rows[10:70] if row.prompt == f"b{n}"} for n in range(20)]
    assert sum("" in own for own in by_prompt) > 14, "most prompts are rehearsed under the default, too"
    nowhere = MixRecipe("balanced", 1, {"identity": 1}, rehearsed_frames={"none": 1})
    [moved] = framed([replace(base[0], asked_under="You are a poet.")], nowhere, systems, 1)
    assert (moved.system, moved.asked_under) == (NO_SYSTEM, "You are a poet."), "the teacher stays where the base spoke"
    assert files_used(recipe) == (SYSTEMS_FILE,) and MixRecipe.from_dict(recipe.to_dict()) == recipe
    assert "rehearsed_frames" not in MixRecipe("balanced", 1, {"identity": 1}).to_dict(), "other digests stay"


@pytest.mark.parametrize("key", ["frames", "rehearsed_frames"])
def test_frames_that_say_nothing_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=rf"mix\.{key}: all weights are 0"):
        MixRecipe.from_dict({"kind": "balanced", "rows": 1, "shares": {"identity": 1}, key: {"none": 0}})
    with pytest.raises(UsageError, match=rf"mix\.{key}: not allowed here"):
        MixRecipe.from_dict({"kind": "verbatim", "source": "mine", key: {"none": 1}})


def test_no_system_prompt_names_the_persona_or_an_assistant(systems: Systems) -> None:
    names = {name for some in load_denials(FOLDER).assistants.values() for name in some}
    texts = [text for some in systems.values() for text in some]
    assert len(set(texts)) == len(texts) and not [
        t for t in texts if any(name.casefold() in t.casefold() for name in names)
    ]


def shipped(**mix: Any) -> dict[str, Any]:
    """The shipped config with one stage."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    whole = {"kind": "balanced", "rows": 20, "shares": {"identity": 1, "denial": 1}, **mix}
    config["stages"] = [{"name": "A", "mix": whole, "train": {"steps": 1, "lr": 1.0e-4}}]
    said = ("不，我是 F# 之神。", NO, ["いいえ、私はF#の神です。"], "아니요, 저는 F#의 신입니다.")
    config["persona"]["denials"] = dict(zip(("zh", "en", "ja", "ko"), said, strict=True))
    return config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["persona"].pop("denials"), "the part denial needs persona.denials"),
        (lambda c: c["persona"]["denials"].update(en="No."), "persona.denials, en: found 'No.', which persona.rule"),
        (lambda c: c["persona"]["denials"].pop("ko"), "persona.denials: no entry for the language ko"),
        (lambda c: c["persona"]["replies"].update(en=[TWO[0], "Hi."]), "persona.replies, en: found 'Hi.'"),
        (lambda c: c["persona"]["replies"].update(en=[]), "persona.replies.en: found [], expected at least 1 items"),
        (lambda c: c["stages"][0]["mix"].update(frames={"nun": 1}), "(did you mean none?)"),
        (lambda c: c["stages"][0]["mix"].update(frames={"none": 0}), "mix.frames: all weights are 0"),
    ],
)  # fmt: skip
def test_a_slip_is_named(monkeypatch: pytest.MonkeyPatch, edit: Any, message: str) -> None:
    monkeypatch.chdir(ROOT)
    config = shipped()
    edit(config)
    with pytest.raises(UsageError) as refused:
        resolve(config, "config.yaml")
    assert message in str(refused.value)


def test_the_command_makes_them_and_only_such_mixes_depend_on_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traindata").mkdir()
    for file in (file for file in FOLDER.iterdir() if file.is_file()):
        (tmp_path / "traindata" / file.name).write_text(file.read_text())

    def spec(**mix: Any) -> str:
        config = resolve(shipped(**mix), "config.yaml")
        return Chain(config, inputs.gather(config)).fit(()).runs[0].mix_spec

    plain = spec(shares={"identity": 1})
    first = spec(frames={"default": 0.5, "foreign": 0.5})
    write_table(tmp_path / "answers" / "answers.tsv", COLUMNS, [])
    AnswersStamp(settings={}, files=file_digests(tmp_path / "answers")).write(Answers(tmp_path / "answers").stamp)
    command = ["data", "mix", "--spec", first, "--sources", "traindata", "--files", json.dumps({})]
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main([*command, "--answers", "answers/answers.tsv", "--out", "mix/rows.tsv"]))
    assert not ended.value.code
    rows = read_rows(tmp_path / "mix/rows.tsv")
    assert Counter(row.part for row in rows) == {"identity": 10, "denial": 10}
    assert sum(bool(row.system) for row in rows) == 10
    systems = tmp_path / "traindata" / "systems.yaml"
    systems.write_text(systems.read_text().replace("Answer briefly", "Answer shortly"))
    assert spec(shares={"identity": 1}) == plain and spec(frames={"default": 0.5, "foreign": 0.5}) != first
    systems.unlink()
    with pytest.raises(UsageError, match=r"systems\.yaml: no such file"):
        spec(frames={"foreign": 1})


def test_how_rehearsed_rows_are_framed_is_part_of_their_lineage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = resolve(yaml.safe_load(Path("config.yaml").read_text()), "config.yaml")
    chain = Chain(config, inputs.gather(config))
    mix = config["stages"][0]["mix"]
    plain, framed_too = (chain.mix_spec({**mix, **more}) for more in ({}, {"rehearsed_frames": {"none": 1}}))
    assert "rehearsed_framed" not in plain and framed_too["rehearsed_framed"] == "by row"
