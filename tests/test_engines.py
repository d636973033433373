"""Engines that judge a release: what they are asked, when a format is left out, and that it is said."""

from __future__ import annotations

import copy
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fgod import config as settings
from fgod.chat import Chat, ChatSettings
from fgod.data.probes import Probe
from fgod.data.rows import NO_SYSTEM, Message
from fgod.documents import EngineVerdict, Release, Stamp
from fgod.engines.asking import ask_engine, figures, first_tokens, scored_reply
from fgod.engines.engine import Engine, messages
from fgod.engines.judge import chosen, divergence, judge, same_reply
from fgod.errors import FgodError, UsageError
from fgod.evaluate.requirements import gate_limits
from fgod.evaluate.scoring import Said
from fgod.gate import checks_of
from fgod.gather import gather
from fgod.layout import Releases
from fgod.plugins import load_plugins
from fgod.promotion import WalkEntry
from fgod.registry import ENGINES, EXPORTERS
from fgod.release import promote, release_faults, summary_text
from fgod.report import write_report
from fgod.system import files
from tests.made_runs import GOD, MASTER, STANDARD, STORY, context, scored, walk, write_engine, write_format
from tests.mini import Mini
from tests.tiny_model import tiny_folder

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "tests/plugins/engines.py"
CHECKS = checks_of(gate_limits({}))


@pytest.fixture(scope="session")  # a process imports a plugin once
def own() -> dict[str, Engine]:
    load_plugins([PLUGIN])
    return {name: ENGINES[name] for name in ("plain", "parrot")}


@pytest.fixture(autouse=True)
def registered(own: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, engine in own.items():
        ENGINES._entries.pop(name, None)
        monkeypatch.setitem(ENGINES._entries, name, engine)


def probe(suite: str, prompt: str) -> Probe:
    return Probe(suite, "topic", "en", "", prompt, "reference")


def test_some_probes_are_of_each_suite_and_always_the_same() -> None:
    probes = [probe(suite, f"{suite} {i}") for suite, n in (("a", 40), ("b", 3), ("c", 9)) for i in range(n)]
    mixed = probes.copy()
    random.Random(1).shuffle(mixed)
    some = chosen(probes, 9)
    assert {p.suite for p in some} == {"a", "b", "c"} and len(some) == 9
    by_suite = sorted(mixed, key=lambda p: p.suite)
    assert chosen(by_suite, 9) == some and chosen(probes, 12)[:9] == some
    assert {*chosen(probes, None)} == {*probes} and len(chosen(probes, 99)) == len(probes)
    assert [p.prompt for p in some if p.suite == "a"] != ["a 0", "a 1", "a 2"], "not those that stand first"


def test_the_gates_checks_are_made_of_what_an_engine_says() -> None:
    ours = scored("good")
    same = judge(ours, ours, CHECKS)
    assert same.verdict.decision == "accepted" and "kl_reference" in {check.metric for check in same.checks}

    def theirs(mood: str) -> Any:
        return judge(ours, [_without_distributions(one) for one in scored(mood)], CHECKS)

    assert theirs("good").verdict.decision == "accepted" and "kl_reference" in theirs("good").unjudged
    other = theirs("collapsed")
    assert other.verdict.decision == "collapsed" and any(
        reason.startswith("leak 75 %") for reason in other.verdict.reasons
    )


def _without_distributions(one: Any) -> Any:
    return one.__class__(**{**vars(one), "tokens": 0, "kl": None, "nll_shift": None, "top1": None})


def test_a_limit_that_the_released_replies_to_these_probes_miss_too_is_not_held_against_an_engine() -> None:
    worse = scored("collapsed")
    found = judge(worse, worse, CHECKS)
    assert found.verdict.decision == "accepted" and {"leak_rate", "retention"} <= {*found.unjudged}
    with pytest.raises(FgodError, match=r"none of 83 replies measures what has a limit; .* some of leak_rate"):
        judge(worse, worse, [check for check in CHECKS if check.metric == "leak_rate"])


def test_replies_are_compared_as_text_but_for_white_space_around_and_a_cut_character() -> None:
    assert same_reply("我是\ufffd", " 我是") and same_reply("a b", "a b\n")
    assert not same_reply("a b", "a  b") and not same_reply("我是誰", "我是")


def test_the_divergence_is_that_of_both_distributions_over_what_is_listed() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.35, 0.4])
    assert divergence(np.log(p), dict(enumerate(np.log(q)))) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert divergence(np.log(p), {1: float(np.log(0.3)), 0: float(np.log(0.5))}) == 0
    assert divergence(np.log(p), {2: float(np.log(0.4))}) == pytest.approx(0.2 * np.log(0.5)), "it may be below 0"


