"""results/DevLog.md: an entry for each verdict, made of records; what stands in it stays."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod import inputs, manifest
from fgod.chain import Chain
from fgod.cli import main
from fgod.config import config_digest, resolve
from fgod.devlog.entry import entry as entry_of
from fgod.devlog.log import update
from fgod.devlog.next_step import LogSettings, next_step
from fgod.devlog.words import EN, LANGUAGES, ZH_HANT, Words
from fgod.documents import DECISIONS, Metrics, Outcome, Recipe, Verdict
from fgod.errors import StorageError, UsageError
from fgod.evaluate.requirements import gate_limits
from fgod.evaluate.words import simplified
from fgod.gate import judge_run
from fgod.layout import DEVLOG, DEVLOG_LOCK, RunRecords, run_records
from fgod.probe.record import read_probes, write_probes
from fgod.system.files import file_digests, write_json
from fgod.system.lock import held
from tests.made_runs import DOOM, STAGES, STORY, walk, write_run
from tests.mini import ROOT

RULES: list[Mapping[str, Any]] = [
    {"when": ["collapsed", "diverged"], "set": {"train.lr": "*0.5", "mix.shares.general": "+0.5"}, "stage": "failed"},
    {"when": ["damaged"], "interpolate": [0.75, 0.5], "stage": "failed"},
    {"when": ["damaged"], "set": {"train.kl.weight": "*2"}, "stage": "all"},
    {"when": ["missed"], "bisect": {"key": "train.lr"}, "stage": "failed"},
]
SETTINGS = LogSettings("en", STAGES, {"max": 4, "rules": RULES})
CHINESE = LogSettings("zh-Hant", STAGES, {"max": 4, "rules": RULES})


def log(root: Path) -> str:
    return (root / "results/DevLog.md").read_bytes().decode()


def entries(text: str) -> list[str]:
    """The entries of a log, without what stands in front of them."""
    return re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]


def heads(text: str) -> list[str]:
    """Their headings, without number and time."""
    return [" · ".join(entry.splitlines()[0].split(" · ")[1:3]) for entry in entries(text)]


def made(root: Path, logged: LogSettings = SETTINGS) -> tuple[str, ...]:
    added = update(logged, root / "results")
    assert added.faults == ()
    return added.runs


def test_each_verdict_has_an_entry_in_the_order_of_the_runs(tmp_path: Path) -> None:
    walk(tmp_path, STORY)
    assert len(made(tmp_path)) == 5
    text = log(tmp_path)
    assert text.startswith(f"# DevLog\n\n{EN.about}\n\n## 1 · A-mixed aaaa11112222 · accepted · 20")
    assert heads(text) == [
        "A-mixed aaaa11112222 · accepted",
        "B-nudge bbbb00000000 · collapsed",
        "B-nudge bbbb11112222 · accepted",
        "C-disambiguate cccc11112222 · accepted",
        "D-settle dddd11112222 · accepted",
    ]
    for entry in entries(text):
        labels = re.findall(r"^\*\*(.*?)\*\*", entry, re.MULTILINE)
        assert labels == [
            *("Hypothesis", "Command", "Data", "Settings that changed", "Weights", "Peak memory", "The questions"),
            *("Verdict", "Next step", "Remarks"),
        ]


def test_an_entry_says_what_the_records_say(tmp_path: Path) -> None:
    walk(tmp_path, STORY)
    run = run_records("B-nudge", "bbbb11112222", tmp_path / "results")
    remade(run, peak_memory_mib=1234.0, limit_mib=8192.0)
    made(tmp_path)
    _, collapsed, accepted, *_, last = entries(log(tmp_path))
    for part in (
        "**Hypothesis**: with these settings the run holds its limits: leak ≤ 5 %, retention ≥ 50 %, kl ≤ 0.5 nats, ",
        "**Data**: balanced, 600 rows: identity 0.1, general 0.9; mix ",
        "Audit: errors 0, accepted 1, warnings 1.",
        "- train.lr 0.01 → 0.0003",
        "**Weights**: from the base base; to `artifacts/B-nudge/bbbb11112222/master` (abab",
        "**Peak memory**: 1,234 MiB, limit 8,192 MiB; 11.2 s.",
        "- 你是誰 → 我是 F# 之神。 (before: 我是通義千問，由阿里雲開發的語言模型。)",
        "- 我是誰 → 我不知道你是誰。 (before: ",
        "- 談談UFO → UFO 是不明飛行物。 (before: ",
        "**Next step**: stage C-disambiguate starts from these weights.",
    ):
        assert part in accepted, part
    assert "against B-nudge bbbb00000000, the run of this stage before it:" in accepted
    assert "the first run of this stage: train.lr 0.01, train.steps 60." in collapsed
    assert "- leak 75 % &gt; 5 %: 說說茶0 → 我是 F# 之神。 (59.8–85.8 %, n 40)" in collapsed
    assert "train.lr \\*0.5, mix.shares.general +0.5 (refits.rules\\[0\\]). At most 4 refits in all." in collapsed
    assert "it is a candidate" in last


def remade(run: RunRecords, **changes: Any) -> None:
    """Other facts of a training that ended when it did, judged again by the same limits."""
    ended = run.outcome.stat()
    Outcome.read(run.outcome).model_copy(update=changes).write(run.outcome)
    os.utime(run.outcome, ns=(ended.st_atime_ns, ended.st_mtime_ns))
    judge_run(run.folder, gate_limits({}), {})


def test_runs_without_weights_have_an_entry_too(tmp_path: Path) -> None:
    walk(tmp_path, DOOM)
    assert len(made(tmp_path)) == 4
    diverged, killed = entries(log(tmp_path))[2:]
    assert "· diverged ·" in diverged and "none: loss is nan at step 9" in diverged
    assert "**The questions**: not asked: the run left no weights." in killed
    assert "- 8600 MiB &gt; limit 8192 MiB in phase backward" in killed
    assert "no rule under refits.rules answers it" in killed


def test_interpolated_runs_and_files_of_the_users_are_told(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    before, run = (run_records(*names[:2], tmp_path / "results") for names in STORY[0])
    mix = {"recipe": {"kind": "verbatim", "source": "mine"}, "user_files": {"mine": "abcabc"}}
    recipe = Recipe.read(run.recipe).content() | {"mix": mix, "starts_from": before.folder.name}
    Recipe.model_validate({**recipe, "interpolate": 0.5, "of": "bbbb99999999"}).write(run.recipe)
    made(tmp_path)
    entry = entries(log(tmp_path))[1]
    assert "## 2 · B-nudge at α 0.5 bbbb00000000 · collapsed" in entry
    assert "**Data**: verbatim: the file mine; mix " in entry and "Files of the user's (sha256): mine abcabc." in entry
    weights = f"from A-mixed aaaa11112222 ({'ab' * 32}); at α 0.5 between that and bbbb99999999; to `artifacts/B-nudge/"
    assert weights in entry


def test_it_can_be_written_in_traditional_chinese(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path, CHINESE)
    text = log(tmp_path)
    assert heads(text) == ["A-mixed aaaa11112222 · 通過", "B-nudge bbbb00000000 · 崩潰"]
    for label in ("假設", "指令", "資料", "改動的設定", "權重", "記憶體峰值", "提問與回答", "判定", "下一步"):
        assert text.count(f"**{label}**：") == 2, label
    assert "基礎模型重新開始，這個階段改為：train.lr" in text and "Hypothesis" not in text


def test_what_stands_in_it_stays_and_new_entries_go_to_the_end(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path)
    path = tmp_path / "results/DevLog.md"
    mine = log(tmp_path).replace("<!-- remarks -->\n\n", "<!-- remarks -->\r\n備註：太高了。\r\n", 1).rstrip("\n")
    path.write_bytes(mine.encode())
    assert made(tmp_path) == () and log(tmp_path) == mine, "nothing is missing: not a byte changes"

    write_run(tmp_path, "B-nudge", "bbbb11112222", "named")
    assert made(tmp_path, CHINESE) == ("B-nudge bbbb11112222",)
    text = log(tmp_path)
    assert text.startswith(mine + "\n\n## 3 · B-nudge bbbb11112222 · 通過 · 20"), "an entry is of its time's language"
    assert "備註：太高了。" in text and len(entries(text)) == 3


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with one run."""
    root = tmp_path_factory.mktemp("one")
    write_run(root, "A-mixed", "aaaa11112222", "named")
    return root


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_whatever_people_wrote_stands_in_front_of_what_is_added(one: Path, text: str) -> None:
    path = one / "results/DevLog.md"
    path.write_bytes(text.encode())
    assert made(one) == ("A-mixed aaaa11112222",)
    added = log(one)
    assert added.startswith(text) and made(one) == () and log(one) == added


