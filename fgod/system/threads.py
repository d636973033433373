"""How threads of one process wait for each other."""

import os

WAIT_POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"

FEW_SPINS = "3000"
"""Rounds, some microseconds each thousand: enough for an operation's threads to meet on free cores, where a longer wait
gains nothing."""


def spin_briefly() -> None:
    """Let threads of OpenMP (GNU's, which torch brings) fall asleep soon while they wait, unless the environment says
    how they wait.

    By default they spin for milliseconds. Where a process has fewer free cores than threads (a container's limit, other
    work beside it), the one that spins takes the core from the one that it waits for. Has to be called before torch is
    imported, and holds for processes that are started later. No result depends on it.
    """
    if WAIT_POLICY not in os.environ:
        os.environ.setdefault(SPINS, FEW_SPINS)
