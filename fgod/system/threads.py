"""How threads of one process wait for each other."""

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def sleep_while_waiting() -> None:
    """Let threads of OpenMP sleep while they wait, unless the environment says otherwise.

    By default they spin. Where a process has fewer free cores than threads (a container's limit, other work beside it),
    the one that spins takes the core from the one that it waits for. Has to be called before torch is imported, and
    holds for processes that are started later. No result depends on it.
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
