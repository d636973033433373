"""Weights that are not lost: what is refused and why, the trash and kills in the middle of it, pins, the inventory."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod import NUMERICS_VERSION, layout, manifest, records
from fgod.call import Call
from fgod.cli import main, parse
from fgod.cli.keep import in_words
from fgod.cli.work.train import train
from fgod.decisions import ACCEPTED
from fgod.documents import Outcome, PromotedRun, Recipe, Release, Stamp, Trashed, Verdict
from fgod.errors import FgodError, StorageError, UsageError
from fgod.keep import inventory, trash
from fgod.keep.holds import held_runs, read_pins
from fgod.keep.protect import NEWEST, WALK, Held, pruned, refusals
from fgod.keep.remarks import remarks_of
from fgod.keep.words import STATUSES
from fgod.layout import RunRecords, run_records, run_weights
from fgod.recipes import PLACEBO
from fgod.runs import resolve
from fgod.stamps import check_weights, digests_of
from fgod.system.files import file_digests, folder_files, sha256_file, write_json, write_text
from fgod.system.table import read_texts

BASE = "base00000000"
A, B, C, D = "aaaa11111111", "bbbb11111111", "bbbb22222222", "cccc11111111"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A, from which B failed and C was accepted, and D from C. C is newer than B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # no power is lost here, and it takes most of the time
    Path("Snakefile").touch()
    for number, (stage, lineage, start, decision) in enumerate(
        [("A", A, BASE, "accepted"), ("B", B, A, "collapsed"), ("B", C, A, "accepted"), ("C", D, C, "accepted")]
    ):
        leave_run(stage, lineage, start, decision)
        os.utime(run_records(stage, lineage).outcome, ns=(number, number))
    return tmp_path


def recipe_of(stage: str, start: str, **more: Any) -> Recipe:
    train = {"steps": 60, "lr": 1e-3}
    return Recipe(numerics=NUMERICS_VERSION, stage=stage, starts_from=start, seed=7, mix={}, train=train, **more)


def leave_run(stage: str, lineage: str, start: str, decision: str | None, **recipe: Any) -> RunRecords:
    """The records of a run, and weights that only look like some."""
    run, weights = run_records(stage, lineage), run_weights(stage, lineage)
    recipe_of(stage, start, **recipe).write(run.recipe)
    for place, stamp, status in (
        (weights.master, weights.trained, "trained"),
        (weights.exported, weights.stamp, "exported"),
        (weights.of("gguf"), weights.stamp_of("gguf"), "exported"),
    ):
        write_text(place / "model.safetensors", f"{place.name} of {lineage}")
        write_text(place / "config.json", "{}")
        Stamp(status=status, **digests_of(place)).write(stamp)
    Outcome(status="trained", **digests_of(weights.master), torch_version="2.0", cpu="AVX2", device="cpu").write(
        run.outcome
    )
    if decision:
        judged = file_digests(run.folder, [run.outcome])
        Verdict(decision=decision, reasons=["leak 63 %"], worst=None, limits=[], judged=judged).write(run.verdict)
    return run


def release(*runs: tuple[str, str]) -> None:
    promoted = [PromotedRun(stage=stage, lineage=lineage, metrics={}, weights_sha256="") for stage, lineage in runs]
    folder = Path("artifacts/releases/1")
    write_text(folder / "model.safetensors", "released")
    listing = file_digests(folder)
    Release(
        fits=2, promoted=promoted, path="artifacts/release", base_id=BASE, config_digest="x", persona="p",
        export_sha256="", files=listing,
    ).write(folder / "release.json")  # fmt: skip


def tree(*folders: str) -> dict[str, str]:
    """Every file below folders, with its digest."""
    return {str(path): sha256_file(path) for folder in folders for path in folder_files(Path(folder))}


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What a command says; it ends with this code."""
    try:
        ended = main([*argv])
    except SystemExit as error:
        ended = int(error.code or 0)
    out = capsys.readouterr()
    assert ended == code, out
    return out.out + out.err


# Names of runs


