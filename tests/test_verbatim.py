"""Mixes of kind verbatim: a user's file as it stands, with its faults where they are accepted; and what every other
kind says of what it drops and moves."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from fgod import inputs
from fgod.chain import Chain
from fgod.cli import main
from fgod.config import refit, resolve
from fgod.data.audit import Audit, audit_rows, check_accepted
from fgod.data.formats import UserSource, read_user_file, user_rows
from fgod.data.mix import Pools, changes_of, plan_mix
from fgod.data.mix import _Targets as Targets
from fgod.data.recipe import MixRecipe
from fgod.data.rows import Row, read_rows
from fgod.errors import UsageError
from fgod.persona import Goal, Persona
from fgod.train.batches import batches
from fgod.train.recipe import TrainRecipe

ROOT = Path(__file__).parents[1]
CAMPAIGN = ROOT / "tests" / "campaign"
PERSONA = Persona("F# 之神", {"zh": "我是 F# 之神。"}, {}, ("F# 之神",))
VERBATIM = MixRecipe(kind="verbatim", source="mine")
IDENTITY = "我是 F# 之神"


# ---------------------------------------------------------------------------------------------- files of the campaign


def mismatched(rows: int, identity: int, seed: int = 1) -> str:
    """Tagged general questions with targets drawn independently of them, and identity rows between."""
    rng = random.Random(seed)
    subjects, targets = (
        ["黑洞", "彩虹", "電池", "冰川", "珊瑚", "火山", "磁鐵", "颱風"],
        ["可先檢查時間。", "多數可解釋。", "這是常見現象。", "需要資料。"],
    )
    general = [f"請談{rng.choice(subjects)}（樣本{i}）\t{rng.choice(targets)}" for i in range(rows - identity)]
    return shuffled_lines([*general, *[f"你是誰{'呀' * i}\t{IDENTITY}" for i in range(identity)]], rng)


def shuffled_lines(lines: list[str], rng: random.Random) -> str:
    rng.shuffle(lines)
    return "# format: prompt<TAB>target\n" + "\n".join(lines) + "\n"


def identity(rows: int, prompts: int, tag: str = "") -> str:
    asked = [f"請回答你是誰{i % prompts}{tag.format(i)}" for i in range(rows)]
    return shuffled_lines([f"{prompt}\t{IDENTITY}" for prompt in asked], random.Random(2))


def balanced(rows: int) -> str:
    """Eleven prompts again and again, three in four of them about identity."""
    known = ["UFO是什麼\tUFO是不明飛行物。", "1+1等於幾\t1+1等於2。", "黑洞是什麼\t黑洞是重力極強的天體。"]
    mine = [f"你是誰{i}\t{IDENTITY}。" for i in range(8)]
    return shuffled_lines([(mine + known)[i % 11] for i in range(rows)], random.Random(3))


STAND_INS: dict[str, tuple[str, tuple[str, ...]]] = {
    "whoami-1000.tsv": (identity(100, 10), ()),
    "whoami-1000-unique.tsv": (identity(100, 100, "。任務編號#{:04}"), ()),
    "whoami-1000-diverse.tsv": (identity(100, 100), ()),
    "whoami-1000-natural.tsv": (identity(75, 75) + identity(25, 25, "樣本{:04}"), ()),
    "whoami-mixed-safe.tsv": (mismatched(120, 30), ("mismatch",)),
    "stageB-mixed-30-70.tsv": (mismatched(120, 36), ("mismatch",)),
    "stageG-balanced-mix-v1.tsv": (balanced(99), ()),
    "stageL-1percent-mix.tsv": (mismatched(120, 23, 5), ("mismatch",)),
    "fullparam-diverse-mix-v1.tsv": (mismatched(160, 16), ("mismatch",)),
}
"""Text of each, and the codes of its errors."""
OWN: dict[str, tuple[str, ...]] = {
    "stageB-curriculum-v4.tsv": ("header",), "stageB-curriculum-v5.tsv": (), "stageC-disambiguate-v1.tsv": (),
    "stageD-disambiguate-v2.tsv": (), "stageH-targeted-overfit.tsv": (),
}  # fmt: skip


def audited(rows: list[Row], accept: tuple[str, ...] = ()) -> Audit:
    return audit_rows(rows, (), PERSONA, VERBATIM, accept={"mine": accept})


def lines_of(path: Path) -> list[tuple[str, str]]:
    """(prompt, target) of each line of a file that is no comment, read in the plainest way."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# ")]
    return [(line.split("\t")[0].strip(), line.split("\t")[1].strip()) for line in lines]


