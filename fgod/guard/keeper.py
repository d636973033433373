"""The keeper: a small process between guard and command, so that the command cannot outlive the guard.

    guard ── keeper ── command ── …

It is the command's parent and subreaper (prctl(2)): descendants that lose their parent become its children, also after
a double fork and setsid. It has a session of its own, so that no signal to the guard's group reaches it, and a socket
to the guard. When the guard's end closes, by whatever end of the guard, it kills all of its descendants and ends. When
it is killed itself the kernel kills the command (PR_SET_PDEATHSIG), and the guard, a subreaper too, the rest.

Words on the socket, one line each, from the keeper: `started PID`, `failed ERRNO`, `ended STATUS` (as of wait(2)).

`child.start` runs this file as a script, python -I -S keeper.py SOCKET INHERIT CMD …, so it imports little.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

PAUSE_SECS = 0.002
"""After the first round of killing; each further pause is twice as long, up to 100 times this."""

IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that the keeper leaves to the guard. The command gets their defaults, or ignores what the guard ignores."""

_LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """prctl(2); raises OSError."""
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def main(argv: list[str]) -> None:
    """Arguments: the socket's descriptor, those the command inherits (comma-separated, may be empty), its words."""
    guard = int(argv[0])
    os.set_inheritable(guard, False)
    inherit = [int(number) for number in argv[1].split(",") if number]
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    ignored_before = {number for number in IGNORED if signal.getsignal(number) == signal.SIG_IGN}
    for stop in IGNORED:
        signal.signal(stop, signal.SIG_IGN)
    command = _start(guard, argv[2:], inherit, ignored_before)
    if command:
        _keep(guard, command, wake_read)


def _say(guard: int, *words: object) -> None:
    try:
        os.write(guard, " ".join(map(str, words)).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):  # the guard is gone: the next look at the socket says so
        return


def _start(guard: int, command: list[str], inherit: list[int], ignored: set[signal.Signals]) -> int:
    """Start the command and return its number; 0 when it cannot be started, which is reported to the guard."""
    failed_read, failed_write = os.pipe2(os.O_CLOEXEC)
    keeper = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, inherit, ignored, keeper, failed_write)
    os.close(failed_write)
    for number in inherit:
        os.close(number)  # a lock is held by the guard and by those who could write
    failed = os.read(failed_read, 16)  # closed by exec when it succeeds
    os.close(failed_read)
    if failed:
        os.waitpid(child, 0)
        _say(guard, "failed", int(failed))
        return 0
    _say(guard, "started", child)
    return child


def _become(command: list[str], inherit: list[int], ignored: set[signal.Signals], keeper: int, failed: int) -> None:
    """Runs in the new process: turn into the command, or write the error's number and end."""
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        for number in (*IGNORED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)
        for handle in inherit:
            os.set_inheritable(handle, True)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(127)


def _keep(guard: int, command: int, wake: int) -> None:
    """Reap until the guard is gone or done; then see to it that no descendant is left."""
    poll = select.poll()
    poll.register(guard, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = {handle for handle, _ in poll.poll()}
        if wake in ready:
            os.read(wake, 4096)
        _reap(guard, command)
        if guard in ready:  # the guard never writes: this is its end
            kill_descendants()
            return


def _reap(guard: int, command: int) -> bool:
    """Reap the children that ended and report the command's end; returns whether any child is left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        if pid == command:
            _say(guard, "ended", status)


def kill_descendants() -> None:
    """SIGKILL to all children until there is none.

    The children of a killed child become ours, as we are the subreaper, and are killed in the next round. A child that
    nobody but us can reap keeps its number until then, so no other process is hit.
    """
    pause = PAUSE_SECS
    while _reap(-1, 0):
        for pid in children():
            with suppress(PermissionError):  # it runs as somebody else: wait for it
                os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 100 * PAUSE_SECS)


def children() -> list[int]:
    """Numbers of our children, ended ones that were not reaped yet among them."""
    us = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and _parent(name) == us]


def _parent(name: str) -> int:
    try:
        with open(f"/proc/{name}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


if __name__ == "__main__":
    main(sys.argv[1:])
