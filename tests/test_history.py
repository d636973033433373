"""What the manifest answers: who made a file, whether all is as it was, what a run made again is made of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fgod import manifest
from fgod.cli import main, parse
from fgod.documents import Outcome, Stamp
from fgod.errors import FgodError, UsageError
from fgod.history import replay
from fgod.history.index import Entry, Index, before, home_of, maker_of, subcommand
from fgod.history.replay import check_inputs, environment_then, lay_out, steps_of
from fgod.history.verify import hashed, verify
from fgod.layout import DEVLOG, lineage_of, run_records, run_weights
from fgod.manifest import recorded
from fgod.stamps import digests_of
from fgod.system.files import sha256_file, write_json, write_text
from tests.test_keep import BASE, leave_run, recipe_of, release, said

A = lineage_of(recipe_of("A", BASE).content())
B = lineage_of(recipe_of("B", A).content())
RUN = run_records("B", B)
WEIGHTS = run_weights("B", B)
ROWS, MIX_STAMP = Path("artifacts/mixes/0123456789ab/rows.tsv"), Path("artifacts/mixes/0123456789ab/mix.json")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources, of which a mix was made, on which B was trained, from A; with the commands on record."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    Path("Snakefile").touch()
    write_text(Path("traindata/topics.yaml"), "tea: {}\n")
    leave_run("A", A, BASE, "accepted")
    with recorded(Path("."), ["fgod", "train", *TRAIN_A], "A", A, [], [run_weights("A", A).master]):
        pass
    with recorded(Path("."), MIX, inputs=[Path("traindata")], outputs=[ROWS, MIX_STAMP]):
        write_text(ROWS, "prompt\ttarget\n")
        write_text(MIX_STAMP, "{}")
    leave_run("B", B, A, "collapsed")
    shutil.rmtree(WEIGHTS.folder)
    inputs = [RUN.recipe, run_weights("A", A).master, run_weights("A", A).trained, ROWS, MIX_STAMP]
    with recorded(Path("."), ["fgod", "train", *TRAIN], "B", B, inputs, [RUN.outcome, WEIGHTS.trained, WEIGHTS.master]):
        leave_run("B", B, A, "collapsed")
    return tmp_path


def training(stage: str, lineage: str, start: str) -> list[str]:
    run, weights = run_records(stage, lineage), run_weights(stage, lineage)
    words = f"--recipe {run.recipe} --weights {start}/master --start {start}/trained.json --rows {ROWS} --audit a "
    return [*words.split(), f"--outcome={run.outcome}", f"--stamp={weights.trained}", "--limit-gb=8"]


TRAIN, TRAIN_A = training("B", B, f"artifacts/A/{A}"), training("A", A, "artifacts/base/x")
MIX = ["fgod", "--plugin", "p.py", "data", "mix", "--spec", "{}", "--sources", "traindata", "--files", "{}"]
MIX += ["--answers", "a", "--out", str(ROWS)]


def entry(
    name: str, outputs: Mapping[str, str], inputs: Mapping[str, str] | None = None, argv: str = "fgod x"
) -> Entry:
    """A command that made and read files with these digests; removed where there is none."""

    def described(files: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"path": path, "kind": "file" if sha else "missing", "sha256": sha or None, "bytes": 1 if sha else None}
            for path, sha in files.items()
        ]

    return {"name": name, "start": name, "argv": argv.split(), "state": "done", "stage": "", "lineage": "",
            "inputs": described(inputs or {}), "outputs": described(outputs)}  # fmt: skip


def names(entries: Sequence[Entry]) -> list[str]:
    return [one["name"] for one in entries]


# Who made what


def test_the_maker_is_the_one_whose_digest_was_read_else_the_last_before() -> None:
    index = Index.of([entry("1", {"a": "x"}), entry("2", {"a": "y"}), entry("3", {"a": "x"}), entry("4", {"a": "z"})])
    made = [maker_of(index, "a", sha, until) for sha, until in (("x", "2"), ("x", "9"), ("y", "9"), ("?", "3"))]
    assert [one.entry["name"] for one in made if one] == ["1", "3", "2", "3"]
    assert maker_of(index, "b", "x", "9") is None and maker_of(index, "a", "x", "0") is None


def test_a_file_is_made_with_the_folder_around_it_and_removed_with_it() -> None:
    index = Index.of([entry("1", {"r/B": "x"}), entry("2", {"r": ""}), entry("3", {"r/C": "y"})])
    assert names([made.entry for made in index.makers("r/B/x")]) == ["1"]
    gone = index.removed_by("r/B/x", "1")
    assert gone and gone.entry["name"] == "2" and index.removed_by("r/C", "3") is None
    assert [made.path for made in index.newest()] == ["r/C"]


def test_what_came_before_goes_back_to_the_first_command() -> None:
    chain = [entry("1", {"a": "x"}), entry("2", {"b": "y"}, {"a": "x"}), entry("3", {"other": "o"})]
    last = entry("4", {"c": "z"}, {"b": "y", "given": "g"})
    assert names(before(Index.of([*chain, last]), last)) == ["2", "1"]


def test_paths_in_the_trash_and_subcommands() -> None:
    assert home_of("artifacts/.trash/A/x/master/f") == "artifacts/A/x/master/f" and home_of("a/b") == "a/b"
    assert (
        subcommand(["fgod", "--plugin", "p", "data", "mix"]) == "data mix" and subcommand(["fgod", "train"]) == "train"
    )


def test_why_names_the_command_what_it_read_and_who_made_that(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = WEIGHTS.master / "model.safetensors"
    told = said(capsys, "manifest", "why", str(file))
    assert f"sha256 {sha256_file(file)}: as it was made" in told and f"made by train B@{B}, " in told
    assert "fgod train --recipe" in told and f"{ROWS}  14 bytes" in told and ": made by data mix, " in told
    assert f"trained.json  {Path(f'artifacts/A/{A}/trained.json').stat().st_size} bytes" in told
    assert "made by no command on record" in told and f"train A@{A}" in told.split("before that")[1]
    file.write_text("changed")
    assert "it has changed since" in said(capsys, "manifest", "why", str(file))
    assert f"made by train B@{B}" in said(capsys, "manifest", "why", str(WEIGHTS.master))


def test_why_of_what_was_thrown_away_removed_or_never_made(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = WEIGHTS.master / "model.safetensors"
    said(capsys, "trash", "B")
    told = said(capsys, "manifest", "why", str(file))
    assert f"it lies in the trash: artifacts/.trash/B/{B}/master/model.safetensors" in told
    in_trash = said(capsys, "manifest", "why", str(WEIGHTS.trash / "master/model.safetensors"))
    assert f"made by train B@{B}" in in_trash
    ROWS.unlink()
    assert "it is gone" in said(capsys, "manifest", "why", str(ROWS))
    assert "it is there, but no command on record" in said(capsys, "manifest", "why", "Snakefile", code=2)
    assert "it is not there, and no command" in said(capsys, "manifest", "why", "nothing", code=2)


def test_show_lists_all_commands_or_those_of_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(main(["retry", "Z"]))
    capsys.readouterr()
    lines = said(capsys, "manifest", "show").splitlines()
    assert [line.split()[1] for line in lines] == ["done", "done", "done", "failed"]
    assert "config.yaml: no such file" in lines[-1] and "failed 2" in lines[-1]
    of_run = said(capsys, "manifest", "show", "B").splitlines()
    assert f"train B@{B}" in of_run[0] and of_run[1].startswith("    fgod train --recipe")
    assert sum(line.startswith("    made ") for line in of_run) == 3
    torn = next(Path("results/manifest.d").glob("*.end.json"))
    torn.write_text("{")
    assert "unreadable: not JSON" in said(capsys, "manifest", "show")


# Whether all is as it was


def faults() -> list[str]:
    return list(verify(Path("."), manifest.join(Path(".")), lambda line: None).faults)


def test_verify_reads_every_file_and_is_content_with_what_was_thrown_away(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release(("A", A))
    assert "all as it was made" in said(capsys, "manifest", "verify")
    said(capsys, "trash", "B")
    assert "all as it was made" in said(capsys, "manifest", "verify")
    (WEIGHTS.trash / "master/model.safetensors").write_text("rotten")
    told = said(capsys, "manifest", "verify", code=100)
    assert f".trash/B/{B}/master: sha256" in told and f"by the stamp of B@{B}" in told and f"by train B@{B}" in told
    said(capsys, "trash", "--empty")
    assert "all as it was made" in said(capsys, "manifest", "verify")


def test_verify_names_each_fault(project: Path) -> None:
    release(("A", A))
    assert faults() == []
    size = (WEIGHTS.exported / "model.safetensors").stat()
    (WEIGHTS.exported / "model.safetensors").write_text("x" * size.st_size)
    (found,) = faults()
    assert found.startswith(f"artifacts/B/{B}/nvfp4/model.safetensors: sha256") and "the stamp of B@" in found
    shutil.rmtree(WEIGHTS.of("gguf"))
    assert any("gguf/model.safetensors: gone" in fault for fault in faults())
    ROWS.unlink()
    assert any(fault.startswith(f"{ROWS}: gone, made by data mix") for fault in faults())
    Path("artifacts/releases/1/model.safetensors").write_text("other")
    assert any("by the stamp of release 1" in fault for fault in faults())
    recipe = json.loads(RUN.recipe.read_text())
    write_json(RUN.recipe, {**recipe, "seed": 8})
    assert any("it is the recipe of" in fault for fault in faults())
    RUN.verdict.write_text(RUN.verdict.read_text().replace("collapsed", "accepted"))
    assert any("its seal differs" in fault for fault in faults())


def test_files_outside_are_noted_and_a_removed_folder_is_no_fault(project: Path) -> None:
    with recorded(Path("."), ["fgod", "data", "identity"], outputs=[Path("mine.tsv")]):
        Path("mine.tsv").write_text("a")
    Path("mine.tsv").write_text("edited")
    with recorded(Path("."), ["fgod", "retry", "B"], outputs=[RUN.folder, WEIGHTS.folder]):
        shutil.rmtree(RUN.folder)
        shutil.rmtree(WEIGHTS.folder)
    found = verify(Path("."), manifest.join(Path(".")), lambda line: None)
    assert found.faults == () and len(found.notes) == 1 and found.notes[0].startswith("mine.tsv: sha256")


def test_what_people_write_into_the_devlog_is_no_fault(project: Path) -> None:
    with recorded(Path("."), ["fgod", "gate"], outputs=[DEVLOG]):
        DEVLOG.write_text("# DevLog\n")
    DEVLOG.write_text("# DevLog\nmine\n")
    assert faults() == []
    DEVLOG.unlink()
    assert faults() == []


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / str(number) for number in range(5)]
    for file in files:
        file.write_text(file.name)
    times = iter(range(0, 100, 3))
    monkeypatch.setattr("fgod.history.verify.time.monotonic", lambda: float(next(times)))
    lines: list[str] = []
    assert [path for path, _ in hashed(files, lines.append)] == files
    assert len(lines) == 5 and all(line.startswith("verify · ") and "s left" in line for line in lines)


# A run made again


def written(words: Sequence[str]) -> list[Path]:
    return parse(words).outputs()


def index() -> Index:
    return Index.of(manifest.join(Path(".")))


def test_a_replay_makes_the_mix_and_the_run_and_reads_the_rest(project: Path, tmp_path: Path) -> None:
    steps = steps_of(RUN, index(), False, written)
    assert [subcommand(one["argv"]) for one in steps.entries] == ["data mix", "train"]
    reads = {read["path"] for _, read in steps.inputs()}
    start = f"artifacts/A/{A}"
    assert reads == {"traindata", str(RUN.recipe), f"{start}/master", f"{start}/trained.json"}
    check_inputs(Path("."), steps)
    folder = tmp_path / "again"
    lay_out(Path("."), steps, folder)
    assert (folder / "traindata/topics.yaml").read_text() == "tea: {}\n" and (folder / start / "master").is_dir()
    assert not (folder / ROWS).exists() and not (folder / RUN.outcome).exists()
    assert [subcommand(one["argv"]) for one in steps_of(RUN, index(), True, written).entries] == ["train"]


def test_what_has_changed_since_is_named_and_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(Path("traindata/topics.yaml"), "tea: {}\nmoon: {}\n")
    told = said(capsys, "manifest", "replay", "B", code=100)
    assert "what the run was made of has changed since:\n  traindata: sha256 " in told and "as data mix read it" in told
    assert "--from-rows trains on them" in told and not list(Path("artifacts").glob(".replay*"))
    write_text(run_weights("A", A).master / "config.json", "{ }")
    told = said(capsys, "manifest", "replay", "B", code=100)
    assert f"artifacts/A/{A}/master: sha256" in told and "--from-rows" not in told
    said(capsys, "trash", "B", "A")
    told = said(capsys, "manifest", "replay", "B", "--from-rows", code=100)
    assert f"artifacts/A/{A}/master: it lies in the trash, artifacts/.trash/A/{A}/master" in told


def test_a_run_without_a_record_or_weights_or_written_elsewhere_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no command on record in results/manifest.d made" in said(capsys, "manifest", "replay", "A", code=2)
    Path("there").mkdir()
    assert "expected a new folder" in said(capsys, "manifest", "replay", "B", "--out", "there", code=2)
    Outcome(status="killed", reason="too much").write(RUN.outcome)
    assert "it was killed, so that there are no weights" in said(capsys, "manifest", "replay", "B", code=2)
    elsewhere = [*TRAIN[:-3], f"--outcome={RUN.outcome}", "--stamp=/elsewhere/trained.json", "--limit-gb=8"]
    with recorded(Path("."), ["fgod", "train", *elsewhere], "B", B, [], [RUN.outcome]):
        RUN.outcome.touch()
    with pytest.raises(UsageError, match=r"it wrote to /elsewhere/trained\.json, expected a path below the project"):
        steps_of(RUN, index(), True, written)


@pytest.fixture
def made_again(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the commands of a replay leave, instead of a training: weights, CPU, rows."""
    wanted: dict[str, Any] = {"weights": f"master of {B}", "cpu": "AVX2", "rows": "prompt\ttarget\n"}

    def run_again(entry: Entry, folder: Path) -> None:
        if subcommand(entry["argv"]) == "data mix":
            write_text(folder / ROWS, wanted["rows"])
            write_text(folder / MIX_STAMP, "{}")
            return
        write_text(folder / WEIGHTS.master / "model.safetensors", wanted["weights"])
        write_text(folder / WEIGHTS.master / "config.json", "{}")
        found = digests_of(folder / WEIGHTS.master)
        made = Outcome(status="trained", **found, cpu=wanted["cpu"], device="cpu", torch_version="2.0")
        made.write(folder / RUN.outcome)

    monkeypatch.setattr(replay, "run_again", run_again)
    return wanted