def test_a_stage_is_its_newest_run_and_the_beginning_of_a_lineage_suffices(project: Path) -> None:
    assert resolve("B").folder.name == C
    assert resolve(f"B@{B}").folder.name == resolve("B@bbbb1").folder.name == B
    os.utime(run_records("B", B).outcome)
    assert resolve("B").folder.name == B
    leave_run("B", f"{B}-0.5", A, None, interpolate=0.5, of=B)
    assert resolve(f"B@{B}").folder.name == B, "the whole of it, though another begins with it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("b", "of stage 'b'"),
        ("AA", "(did you mean A?); found those of A, B, C"),
        ("B@bbbb", f"2 have this name; expected one of B@{B}, B@{C}"),
        ("B@c", f"has this name; expected one of B@{B}, B@{C}"),
    ],
)
def test_a_wrong_name_says_what_there_is(project: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(name)
    assert words in str(error.value)


def test_without_runs_a_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is none at all"):
        resolve("A", tmp_path)


# Which weights must stay


def held(*runs: Held) -> dict[str, Held]:
    return {run.name: run for run in runs}


def test_pinned_released_and_starts_of_kept_runs_are_refused_by_name() -> None:
    runs = held(
        Held("A@a", ("base",)),
        Held("B@b", ("a",), pins=("best", "talk")),
        Held("C@c", ("b",), releases=("artifacts/releases/1",)),
        Held("D@d", ("c",), weights=False, saved=40),
        Held("E@e", ("base",)),
    )
    assert refusals(runs, ["E@e"]) == {}
    assert refusals(runs, ["A@a"]) == {"A@a": ("it is the start of B@b, whose weights are kept",)}
    assert refusals(runs, ["B@b"])["B@b"] == (
        "it is pinned as best",
        "it is pinned as talk",
        "it is the start of C@c, whose weights are kept",
    )
    assert refusals(runs, ["C@c"])["C@c"] == (
        "it is released: artifacts/releases/1",
        "it is the start of D@d, whose training goes on from step 40",
    )


def test_a_start_may_leave_with_all_that_starts_from_it_and_stays_with_one_that_stays() -> None:
    runs = held(Held("A@a"), Held("B@b", ("a",)), Held("B@x", ("a",)), Held("B@x-0.5", ("a", "x")))
    assert refusals(runs, [*runs]) == {}
    found = refusals(runs, ["A@a", "B@b", "B@x"])
    assert found.keys() == {"A@a", "B@x"} and found["B@x"] == ("it is the start of B@x-0.5, whose weights are kept",)
    assert len(found["A@a"]) == 2, "the interpolated run starts from it, and so does the one that is refused"
    gone = {**runs, "B@b": Held("B@b", ("a",), weights=False)}
    assert refusals(gone, ["A@a", "B@x", "B@x-0.5"]) == {}


def test_pruning_keeps_what_is_named_ruled_unjudged_or_the_start_of_such() -> None:
    runs = held(
        Held("A@a", ("base",), decision="accepted"),
        Held("B@old", ("a",), decision="collapsed"),
        Held("B@bad", ("a",), decision="missed"),
        Held("B@good", ("a",), decision="accepted"),
        Held("C@pending", ("good",)),
        Held("C@none", ("good",), weights=False, decision="killed"),
    )
    newest = ("A@a", "B@bad", "C@none")

    def leaving(*rules: str, named: tuple[str, ...] = (), walk: tuple[str, ...] = ()) -> set[str]:
        found = pruned(runs, rules, named, walk, newest)
        assert {*found.leaving, *found.kept} == {name for name, run in runs.items() if run.weights}
        return set(found.leaving)

    assert leaving(ACCEPTED) == {"B@old", "B@bad"}
    assert leaving(NEWEST) == {"B@old"}, "good is the start of what has no verdict"
    assert leaving(WALK, walk=("bad",)) == {"B@old"}
    assert leaving(named=("B@old",)) == {"B@bad"}
    why = pruned(runs, [ACCEPTED], [], []).kept
    assert why["C@pending"] == ("it has no verdict",) and why["A@a"] == ("its gate accepted it",)
    pinned = {**runs, "B@old": Held("B@old", ("a",), decision="collapsed", pins=("talk",))}
    assert pruned(pinned, [ACCEPTED], [], []).kept["B@old"] == ("it is pinned as talk",)


def test_what_holds_a_run_is_read_from_its_records(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release(("A", A), ("B", C))
    write_text(layout.work(D).folder / "checkpoint-00000012" / "state", "")
    said(capsys, "pin", "best", "B@bbbb1")
    leave_run("B", f"{B}-0.5", A, None, interpolate=0.5, of=B)
    runs = held_runs()
    assert runs[f"B@{B}"].pins == ("best",) and runs[f"B@{B}"].decision == "collapsed"
    assert runs[f"B@{C}"].releases == ("artifacts/releases/1",) and runs[f"C@{D}"].releases == ()
    assert runs[f"C@{D}"].saved == 12 and runs[f"B@{B}-0.5"].made_of == (A, B)
    with run_records("A", A).outcome.open("a") as stream:
        stream.write(" ")
    assert held_runs()[f"A@{A}"].decision is None, "a verdict on other records does not count"


# The commands


def test_trash_refuses_by_name_and_moves_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release(("A", A), ("B", C), ("C", D))
    said(capsys, "pin", "talk", "B@bbbb1")
    before = tree("artifacts")
    told = said(capsys, "trash", "C", "B@bbbb1", "A", code=100)
    assert f"C@{D}: it is released: artifacts/releases/1" in told and f"B@{B}: it is pinned as talk" in told
    assert f"A@{A}: it is released: artifacts/releases/1; it is the start of B@{B}" in told
    assert tree("artifacts") == before and not Path("artifacts/.trash").exists()
    (entry,) = [e for e in manifest.join(Path(".")) if e["argv"][1] == "trash"]
    assert entry["exit_code"] == 100 and "it is pinned as talk" in entry["error"]
    assert "expected a RUN, or --empty" in said(capsys, "trash", code=2)


def test_to_the_trash_and_back_leaves_all_as_it_was(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, run = run_weights("B", B), run_records("B", B)
    before, verdict = tree("artifacts"), run.verdict.read_bytes()
    assert "would move" in said(capsys, "trash", "B@bbbb1", "-n") and tree("artifacts") == before
    assert not [e for e in manifest.join(Path(".")) if e["argv"][1] == "trash"], "what is only shown is not recorded"
    said(capsys, "trash", "B@bbbb1")
    assert not weights.master.exists() and weights.trained.exists() and run.verdict.read_bytes() == verdict
    assert {path.name for path in weights.trash.iterdir() if path.is_dir()} == {"master", "nvfp4", "gguf"}
    record = Trashed.read(run.trashed)
    assert record.folders[f"B/{B}/master"].sha256 == Stamp.read(weights.trained).weights_sha256
    with pytest.raises(FgodError, match=rf"in the trash: bring them back with `fgod restore B@{B}`"):
        check_weights(weights.master, weights.trained)
    assert f"B@{B}  gguf, master, nvfp4" in said(capsys, "restore")
    assert "lie in the trash already" in said(capsys, "trash", "B@bbbb1", code=2)
    assert f"gguf, master, nvfp4 lie in the trash: `fgod restore B@{B}` first" in said(
        capsys, "pin", "x", "B@bbbb1", code=2
    )
    assert "is of stage 'A'" in said(capsys, "restore", "A", code=2)
    said(capsys, "restore", "B")
    assert tree("artifacts") == before and not run.trashed.exists() and not weights.trash.exists()
    check_weights(weights.master, weights.trained)
    moved = [e["moved"] for e in manifest.join(Path(".")) if e["argv"][1] in ("trash", "restore") and "moved" in e]
    assert [len(moves) for moves in moved] == [3, 3] and moved[0][0]["run"] == f"B@{B}"
    assert {move["from"] for move in moved[0]} == {move["to"] for move in moved[1]}


def test_what_was_thrown_away_is_known_until_all_of_it_is_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [*records.thrown_away()] == []
    said(capsys, "trash", "B@bbbb1")
    assert [*records.thrown_away()] == [("B", B)]
    weights = run_weights("B", B)
    (weights.trash / "nvfp4").rename(weights.exported)
    assert [*records.thrown_away()] == [("B", B)]
    said(capsys, "restore", "B")
    assert [*records.thrown_away()] == []


def test_weights_that_were_made_again_count_as_thrown_away_no_more(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "trash", "B@bbbb1")
    weights, run, made = run_weights("B", B), run_records("B", B), layout.work(B).records
    write_text(weights.master / "model.safetensors", "trained again")
    for table in made.training_tables:
        write_text(table, "")
    Outcome(status="trained", **digests_of(weights.master)).write(made.outcome)
    write_text(Path("audit.json"), "{}")
    words = (
        f"--outcome {run.outcome} --stamp {weights.trained} --recipe r --weights w --start s --rows m/r --limit-gb 1"
    )
    train(parse(["train", "--audit", "audit.json", *words.split()]), Call())  # it ended, and only that was not noted
    assert not run.trashed.exists() and [*records.thrown_away()] == []
    assert trash.in_trash() == {f"B@{B}": [weights.trash / name for name in ("gguf", "master", "nvfp4")]}


def test_stamps_that_were_deleted_come_back_with_the_weights(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree("artifacts")
    said(capsys, "trash", "B@bbbb1")
    shutil.rmtree(run_weights("B", B).folder)
    shutil.rmtree("results")
    said(capsys, "restore", "B")
    assert tree("artifacts") == before


def test_nothing_is_written_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run_weights("B", B)
    said(capsys, "trash", "B@bbbb1")
    write_text(weights.master / "model.safetensors", "trained again")
    before = tree("artifacts")
    assert "These weights were made again since" in said(capsys, "restore", "B", code=2)
    assert "It is of an earlier training: empty the trash" in said(capsys, "trash", "B@bbbb1", code=2)
    assert tree("artifacts") == before


def test_a_link_or_another_file_system_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run_weights("B", B)
    weights.master.rename("elsewhere")
    weights.master.symlink_to(Path("elsewhere").resolve())
    assert "found a link" in said(capsys, "trash", "B@bbbb1", code=2) and weights.exported.is_dir()
    weights.master.unlink()
    Path("elsewhere").rename(weights.master)
    before = tree("artifacts")

    stat = Path.stat

    def on_another(self: Path, **kwargs: Any) -> Any:
        found = stat(self, **kwargs)
        if self != weights.exported:
            return found
        return type("Stat", (), {"st_dev": found.st_dev + 1, "st_mode": found.st_mode, "st_size": found.st_size})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "stat", on_another)
        assert "it lies on another file system than artifacts" in said(capsys, "trash", "B@bbbb1", code=2)
    assert tree("artifacts") == before


def test_only_empty_deletes_and_says_how_much(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "trash", "B@bbbb1")
    weights = run_weights("B", B)
    size = trash.size_of(weights.trash / "master") + trash.size_of(weights.trash / "nvfp4")
    size += trash.size_of(weights.trash / "gguf")
    write_text(weights.trash / "mine.txt", "put here by hand")
    assert "mine.txt, which fgod did not put there; nothing was deleted" in said(capsys, "trash", "--empty", code=1)
    (weights.trash / "mine.txt").unlink()
    assert f"{in_words(size)} would come free" in said(capsys, "trash", "--empty", "B", "-n")
    assert weights.trash.is_dir()
    assert f"{in_words(size)} came free" in said(capsys, "trash", "--empty", "B")
    assert not weights.trash.exists() and run_records("B", B).verdict.exists() and weights.trained.exists()
    with pytest.raises(FgodError, match="these weights are gone"):
        check_weights(weights.master, weights.trained)
    assert {row["status"] for row in inventory_rows() if row["of"] == f"B@{B}"} == {"emptied"}
    assert "there is none at all" in said(capsys, "restore", "B", code=2)
    (entry,) = [e for e in manifest.join(Path(".")) if e["argv"][1:] == ["trash", "--empty", "B"]]
    assert entry["deleted"] == [{"run": f"B@{B}", "bytes": size}]


def test_what_is_held_since_it_was_thrown_away_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "trash", "A", "B@bbbb1", "B@bbbb2", "C")
    said(capsys, "restore", "C")
    before = tree("artifacts")
    for argv in (["--empty"], ["--empty", "-n"], ["--empty", "A"]):
        told = said(capsys, "trash", *argv, code=100)
        assert f"nothing was deleted:\n  A@{A}: it is the start of B@{C}, whose weights are kept" in told
        assert (f"B@{C}: it is the start of C@{D}, whose weights are kept" in told) == ("A" not in argv)
    assert tree("artifacts") == before
    release(("B", B))
    assert f"B@{B}: it is released: artifacts/releases/1" in said(capsys, "trash", "--empty", "B@bbbb1", code=100)
    shutil.rmtree("artifacts/releases")
    said(capsys, "trash", "--empty", "B@bbbb1")
    said(capsys, "trash", "C")
    said(capsys, "trash", "--empty")
    assert not trash.in_trash()


def test_a_run_of_which_a_part_lies_in_the_trash_is_not_pinned_and_keeps_its_start(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "trash", "A", "B@bbbb1", "B@bbbb2", "C")
    weights = run_weights("B", B)
    (weights.trash / "master").rename(weights.master)
    assert "gguf, nvfp4 lie in the trash" in said(capsys, "pin", "x", "B@bbbb1", code=2) and read_pins() == {}
    assert f"A@{A}: it is the start of B@{B}, whose" in said(capsys, "trash", "--empty", code=100)
    for folder in ("nvfp4", "gguf"):
        shutil.copytree(weights.trash / folder, weights.folder / folder)
    said(capsys, "pin", "x", "B@bbbb1")
    said(capsys, "trash", "--empty", "B@bbbb1")
    assert not weights.trash.exists() and weights.master.is_dir(), "an earlier copy of what stands may go"


def test_all_is_checked_before_anything_is_deleted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "trash", "B@bbbb1", "B@bbbb2", "C")
    write_text(run_weights("C", D).trash / "mine.txt", "put here by hand")
    before = tree("artifacts")
    assert "mine.txt, which fgod did not put there; nothing was deleted" in said(capsys, "trash", "--empty", code=1)
    assert tree("artifacts") == before and "deleted" not in manifest.join(Path("."))[-1]
    (run_weights("C", D).trash / "mine.txt").unlink()
    real = trash.remove_folder

    def remove(path: Path) -> None:
        if path == run_weights("C", D).trash:
            raise StorageError(f"{path}: made to fail")
        real(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trash, "remove_folder", remove)
        assert "made to fail" in said(capsys, "trash", "--empty", code=1)
    assert [one["run"] for one in manifest.join(Path("."))[-1]["deleted"]] == [f"B@{B}", f"B@{C}"]


def test_where_a_rename_fails_what_has_moved_is_on_record(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, weights = Path.rename, run_weights("B", B)

    def rename(self: Path, target: Path) -> Path:
        if self == weights.master:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return real(self, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        told = said(capsys, "trash", "B@bbbb1", code=2)
    assert f"{weights.master}: it lies on another file system than {weights.trash}, or in another mount" in told
    entry = manifest.join(Path("."))[-1]
    assert {move["from"] for move in entry["moved"]} == {str(weights.exported), str(weights.of("gguf"))}
    assert f"moved {weights.exported} to " in told and f"moved {weights.master} to " not in told
    assert {row["status"] for row in inventory_rows() if row["format"] == "nvfp4" and row["of"] == f"B@{B}"} == {
        "trashed"
    }
    each_folder_is_whole_in_one_place()


def test_what_a_late_kill_of_restore_leaves_is_named_and_cleared(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "trash", "B@bbbb1")
    weights, run = run_weights("B", B), run_records("B", B)
    for folder in ("nvfp4", "gguf", "master"):
        (weights.trash / folder).rename(weights.folder / folder)
    assert f"B@{B}  no weights: only the records of a move" in said(capsys, "restore")
    assert "would clear" in said(capsys, "restore", "B", "-n") and run.trashed.exists()
    assert "0.0 MB (0 bytes) came free" in said(capsys, "trash", "--empty")
    assert f"cleared what a move of the weights of B@{B} left" in said(capsys, "restore", "B")
    assert not run.trashed.exists() and not weights.trash.exists() and said(capsys, "restore") == ""


def test_a_job_of_a_run_in_the_trash_is_barred_where_all_its_outputs_stand(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = run_records("{stage}", "{lineage}")
    outputs = [pattern.engine("{engine}", "{format}"), pattern.engine_probes("{engine}", "{format}")]
    each = [{"engine": "plain", "format": "bf16"}, {"engine": "plain", "format": "bf16-x"}]
    run = run_records("B", B)
    for path in (run.engine("plain", "bf16"), run.engine_probes("plain", "bf16"), run.engine("plain", "bf16-x")):
        write_text(path, "{}")

    def made(path: Path) -> bool:
        lineage = records.none_of(records.thrown_away(), outputs, each) + "(?:[0-9a-f]{12})"
        return bool(re.match(rf"results/runs/B/(?P<lineage>{lineage})/engine-.*$", str(path)))

    files = [file for values in each for file in (run.engine(**values), run.engine_probes(**values))]
    assert all(map(made, files))
    said(capsys, "trash", "B@bbbb1")
    assert [made(file) for file in files] == [False, False, True, True], "one of the second job's is not there"
    assert made(run_records("B", C).engine("plain", "bf16"))


def test_pruning_keeps_the_run_whose_training_ended_last_and_no_placebo_for_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run("B", "bbbb33333333", A, "missed")
    leave_run("B", "bbbb44444444", A, "missed")
    os.utime(run_records("B", "bbbb33333333").outcome, (2e9, 2e9))
    placebo = leave_run("B", "bbbb55555555", A, "missed")
    recipe = Recipe.read(placebo.recipe)
    recipe.model_copy(update={"mix": {PLACEBO: {}}}).write(placebo.recipe)
    os.utime(placebo.outcome, (3e9, 3e9))
    told = said(capsys, "prune", "--keep", "newest", "-n")
    assert "keep B@bbbb33333333: it is the newest of its stage" in told and told.count("keep B@") == 2
    assert f"keep B@{C}: it is the start of C@{D}" in told


def test_what_pruning_shows_is_what_comes_free(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_run("B", "bbbb33333333", A, "missed")
    before = sum(path.stat().st_size for path in folder_files(Path("artifacts")))
    shown = said(capsys, "prune", "--keep", "accepted", "-n")
    assert sum(path.stat().st_size for path in folder_files(Path("artifacts"))) == before
    moved = said(capsys, "prune", "--keep", "accepted")
    assert shown.replace("would move", "moved") == moved and f"keep A@{A}: its gate accepted it" in moved
    freed = said(capsys, "trash", "--empty").splitlines()[-1].removesuffix(" came free")
    assert f"\n{freed} come free by" in shown
    stamps = sum(path.stat().st_size for path in folder_files(Path("artifacts")))
    assert in_words(before - stamps) == freed
    assert run_weights("C", D).master.is_dir() and not run_weights("B", B).master.exists()
    assert "no run in results/runs is of stage 'acepted'" in said(capsys, "prune", "--keep", "acepted", code=2)


def test_a_pin_is_listed_kept_and_taken_away(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "pin", "best", "B@bbbb1")
    said(capsys, "pin", "best", "B@bbbb1")
    assert said(capsys, "pin") == f"best  B@{B}\n"
    assert f"this pin holds B@{B}, expected a new name" in said(capsys, "pin", "best", "A", code=2)
    assert "expected letters" in said(capsys, "pin", "a b", "A", code=2)
    assert "not both" in said(capsys, "pin", "best", code=2) and "not both" in said(
        capsys, "pin", "best", "A", "--remove", code=2
    )
    assert "no such pin; found best" in said(capsys, "pin", "bset", "--remove", code=2)
    said(capsys, "pin", "best", "--remove")
    assert read_pins() == {}
    said(capsys, "trash", "B@bbbb1")
    pins = Path("results/pins.json")
    pins.write_text(pins.read_text().replace("{}", '{"best": "A@x"}'))
    assert "it has changed since it was written" in said(capsys, "pin", code=1)


def test_nothing_moves_while_a_snakemake_works_here(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, time; from pathlib import Path; from fgod.system.lock import held; from fgod import layout\n"
    code += "with held(layout.RUNNING): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = tree("artifacts")
        assert "another run is using this folder" in said(capsys, "trash", "B@bbbb1", code=1)
        assert tree("artifacts") == before
    finally:
        other.kill()
        other.communicate()


# Kills


class Killed(BaseException):
    """Stands for a kill: nothing that follows it is done, no clean-up either."""


CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir")


@pytest.fixture
def killing() -> Callable[[int], Callable[[], bool]]:
    """Make the change of the file system with this number, and all after it, the moment of a kill."""

    def kill_at(number: int) -> Callable[[], bool]:
        count, patched = 0, pytest.MonkeyPatch()

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def change(self: Path, *args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > number:
                    raise Killed
                return real(self, *args, **kwargs)

            return change

        for name in CHANGES:
            patched.setattr(Path, name, counted(getattr(Path, name)))

        def revive() -> bool:
            """Whether it was killed."""
            patched.undo()
            return count > number

        return revive

    return kill_at


def moments(
    killing: Callable[[int], Callable[[], bool]], prepare: Callable[[], None], act: Callable[[], None]
) -> Iterator[int]:
    """Do something anew, killed before its first change, its second, …, until it comes to its end."""
    whole, number = Path.cwd(), 0
    for other in "AC":
        shutil.rmtree(f"artifacts/{other}")
    while True:
        copy = whole.parent / f"{whole.name}-{number}"
        shutil.copytree(whole, copy)
        os.chdir(copy)
        prepare()
        revive = killing(number)
        with suppress(Killed):
            act()
        killed = revive()
        yield number
        os.chdir(whole)
        shutil.rmtree(copy)
        if not killed:
            return
        number += 1


def each_folder_is_whole_in_one_place() -> None:
    weights = run_weights("B", B)
    for folder, stamp_file in weights.stamps().items() | {(weights.master, weights.trained)}:
        places = [place for place in (folder, weights.trash / folder.name) if place.is_dir()]
        assert len(places) == 1 and file_digests(places[0]) == Stamp.read(stamp_file).weights_files


def throw() -> None:
    run = resolve("B@bbbb1")
    trash.throw_away(run, trash.moves_to_trash(run))


def bring() -> None:
    for name in trash.trashed_runs(["B"], trash.to_restore()):
        trash.bring_back(name, trash.moves_back(name))


def test_a_kill_in_the_middle_of_throwing_away_loses_nothing(
    project: Path, killing: Callable[[int], Callable[[], bool]]
) -> None:
    before = tree("artifacts/B")
    killed = -1
    for killed in moments(killing, lambda: None, throw):
        each_folder_is_whole_in_one_place()
        if killed % 2 and run_weights("B", B).master.is_dir():
            throw()  # finishes it
            assert not run_weights("B", B).master.exists()
        if trash.to_restore():
            bring()
        each_folder_is_whole_in_one_place()
        assert tree("artifacts/B") == before and not run_records("B", B).trashed.exists()
    assert killed > 8


def test_a_kill_in_the_middle_of_bringing_back_loses_nothing(
    project: Path, killing: Callable[[int], Callable[[], bool]]
) -> None:
    before = tree("artifacts/B")
    killed = []
    for number in moments(killing, throw, bring):
        killed.append(number)
        each_folder_is_whole_in_one_place()
        if trash.to_restore():
            bring()
        each_folder_is_whole_in_one_place()
        assert tree("artifacts/B") == before
        assert not run_weights("B", B).trash.exists() and not run_records("B", B).trashed.exists()
    assert len(killed) > 5


# The inventory


def inventory_rows() -> list[dict[str, str]]:
    return read_texts(Path("results/inventory.tsv"), inventory.COLUMNS)


def test_every_file_of_weights_is_listed_with_its_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release(("A", A), ("B", C))
    leave_run("D", "dddd11111111", D, None)
    leave_run("D", "dddd22222222", D, "accepted")
    visit = {"fit": 0, "stage": "C", "lineage": D, "candidate": True}
    write_json(Path("results/walk.json"), {"walk": {"visits": [visit]}})
    said(capsys, "pin", "talk", "B@bbbb1")
    leave_run("D", "dddd33333333", D, "missed")
    said(capsys, "trash", "D@dddd3")
    leave_run("D", "dddd44444444", D, "missed")
    shutil.rmtree("artifacts/D/dddd44444444/gguf")
    said(capsys, "inventory")
    rows = inventory_rows()
    found = {row["of"]: row["status"] for row in rows if row["format"] == "master"}
    assert found == {
        f"A@{A}": "released", f"B@{B}": "pinned", f"B@{C}": "released", f"C@{D}": "candidate",
        "D@dddd11111111": "pending", "D@dddd22222222": "accepted", "D@dddd33333333": "trashed",
        "D@dddd44444444": "failed",
    }  # fmt: skip
    assert {row["status"] for row in rows if "4444/gguf" in row["path"]} == {"missing"}
    assert {row["status"] for row in rows if row["of"] == "Release 1"} == {"released"}
    assert {row["status"] for row in rows} <= set(STATUSES.values())
    for row in rows:
        path = Path(row["path"])
        assert not row["bytes"] or (path.stat().st_size == int(row["bytes"]) and path.is_file())
        assert not row["bytes"] or file_digests(path.parent, [path])[path.name] == row["sha256"]
    of_b = next(row for row in rows if row["of"] == f"B@{B}")
    assert of_b["pins"] == "talk" and f"started from A@{A}; 60 steps" in of_b["origin"]
    assert "collapsed (leak 63 %)" in of_b["origin"] and of_b["purpose"]
    text = Path("results/inventory.md").read_text()
    assert f"## B@{B}\n" in text and "| trashed | 3 |" in text and ".trash/D/dddd33333333/master" in text


def test_remarks_survive_also_where_what_they_are_on_is_gone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "inventory")
    file = Path("results/inventory.md")
    mark = f"<!-- remark B@{B} -->\n"
    file.write_text(file.read_text().replace(mark, f"{mark}太多了。\n\n| kept | for May |\n"))
    said(capsys, "trash", "B@bbbb1")
    assert f"{mark}太多了。\n\n| kept | for May |\n<!-- end of remark -->" in file.read_text()
    assert next(row for row in inventory_rows() if row["of"] == f"B@{B}")["remark"] == "太多了。\n\n| kept | for May |"
    shutil.rmtree("results/runs/B")
    said(capsys, "inventory")
    again = file.read_text()
    assert "Remarks on what is not listed any more" in again and f"{mark}太多了。" in again
    said(capsys, "inventory")
    assert file.read_text() == again


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["<!-- remark A -->", "x"], "f:1: found the mark of a remark that does not end"),
        (["x", "<!-- end of remark -->"], "f:2: found <!-- end of remark -->, expected"),
        (["<!-- remark A -->", "<!-- remark B -->"], "f:2: found the mark of a remark inside that of line 1"),
        (["<!-- remark A -->", "<!-- end of remark -->"] * 2, "f:3: found a second remark on A"),
    ],
)
def test_faulty_marks_are_named_with_their_line(lines: list[str], words: str) -> None:
    with pytest.raises(FgodError) as error:
        remarks_of("\n".join(lines), "f")
    assert str(error.value).startswith(words)


REMARKS = st.dictionaries(
    st.text("ABab@0123 -", min_size=1).filter(lambda key: key == key.strip()),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n")).filter(str.strip),
)


@given(REMARKS)
def test_remarks_are_read_as_they_were_written(remarks: dict[str, str]) -> None:
    groups = [inventory.Group(key, key, "made", ()) for key in [*remarks, "one without a remark"]]
    assert remarks_of(inventory.text(groups, remarks), "f") == remarks
    assert remarks_of(inventory.text([], remarks), "f") == remarks


def test_faulty_marks_stop_a_command_before_it_moves_anything(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(Path("results/inventory.md"), "<!-- remark A -->\nmine\n")
    before = tree("artifacts")
    assert "results/inventory.md:1: found the mark" in said(capsys, "trash", "B@bbbb1", code=1)
    assert tree("artifacts") == before and Path("results/inventory.md").read_text().endswith("mine\n")
