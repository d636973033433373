"""The manifest and the digest cache, with real processes, git and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgod import __version__, manifest
from fgod.errors import RefusedError, UsageError
from fgod.manifest import recorded
from fgod.system import digests
from fgod.system.digests import cached_sha256, cached_sha256_folder
from fgod.system.files import sha256_file, sha256_folder


def only(root: Path) -> dict[str, Any]:
    (entry,) = manifest.join(root)
    return entry


def files(root: Path) -> list[str]:
    return sorted(p.name for p in (root / manifest.FOLDER).iterdir())


def settle(path: Path) -> None:
    """Make a file look as old as those that the digest cache remembers."""
    os.utime(path, (time.time() - 100,) * 2)


# One command


def test_a_command_that_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    (tmp_path / "in.txt").write_text("abc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("a")
    inputs, outputs = [Path("in.txt"), Path("folder")], [tmp_path / "out.txt", tmp_path / "never"]
    with recorded(tmp_path, ["fgod", "train", "A 之神"], "A", "0123456789ab", inputs, outputs):
        assert only(tmp_path)["state"] == "running"
        Path("in.txt").write_text("changed by the command")
        (tmp_path / "out.txt").write_text("")
    entry = only(tmp_path)
    assert (entry["state"], entry["exit_code"], entry["error"]) == ("done", 0, "")
    assert (entry["argv"], entry["cwd"]) == (["fgod", "train", "A 之神"], ".")
    assert (entry["stage"], entry["lineage"]) == ("A", "0123456789ab")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert entry["inputs"][0] == {"path": "in.txt", "kind": "file", "bytes": 3, "sha256": sha}
    folder = {"path": "folder", "kind": "folder", "files": 1, "bytes": 1, "sha256": sha256_folder(tmp_path / "folder")}
    assert entry["inputs"][1] == folder
    assert [(o["path"], o["kind"], o["bytes"]) for o in entry["outputs"]] == [
        ("out.txt", "file", 0),
        ("never", "missing", None),
    ]
    assert entry["start"] <= entry["end"] and entry["start"][-5] == "." and entry["start"].endswith("Z")
    assert entry["versions"]["fgod"] == __version__ and set(manifest.PACKAGES) < set(entry["versions"])
    assert entry["environment"]["OMP_NUM_THREADS"] == "1" and "PYTHONHASHSEED" not in entry["environment"]
    assert entry["machine"]["cores"] >= 1 and entry["machine"]["memory_mib"] > 100 and entry["machine"]["cpu"]
    assert [name.split("-")[-1].partition(".")[2] for name in files(tmp_path)] == ["end.json", "start.json"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("config.yaml: train.lr: found x"), 2, "config.yaml: train.lr: found x"),
        (RefusedError("the audit says no"), 100, "the audit says no"),
        (ValueError("wrong"), 1, "ValueError: wrong"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (SystemExit(75), 75, ""),
        (SystemExit("words"), 1, "words"),
    ],
)
def test_a_command_that_fails(tmp_path: Path, error: BaseException, code: int, message: str) -> None:
    with pytest.raises(type(error)), recorded(tmp_path, ["fgod"], outputs=[tmp_path / "out"]):
        (tmp_path / "out").write_text("half")
        raise error
    entry = only(tmp_path)
    assert (entry["state"], entry["exit_code"], entry["error"]) == ("failed", code, message)
    assert entry["outputs"][0]["bytes"] == 4


def test_a_command_may_end_with_a_code_of_its_own(tmp_path: Path) -> None:
    with recorded(tmp_path, ["fgod"]) as record:
        record.exit_code = 100
    assert (only(tmp_path)["state"], only(tmp_path)["exit_code"]) == ("failed", 100)
    with pytest.raises(SystemExit), recorded(tmp_path, ["fgod"]):
        raise SystemExit(0)
    assert [e["state"] for e in manifest.join(tmp_path)] == ["failed", "done"]


def test_a_killed_command_has_a_start_without_an_end(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from fgod.manifest import recorded
with recorded(Path(sys.argv[1]), ["fgod", "train"], "A", "x"):
    print("started", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    running = only(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (running["state"], only(tmp_path)["state"]) == ("running", "killed")
    assert only(tmp_path)["stage"] == "A" and "exit_code" not in only(tmp_path)


def test_an_unfinished_command_of_another_boot_or_machine(tmp_path: Path) -> None:
    """The number of a process says nothing after a restart, and nothing about another machine."""
    with recorded(tmp_path, ["fgod"]) as record:
        pass
    (tmp_path / manifest.FOLDER / f"{record.name}.end.json").unlink()
    start = tmp_path / manifest.FOLDER / f"{record.name}.start.json"
    content = json.loads(start.read_text())
    assert only(tmp_path)["state"] == "running"
    for changed, state in ({"boot": "x"}, "killed"), ({"started": 1}, "killed"), ({"host": "elsewhere"}, "unknown"):
        start.write_text(json.dumps({**content, "process": {**content["process"], **changed}}))
        assert only(tmp_path)["state"] == state


def test_names_that_are_not_unicode_are_kept_in_escapes(tmp_path: Path) -> None:
    with recorded(tmp_path, ["fgod", os.fsdecode(b"\xff.tsv")]):
        pass
    assert only(tmp_path)["argv"][1] == "\\udcff.tsv"
    assert manifest.write_jsonl(tmp_path).read_text().count("\n") == 1


def test_unreadable_inputs_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digests, "sha256_file", refuse)
    (tmp_path / "in").write_text("x")
    with recorded(tmp_path, ["fgod"], inputs=[tmp_path / "in"]):
        pass
    assert only(tmp_path)["inputs"][0]["kind"] == "unreadable"
    assert "Permission denied" in only(tmp_path)["inputs"][0]["error"]


def test_paths_outside_the_project_are_absolute(tmp_path: Path) -> None:
    root = tmp_path / "project"
    assert manifest.shown_path(root, root / "artifacts" / "x") == "artifacts/x"
    assert manifest.shown_path(root, root / ".." / "data" / "x.tsv") == str(tmp_path / "data" / "x.tsv")


def test_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert manifest.commit(tmp_path) is None
    git("init", "-q")
    assert manifest.commit(tmp_path) is None
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-qm", "first")
    (tmp_path / "untracked").write_text("")
    assert manifest.commit(tmp_path) == {"sha": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "f").write_text("2")
    found = manifest.commit(tmp_path)
    assert found is not None and found["dirty"] is True


# The join


def _record(root: str, number: int) -> None:
    with recorded(Path(root), ["fgod", str(number)]) as record:
        record.exit_code = number % 2


def test_commands_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_record, [str(tmp_path)] * 24, range(24)))
    path = manifest.write_jsonl(tmp_path)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert path == tmp_path / "results" / "manifest.jsonl"
    assert sorted(int(e["argv"][1]) for e in entries) == list(range(24))
    assert [e["start"] for e in entries] == sorted(e["start"] for e in entries)
    assert all(e["state"] == ("failed" if int(e["argv"][1]) % 2 else "done") for e in entries)


def test_nothing_recorded_is_an_empty_manifest(tmp_path: Path) -> None:
    assert manifest.join(tmp_path) == []
    assert manifest.write_jsonl(tmp_path).read_text() == ""


TORN = [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"start": NaN}', b"[" * 100_000, b'{"argv": [1e999]}']


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize("part", ["start", "end"])
def test_a_torn_file_is_named_and_kept(tmp_path: Path, content: bytes, part: str) -> None:
    with recorded(tmp_path, ["fgod", "train"], "A") as record:
        pass
    _record(str(tmp_path), 0)
    torn = tmp_path / manifest.FOLDER / f"{record.name}.{part}.json"
    torn.write_bytes(content)
    entries = {e["name"]: e for e in manifest.join(tmp_path)}
    entry = entries.pop(record.name)
    assert (entry["state"], entry["file"]) == ("unreadable", f"results/manifest.d/{torn.name}")
    assert entry["error"]
    assert entry.get("stage") == ("A" if part == "end" else None)
    assert [e["state"] for e in entries.values()] == ["done"]
    assert len(manifest.write_jsonl(tmp_path).read_text().splitlines()) == 2
    assert torn.read_bytes() == content


def test_an_end_without_a_start_and_strange_files(tmp_path: Path) -> None:
    with recorded(tmp_path, ["fgod"]) as record:
        pass
    folder = tmp_path / manifest.FOLDER
    (folder / f"{record.name}.start.json").unlink()
    (folder / "notes.json").write_text("{}")
    (folder / f".{record.name}.end.json.x.tmp").write_text("half")
    (folder / "x.start.json").mkdir()
    entries = {e["name"]: e for e in manifest.join(tmp_path)}
    assert {e["state"] for e in entries.values()} == {"unreadable"}
    assert entries[record.name]["file"].endswith(f"{record.name}.start.json")
    assert entries[record.name]["error"] == "no such file" and entries[record.name]["exit_code"] == 0
    assert "ends neither" in entries["notes.json"]["error"]
    assert "Is a directory" in entries["x"]["error"]
    assert len(entries) == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["argv", "start", "process", "end", "exit_code", "state", "name"])


@settings(deadline=None)
@given(
    st.dictionaries(keys, json_values) | json_values,
    st.dictionaries(keys, json_values) | json_values,
    st.binary(max_size=9),
)
def test_whatever_stands_in_the_files_the_join_stands(start: Any, end: Any, more: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / manifest.FOLDER
        folder.mkdir(parents=True)
        (folder / "1.start.json").write_text(json.dumps(start))
        (folder / "1.end.json").write_text(json.dumps(end))
        (folder / "2.start.json").write_bytes(more)
        lines = manifest.as_jsonl(manifest.join(Path(name))).encode().decode().split("\n")[:-1]
        assert all(isinstance(json.loads(line), dict) for line in lines)
        assert len(lines) == 2


# Digests


def test_a_digest_is_read_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache" / "digests.json"
    reads: list[Path] = []

    def counting(path: Path) -> str:
        reads.append(path)
        return sha256_file(path)

    monkeypatch.setattr(digests, "sha256_file", counting)
    file.write_text("1")
    settle(file)
    assert cached_sha256(file, cache) == cached_sha256(file, cache) == sha256_file(file)
    assert len(reads) == 1
    before = file.stat()
    file.write_text("2")  # of the same size, and made to look as old
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_sha256(file, cache) == sha256_file(file)
    assert len(reads) == 2
    (tmp_path / "link").symlink_to(file)
    assert cached_sha256(tmp_path / "link", cache) == sha256_file(file)
    assert len(reads) == 2


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "digests.json"
    file.write_text("1")
    assert cached_sha256(file, cache) == sha256_file(file)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000])
def test_a_torn_cache_costs_a_hash(tmp_path: Path, content: bytes) -> None:
    file, cache = tmp_path / "weights", tmp_path / "digests.json"
    file.write_text("1")
    settle(file)
    cache.write_bytes(content)
    assert cached_sha256(file, cache) == sha256_file(file)
    assert json.loads(cache.read_text())[str(file)][3] == sha256_file(file)


@pytest.mark.parametrize("entry", [None, 1, [], [1, 2, 3, 4], [1, 2, 3, "short"], {"a": 1}])
def test_a_foreign_entry_costs_a_hash(tmp_path: Path, entry: object) -> None:
    file, cache = tmp_path / "weights", tmp_path / "digests.json"
    file.write_text("1")
    cache.write_text(json.dumps({str(file): entry}))
    assert cached_sha256(file, cache) == sha256_file(file)


def _digest(name: str, cache: str) -> str:
    return cached_sha256(Path(name), Path(cache))


def test_digests_at_the_same_time_are_all_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "digests.json"
    paths = [tmp_path / f"f{n}" for n in range(24)]
    for path in paths:
        path.write_text(path.name)
        settle(path)
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(_digest, map(str, paths), [str(cache)] * len(paths)))
    assert found == [sha256_file(p) for p in paths]
    assert sorted(json.loads(cache.read_text())) == sorted(map(str, paths))


def test_vanished_files_leave_a_full_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MAX_ENTRIES", 2)
    cache = tmp_path / "digests.json"
    for name in "abc":
        (tmp_path / name).write_text(name)
        settle(tmp_path / name)
    cached_sha256(tmp_path / "a", cache)
    (tmp_path / "a").unlink()
    for name in "bc":
        cached_sha256(tmp_path / name, cache)
    assert sorted(Path(p).name for p in json.loads(cache.read_text())) == ["b", "c"]


def test_the_digest_of_a_folder_is_that_of_fgod_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("b", "a", "deep/c", "deep/之神"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert cached_sha256_folder(folder, tmp_path / "digests.json") == sha256_folder(folder)
    with pytest.raises(FileNotFoundError):
        cached_sha256(tmp_path / "missing", tmp_path / "digests.json")