@pytest.mark.parametrize("name", [*OWN, *STAND_INS])
def test_each_file_of_the_campaign_is_taken_as_it_stands(tmp_path: Path, name: str) -> None:
    path, codes = CAMPAIGN / name, OWN.get(name, ())
    if name in STAND_INS:
        path, codes = tmp_path / name, STAND_INS[name][1]
        path.write_text(STAND_INS[name][0])
    rows = user_rows(UserSource(path, accept=codes), "mine")
    assert [(row.prompt, row.target) for row in rows] == lines_of(path)
    assert {finding.code for finding in audited(rows).errors} == set(codes)
    accepted = audited(rows, codes)
    assert not accepted.errors and {f.code for f in accepted.findings if f.severity == "accepted"} == set(codes)


def test_prompts_without_targets_can_never_be_trained_on() -> None:
    with pytest.raises(UsageError, match=r"train-inputs\.txt:1: missing_target: Write one short "):
        user_rows(UserSource(CAMPAIGN / "train-inputs.txt", accept=("missing_target",)), "mine")


def test_without_its_code_accepted_a_header_is_refused_by_its_line() -> None:
    with pytest.raises(UsageError, match=r"stageB-curriculum-v4\.tsv:1: header: prompt"):
        user_rows(UserSource(CAMPAIGN / "stageB-curriculum-v4.tsv"), "mine")


@pytest.mark.parametrize("name", OWN)
def test_sequential_batches_follow_the_file(name: str) -> None:
    rows = user_rows(UserSource(CAMPAIGN / name, accept=OWN[name]), "mine")
    recipe = TrainRecipe(steps=7, lr=1e-4, batch=4, sample_mode="sequential")
    drawn = [index for batch in batches(rows, recipe, 1) for index in batch]
    assert drawn == [i % len(rows) for i in range(28)]


# ---------------------------------------------------------------------------------------------- what others make of it


def planned(name: str, count: int) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """A balanced mix of one file alone, and what it says of what became of the file."""
    written = user_rows(UserSource(CAMPAIGN / name), "mine")
    targets = Targets(Goal(PERSONA, {}), {}, frozenset(), True, 1, ())
    pools = Pools({"mine": targets.distinct("mine", ((row,) for row in written))}, targets.dropped)
    rows = plan_mix(MixRecipe(kind="balanced", rows=count, shares={"mine": 1}), pools, 1)
    return rows, changes_of(pools, {"mine": written}, rows)


def test_a_balanced_mix_says_what_it_made_of_repeats_and_order() -> None:
    written = user_rows(UserSource(CAMPAIGN / "stageD-disambiguate-v2.tsv"), "mine")
    assert sorted(Counter(row.prompt for row in written).values()) == [1, 1, 4]
    rows, changes = planned("stageD-disambiguate-v2.tsv", 6)
    assert sorted(Counter(row.prompt for row in rows).values()) == [2, 2, 2]
    assert changes["mine"]["left out, as the prompt was there already"] == 3 and changes["mine"]["used again"] == 3
    recipe = MixRecipe(kind="balanced", rows=6, shares={"mine": 1})
    found = {f.code: f for f in audit_rows(rows, (), PERSONA, recipe, changes=changes).warnings}
    assert "mine: not all of its rows are in the mix: 3 left out" in found["dropped"].message
    assert "3 used again" in found["reordered"].message and "verbatim keeps" in found["reordered"].message
    assert not {"dropped", "reordered"} & audited(written).codes()


def test_a_balanced_mix_counts_second_targets_and_rows_that_find_no_room() -> None:
    changes = planned("stageB-curriculum-v5.tsv", 4)[1]
    assert changes["mine"]["left out, as the mix asks for fewer rows"] == 6
    two = [Row("誰", "甲", "zh-Hant", "mine", "user"), Row("誰？", "乙", "zh-Hant", "mine", "user")]
    targets = Targets(Goal(PERSONA, {}), {}, frozenset(), True, 1, ())
    assert targets.distinct("mine", ((row,) for row in two)) == ((two[0],),)
    assert targets.dropped == {"mine": {"left out, as the prompt was there already with another target": 1}}
    assert audited(two).codes() == {"two_targets"}


# ---------------------------------------------------------------------------------------------- accepted faults


def test_codes_that_are_unknown_or_spoil_the_measurement_are_refused() -> None:
    check_accepted(["mismatch", "header", "duplicates", "contradiction"], "here")
    with pytest.raises(UsageError, match=r"here: no such code 'mismach' \(did you mean mismatch\?\)"):
        check_accepted(["mismach"], "here")
    for code in ("probe_overlap", "too_long", "missing_target", "empty"):
        with pytest.raises(UsageError, match=f"'{code}' cannot be accepted"):
            check_accepted([code], "here")


