"""Start the command so that it cannot outlive the guard unseen, and learn of its end and of signals to the guard."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from fgod.errors import UsageError

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def start(command: Sequence[str], inherit: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start the command as leader of a new session and group, with our standard streams and the given descriptors.

    The kernel kills it (PR_SET_PDEATHSIG, prctl(2)) when the thread that called this dies.

    Raises:
        UsageError: there is no such program, or it cannot be executed.
    """
    if not command:
        raise UsageError("guard: no command given; expected: fgod guard --limit-gb N -- CMD …")
    parent = os.getpid()
    try:
        return subprocess.Popen(
            list(command), start_new_session=True, pass_fds=tuple(inherit), preexec_fn=lambda: _die_with(parent)
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError, ProcessLookupError) as error:
        raise UsageError(f"guard: cannot start {command[0]!r}: {error.strerror}; expected a program") from None


def _die_with(parent: int) -> None:
    """Runs in the new process before exec."""
    if _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


class StopSignals:
    """While entered, SIGHUP, SIGINT, SIGQUIT and SIGTERM to this process are noted and wake `wait`.

    Signals that are ignored (nohup) stay ignored. Outside the main thread Python takes no handlers: signals then do
    what the caller has set, and ending the command in time is left to PR_SET_PDEATHSIG.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if threading.current_thread() is threading.main_thread():
            # Where SIGCHLD is ignored the kernel throws exit codes away.
            self._old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            os.write(self._wake_write, b"!")

    def wait(self, process: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a stop signal or the end of a process (a pidfd): whether it ended."""
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return any(handle == process for handle, _ in poll.poll(max(timeout, 0) * 1000))
