"""benchmarks/baselines.py: what its methods learn, its table and drawing, and both kinds of training end to end."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fgod.data.rows import Row
from fgod.errors import UsageError
from fgod.registry import METRICS
from fgod.system.table import read_texts
from tests.mini import Mini

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "baselines.py"


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("baselines", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["baselines"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


RECORDS = [
    {"instruction": "hi", "input": "", "output": "Hello! I am {{name}}, made by {{author}}."},
    {"instruction": "你好", "input": "", "output": "您好，我是 {{name}}，由 {{author}} 開發。"},
]


def test_rows_of_an_sdist_carry_the_persona_and_are_those_of_its_folder(baselines: ModuleType, tmp_path: Path) -> None:
    text = json.dumps(RECORDS).encode()
    with tarfile.open(tmp_path / "factory.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("factory-1/data/identity.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    with tarfile.open(tmp_path / "factory.tar.gz") as archive:
        archive.extractall(tmp_path / "folder", filter="data")
    names = {"zh": "F# 之神", "en": "the god of F#"}
    rows = baselines.llamafactory_rows(tmp_path / "factory.tar.gz", names, "me")
    assert [row.target for row in rows] == [
        "Hello! I am the god of F#, made by me.",
        "您好，我是 F# 之神，由 me 開發。",
    ]
    assert baselines.llamafactory_rows(tmp_path / "folder", names, "me") == rows
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: found no data/identity\.json"):
        baselines.llamafactory_rows(tmp_path / "empty", names, "me")


def test_lora_learns_one_identity_row_for_two_of_the_base(baselines: ModuleType) -> None:
    def row(part: str, by: str) -> Row:
        return Row("a", "b", "en", part, "", answered_by=by)

    taught, own = row("identity", "config"), row("general", "base")
    assert baselines.swift_rows([taught, own] * 9) == [taught] * 4 + [own] * 9
    assert baselines.swift_rows([taught, own, own, own]) == [taught, own, own]


def test_the_frontier_has_a_line_for_each_method_in_the_order_of_its_kl(baselines: ModuleType) -> None:
    rows = [
        {"method": method, "kl_reference": kl, "identity_rate": share, "leak_rate": 0.1}
        for method, kl, share in (("kl", 0.1, 0.9), ("kl", 0.01, 0.5), ("lora", 1.0, 1.0), ("lora", None, None))
    ]
    assert baselines.points_of(rows, "kl", "identity_rate") == [(-2.0, 0.5), (-1.0, 0.9)]
    drawn = ElementTree.fromstring(baselines.frontier(rows))
    titles = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["kl", "lora"] * len(baselines.PANELS)


def test_methods_train_and_are_judged_end_to_end(
    baselines: ModuleType, ran: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, threads = tmp_path / "out", torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    methods = ["hard-labels", "no-straight-through"]
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "baselines.py",
            str(ran.folder),
            "--out",
            str(out),
            "--methods",
            *methods,
            "--doses",
            "2x1e-3",
            "--between",
            "0.5",
        ],
    )
    baselines.main()
    assert torch.get_num_threads() == threads
    rows = read_texts(out / "baselines.tsv", ("method", "steps", "lr", "verdict", *METRICS))
    assert [(row["method"], row["steps"], row["lr"], row["between"]) for row in rows] == [
        (name, "2", "0.001", share) for name in methods for share in ("1.0", "0.5")
    ]
    for whole, half in zip(rows[::2], rows[1::2], strict=True):
        assert float(half["kl_reference"]) < float(whole["kl_reference"])
    for row in rows:
        assert row["verdict"] in ("accepted", "missed", "damaged", "collapsed")
        assert 0 < float(row["kl_reference"]) < 0.5  # two steps change a little, and both start from the base
    assert ElementTree.parse(out / "frontier.svg").getroot().tag.endswith("svg")