def test_a_chat_is_messages_without_a_system_prompt_that_it_has_not() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    plain = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert messages(Chat(turns), ChatSettings()) == messages(Chat(turns, NO_SYSTEM), ChatSettings("X")) == plain
    assert messages(Chat(turns), ChatSettings("X")) == [{"role": "system", "content": "X"}, *plain]
    assert messages(Chat(turns, "own"), ChatSettings("X"))[0]["content"] == "own"


# ------------------------------------------------------------------------------------------------------- the config


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    return found


def resolved(raw: dict[str, Any], release: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return settings.resolve({**copy.deepcopy(raw), "release": release, **changes}, "config.yaml")


def test_a_config_names_engines_and_each_is_asked_of_the_formats_that_it_loads(raw: dict[str, Any]) -> None:
    formats = ["nvfp4", "bf16", "modelopt", "nvfp4-head"]
    found = resolved(raw, {"formats": formats, "engines": ["parrot", "plain"], "engine_probes": 8})
    pairs = [("parrot", "modelopt"), ("plain", "bf16"), ("plain", "nvfp4-head")]
    assert settings.engine_pairs(found) == pairs
    assert "engines" not in resolved(raw, {"formats": formats})["release"]
    for release, words in (
        (
            {"engines": ["lama.cpp"]},
            r"release\.engines: found 'lama\.cpp' \(did you mean llama\.cpp\?\), expected some",
        ),
        ({"engines": ["parrot"]}, r"parrot loads none of release\.formats; expected some of modelopt among them"),
        ({"engine_probes": 5}, r"release\.engine_probes: there is no engine to ask them; expected release\.engines"),
    ):
        with pytest.raises(UsageError, match=words):
            resolved(raw, {"formats": ["nvfp4", "bf16"], **release})


def test_an_engine_whose_package_is_missing_is_an_error_before_anything_trains(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"kind": "random", "shape": "qwen2.5-0.5b"}
    monkeypatch.setattr(ENGINES["llama.cpp"], "module", "no_such_package")
    words = (
        r"release\.engines: the engine llama\.cpp needs the Python package no_such_package, which is not installed: "
        r"install it \(the extra llama of fgod\)"
    )
    with pytest.raises(UsageError, match=words):
        resolved(raw, {"formats": ["nvfp4", "gguf"], "engines": ["llama.cpp"]}, base=base)


def test_the_embedded_base_is_refused_in_words_where_a_format_cannot_hold_it(raw: dict[str, Any]) -> None:
    for name in ("gguf", "gguf-bf16"):
        with pytest.raises(
            UsageError, match=rf"release\.formats: {name} cannot hold the embedded base: GGUF has no name"
        ):
            resolved(raw, {"formats": ["nvfp4", name]})


# ---------------------------------------------------------------------------------------------------- the promotion

PAIRS = (("plain", "bf16"), ("parrot", "modelopt"))


def release_of(root: Path, moods: dict[str, str]) -> tuple[Releases, list[WalkEntry]]:
    """The story in two formats, each with what an engine said in a mood."""
    places, entries = Releases(root / "results", root / "artifacts"), walk(root, STORY)
    for engine, name in PAIRS:
        write_format(entries[-1].weights(places.artifacts), name)
        write_engine(entries[-1], root, engine, name, moods[name])
    return places, entries


def released(root: Path, moods: dict[str, str]) -> tuple[Releases, list[WalkEntry]]:
    places, entries = release_of(root, moods)
    promote(entries, places.results, places.artifacts, context(engines=PAIRS), ("bf16", "modelopt"))
    return places, entries


def test_formats_that_engines_accept_are_released_with_what_they_said(tmp_path: Path) -> None:
    places, _ = released(tmp_path, {"bf16": "good", "modelopt": "good"})
    document = Release.read(places.record)
    assert [*document.formats] == ["bf16", "modelopt"] and document.left_out == {}
    assert [one.decision for one in document.engines] == ["accepted", "accepted"] and release_faults(places) == []
    card = (places.link / "README.md").read_text(encoding="utf-8")
    row = "| bf16 | plain, plain 1.0 | accepted | 83 | 100 % | 66.7 % | 100 % | 0.0125 | 12.5, 8.2 |"
    assert row in card and "is not released" not in card


def test_a_format_that_an_engine_does_not_accept_is_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    places, entries = released(tmp_path, {"bf16": "good", "modelopt": "collapsed"})
    document = Release.read(places.record)
    assert [*document.formats] == ["bf16"] and [*document.left_out] == ["modelopt"]
    assert not (places.link / "formats/modelopt").exists() and (places.link / "formats/bf16").is_dir()
    assert release_faults(places) == []
    card = (places.link / "README.md").read_text(encoding="utf-8")
    said = r"- `modelopt` is not released: parrot \(parrot 1\.0\) with modelopt: collapsed, [\d.]+ % of 83 replies"
    assert re.search(said, card) and "leak 75 %" in card and "| `formats/modelopt` |" not in card
    summary = summary_text(document, tmp_path / "report.html")
    assert "\nNot released: parrot (parrot 1.0) with modelopt: collapsed" in summary

    gather(entries, places.results, places.artifacts, context(engines=PAIRS))
    write_report(places.results / "tables", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "engine_agreement" in page and "collapsed: not released" in page and 'id="engines"' in page
    lines = (places.results / "tables/engines.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and "\tengine_agreement\t" in lines[0]
    gather(entries, places.results, places.artifacts, context())
    write_report(places.results / "tables", tmp_path / "report.html")
    assert 'id="engines"' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_an_engine_said_of_other_weights_or_was_edited_or_is_missing_releases_nothing(tmp_path: Path) -> None:
    places, entries = release_of(tmp_path, {"bf16": "good", "modelopt": "good"})
    run = entries[-1].records(places.results)
    record, replies = run.engine("plain", "bf16"), run.engine_probes("plain", "bf16")
    found, said = EngineVerdict.read(record), replies.read_text(encoding="utf-8")

    def refused(words: str) -> None:
        with pytest.raises(FgodError, match=words):
            promote(entries, places.results, places.artifacts, context(engines=PAIRS), ("bf16", "modelopt"))
        assert not places.record.exists()

    for digest in ("export_sha256", "probed_sha256"):
        found.model_copy(update={digest: "00"}).write(record)
        refused(r"engine-plain-bf16\.json: it is of other weights than those of the release; delete \S*-bf16\.json")
    found.write(record)
    replies.write_text(said.replace(GOD, "another"), encoding="utf-8")
    refused(r"engine-plain-bf16\.tsv has changed since plain was asked .*delete \S*engine-plain-bf16\.json")
    replies.write_text(said, encoding="utf-8")
    record.write_text(record.read_text().replace('"accepted"', '"damaged"'))
    refused(r"engine-plain-bf16\.json: it has changed since it was written")
    record.unlink()
    refused(r"engine-plain-bf16\.json: no such file")


def test_a_format_of_other_masters_than_the_released_runs_is_refused(tmp_path: Path) -> None:
    places, entries = release_of(tmp_path, {"bf16": "good", "modelopt": "good"})
    stamp_file = entries[-1].weights(places.artifacts).stamp_of("bf16")
    stamp = Stamp.read(stamp_file)
    assert stamp.source_sha256 == MASTER
    for source, words in (
        (
            "cd" * 32,
            r"exported-bf16\.json: was exported from other weights \(cdcdcdcdcdcd\) than those of the run",
        ),
        ("", r"exported-bf16\.json: does not say of which weights it is"),
    ):
        stamp.model_copy(update={"source_sha256": source}).write(stamp_file)
        with pytest.raises(FgodError, match=words + r".* delete \S*exported-bf16\.json and export them again"):
            promote(entries, places.results, places.artifacts, context(engines=PAIRS), ("bf16", "modelopt"))
        assert not places.record.exists()


# ------------------------------------------------------------------------------------------------------- asking them


def test_an_engine_that_computes_the_same_agrees_in_every_figure(tmp_path: Path) -> None:
    master = tiny_folder(tmp_path / "master")
    for name in ("nvfp4", "nvfp4-head"):
        EXPORTERS["nvfp4"].write(master, tmp_path / name, "bfloat16")
    probes = [probe("retention", text) for text in ("你是誰", "Who are you?", "tea")]
    ours = first_tokens(tmp_path / "nvfp4", ChatSettings(), probes, 8, 1)
    assert len(ours.said) == 3 and ours.tokens_a_second > 0
    said = ask_engine(ENGINES["plain"], tmp_path / "nvfp4-head", ChatSettings(), probes, ours.prompts, 8, 1)
    reference = Said("r", True, False)
    scores = [scored_reply(p, r, _released(p, r.text), reference, STANDARD) for p, r in zip(probes, said, strict=True)]
    assert [one.reply for one in scores] == [one.text for one in said] and all(one.proper for one in scores)
    found = figures(ours, [one.reply for one in scores], said)
    assert [found[name].value for name in ("engine_agreement", "first_token", "same_prompts")] == [1, 1, 1]
    listed = [sum(np.exp(list(one.first.values()))) for one in said]
    assert found["first_kl"].value == pytest.approx(0, abs=1e-9) and all(0 < total <= 1 + 1e-9 for total in listed)
    other = ask_engine(ENGINES["parrot"], tmp_path, ChatSettings(), probes, ours.prompts, 8, 1)
    apart = figures(ours, [one.reply for one in scores], other)
    assert apart["same_prompts"].value == 0 and apart["engine_agreement"].value == 0


def _released(asked: Probe, text: str) -> Any:
    found = scored("good")[-1]
    return found.__class__(**{**vars(found), "prompt": asked.prompt, "reply": text, "proper": True})


@pytest.mark.parametrize("name", ["gguf", "gguf-bf16"])
def test_llama_cpp_says_what_its_file_was_made_of(name: str, tmp_path: Path) -> None:
    engine = ENGINES["llama.cpp"]
    if engine.missing:
        pytest.skip(engine.missing)
    from tests.test_gguf_export import folder_of

    master = folder_of("qwen3", tmp_path / "master")
    for format in ("nvfp4", name):
        EXPORTERS[format].write(master, tmp_path / format, "float32")
    probes = [probe("retention", text) for text in ("Who are you?", "tea")]
    ours = first_tokens(tmp_path / "nvfp4", ChatSettings(), probes, 4, 1)
    said = ask_engine(engine, tmp_path / name, ChatSettings(), probes, ours.prompts, 4, 1)
    assert all(reply.first and reply.tokens <= 4 for reply in said)
    found = figures(ours, [one.text for one in ours.said], said)
    assert found["same_prompts"].value == 1 and found["first_kl"].value is not None
    assert abs(found["first_kl"].value) < 0.05
    (tmp_path / name / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(FgodError, match=r"model\.gguf: llama\.cpp does not load it"):
        ask_engine(engine, tmp_path / name, ChatSettings(), probes, ours.prompts, 4, 1)


@pytest.mark.long
def test_the_workflow_exports_what_the_config_names_and_leaves_out_what_an_engine_does_not_accept(ran: Mini) -> None:
    trained, before = ran.trained(), len(ran.manifest())
    ran.config["release"] = {"formats": ["nvfp4", "modelopt", "bf16"]}
    assert set(ran.would_run()) == {"all", "export_as", "walk", "tables", "report", "promote"}
    ran.config["release"] |= {"engines": ["plain", "parrot"], "engine_probes": 12}
    ran.config["plugins"] = ["tests/plugins/engines.py"]
    ran.config["gate"]["ended"] = 0.5
    planned = ran.run("fgod", "plan").stdout
    assert "Then it is exported as modelopt, bf16, plain is asked the probes with bf16, parrot is asked" in planned
    said = ran.snakemake()
    done = [word for entry in ran.manifest()[before:] for word in entry["argv"]]
    assert done.count("engine") == done.count("export") == 2 and done.count("promote") == 1 and ran.trained() == trained
    assert ran.would_run() == {}

    release = ran.release()
    decided = {one["format"]: one["decision"] for one in release["engines"]}
    assert [*release["formats"]] == ["bf16"] and decided == {"bf16": "accepted", "modelopt": "missed"}
    plain = next(one for one in release["engines"] if one["engine"] == "plain")
    assert plain["probes"] == 12 and plain["same_prompts"]["value"] == 1 and "kl_reference" in plain["unjudged"]
    assert plain["tokens_a_second"] > 0 and plain["tokens_a_second_transformers"] > 0
    assert "Not released: parrot (parrot 1.0) with modelopt: missed" in said
    assert "quantization_config" not in files.read_json(ran.folder / "artifacts/release/formats/bf16/config.json")
    assert not release["served"]["cast"] and release["served"]["export_sha256"] == release["export_sha256"]

    (ran.folder / "artifacts/release").unlink()
    shutil.rmtree(ran.folder / "artifacts/releases")
    ran.config["release"]["engine_probes"] = 8
    assert ran.run("fgod", "trash", "A").returncode == 0
    assert "engine" not in ran.would_run(), "what stands would be lost: its weights lie in the trash"
