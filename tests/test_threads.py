"""Threads of a command sleep while they wait for each other, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

from fgod.system.threads import WAIT_POLICY, sleep_while_waiting


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_unless_the_environment_says_otherwise(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_POLICY, given or "")
    if given is None:
        monkeypatch.delenv(WAIT_POLICY)
    sleep_while_waiting()
    assert os.environ[WAIT_POLICY] == found


def test_a_guarded_command_hands_it_on() -> None:
    environment = {name: value for name, value in os.environ.items() if name != WAIT_POLICY}
    shown = f"import os; print(os.environ.get('{WAIT_POLICY}'))"
    command = [sys.executable, "-m", "fgod", "guard", "--limit-gb", "8", "--", sys.executable, "-c", shown]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "PASSIVE", ended.stderr