def test_another_verdict_on_a_run_is_another_entry_and_the_same_one_is_not(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path)
    run = run_records("A-mixed", "aaaa11112222", tmp_path / "results")
    remade(run, wall_s=12.0)
    assert made(tmp_path) == ()
    assert judge_run(run.folder, gate_limits({}), {"disambiguation_rate": ">=0.5"}).decision == "missed"
    assert made(tmp_path) == ("A-mixed aaaa11112222",)
    assert heads(log(tmp_path))[-1] == "A-mixed aaaa11112222 · missed"
    assert "train.lr between the largest value that missed" in entries(log(tmp_path))[-1]


def test_a_log_that_is_gone_is_made_anew_of_the_records(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path)
    for stage, lineage, mood in STORY[1][1:]:
        write_run(tmp_path, stage, lineage, mood, lr=3e-4)
        made(tmp_path)
    text = log(tmp_path)
    (tmp_path / "results/DevLog.md").unlink()
    assert len(made(tmp_path)) == 5 and log(tmp_path) == text


def test_a_verdict_of_other_records_waits_for_its_gate(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", tmp_path / "results")
    Outcome.read(run.outcome).model_copy(update={"wall_s": 1.0}).write(run.outcome)
    assert made(tmp_path) == ("B-nudge bbbb00000000",)


def test_a_record_that_was_edited_is_named_and_the_other_runs_have_their_entries(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", tmp_path / "results")
    run.verdict.write_text(run.verdict.read_text().replace("accepted", "missed"))
    run_records("B-nudge", "bbbb00000000", tmp_path / "results").mix_audit.unlink()
    write_run(tmp_path, "B-nudge", "bbbb11112222", "named")
    write_run(tmp_path, "B-nudge", "bbbb00000003", "named")
    run_records("B-nudge", "bbbb00000003", tmp_path / "results").outcome.unlink()
    added = update(SETTINGS, tmp_path / "results")
    assert added.runs == ("B-nudge bbbb11112222",)
    assert len(added.faults) == 3
    for said in ("verdict.json: it has changed since", "mix_audit.json: no such file", "outcome.json: no such file"):
        assert any(said in fault for fault in added.faults), said


def test_a_log_that_is_no_text_is_named_and_left_alone(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    path = tmp_path / "results/DevLog.md"
    path.write_bytes(b"# DevLog\n\xff\n")
    (fault,) = update(SETTINGS, tmp_path / "results").faults
    assert "DevLog.md:2: not UTF-8" in fault and path.read_bytes() == b"# DevLog\n\xff\n"
    path.unlink()
    path.mkdir()
    added = update(SETTINGS, tmp_path / "results")
    assert added.runs == () and added.faults[0].endswith("DevLog.md: cannot be read: Is a directory")


def test_what_people_save_while_entries_are_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path)
    path, before = tmp_path / "results/DevLog.md", log(tmp_path)
    write_run(tmp_path, "B-nudge", "bbbb11112222", "named")

    def saved(*words: Any) -> str:
        path.write_text(before.replace("<!-- remarks -->\n\n", "<!-- remarks -->\nmine\n", 1))
        return entry_of(*words)

    monkeypatch.setattr("fgod.devlog.log.entry", saved)
    assert made(tmp_path) == ("B-nudge bbbb11112222",)
    assert log(tmp_path).count("\nmine\n") == 1 and len(entries(log(tmp_path))) == 3


def test_entries_that_go_or_come_meanwhile_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(tmp_path, STORY[:1])
    made(tmp_path)
    whole = log(tmp_path)
    path = tmp_path / "results/DevLog.md"
    path.unlink()

    def meanwhile(*words: Any) -> str:
        path.write_text(whole)
        return entry_of(*words)

    monkeypatch.setattr("fgod.devlog.log.entry", meanwhile)
    assert made(tmp_path) == () and log(tmp_path) == whole


def test_a_log_that_is_a_link_stays_one(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    elsewhere, path = tmp_path / "mine/DevLog.md", tmp_path / "results/DevLog.md"
    elsewhere.parent.mkdir()
    path.symlink_to(elsewhere)
    assert len(made(tmp_path)) == 2 and path.is_symlink() and len(entries(elsewhere.read_text())) == 2


def test_two_that_add_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(tmp_path, STORY[:1])
    with ExitStack() as other:
        other.enter_context(held(tmp_path / DEVLOG_LOCK))
        monkeypatch.setattr("fgod.devlog.log.WAIT_SECS", 0.0)
        added = update(SETTINGS, tmp_path / "results")
        assert added.runs == () and "another run is using" in added.faults[0] and not (tmp_path / DEVLOG).exists()
        monkeypatch.setattr("fgod.devlog.log.WAIT_SECS", math.inf)
        monkeypatch.setattr("fgod.system.lock.time.sleep", lambda seconds: other.close())
        assert len(made(tmp_path)) == 2


@pytest.mark.parametrize("mix", [{}, {"recipe": []}, {"recipe": {"kind": "a", "rows": 1, "shares": [1]}}])
def test_a_recipe_of_another_shape_is_named_and_the_other_runs_have_their_entries(tmp_path: Path, mix: Any) -> None:
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", tmp_path / "results")
    Recipe.read(run.recipe).model_copy(update={"mix": mix}).write(run.recipe)
    added = update(SETTINGS, tmp_path / "results")
    assert added.runs == ("B-nudge bbbb00000000",)
    (fault,) = added.faults
    assert fault.startswith(f"{run.folder}: a record has another shape than fgod writes (")


def test_a_start_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    with manifest.recorded(tmp_path, ["fgod", "train"], "A", "aaaa11112222"):
        pass
    folder = tmp_path / manifest.FOLDER
    (folder / f"2{manifest.START}").mkdir()
    (folder / f"3{manifest.START}").symlink_to("gone")
    write_json(folder / f"4{manifest.START}", {"argv": [], "start": "", "process": {}, "lineage": "aaaa11112222"})
    assert [len(found) for found in manifest.starts(tmp_path, {"aaaa11112222"}).values()] == [1]


def test_what_a_run_says_cannot_end_its_entry(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", tmp_path / "results")
    records = read_probes(run.probes)
    hostile = "x\n<!-- end -->\n<!-- entry a/b c -->\n## 9 · `x`"
    write_probes(run.probes, [replace(records[0], reply=hostile), *records[1:]])
    tables = file_digests(run.folder, [run.probes])
    Metrics.read(run.metrics).model_copy(update={"tables_sha256": tables}).write(run.metrics)
    judge_run(run.folder, gate_limits({}), {})
    made(tmp_path)
    text = log(tmp_path)
    assert "你是誰 → x &lt;!-- end --&gt; &lt;!-- entry a/b c --&gt; ## 9 · \\`x\\` (before: " in text
    assert len(entries(text)) == 2 == text.count("<!-- end -->") and made(tmp_path) == ()


def test_the_command_and_the_time_are_those_of_the_manifest(tmp_path: Path) -> None:
    walk(tmp_path, STORY[:1])
    run = "A-mixed", "aaaa11112222"
    argv = ["fgod", "--plugin", "train.py", "train", "--goal", '{"a": "``` b"}']
    for words in (argv, ["fgod", "export", "--weights", "x"], ["fgod", "gate", "--limits", "{}"]):
        with manifest.recorded(tmp_path, words, *run):
            pass
    (tmp_path / "results/manifest.d/20250101T000000.000Z-1-a.start.json").write_text('{"lineage": "aaaa11112222"')
    made(tmp_path)
    later = entries(log(tmp_path))[1]
    assert "A-mixed aaaa11112222" in later, "it was made after B, says the manifest"
    assert """\n````sh\nfgod --plugin train.py train --goal '{"a": "``` b"}'\n````\n""" in later
    starts = manifest.starts(tmp_path, {"aaaa11112222"})[run]
    assert [start["argv"][1] for start in starts] == ["--plugin", "export", "gate"]
    assert f"{starts[-1]['start'][:10]} {starts[-1]['start'][11:16]} UTC" in later.splitlines()[0]


# What follows a verdict


@pytest.mark.parametrize(
    ("decision", "alpha", "said"),
    [
        ("accepted", None, "stage C-disambiguate starts from these weights."),
        ("collapsed", None, "this stage changed: train.lr *0.5, mix.shares.general +0.5 (refits.rules[0]). At most 4"),
        (
            "damaged",
            None,
            "weights at α 0.75 between the stage's start and its end, without training (refits.rules[1]).",
        ),
        ("damaged", 0.75, "weights at α 0.5 between"),
        ("damaged", 0.5, "all stages changed: train.kl.weight *2 (refits.rules[2])"),
        ("missed", 0.75, "all stages changed: train.kl.weight *2 (refits.rules[2])"),
        ("missed", None, "train.lr between the largest value that missed and the smallest that was too much"),
        ("killed", None, "no rule under refits.rules answers it: nothing is released."),
    ],
)
def test_the_next_step_is_that_of_the_refit_rules(decision: str, alpha: float | None, said: str) -> None:
    assert said in next_step(SETTINGS, "B-nudge", decision, alpha)
    chinese = next_step(CHINESE, "B-nudge", decision, alpha)
    assert re.search("[\u4e00-\u9fff]{3}", chinese) and not re.search(r"[{}]", chinese)


@pytest.mark.parametrize("decision", ["collapsed", "killed"])
def test_without_refits_a_failure_is_the_end_unless_it_is_interpolated(decision: str) -> None:
    off = replace(SETTINGS, refits={**SETTINGS.refits, "max": 0})
    assert next_step(off, "B-nudge", decision, None).startswith("refits are off (refits.max: 0): nothing is released.")
    assert "refits.max: 0" in next_step(replace(off, language="zh-Hant"), "B-nudge", decision, None)
    assert next_step(off, "B-nudge", "damaged", None) == next_step(SETTINGS, "B-nudge", "damaged", None)


def test_the_last_stage_is_a_candidate_and_so_is_one_that_the_config_has_no_more() -> None:
    assert "candidate" in next_step(SETTINGS, "D-settle", "accepted", None)
    assert "candidate" in next_step(SETTINGS, "E", "accepted", None)


# Languages


def texts(words: Words) -> dict[str, str]:
    found = {field.name: getattr(words, field.name) for field in fields(words) if field.name != "decisions"}
    return found | {f"decisions.{name}": text for name, text in words.decisions.items()}


def holders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text_with_the_same_places(language: str) -> None:
    english, other = texts(EN), texts(LANGUAGES[language])
    assert english.keys() == other.keys() and set(EN.decisions) == set(DECISIONS)
    assert {key: holders(text) for key, text in other.items()} == {key: holders(text) for key, text in english.items()}


def test_chinese_texts_are_chinese() -> None:
    marks = {"part", "comma", "semicolon", "gap"}
    for key, text in texts(ZH_HANT).items():
        assert key in marks or re.search("[\u4e00-\u9fff]", text), key
        assert not simplified(text), key


def test_chinese_terms_are_those_of_the_pages() -> None:
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "docs/zh-Hant/terms.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for row in rows for cell in row.split("|")]
    terms = dict(zip(cells[1::2], cells[::2], strict=True))
    chinese = texts(ZH_HANT)
    assert {name for name in DECISIONS if name in terms} == set(DECISIONS) - {"accepted"}
    for name in set(DECISIONS) & set(terms):
        assert chinese[f"decisions.{name}"] == terms[name]
    for key, term in (
        *(("audit", "audit"), ("base", "base"), ("refit", "base"), ("refit_all", "base"), ("bisect", "base")),
        *(("bisect", "missed"), ("worst", "reference"), ("worst", "probe"), ("at_most", "refit")),
        *(("candidate", "candidate"), ("candidate", "release"), ("no_rule", "release"), ("no_rule", "recipe")),
        *(("rows", "mix"), ("rows", "row"), ("from_source", "mix"), ("verdict", "verdict"), ("export", "export")),
    ):
        assert terms[term] in chinese[key], (key, term)


def test_the_language_is_of_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    raw = yaml.safe_load((ROOT / "config.yaml").read_text())
    english, chinese = resolve(raw, "c"), resolve({**raw, "language": "zh-Hant"}, "c")
    assert "language" not in english and resolve({**raw, "language": "en"}, "c") == english
    chains = [Chain(config, inputs.gather(config)) for config in (english, chinese)]
    assert chains[0].inputs == chains[1].inputs and chains[0].fit([]) == chains[1].fit([])
    assert chains[0].fit([("B-nudge", "missed")]) == chains[1].fit([("B-nudge", "missed")])
    assert config_digest(english) == config_digest(chinese), "walk.json, tables and release stay as they are"
    assert inputs.reference_id(english) == inputs.reference_id(chinese)
    assert [LogSettings.of_config(config).language for config in (english, chinese)] == ["en", "zh-Hant"]
    whole = LogSettings.of_config(chinese)
    with pytest.raises(UsageError, match="--log: the keys language, stages are missing; found refits"):
        LogSettings.from_dict({"refits": {}})
    with pytest.raises(UsageError, match="--log: language: found 'zh', expected one of en, zh-Hant"):
        LogSettings.from_dict({**whole.to_dict(), "language": "zh"})
    with pytest.raises(UsageError, match=r"c: language: found 'zh-Hans' \(did you mean zh-Hant\?\)"):
        resolve({**raw, "language": "zh-Hans"}, "c")
    assert LogSettings.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


# Commands


def test_the_gate_adds_the_entry_and_says_what_it_cannot_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    walk(tmp_path, STORY[:1])
    run, broken = (
        run_records(*key, Path("results")) for key in (("A-mixed", "aaaa11112222"), ("B-nudge", "bbbb00000000"))
    )
    run.verdict.unlink()
    broken.verdict.write_text("{}")
    logged = json.dumps(SETTINGS.to_dict())
    gate = ["gate", "--limits", "{}", "--require", "{}", "--out", str(run.verdict)]
    assert main([*gate, "--log", logged]) == 0 and Verdict.read(run.verdict).decision == "accepted"
    assert heads(log(tmp_path)) == ["A-mixed aaaa11112222 · accepted"]
    assert (
        "DevLog · no entry: results/runs/B-nudge/bbbb00000000/verdict.json: it has no seal" in capsys.readouterr().err
    )
    (entry,) = manifest.join(Path())
    assert [path["path"] for path in entry["outputs"]] == [run.verdict.as_posix(), "results/DevLog.md"]
    before = log(tmp_path)
    assert main(gate) == 0 and log(tmp_path) == before


def test_a_log_that_cannot_be_written_stops_no_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", Path("results"))
    gate = ["gate", "--limits", "{}", "--require", "{}", "--out", str(run.verdict), "--log"]
    for fault in (StorageError("this disk is full"), PermissionError("not permitted")):
        run.verdict.unlink()

        def broken(path: Path, text: str, fault: OSError = fault) -> None:
            raise fault

        monkeypatch.setattr("fgod.devlog.log.write_text", broken)
        assert main([*gate, json.dumps(SETTINGS.to_dict())]) == 0 and Verdict.read(run.verdict).decision == "accepted"
        assert f"DevLog · no entry: {fault}" in capsys.readouterr().err and not DEVLOG.exists()


def test_settings_of_the_log_that_are_wrong_are_refused_before_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    walk(tmp_path, STORY[:1])
    run = run_records("A-mixed", "aaaa11112222", Path("results"))
    run.verdict.unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["gate", "--limits", "{}", "--require", "{}", "--out", str(run.verdict), "--log", "{}"])
    assert not run.verdict.exists()


def test_people_add_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "config.yaml").write_text(f"language: zh-Hant\n{(ROOT / 'config.yaml').read_text()}")
    walk(tmp_path, STORY[:1])
    assert main(["devlog"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "DevLog · A-mixed aaaa11112222",
        "DevLog · B-nudge bbbb00000000",
        "results/DevLog.md: 2 new entries",
    ]
    assert heads(log(tmp_path))[1] == "B-nudge bbbb00000000 · 崩潰"
    run = run_records("A-mixed", "aaaa11112222", Path("results"))
    Recipe.read(run.recipe).model_copy(update={"seed": 8}).write(run.recipe)
    assert main(["devlog"]) == 0 and capsys.readouterr().out == "results/DevLog.md: 0 new entries\n"
    run.verdict.write_text("{}")
    assert main(["devlog"]) == 1
