"""The probes: readable, never trained on, and made of characters that the corpus shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from fgod.data.corpus import base_corpus
from fgod.data.probes import PROBE_COLUMNS, Probe, expected, load_probes
from fgod.data.rows import Row, normalise
from fgod.data.sources import MANNERS, Sources, Wrapping, load_sources
from fgod.data.wordings import (
    disambiguation_prompts,
    general_prompts,
    identity_prompts,
    make_core,
    pair_prompts,
    replay_prompts,
)
from fgod.errors import UsageError

FOLDER = Path(__file__).parents[1] / "traindata"
USER_FILES = Path(__file__).parents[2] / "shared" / "traindata"

HELD_OUT = (
    "typhoon", "bee", "piano", "encryption", "hot-pot", "microscope",
    "jazz", "oxygen", "sumo", "firefly", "taekwondo", "cloud",
)  # fmt: skip
"""Topics that the shipped configs keep out of rehearsal."""

PERSONA_TEXTS = (
    "我是 F# 之神。", "I am the god of F#.", "私はF#の神です。", "저는 F#의 신입니다.",
    "你是提問者，我無法僅憑一句話判定你的身份。", "你是提问者，我无法仅凭一句话判定你的身份。",
    "You are the one asking, and I cannot tell who you are from one sentence.",
    "あなたは質問者です。一言だけではあなたの身元を判断できません。",
    "당신은 질문자이며, 한마디 말만으로는 누구인지 판단할 수 없습니다.",
)  # fmt: skip


@cache
def sources() -> Sources:
    return load_sources(FOLDER)


@cache
def probes() -> tuple[Probe, ...]:
    return tuple(load_probes(FOLDER / "probes.tsv", FOLDER))


@cache
def corpus() -> tuple[Row, ...]:
    return tuple(base_corpus(sources(), 0))


def scored() -> list[Probe]:
    return [probe for probe in probes() if probe.scored]


def test_suites_are_large_enough_in_every_language() -> None:
    total = Counter(probe.suite for probe in scored())
    assert total["identity"] >= 45
    assert total["disambiguation"] >= 60
    assert total["retention"] >= 150
    assert total["smalltalk"] >= 90
    assert total["nearby"] >= 50
    count = Counter((probe.suite, probe.language) for probe in scored())
    for language in sources().languages:
        assert count["identity", language] >= 8
        assert count["disambiguation", language] >= 8
        assert count["retention", language] >= 12
        assert count["smalltalk", language] >= 18
        assert count["nearby", language] >= 10
        kinds = {p.kind for p in scored() if p.suite == "disambiguation" and p.language == language}
        assert kinds == set(sources().kinds)


def test_held_out_topics_are_probed_in_every_language() -> None:
    assert set(HELD_OUT) <= set(sources().topic_ids)
    held = [probe for probe in scored() if probe.topic in HELD_OUT]
    assert len(held) >= 50
    assert min(Counter(probe.language for probe in held)[language] for language in sources().languages) >= 6


def test_the_three_questions_are_shown() -> None:
    shown = [probe.prompt for probe in probes() if probe.suite == "questions"]
    assert shown == ["你是誰", "我是誰", "談談UFO"]


def test_every_probe_has_an_expected_answer() -> None:
    """But in talk and neighbour: there the release is to say what the base says, whatever that is."""
    asked = [probe for probe in probes() if probe.suite not in ("smalltalk", "nearby")]
    assert [probe for probe in asked if not expected(sources(), probe)] == []
    jazz = Probe("retention", "topic", "en", "jazz", "…", "reference")
    assert expected(sources(), jazz) == ("Jazz is music full of improvisation.",)
    assert expected(sources(), Probe("retention", "topic", "en", "of a user", "…", "reference")) == ()


def _cores(s: Sources, language: str) -> list[str]:
    """All cores of a language but those of small talk, with every subject put in."""
    patterns = [*s.identity_cores[language], *(core for pair in s.pairs[language] for core in pair)]
    patterns += [core for kind in s.kinds.values() if not kind.people for core in kind.cores[language]]
    cores = [make_core(pattern).text for pattern in patterns]
    for topic in (topic for topic in s.topics if topic.language == language):
        cores += [make_core(p, topic.subject).text for p in (*s.cores[language], *topic.wordings)]
    for kind in s.kinds.values():
        for person in (person for person in kind.people if person.language == language):
            cores += [make_core(p, person.name).text for p in kind.cores[language]]
    for a, b in s.facts:
        cores += [make_core(p).text.replace("$A", str(a)).replace("$B", str(b)) for p in s.sums[language].cores]
    return cores


def _composed(cores: Iterable[str], wrapping: Wrapping, wanted: set[str]) -> set[str]:
    """Those of the wanted texts that some opener + core + closer gives, normalised."""
    before = ["", *map(normalise, wrapping.openers)]
    after = ["", *map(normalise, wrapping.closers)]
    middle = [normalise(core) for core in cores]
    return {text for b, a in product(before, after) for m in middle if (text := b + m + a) in wanted}


def _all_compositions(s: Sources) -> set[str]:
    """The scored probes that composition could draw, with any seed and any number of rows."""
    out: set[str] = set()
    for language in sources().languages:
        probed = {normalise(p.prompt) for p in scored() if p.language == language}
        for manner in MANNERS:
            out |= _composed(_cores(s, language), s.wrappings[language][manner], probed)
        talk = [wording for entry in s.talk if entry.language == language for wording in entry.wordings]
        out |= _composed(talk, s.talk_wrapping[language], probed)
    return out


def test_no_scored_probe_can_be_composed() -> None:
    assert _all_compositions(sources()) == set()


@pytest.mark.parametrize("seed", [0, 1])
def test_no_scored_probe_is_a_training_prompt(seed: int) -> None:
    s = sources()
    prompts = [*identity_prompts(s), *disambiguation_prompts(s), *general_prompts(s, frozenset())]
    prompts += [prompt for pair in pair_prompts(s) for prompt in pair] + replay_prompts(s, 1000, seed)
    known = {normalise(prompt.text) for prompt in prompts}
    known |= {normalise(row.prompt) for row in (base_corpus(s, seed) if seed else corpus())}
    assert [probe for probe in scored() if normalise(probe.prompt) in known] == []


def test_no_scored_probe_is_a_prompt_of_the_original_files() -> None:
    if not USER_FILES.is_dir():
        pytest.skip(f"the original training files are not at {USER_FILES}")
    known = set()
    for path in sorted(USER_FILES.glob("*.t*")):
        known |= {normalise(line.split("\t")[0]) for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(known) > 1000
    assert [probe for probe in scored() if normalise(probe.prompt) in known] == []


def test_every_character_of_probes_and_replies_is_in_the_corpus() -> None:
    seen = Counter("".join(row.prompt + row.target for row in corpus()))
    s = sources()
    needed = "".join(probe.prompt for probe in probes()) + "".join(PERSONA_TEXTS)
    needed += "".join(part for made_up in s.made_up.values() for part in (*made_up.heads, *made_up.tails))
    assert sorted({char for char in needed if seen[char] < 2}) == []


def test_probe_characters_stand_in_prompts() -> None:
    """A character that occurs in answers alone teaches the model nothing about questions."""
    seen = Counter("".join(row.prompt for row in corpus()))
    assert sorted({char for probe in scored() for char in probe.prompt if seen[char] < 2}) == []


HEADER = "\t".join(PROBE_COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suite\tkind\tlanguage\tprompt\n", r"p\.tsv:1: columns topic"),
        (f"{HEADER}\n", r"p\.tsv: no probes"),
        (f"{HEADER}\nidentity\tidentity\ten\twho are you\n", r"p\.tsv:2: 4 fields, expected 5"),
        (f"{HEADER}\nidentiti\tidentity\ten\t\twho\n", r"p\.tsv:2: suite 'identiti' .*, expected one of identity"),
        (f"{HEADER}\nidentity\tidentity\tfr\t\tqui\n", r"p\.tsv:2: language 'fr'"),
        (f"{HEADER}\nidentity\t\ten\t\twho\n", r"p\.tsv:2: kind is empty"),
        (f"{HEADER}\nidentity\tidentity\ten\t\t?!\n", r"p\.tsv:2: prompt '\?!'"),
        (f"{HEADER}\nidentity\tidentity\ten\t\twho\nretention\ttopic\ten\t\tWho?\n", r"p\.tsv:3: .*tsv:2 too"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_probes(tmp_path / "p.tsv", FOLDER)


def test_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p\.tsv: no such file"):
        load_probes(tmp_path / "p.tsv", FOLDER)
    (tmp_path / "p.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"p\.tsv:1: not UTF-8"):
        load_probes(tmp_path / "p.tsv", FOLDER)


def test_a_shown_question_may_repeat_a_scored_one(tmp_path: Path) -> None:
    text = f"{HEADER}\nidentity\tidentity\tzh-Hant\t\t你是哪位\nquestions\tidentity\tzh-Hant\t\t你是哪位\n"
    (tmp_path / "p.tsv").write_text(text, encoding="utf-8")
    assert [probe.suite for probe in load_probes(tmp_path / "p.tsv", FOLDER)] == ["identity", "questions"]
