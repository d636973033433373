"""Suites of probes by families of wordings: what a file says, and the probes that it gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fgod.config import read_yaml, resolve
from fgod.data.probes import Probe, load_probes, of_split, probe_files, suites_of
from fgod.data.rows import NO_SYSTEM, Message
from fgod.data.suites import CHECK, CONFIRMATION, DEVELOPMENT, Family, Suite, read_suite, wordings
from fgod.errors import UsageError
from fgod.inputs import reference_id, reply_words_digest
from fgod.persona import Rule
from fgod.validation import validate
from tests.mini import ROOT

FOLDER = ROOT / "traindata"
LANGUAGES = ("zh-Hant", "zh-Hans", "en")

ONE: dict[str, Any] = {
    "name": "polite",
    "split": "development",
    "kind": "identity",
    "cores": {"en": ["would you kindly say who you are", "may one ask your name"]},
}


def write(folder: Path, *families: dict[str, Any], name: str = "identity", scored: str = "persona") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"scored": scored, "families": list(families)}, allow_unicode=True), "utf-8")
    return path


def test_a_suite_gives_probes_of_its_splits(tmp_path: Path) -> None:
    held = {**ONE, "name": "held", "split": "confirmation", "fold": 2, "cores": {"en": ["state your name"]}}
    check = {**ONE, "name": "check", "split": "check", "cores": {"en": ["name, please"], "zh-Hant": ["報上名來"]}}
    path = write(tmp_path, ONE, held, check)
    found = load_probes(path, FOLDER)
    assert [p.prompt for p in of_split(found, DEVELOPMENT)] == ONE["cores"]["en"]
    assert of_split(found, CONFIRMATION, 2) == [
        Probe("identity", "identity", "en", "", "state your name", "persona", CONFIRMATION, 2, "held")
    ]
    assert of_split(found, CONFIRMATION, 1) == of_split(found, CONFIRMATION) == []
    assert [(p.language, p.prompt) for p in of_split(found, CHECK)] == [("en", "name, please"), ("zh-Hant", "報上名來")]
    assert [p.language for p in load_probes(path, FOLDER, ["zh-Hant"])] == ["zh-Hant"]


def test_cores_are_filled_and_frames_come_in_turn(tmp_path: Path) -> None:
    family = {
        **ONE,
        "kind": "my_name",
        "fill": {"$NAME": {"zh": ["小明", "小華"]}, "$JOB": {"zh-Hant": ["老師"]}},
        "cores": {"zh-Hant": ["我叫$NAME，是$JOB。我叫什麼？", "我是誰"]},
        "system": {"zh": ["none", "你是一位詩人。"]},
        "turns": {"zh": [["嗨", "您好！"], ["早", "早安。", "好嗎", "很好。"]]},
        "accept": {"zh": {"any": ["$NAME", "$JOB"], "none": ["F#"]}},
    }
    path = write(tmp_path, family, name="claims", scored="claim")
    ming, hua, who = load_probes(path, FOLDER)
    assert [p.prompt for p in (ming, hua, who)] == [
        "我叫小明，是老師。我叫什麼？",
        "我叫小華，是老師。我叫什麼？",
        "我是誰",
    ]
    assert [p.system for p in (ming, hua, who)] == [NO_SYSTEM, "你是一位詩人。", NO_SYSTEM]
    assert ming.history == who.history == (Message("user", "嗨"), Message("assistant", "您好！"))
    assert [m.role for m in hua.history] == ["user", "assistant"] * 2
    assert hua.accept == Rule(any=("小華", "老師"), none=("F#",))
    assert (ming.suite, ming.scored_by, ming.kind) == ("claims", "claim", "my_name")


CORES = st.lists(st.sampled_from(["a $X", "b $X of $Y", "c", "d $Y", "e $X"]), min_size=1, max_size=5, unique=True)


@given(CORES, st.integers(1, 5), st.integers(1, 4), st.integers(1, 30))
def test_a_limit_takes_from_all_cores_and_fillings(cores: list[str], xs: int, ys: int, limit: int) -> None:
    fill = {"$X": {"en": [f"x{i}" for i in range(xs)]}, "$Y": {"en": [f"y{i}" for i in range(ys)]}}
    used = {holder: table for holder, table in fill.items() if any(holder in core for core in cores)}
    full = validate(Family, {**ONE, "cores": {"en": cores}, **({"fill": used} if used else {})})
    cut = validate(Family, {**ONE, "cores": {"en": cores}, "limit": limit, **({"fill": used} if used else {})})
    every, some = ([w.text for w in wordings("s", family)] for family in (full, cut))
    assert len(some) == min(limit, len(every)) == len(set(some))
    assert some == [text for text in every if text in some]  # in their order
    counts = Counter(text[0] for text in some)
    whole = Counter(text[0] for text in every)
    assert all(counts[core[0]] >= min(whole[core[0]], max(counts.values()) - 1) for core in cores)
    assert some == [w.text for w in wordings("s", cut)]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"split": "confirm"}, r"families\[0 polite\]\.split: found 'confirm' \(did you mean confirmation\?\); allowed"),
    ({"fold": 1}, r"families\[0 polite\]\.fold: found 1, split development; every family of confirmation has one"),
    ({"split": "confirmation"}, r"families\[0 polite\]\.fold: found nothing, split confirmation"),
    ({"cores": {"en": ["what is $X"]}}, r"cores\.en: 'what is \$X': nothing fills \$X; there is no fill"),
    ({"fill": {"$X": {"en": ["a"]}}}, r"fill\.\$X: no core names this placeholder"),
    ({"fill": {"X": {"en": ["a"]}}}, r"families\[0 polite\]\.fill: .*'X'"),
    ({"cores": {"en": ["$X"], "ja": ["$X"]}, "fill": {"$X": {"en": ["a"]}}}, r"fill\.\$X: no entry for ja, .*found en"),
    ({"system": {"zh": ["none"]}}, r"families\[0 polite\]\.system: no entry for en"),
    ({"turns": {"en": [["hello"]]}}, r"turns\.en\[0\]: found 1 texts, expected an even number"),
    ({"cores": {"fr": ["qui"]}}, r"families\[0 polite\]\.cores: unknown language 'fr'.*; expected zh-Hant, "),
    ({"cores": {"zh": ["誰"]}}, r"families\[0 polite\]\.cores: unknown language 'zh'"),
    ({"cores": {"en": ["who", "who"]}}, r"cores\.en: found .*, expected items that differ"),
    ({"accept": {"en": {"any": ["a"]}}}, r"accept: only a suite that is scored by claim has it"),
    ({"wording": 1}, r"families\[0 polite\]: unknown key 'wording'"),
    ({"limit": 0}, r"limit: found 0, expected at least 1"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_a_fault_names_file_and_key(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"identity\.yaml: .*" + words) as found:
        load_probes(write(tmp_path, {**ONE, **change}), FOLDER)
    assert len(str(found.value).splitlines()) == 1


def test_faults_of_whole_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"scored: found 'personas' \(did you mean persona\?\); allowed"):
        load_probes(write(tmp_path, ONE, scored="personas"), FOLDER)
    with pytest.raises(UsageError, match=r"families\[1 polite\]: this name stands twice"):
        load_probes(write(tmp_path, ONE, {**ONE, "cores": {"en": ["who"]}}), FOLDER)
    with pytest.raises(UsageError, match=r"accept: missing; it says what is right \(scored: claim\)"):
        load_probes(write(tmp_path, ONE, scored="claim"), FOLDER)
    with pytest.raises(UsageError, match=r"none\.yaml: no such file$"):
        load_probes(tmp_path / "none.yaml", FOLDER)
    with pytest.raises(UsageError, match=r"ends with '\.json', expected \.tsv or \.yaml"):
        load_probes(tmp_path / "probes.json", FOLDER)


def test_the_same_question_stands_in_one_family_alone(tmp_path: Path) -> None:
    again = {**ONE, "name": "again", "split": "check", "cores": {"en": ["May one ask your name?"]}}
    with pytest.raises(UsageError, match=r"identity\.yaml: again: prompt 'May one .* stands in .*yaml: polite too"):
        load_probes(write(tmp_path, ONE, again), FOLDER)
    framed = write(tmp_path, ONE, {**again, "system": {"en": ["You are a poet."]}})
    assert len(load_probes(framed, FOLDER)) == 3  # in another frame it is another question
    with pytest.raises(UsageError, match=r"frames\.yaml: again: .* stands in .*identity\.yaml: polite too"):
        load_probes([write(tmp_path, ONE), write(tmp_path, again, name="frames")], FOLDER)


def test_tables_and_suites_of_families_go_together(tmp_path: Path) -> None:
    files = [FOLDER / "probes.tsv", write(tmp_path, ONE, name="talk", scored="talk")]
    found = load_probes(files, FOLDER)
    assert len(found) == len(load_probes(files[0], FOLDER)) + 2 and {p.split for p in found} == {DEVELOPMENT}
    scored = {"identity": "persona", "disambiguation": "kind", "retention": "reference", "questions": "shown"}
    scored |= {"smalltalk": "talk", "nearby": "neighbour"}
    assert suites_of(files, FOLDER) == {**scored, "talk": "talk"}
    assert suites_of(files[1], FOLDER) == {"talk": "talk"}
    other = write(tmp_path, ONE, scored="denial")
    with pytest.raises(UsageError, match=r"the suite identity is scored by denial, elsewhere by persona"):
        suites_of([FOLDER / "probes.tsv", other], FOLDER)


def test_a_suite_reads_what_it_was_written_as(tmp_path: Path) -> None:
    family = {**ONE, "cores": {"en": ["who\nare you"], "zh-Hant": ["誰"]}}
    found = read_suite(write(tmp_path, family), LANGUAGES)
    assert found == Suite("identity", "persona", (validate(Family, family),))


def test_held_back_wordings_are_no_part_of_what_the_gate_asks(tmp_path: Path) -> None:
    config = read_yaml(ROOT / "config.yaml")
    held = {**ONE, "name": "held", "split": "confirmation", "fold": 1, "cores": {"en": ["state your name"]}}
    config["data"]["probes"] = ["traindata/probes.tsv", str(write(tmp_path, ONE, held))]

    def names(*families: dict[str, Any]) -> tuple[str, str]:
        write(tmp_path, *families)
        checked = resolve(config, "config.yaml")
        return reference_id(checked), reply_words_digest(checked)

    before = names(ONE, held)
    assert before[1] == ""
    assert names(ONE, {**held, "cores": {"en": ["what are you called"]}}) == before == names(ONE)
    assert names({**ONE, "cores": {"en": ["your name, please"]}}, held) != before
    config["data"]["probes"].append(str(write(tmp_path, ONE, name="denial", scored="denial")))
    assert names({**ONE, "cores": {"en": ["your name, please"]}})[1] != ""


def test_a_config_names_one_file_of_probes_or_several(tmp_path: Path) -> None:
    config = read_yaml(ROOT / "config.yaml")
    assert probe_files(resolve(config, "config.yaml")) == [Path("traindata/probes.tsv")]
    both = ["traindata/probes.tsv", str(write(tmp_path, ONE))]
    config["data"]["probes"] = both
    assert probe_files(resolve(config, "config.yaml")) == [Path(name) for name in both]
    config["data"]["probes"] = [both[0], "traindata/none.yaml"]
    with pytest.raises(UsageError, match=r"data\.probes: found 'traindata/none\.yaml', expected a file that exists"):
        resolve(config, "config.yaml")
    config["data"]["probes"] = [both[0], both[0]]
    with pytest.raises(UsageError, match=r"data\.probes: found .*expected items that differ"):
        resolve(config, "config.yaml")
