"""Row formats: files of a user's own rows, and a format that a plugin adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fgod import inputs
from fgod.answers import COLUMNS
from fgod.chain import Chain
from fgod.cli import main
from fgod.config import resolve
from fgod.data.formats import format_of, read_user_file
from fgod.data.rows import read_rows
from fgod.documents import AnswersStamp
from fgod.errors import UsageError
from fgod.layout import Answers
from fgod.plugins import load_plugins
from fgod.registry import ROW_FORMATS
from fgod.system.files import file_digests
from fgod.system.table import write_table

ROOT = Path(__file__).parents[1]
PLUGIN = '''
"""Questions and answers on lines of their own, by turns: `Q: …`, then `A: …`."""

from fgod.data.formats import Fault, FaultKind, RowFormat, UserFile, UserRow, field_fault
from fgod.registry import ROW_FORMATS

ALONE = FaultKind("question_alone", "whose question no answer follows")


def read(data):
    lines = data.decode("utf-8", "replace").splitlines()
    rows, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.startswith("Q: "):
            answer = lines[number] if number < len(lines) else ""
            prompt, target = line[3:].strip(), answer[3:].strip()
            kind = field_fault(prompt, target) if answer.startswith("A: ") else ALONE
            (faults if kind else rows).append(Fault(number, kind, line) if kind else UserRow(number, prompt, target))
    return UserFile(tuple(rows), tuple(faults), (), len(lines))


ROW_FORMATS.register("qa", RowFormat("qa", (".qa",), "Q: prompt, then A: target", read))
'''
ROWS = "".join(f"Q: 第{i}號機器人叫什麼\nA: 第{i}號叫阿{i}。\n" for i in range(10, 30))


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A plugin file that adds the format qa; it is taken away again after the test."""
    path = tmp_path / "qa.py"
    path.write_text(PLUGIN)
    yield path
    ROW_FORMATS._entries.pop("qa", None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a file of rows in the format qa."""
    (tmp_path / "traindata").symlink_to(ROOT / "traindata")
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    (tmp_path / "mine.qa").write_text(ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(argv))
    return int(ended.value.code or 0)


def mix_spec(files: dict[str, str]) -> str:
    """All that the rows of a mix of these files depend on, by the shipped config."""
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["data"]["sources"] = files
    config["stages"] = [{"name": "A", "mix": {"kind": "balanced", "rows": 20, "shares": {"mine": 1}}, "train": {}}]
    config["stages"][0]["train"] = {"steps": 1, "lr": 1.0e-4}
    config = resolve(config, "config.yaml")
    return Chain(config, inputs.gather(config)).fit(()).runs[0].mix_spec


def test_a_format_of_a_plugin_is_audited_and_mixed_by_the_real_commands(
    project: Path, plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"mine": "mine.qa"}
    with pytest.raises(UsageError, match=r"data\.sources\.mine: mine\.qa: found no row format .* tsv \(\.tsv, \.txt\)"):
        mix_spec(files)
    load_plugins([plugin])
    assert exit_code(["data", "audit", "mine.qa"]) == 0
    assert "mine.qa: 20 rows, 20 distinct prompts" in capsys.readouterr().out

    write_table(project / "answers" / "answers.tsv", COLUMNS, [])
    AnswersStamp(settings={}, files=file_digests(project / "answers")).write(Answers(project / "answers").stamp)
    command = ["data", "mix", "--spec", mix_spec(files), "--sources", "traindata", "--files", json.dumps(files)]
    assert exit_code([*command, "--answers", "answers/answers.tsv", "--out", "mix/rows.tsv"]) == 0
    assert {(row.prompt, row.target) for row in read_rows(project / "mix/rows.tsv")} == {
        (f"第{i}號機器人叫什麼", f"第{i}號叫阿{i}。") for i in range(10, 30)
    }

    (project / "mine.qa").write_text(f"{ROWS}Q: 沒人回答\nQ: 叫什麼\nA: \n")
    assert exit_code(["data", "audit", "mine.qa"]) == 100
    said = capsys.readouterr().out
    assert "mine.qa:41: error: 1 of 22 rows whose question no answer follows [question_alone]" in said
    assert "mine.qa:42: error: 1 of 22 rows without a target [missing_target]" in said
    assert exit_code([*command, "--answers", "answers/answers.tsv", "--out", "again/rows.tsv"]) == 2
    assert "mine.qa:41: question_alone: Q: 沒人回答" in (said := capsys.readouterr().err)
    assert "mine.qa:42: missing_target: Q: 叫什麼" in said and "mine.qa: expected Q: prompt, then A: target." in said


def test_a_file_of_an_unknown_format_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n")
    words = r"rows\.csv: found no row format that reads it \(it begins 'a,b.*'\), expected one of: .*tsv \("
    with pytest.raises(UsageError, match=words):
        read_user_file(file)
    assert format_of(Path("ROWS.TSV"), b"").name == "tsv"
    with pytest.raises(UsageError, match="cannot be read"):
        read_user_file(tmp_path / "none.tsv")
