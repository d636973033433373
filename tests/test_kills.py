"""A miniature run that is killed again and again, and moved meanwhile, makes what an undisturbed one makes."""

import os
import shutil
import signal
import time

import pytest

from tests.kills import Faults, Kill, Victim, check_file, role
from tests.mini import Mini


@pytest.mark.long
def test_kills_lose_nothing_and_change_nothing(mini, based):
    """The short form of `make test-kill`."""
    mini.config["checkpoint"] = {"steps": 1}
    victim = Victim(mini)
    snakemake = victim.started()
    deadline = time.monotonic() + 120
    while not list(victim.folder.glob("artifacts/work/*/checkpoint-*")):
        assert snakemake.poll() is None and time.monotonic() < deadline, victim.said()
        time.sleep(0.01)
    os.killpg(snakemake.pid, signal.SIGINT)  # Ctrl-C
    assert snakemake.wait(timeout=60) == 1
    said = victim.said()
    lineage = next((victim.folder / "artifacts/work").iterdir()).name
    assert f"Stopped before the end:\n  saved     fit 0 A {lineage}: step " in said
    assert "What is finished is not made again: after a stop, " in said
    assert "The guard received SIGINT" in said and "is saved: run it again to go on from there" in said
    victim.check_alone()
    victim.check_whole()

    moved = mini.folder.parent / "a moved 專案"
    shutil.move(mini.folder, moved)
    config, mini = mini.config, Mini(moved)
    mini.config = config
    victim = Victim(mini)
    landed = victim.killed(Kill("snakemake", signal.SIGKILL, "trainer", 1.0))
    assert landed.hit == "snakemake" and landed.code == -signal.SIGKILL and landed.locked
    victim.recover("unlock")

    landed = victim.killed(Kill("trainer", signal.SIGKILL, "trainer", 2.0, (signal.SIGTERM, 0.1)))
    assert landed.hit == "trainer" and landed.code == 1 and not landed.locked
    assert "by SIGKILL, which the guard did not send" in landed.said

    for delay in (1.2 * 1.4**turn for turn in range(7)):  # until it heeds signals, which a slow CPU takes longer for
        landed = victim.killed(Kill("prober", signal.SIGTERM, "prober", delay))
        assert landed.hit == "prober"
        if "ended by SIGTERM: what stands is whole" in landed.said:
            break
    assert "ended by SIGTERM: what stands is whole" in landed.said
    assert f"finished  fit 0 A {lineage}: trained; its gate is pending" in landed.said

    mini.snakemake()
    victim.check_settled()
    assert not victim.leftovers() and victim.settled
    outcome = next(victim.folder.glob("results/runs/A/*/outcome.json")).read_text()
    assert '"resumed_at": []' not in outcome, "it went on from its checkpoint"
    found, expected = victim.result(), Victim(Mini(based)).result()
    cards = {"artifacts/release/README.md", "artifacts/release/release.json"}  # they name the config, which differs
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if k not in cards} == {k: v for k, v in expected.items() if k not in cards}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/a/python -P -m fgod train --fit 0", "guard"),
        ("/a/python -m fgod probe --child report.json", "prober"),
        ("/a/python -m fgod.train --fit 0", "trainer"),
        ("/a/python -P -m fgod report --tables results/tables", "report"),
        ("/bin/bash -c FGOD_SNAKEMAKE=1;fgod", "shell"),
        ("/a/python /a/snakemake -n", "snakemake"),
        ("/a/python -m pytest", None),
    ],
)
def test_processes_are_known_by_their_command_lines(line, found):
    assert role(line.split()) == found


def test_the_driver_sees_what_is_wrong(ran):
    """A test of kills that finds no fault in half a file would be worth nothing."""
    victim = Victim(ran)
    victim.check_settled()
    victim.check_whole()
    weights = next(victim.folder.glob("artifacts/A/*/master/model.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(Faults, match=r"model\.safetensors: not whole"):
        victim.check_whole()
    with pytest.raises(Faults, match=r"model\.safetensors was written again"):
        victim.check_settled()
    weights.unlink()
    with pytest.raises(Faults, match=r"model\.safetensors is lost"):
        victim.check_settled()
    for name in ("train.tsv", "outcome.json"):
        record = next(victim.folder.glob(f"results/runs/A/*/{name}"))
        record.write_bytes(record.read_bytes()[:-3])
        with pytest.raises((AssertionError, ValueError)):
            check_file(record)