def test_the_same_bits_are_said_and_recorded(
    project: Path, capsys: pytest.CaptureFixture[str], made_again: dict[str, Any]
) -> None:
    assert f"B@{B}: the same bits in all 2 files" in said(capsys, "manifest", "replay", "B", "--out", "again")
    assert (Path("again") / WEIGHTS.master).is_dir() and Stamp.read(WEIGHTS.trained)
    last = manifest.join(Path("."))[-1]["replay"]
    assert last == {"run": f"B@{B}", "same": True, "differing": [], "environment": []}
    made_again["cpu"] = "AVX512"
    told = said(capsys, "manifest", "replay", "B")
    assert "the same bits" in told and "not as it was when the run was made:\n  cpu: AVX2, now AVX512" in told
    assert not list(Path("artifacts").glob(".replay*")), "the folder is removed"


def test_other_bits_are_said_with_what_else_is_other(
    project: Path, capsys: pytest.CaptureFixture[str], made_again: dict[str, Any]
) -> None:
    made_again["weights"] = f"mASTEr of {B}"
    told = said(capsys, "manifest", "replay", "B", code=100)
    size = len(f"master of {B}")
    assert f"B@{B}: other bits: model.safetensors has changed\n  model.safetensors: 4 of {size} bytes differ" in told
    assert "nothing that is recorded of the environment differs" in told
    made_again["cpu"] = "AVX512"
    assert "which may be the cause:\n  cpu: AVX2, now AVX512" in said(capsys, "manifest", "replay", "B", code=100)
    made_again["rows"] = "other rows\n"
    told = said(capsys, "manifest", "replay", "B", code=100)
    assert f"{ROWS}: made again, its sha256 is" in told and "--from-rows" in told


def test_another_version_commit_or_numerics_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making = steps_of(RUN, index(), True, written).making
    assert environment_then(RUN, making) == []
    then = {**making, "versions": {**making["versions"], "torch": "1.0"}, "commit": {"sha": "f" * 40, "dirty": True}}
    lines = environment_then(RUN, then)
    assert any(line.startswith("torch: 1.0, now ") for line in lines)
    assert "commit: ffffffffffff with changes, now none" in lines
    monkeypatch.setattr("fgod.NUMERICS_VERSION", 99)
    assert any(line.endswith(", now 99") for line in environment_then(RUN, making))


def test_a_command_that_fails_again_is_an_error(project: Path, tmp_path: Path) -> None:
    failing = {**steps_of(RUN, index(), True, written).making, "argv": ["fgod", "recipe"]}
    with pytest.raises(FgodError, match="it failed with exit code 2"):
        replay.run_again(failing, tmp_path)
