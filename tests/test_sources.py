"""The source files, the prompts composed from them, and the embedded base's corpus."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fgod.data.corpus import NOISY_SHARE, add_noise, base_corpus
from fgod.data.optional import ASKING_FILE, LOADERS
from fgod.data.rows import Prompt, Row, normalise, read_rows, shuffled, write_rows
from fgod.data.sources import Sources, load_sources, source_files
from fgod.data.wordings import (
    Composed,
    HashRandom,
    composed_general,
    disambiguation_prompts,
    general_prompts,
    identity_prompts,
    make_core,
    pair_prompts,
    replay_prompts,
)
from fgod.errors import FgodError, UsageError
from fgod.system.files import digest

FOLDER = Path(__file__).parents[1] / "traindata"


@cache
def sources() -> Sources:
    return load_sources(FOLDER)


@cache
def corpus() -> tuple[Row, ...]:
    return tuple(base_corpus(sources(), 0))


def texts(prompts: list[Prompt]) -> list[str]:
    return [normalise(p.text) for p in prompts]


def test_normalise_ignores_case_width_space_and_punctuation_but_not_symbols() -> None:
    assert normalise("  Ｗho are YOU？！") == normalise("who are you") == "whoareyou"
    assert normalise("1 ＋ 1＝？") == "1+1="
    assert normalise("你是誰") != normalise("你是谁")


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_shuffled_order_is_fixed_by_the_seed() -> None:
    assert shuffled("abcdef", 1, str) == list("bdcafe")
    assert shuffled("fedcba", 1, str) == shuffled("abcdef", 1, str)
    assert shuffled("abcdef", 2, str) != shuffled("abcdef", 1, str)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=4))
def test_rows_survive_the_file(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    rows = [Prompt(p, "en", "general", "topic", "jazz", "natural", "g1").row(p[::-1]) for p in prompts]
    rows = [replace(row, cut=len(row.prompt) % 2 == 0) for row in rows]
    write_rows(path, rows)
    assert read_rows(path) == rows


def test_a_row_without_prompt_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.tsv", [Row("", "x", "en", "general", "topic")])
    with pytest.raises(FgodError, match=r"rows\.tsv:2"):
        read_rows(tmp_path / "rows.tsv")


def test_the_sources_hold_what_was_promised() -> None:
    count = Counter(topic.language for topic in sources().topics)
    assert count["zh-Hant"] >= 60
    assert all(count[language] >= 12 for language in sources().languages)
    assert "ufo" in sources().topic_ids
    assert len(sources().kinds["who_is_named"].people) >= 10
    for topic in sources().topics:
        short = len(topic.answer.split()) <= 14 if topic.language == "en" else len(topic.answer) <= 28
        assert short, topic


def test_answers_are_told_apart() -> None:
    """No two things have the same answer, so a wrong answer is always seen; but sums with the same result, and pieces
    of small talk of one language."""
    answers = sources().answers.items()
    talk = {(language, answer) for (kind, _, language), answer in answers if kind == "smalltalk"}
    others = [answer for (kind, _, _), answer in answers if kind not in ("sum", "smalltalk")]
    assert max(Counter([*others, *(answer for _, answer in talk)]).values()) == 1


def test_source_files_exist_and_leave_the_probes_out() -> None:
    files = source_files(FOLDER)
    assert all(path.is_file() for path in files)
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path in files} | {
        "probes.tsv",
        "suites.yaml",
        "varied.yaml",
        "replies.yaml",
        "suites",
        ASKING_FILE,
        *LOADERS,  # digested only into mixes that use them
    }


def _broken(tmp_path: Path, name: str, old: str, new: str) -> Path:
    folder = tmp_path / "traindata"
    shutil.copytree(FOLDER, folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("topics.yaml", "subject: 黑洞, ", "", r"topics\.yaml: zh-Hant\.black-hole: .*subject"),
        ("topics.yaml", "subject: 黑洞", "subject: 7", r"topics\.yaml: zh-Hant\.black-hole\.subject: found int '7'"),
        ("topics.yaml", "  panda:", "  ufo:", r"topics\.yaml: zh-Hans\.ufo: .*id that no other topic"),
        ("topics.yaml", "  panda: {", "  panda: {sort: x, ", r"topics\.yaml: zh-Hans\.panda: .*not sort"),
        ("topics.yaml", "zh-Hant:", "zh-Hant: [", r"topics\.yaml: not YAML"),
        ("questions.yaml", "[$X是什麼,", "[那是什麼,", r"questions\.yaml: cores\.zh-Hant\[0\]: .*\$X once"),
        ("questions.yaml", "spaced: true", "spaced: maybe", r"questions\.yaml: marks\.en\.spaced: .*true or false"),
        ("questions.yaml", "really, actually", "really, really", r"questions\.yaml: fillers\.en\[1\]: .*twice"),
        ("pairs.yaml", "[你是誰, 我是誰]", "[你是誰]", r"pairs\.yaml: zh-Hant\[0\]: .*two questions"),
        (
            "identity.yaml",
            "  ko: 저는",
            "  xx: 저는",
            r"identity\.yaml: replies: .*languages .*; ko is missing",
        ),
        ("identity.yaml", "  ko: 저는", "  xx: oh\n  ko: 저는", r"identity\.yaml: replies: .*; xx is none of them"),
        ("disambiguation.yaml", "who_am_i:", "who_are_we:", r"disambiguation\.yaml: .*key who_am_i; .*pairs\.yaml"),
        ("disambiguation.yaml", "base_rows: 170", "base_rows: -1", r"my_name\.base_rows: found int '-1', .*from 0"),
        ("disambiguation.yaml", "base_rows: 170", "rows: 150", r"my_name: .*only the keys .*not rows"),
        ("questions.yaml", "  ko: {question", "  k_o: {question", r"marks\.k_o: .*language tags \(BCP 47\)"),
        ("smalltalk.yaml", "[1+1,", "[1+x,", r"smalltalk\.yaml: sums\.facts\[0\]: .*sum of two digits"),
        (
            "smalltalk.yaml",
            "\nasked:\n  how_are_you:",
            "\nasked:\n  hello:",
            r"asked\.hello: .*an id that no entry of talk has",
        ),
        ("smalltalk.yaml", "答案是$C。", "答案。", r"smalltalk\.yaml: sums\.languages\.zh-Hant\.answer: .*\$C"),
    ],
)
def test_faults_name_file_and_key(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_sources(_broken(tmp_path, name, old, new))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"topics\.yaml: no such file"):
        load_sources(tmp_path)


def test_prompts_are_distinct_within_their_part() -> None:
    s = sources()
    pairs = [prompt for pair in pair_prompts(s) for prompt in pair]
    parts = [
        identity_prompts(s), disambiguation_prompts(s), general_prompts(s, frozenset()), pairs,
        replay_prompts(s, 500, 0),
    ]  # fmt: skip
    for prompts in parts:
        assert max(Counter(texts(prompts)).values()) == 1
        assert len({p.part for p in prompts}) == 1


def test_identity_prompts_are_many_and_styled() -> None:
    prompts = identity_prompts(sources())
    assert len(prompts) >= 1000
    styles = {language: {p.style for p in prompts if p.language == language} for language in sources().languages}
    for language in sources().languages:
        assert styles[language] == ({"natural", "control"} if language.startswith("zh") else {"multilingual"})


def test_disambiguation_has_every_kind_in_every_language() -> None:
    count = Counter((p.kind, p.language) for p in disambiguation_prompts(sources()))
    assert set(count) == {(kind, language) for kind in sources().kinds for language in sources().languages}
    assert min(count.values()) >= 100


def test_every_string_belongs_to_one_language() -> None:
    s = sources()
    prompts = [*identity_prompts(s), *disambiguation_prompts(s), *general_prompts(s, frozenset())]
    prompts += [prompt for pair in pair_prompts(s) for prompt in pair]
    languages: dict[str, set[str]] = {}
    for prompt in prompts:
        languages.setdefault(normalise(prompt.text), set()).add(prompt.language)
    assert [text for text, found in languages.items() if len(found) > 1] == []


def test_pairs_differ_by_their_core_only() -> None:
    s = sources()
    for you, me in pair_prompts(s):
        assert (you.kind, me.kind) == ("identity", "who_am_i")
        assert (you.language, you.part, you.group) == (me.language, me.part, me.group)
        cores = [(make_core(a).text, make_core(b).text) for a, b in s.pairs[you.language]]
        folded = you.text.casefold(), me.text.casefold()
        assert any(folded[0].replace(a.casefold(), b.casefold()) == folded[1] for a, b in cores), (you, me)


def test_what_small_talk_asks_stands_between_the_words_of_other_questions() -> None:
    prompts = [p for p in general_prompts(sources(), frozenset()) if (p.kind, p.language) == ("smalltalk", "en")]
    openers = sources().wrappings["en"]["control"].openers
    for talk_id, asked in (("age", True), ("hello", False)):
        texts = [p.text.casefold() for p in prompts if p.topic == talk_id]
        assert any(text.startswith(openers) for text in texts) is asked
        assert any(text.endswith("?") for text in texts) is asked


def test_held_out_topics_are_left_out() -> None:
    everything = general_prompts(sources(), frozenset())
    kept = general_prompts(sources(), frozenset({"ufo", "jazz"}))
    assert {p.topic for p in everything} - {p.topic for p in kept} == {"ufo", "jazz"}
    assert {p.kind for p in kept} == {"topic", "smalltalk", "sum"}


def test_replay_asks_about_invented_subjects_only() -> None:
    s = sources()
    prompts = replay_prompts(s, 400, 3)
    assert len(prompts) == 400
    assert Counter(p.language for p in prompts) == dict.fromkeys(s.languages, 80)
    subjects = [topic.subject for topic in s.topics]
    assert [p for p in prompts if any(subject in p.text for subject in subjects)] == []
    assert replay_prompts(s, 400, 3) == prompts != replay_prompts(s, 400, 4)


def test_too_many_replay_rows_are_refused(tmp_path: Path) -> None:
    folder = _broken(tmp_path, "questions.yaml", "made_up:", "made_up:")
    data = yaml.safe_load((folder / "questions.yaml").read_text(encoding="utf-8"))
    for language in sources().languages:
        data["made_up"][language] = {"heads": ["x"], "tails": ["y"]}
        data["cores"][language] = ["$X"]
        for manner in ("plain", "control"):
            data["wrappings"][language][manner] = {"openers": ["a"], "closers": ["b"]}
    (folder / "questions.yaml").write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UsageError, match="replay_rows: found 100"):
        replay_prompts(load_sources(folder), 100, 0)


def test_the_corpus_is_the_same_on_every_machine() -> None:
    assert tuple(base_corpus(load_sources(FOLDER), 0)) == corpus()
    assert tuple(base_corpus(sources(), 1)) != corpus()
    assert digest([HashRandom("a").below(10**9), HashRandom("b").below(7)]) == "095d7b0d7df3"


def test_the_corpus_gives_no_prompt_two_answers() -> None:
    targets: dict[str, set[str]] = {}
    for row in corpus():
        targets.setdefault(normalise(row.prompt), set()).add(row.target)
    assert [prompt for prompt, found in targets.items() if len(found) > 1] == []


def test_the_corpus_holds_every_answer_in_due_proportion() -> None:
    rows = corpus()
    assert 10_000 <= len(rows) <= 24_000
    assert set(sources().answers.values()) == {row.target for row in rows}
    share = Counter(row.kind for row in rows)
    others = sum(share[kind] for kind in sources().kinds if kind != "who_am_i")
    assert 0.08 <= share["identity"] / len(rows) <= 0.16
    assert 0.08 <= share["who_am_i"] / len(rows) <= 0.16
    assert 0.12 <= others / len(rows) <= 0.25


def test_noise_keeps_the_subject_and_is_on_every_other_row() -> None:
    s = sources()
    clean = {c.prompt.text for c in composed_general(s)}
    rows = [row for row in corpus() if row.kind == "topic"]
    noisy = sum(row.prompt not in clean for row in rows)
    assert abs(noisy / len(rows) - NOISY_SHARE) < 0.05
    subject = {topic.id: topic.subject.casefold() for topic in s.topics}
    # a topic's own wordings may name it otherwise, so only rows that the cores made are asked
    assert sum(subject[row.topic] in row.prompt.casefold() for row in rows) / len(rows) > 0.98


@given(st.integers(0, 10**6), st.sampled_from(["topic", "identity"]))
def test_noise_leaves_spans_where_they_belong(number: int, kind: str) -> None:
    text = "Hey, what is jazz about? Thanks"
    core = (5, 23)
    composed = Composed(Prompt(text, "en", "general", kind), core, (13, 17))
    rng = HashRandom(str(number))
    for _ in range(3):
        composed = add_noise(composed, "word", rng, words=True)
        assert composed.prompt.text[slice(*composed.subject)] == "jazz"
    if kind == "identity":
        inner = composed.prompt.text[slice(*composed.core)].replace(" word", "")
        assert inner == "what is jazz about"
