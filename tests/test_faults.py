"""Disks, weights, tables and other runs that are not as they should be: a clear message, and nothing is lost."""

import os
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgod import checkpoints
from fgod.errors import FgodError, StorageError
from fgod.nvfp4.folders import save_tensors
from fgod.system import files
from tests.kills import Victim
from tests.mini import BIN, Mini


def command_of(project: Mini, name: str) -> list[str]:
    """A command of the pipeline as its manifest recorded it, the last of its name, to be run again by hand."""
    return [entry["argv"] for entry in project.manifest() if entry["argv"][:2] == ["fgod", name]][-1]


def run_of(project: Mini) -> Path:
    """The folder of the artifacts of the only run, relative to the project."""
    return next((project.folder / "artifacts/A").iterdir()).relative_to(project.folder)


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if ".snakemake" not in p.parts]


@contextmanager
def mounted(folder: Path, *how: str):
    """Something mounted on a folder; skipped where that is not allowed."""
    done = subprocess.run(["mount", *how, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(folder: Path):
    """A folder that cannot be written to; permissions do not bind root, for whom it is mounted so."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield


# ------------------------------------------------------------------------------------------------- disks and folders


def test_a_full_disk_leaves_what_stood_there(tmp_path):
    (disk := tmp_path / "disk").mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        files.write_json(disk / "a.json", {"old": 1})
        with files.atomic_folder(disk / "weights") as folder:
            (folder / "old").write_text("old")
        (disk / "filler").write_bytes(bytes(200_000))
        with pytest.raises(StorageError, match=r"a\.json: it could not be written: No space left on device.*free some"):
            files.write_json(disk / "a.json", ["long" * 50_000])
        with (
            pytest.raises(StorageError, match=r"weights: it could not be written: No space left on device"),
            files.atomic_folder(disk / "weights") as folder,
        ):
            save_tensors({"w": torch.zeros(100_000)}, folder / "model.safetensors")
        assert files.read_json(disk / "a.json") == {"old": 1}
        assert sorted(p.name for p in disk.rglob("*")) == ["a.json", "filler", "old", "weights"]


def test_an_export_to_a_full_disk_names_it_and_goes_on_when_there_is_room(ran):
    place, argv = run_of(ran), command_of(ran, "export")
    folder, aside = ran.folder / place, ran.folder / "aside"
    shutil.copytree(folder, aside)
    before = files.file_digests(folder)
    size = sum(p.stat().st_size for p in files.folder_files(folder)) // 1024 + 200
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}k", "tmpfs"):
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        ended = ran.run(*argv)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
        assert f"{place}/nvfp4: it could not be written: No space left on device" in ended.stderr
        assert files.file_digests(folder) == before and not hidden(folder)
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        assert ran.run(*argv).returncode == 0
        assert files.file_digests(folder) == before


@pytest.mark.long
def test_snakemake_on_a_full_disk_says_so_and_goes_on_when_there_is_room(mini, based, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
        shutil.copytree(mini.folder, disk, symlinks=True, dirs_exist_ok=True)
        full = Mini(disk)
        full.write()
        before = files.file_digests(disk / "artifacts")
        used = shutil.disk_usage(disk).used // 1024

        def free(kib: int) -> None:
            subprocess.run(["mount", "-o", f"remount,size={used + kib}k", disk], check=True)

        free(100)
        said = full.snakemake(code=1)
        assert f"fgod: {disk}: this disk is full: " in said and "Call stack" not in said, said
        free(1400)  # for all but the weights
        said = full.snakemake(code=1)
        assert "/master: it could not be written: No space left on device" in said and "Call stack" not in said
        assert "Stopped before the end:" in said and "once the error above is mended, run snakemake again" in said
        assert before.items() <= files.file_digests(disk / "artifacts").items() and not hidden(disk / "artifacts")
        free(32_000)
        full.snakemake()
        weights = "artifacts/release/model.safetensors"
        assert files.sha256_file(disk / weights) == files.sha256_file(based / weights)


def test_a_training_whose_weights_do_not_fit_names_them(mini, based):
    """The limit on a file's size needs no rights: what is written says EFBIG instead of ENOSPC."""
    argv = command_of(Mini(based), "train")
    mini.config["checkpoint"] = {"steps": 4}
    shutil.copytree(based / "results/runs", mini.folder / "results/runs")
    outcome = next(mini.folder.glob("results/runs/A/*/outcome.json"))
    before = outcome.read_bytes()
    most = 600_000
    ended = mini.run(*argv, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert f"{run_of(Mini(based))}/master: it could not be written: File too large" in ended.stderr
    assert "ulimit -f" in ended.stderr and "the training of A came to no result" in ended.stderr
    assert outcome.read_bytes() == before and not hidden(mini.folder / "artifacts")


def test_a_read_only_folder_is_named(ran):
    place, argv = run_of(ran), command_of(ran, "export")
    before = files.file_digests(ran.folder / place)
    with read_only(ran.folder / place):
        ended = ran.run(*argv)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"{place}/nvfp4: it could not be written: " in ended.stderr
    assert "Read-only file system" in ended.stderr or "Permission denied" in ended.stderr
    assert files.file_digests(ran.folder / place) == before

    ran.write()
    with read_only(ran.folder):  # .snakemake is written to before the Snakefile is read, so the words are snakemake's
        environment = {**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"}
        for command in (["snakemake", "-n"], ["snakemake", "--cores", "1"]):
            ended = subprocess.run(command, cwd=ran.folder, env=environment, capture_output=True, text=True)
            said = ended.stdout + ended.stderr
            assert ended.returncode == 1 and ".snakemake/" in said, said
            assert "Read-only file system" in said or "Permission denied" in said


# -------------------------------------------------------------------------------------------------------- leftovers


def test_what_a_killed_writer_left_is_cleared_up_and_a_living_ones_is_not(tmp_path):
    for kind in ("file", "folder"):
        code = f"""
import os, signal
from pathlib import Path
from fgod.system import files
with files.atomic_{kind}(Path({str(tmp_path / kind)!r})) as temporary:
    print(temporary, flush=True)
    signal.pause()
"""
        writer = subprocess.Popen([os.sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        temporary = Path(writer.stdout.readline().strip())
        assert temporary.exists() and files.sweep(tmp_path) == []
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert files.sweep(tmp_path) == [f"removed {temporary}, left by a killed process"]
        assert not temporary.exists() and not (tmp_path / kind).exists()


def test_a_folder_that_was_moved_aside_for_one_that_never_came_is_put_back(tmp_path):
    release = tmp_path / "release"
    with files.atomic_folder(release) as folder:
        (folder / "a").write_text("good")
    release.replace(tmp_path / ".release.abcd1234.old")  # as a kill between the two renames leaves it
    (tmp_path / ".release.abcd1235.tmp").mkdir()
    assert files.sweep(tmp_path) == [
        f"put back {release}, which a killed process had moved aside",
        f"removed {tmp_path}/.release.abcd1235.tmp, left by a killed process",
    ]
    assert (release / "a").read_text() == "good" and [p.name for p in tmp_path.iterdir()] == ["release"]
    shutil.copytree(release, tmp_path / ".release.abcd1236.old")  # and after both
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("killed", ["snakemake", "shell"])
def test_a_command_does_not_outlive_what_started_it(tmp_path, killed):
    inner = tmp_path / "inner.py"
    inner.write_text("""
import os, signal
from fgod.system.stop import stop_signals_as_exceptions
with stop_signals_as_exceptions():
    print(os.getppid(), flush=True)
    signal.pause()
""")
    middle = f"FGOD_SNAKEMAKE=$$ bash -c '{os.sys.executable} {inner}; true' & wait; sleep 1"  # with a shell in between
    outer = subprocess.Popen(["bash", "-c", middle], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    shell = int(outer.stdout.readline())
    assert shell != outer.pid
    name, pid = ("snakemake", outer.pid) if killed == "snakemake" else ("what started this command", shell)
    os.kill(pid, signal.SIGKILL)
    said = outer.communicate(timeout=10)[1]  # ends when the inner one has closed its standard error
    assert f"{name} (process {pid}) is gone; this command ends too" in said
    assert "ended by SIGTERM" in said  # the shell's own words may stand between those of the traceback


def test_a_command_whose_snakemake_is_gone_begins_nothing():
    (stranger := subprocess.Popen(["true"])).wait()
    late = subprocess.run(
        [BIN / "fgod", "plan"], env={**os.environ, "FGOD_SNAKEMAKE": str(stranger.pid)}, capture_output=True, text=True
    )
    assert late.returncode == 1 and f"(process {stranger.pid}) is gone: nothing was begun" in late.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_callback_is_not_lost(number):
    """Python drops exceptions there; an import is full of such places."""
    code = f"""
import os, time, weakref
from fgod.system.stop import exit_on_fgod_error
from fgod.system.stop import stop_signals_as_exceptions
class Thing: pass
def gone(reference):
    os.kill(os.getpid(), {int(number)})
    time.sleep(0)
with exit_on_fgod_error(), stop_signals_as_exceptions():
    thing = Thing()
    kept = weakref.ref(thing, gone)
    del thing
    time.sleep(20)
"""
    command = ["env", "--default-signal=INT", os.sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=15)
    assert ended.returncode == 128 + number and "what stands is whole" in ended.stderr, ended


def test_a_signal_waits_for_a_lock_instead_of_hanging():
    """As in snakemake, whose handler of SIGTERM takes a lock that the main thread may hold."""
    code = """
import os, signal, threading, time
from fgod.system.stop import run_sigterm_handler_in_thread
lock, told = threading.Lock(), threading.Event()
def handler(*_):
    with lock:
        told.set()
signal.signal(signal.SIGTERM, handler)
run_sigterm_handler_in_thread()
with lock:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
print(told.wait(5))
"""
    ended = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert ended.stdout == "True\n", ended.stderr


# ---------------------------------------------------------------------------------------------- weights and records


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_weights_are_caught_before_they_are_used(ran, based, damage):
    place = run_of(ran)
    words = "is gone" if damage is Path.unlink else "has changed"
    release = files.file_digests(ran.folder / "artifacts/release")
    base = Path(next(ran.folder.glob("artifacts/base/*/master/model.safetensors")))
    cases = [
        (ran.folder / place / "master/model.safetensors", "export", f"{place}/trained.json"),
        (ran.folder / place / "nvfp4/model.safetensors", "probe", f"{place}/exported.json"),
        (base, "train", f"{base.parent.parent.relative_to(ran.folder)}/base.json"),
    ]
    for weights, command, stamp in cases:
        damage(weights)
        ended = ran.run(*command_of(ran, command))
        folder = weights.parent.relative_to(ran.folder)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert f"fgod: {folder}: model.safetensors {words} since these weights were written (sha256" in ended.stderr
        to_delete = stamp if folder.name == "nvfp4" else folder.parent
        assert stamp in ended.stderr and f"delete {to_delete} and run snakemake again" in ended.stderr
        shutil.copyfile(based / weights.relative_to(ran.folder), weights)
    assert files.file_digests(ran.folder / "artifacts/release") == release


def test_damaged_checkpoints_are_caught_before_they_are_used(tmp_path):
    from fgod.train import checkpoint
    from fgod.train.autograd import autograd_stepper
    from tests.test_optimizer import RECIPE
    from tests.tiny_model import tiny_folder

    optimizer = autograd_stepper(tiny_folder(tmp_path / "start"), RECIPE, 7, 0, lambda _: None).optimizer
    run = checkpoint.Identity("run", "AVX2 GenuineIntel")
    for optimizer.steps_done in (1, 2):
        checkpoint.save(tmp_path / "work", optimizer, run, {"resumed_at": []})
    newest = checkpoints.folders(tmp_path / "work")[-1]
    flip(newest / "model.safetensors")
    with pytest.raises(FgodError, match=r"00000002: model.safetensors has changed .* the checkpoint before it"):
        checkpoint.restore(tmp_path / "work", optimizer, run)
    (newest / "model.safetensors").unlink()
    with pytest.raises(FgodError, match=r"00000002: model.safetensors is gone since"):
        checkpoint.restore(tmp_path / "work", optimizer, run)
    files.remove_folder(newest)  # as the message says
    assert checkpoint.restore(tmp_path / "work", optimizer, run) == {"resumed_at": []} and optimizer.steps_done == 1
    assert load_file(checkpoints.folders(tmp_path / "work")[0] / "model.safetensors")


def test_a_torn_manifest_file_and_a_hand_edited_table_are_named_and_made_good(ran):
    record = sorted((ran.folder / "results/manifest.d").glob("*.end.json"))[0]
    truncate(record)
    said = ran.run("fgod", "summary")
    assert said.returncode == 0 and f"results/manifest.d/{record.name}: not JSON" in said.stderr
    states = [entry["state"] for entry in ran.manifest()]
    assert states.count("unreadable") == 1 and "Released" in said.stdout

    tables = {p.name: p.read_bytes() for p in (ran.folder / "results/tables").iterdir()}
    stages = ran.folder / "results/tables/stages.tsv"
    time.sleep(1.1)  # snakemake compares times of files
    stages.write_text(stages.read_text().replace("\taccepted\t", "\tdamaged\t"))
    said = ran.snakemake(code=1)
    assert "results/tables: stages.tsv has changed since the tables were made" in said
    assert "delete results/tables and run snakemake again" in said
    shutil.rmtree(stages.parent)
    ran.snakemake()
    assert {p.name: p.read_bytes() for p in stages.parent.iterdir()} == tables and ran.trained() == ["A"]

    replies = next(ran.folder.glob("results/runs/A/*/probes.tsv"))
    verdict = replies.with_name("verdict.json").read_bytes()
    replies.write_text(replies.read_text().replace("\ttrue\t", "\tfalse\t"))
    ended = ran.run(*command_of(ran, "gate"))
    assert ended.returncode == 1 and "probes.tsv has changed since it was written" in ended.stderr
    assert "metrics.json" in ended.stderr and replies.with_name("verdict.json").read_bytes() == verdict


# ------------------------------------------------------------------------------------------------------ two at once


def test_two_runs_at_once_in_one_folder(mini, based):
    victim = Victim(mini)
    first = victim.started()
    try:
        assert victim._seen(first, "trainer"), victim.said()
        trainers = [pid for pid, role in victim._here().items() if role == "trainer"]
        for trainer in trainers:  # so that it is still at work when the second run comes
            os.kill(trainer, signal.SIGSTOP)
        said = mini.snakemake(code=1)
        assert "Directory cannot be locked" in said and "--unlock" in said
        ended = mini.run("fgod", "recover")
        assert ended.returncode == 1 and f"process {first.pid} (snakemake)" in ended.stderr, ended.stderr
        ended = mini.run(*command_of(Mini(based), "train"))
        assert ended.returncode == 1 and "another run is using" in ended.stderr
        assert [pid for pid, role in victim._here().items() if role == "trainer"] == trainers
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    victim.check_alone()
    victim.check_whole()
    victim.recover("recover")
    assert mini.run("fgod", "recover").stdout == "Ready: run snakemake again. What is finished is not made again.\n"


@pytest.mark.long
def test_a_damaged_release_is_noticed_and_made_anew_and_history_when_all_fits_are_spent(ran):
    release = ran.folder / "artifacts/release"
    whole = files.file_digests(release)
    kept = (release / "tokenizer.json").read_bytes()
    for damage, name in ((Path.unlink, "tokenizer.json"), (flip, "model.safetensors")):
        damage(release / name)
        assert (
            "FAULT: not as recorded in artifacts/release/release.json"
            in ran.run("fgod", "inspect", "artifacts/release").stdout
        )
        assert ran.would_run() == {"all": 1, "promote": 1}
        if damage is Path.unlink:  # put back, so that the next one is noticed by itself
            (release / name).write_bytes(kept)
            assert files.file_digests(release) == whole
    (release / "tokenizer.json").unlink()
    ran.snakemake()
    assert files.file_digests(release) == whole and ran.trained() == ["A"]
    ran.snakemake()  # promotes once more
    assert files.file_digests(release) == whole and ran.would_run() == {}

    place = run_of(ran)
    flip(ran.folder / place / "nvfp4/model.safetensors")
    (ran.folder / "results/promoted.json").unlink()
    said = ran.snakemake(code=1)
    assert f"delete {place}/exported.json and run snakemake again" in said
    assert files.file_digests(release) == whole and ran.release()["promoted"]
    (ran.folder / place / "exported.json").unlink()
    ran.snakemake()
    assert files.file_digests(release) == whole and ran.would_run() == {}

    ran.config["gate"]["identity"] = 1.0
    ran.config["gate"]["disambiguation"] = 1.0
    ran.config["refits"] = {"max": 0, "rules": [{"when": ["missed"], "set": {"train.lr": "*2"}}]}
    said = ran.snakemake(code=1)
    assert "The release before it is whole in artifacts/releases/1; artifacts/release is gone" in said
    assert files.file_digests(ran.folder / "artifacts/releases/1") == whole
    assert not release.is_symlink() and not (ran.folder / "results/release.json").exists()
