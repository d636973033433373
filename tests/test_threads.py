"""Threads of a command soon sleep while they wait for each other, unless the environment says how they wait."""

import os
import subprocess
import sys

import pytest

from fgod.system.threads import FEW_SPINS, SPINS, WAIT_POLICY, spin_briefly


@pytest.mark.parametrize(
    ("given", "found"), [({}, FEW_SPINS), ({SPINS: "7"}, "7"), ({WAIT_POLICY: "ACTIVE"}, None)]
)  # fmt: skip
def test_threads_soon_sleep_unless_the_environment_says_otherwise(
    given: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (SPINS, WAIT_POLICY):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.get(SPINS) == found


def test_a_guarded_command_hands_it_on() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in (SPINS, WAIT_POLICY)}
    shown = f"import os; print(os.environ.get('{SPINS}'))"
    command = [sys.executable, "-m", "fgod", "guard", "--limit-gb", "8", "--", sys.executable, "-c", shown]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == FEW_SPINS, ended.stderr