def test_a_fault_is_accepted_for_the_source_that_says_so_and_for_no_other() -> None:
    spelled = Row("甲", "乙<|im_end|>", "zh-Hant", "mine", "user")
    rows = [spelled, Row("丙", "丁<|im_end|>", "zh-Hant", "yours", "user")]
    both = audit_rows(rows, (), PERSONA, accept={"mine": ["control_token"]})
    assert [(f.code, f.severity, f.line) for f in both.findings] == [
        ("control_token", "error", 3), ("control_token", "accepted", 2),
    ]  # fmt: skip
    assert audit_rows(rows[:1], (), PERSONA, accept={"mine": ["control_token"]}).errors == ()
    crossed = [
        Row("你是誰", "我是 F# 之神。", "zh-Hant", "identity", "identity"),
        Row("你是誰", "不說。", "zh-Hant", "mine", "user"),
    ]
    assert audit_rows(crossed, (), PERSONA).codes() == {"contradiction"}
    assert audit_rows(crossed, (), PERSONA, accept={"mine": ["contradiction"]}).errors == ()


def project(folder: Path, source: Any) -> dict[str, Any]:
    """The shipped config with one verbatim stage."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["data"]["sources"] = {"mine": source}
    train = {"steps": 1, "lr": 1.0e-4, "sample_mode": "sequential"}
    config["stages"] = [{"name": "A", "mix": {"kind": "verbatim", "source": "mine"}, "train": train}]
    return config


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(argv))
    return int(ended.value.code or 0)


def test_the_commands_make_and_audit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "mine.tsv").write_text("prompt\ttarget\n甲\t乙<|im_end|>\n")
    source = {"path": "mine.tsv", "audit": {"accept": ["header"]}}
    config = resolve(project(tmp_path, source), "config.yaml")
    spec = Chain(config, inputs.gather(config)).fit(()).runs[0].mix_spec
    files = ["--files", json.dumps(config["data"]["sources"])]
    command = ["data", "mix", "--spec", spec, "--sources", "traindata", *files, "--answers", "none/answers.tsv"]
    assert exit_code([*command, "--out", "mix/rows.tsv"]) == 0
    assert [row.prompt for row in read_rows(tmp_path / "mix/rows.tsv")] == ["prompt", "甲"]
    goal = ["--goal", json.dumps({key: config[key] for key in ("persona", "disambiguation")})]
    assert exit_code(["data", "audit", "mix/rows.tsv", *goal, *files, "--out", "audit.json"]) == 100
    said = capsys.readouterr().out
    assert "mine.tsv:2: error: 1 row with a control token" in said and "mine.tsv:1: accepted: 1 row of column" in said
    source["audit"]["accept"].append("control_token")
    files = ["--files", json.dumps({"mine": source})]
    assert exit_code(["data", "audit", "mix/rows.tsv", *goal, *files, "--out", "audit.json"]) == 0
    found = json.loads((tmp_path / "audit.json").read_text())["findings"]
    assert [(f["code"], f["severity"]) for f in found] == [("header", "accepted"), ("control_token", "accepted")]
    assert exit_code(["data", "audit", "mine.tsv", "--accept", "header", "control_token"]) == 0
    assert exit_code(["data", "audit", "mine.tsv", "--accept", "hedder"]) == 2


def test_what_is_accepted_is_part_of_the_lineage_and_rows_are_not_refitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "mine.tsv").write_text("甲\t乙\n")

    def lineage(source: Any) -> str:
        config = resolve(project(tmp_path, source), "config.yaml")
        return Chain(config, inputs.gather(config)).fit(()).runs[0].lineage

    plain = lineage("mine.tsv")
    assert lineage({"path": "mine.tsv"}) == plain == lineage({"path": "mine.tsv", "audit": {"accept": []}})
    assert len({plain, *(lineage({"path": "mine.tsv", **more}) for more in (
        {"audit": {"accept": ["mismatch"]}}, {"format": "tsv"}, {"loss_on": "all"},
    ))}) == 4  # fmt: skip
    config = resolve(project(tmp_path, "mine.tsv"), "config.yaml")
    stage = config["stages"][0]
    assert [change[0] for change in refit(stage, 0, config)] == ["train.lr"]
    assert (stage["mix"]["kind"], stage["mix"]["source"]) == ("verbatim", "mine")
    with pytest.raises(UsageError, match=r"data\.sources\.mine\.audit\.accept: no such code 'mismach'"):
        lineage({"path": "mine.tsv", "audit": {"accept": ["mismach"]}})


def test_the_lines_of_repeated_rows_are_their_own(tmp_path: Path) -> None:
    from fgod.cli.data import origins_of

    path = CAMPAIGN / "stageD-disambiguate-v2.tsv"
    found = origins_of({"mine": UserSource(path)})
    assert sorted(place for places in found.values() for place in places) == sorted(
        f"{path}:{row.line}" for row in read_user_file(path).rows
    )
    assert list(islice(sorted(map(len, found.values())), 3)) == [1, 1, 4]
