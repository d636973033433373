"""Start the command below a keeper, learn of its end, take note of signals to the guard and pass them on."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from fgod.errors import FgodError, UsageError
from fgod.guard import keeper
from fgod.guard.keeper import PR_SET_CHILD_SUBREAPER, prctl
from fgod.system.process import Member, read_process, signal_process

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

KEEPER_SECS = 15.0
"""How long the keeper may take to end; it kills for up to `KILL_SECS` itself."""


class KeeperLostError(FgodError):
    """The keeper ended before the command did: somebody killed it. Exit code 1."""


class Child:
    """A running command and its keeper."""

    def __init__(self, keeper: subprocess.Popen[bytes], line: socket.socket) -> None:
        self._keeper = keeper
        self._line = line
        self._received = b""
        self._process: Member | None = None
        self.pid = 0
        """Of the command, once it has started."""
        self.failed = 0
        """Why it could not be started (errno), or 0."""
        self.code: int | None = None
        """Its exit code once it has ended, negative for a signal."""

    @property
    def keeper(self) -> int:
        return self._keeper.pid

    def fileno(self) -> int:
        """Readable when the keeper has sent something for `listen`."""
        return self._line.fileno()

    def listen(self) -> None:
        """Wait for messages of the keeper and process all of them: several may come at once.

        Raises:
            KeeperLostError: it ended before it said how the command did.
        """
        received = self._line.recv(256)
        if not received:
            raise KeeperLostError(
                f"guard: its helper process {self.keeper} was ended by something else; the command was ended too"
            )
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            self._note(*line.decode().split(" "))

    def _note(self, word: str, number: str) -> None:
        match word:
            case "started":
                self.pid = int(number)
                self._process = read_process(self.pid)
            case "failed":
                self.failed = int(number)
            case "ended":
                self.code = os.waitstatus_to_exitcode(int(number))

    def forward(self, number: int) -> None:
        """Send a signal to the command, and to no other process of its tree."""
        if self._process is not None and self.code is None:
            signal_process(self._process, number)

    def wait(self, timeout: float) -> int | None:
        """The command's exit code; None when it has not ended after `timeout` seconds."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        if self.code is None and poll.poll(timeout * 1000):
            self.listen()
        return self.code

    def close(self) -> None:
        """Let the keeper go; it kills what is left first."""
        self._line.close()
        try:
            self._keeper.wait(KEEPER_SECS)
        except subprocess.TimeoutExpired:  # a descendant stuck in the kernel: the guard has named it
            self._keeper.kill()
            self._keeper.wait()


def start(command: Sequence[str], environment: Mapping[str, str], inherit: Sequence[int] = ()) -> Child:
    """Start the command as leader of a new session, with our standard streams and the given descriptors.

    It and all its descendants are killed when we end, in whatever way.

    Raises:
        UsageError: there is no such program, or it cannot be executed.
    """
    if not command:
        raise UsageError("guard: no command given; expected: fgod guard --limit-gb N -- CMD …")
    ours, theirs = socket.socketpair()
    numbers = ",".join(map(str, inherit))
    words = [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno()), numbers, *command]
    with theirs:
        process = subprocess.Popen(
            words, pass_fds=(*inherit, theirs.fileno()), env=dict(environment), restore_signals=False
        )
    child = Child(process, ours)
    try:
        while not child.pid and not child.failed:
            child.listen()
    except BaseException:
        child.close()
        raise
    if child.failed:
        child.close()
        raise UsageError(f"guard: cannot start {command[0]!r}: {_why(child.failed)}; expected a program")
    return child


def _why(number: int) -> str:
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


@contextmanager
def subreaper() -> Iterator[None]:
    """While entered, descendants that lose keeper and parents become our children."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


class StopSignals:
    """While entered, SIGHUP, SIGINT, SIGQUIT and SIGTERM to this process are noted and wake `wait`.

    `received` is the first of them, and `again` says whether another one came after it.

    Signals that are ignored (nohup) stay ignored. Outside the main thread Python takes no handlers: signals then do
    what the caller has set, and ending the command in time is left to the keeper.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.again = False
        self._old: dict[int, Any] = {}
        self._poll = select.poll()

    def __enter__(self) -> StopSignals:
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake_read, select.POLLIN)
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
        self.again = self.received is not None
        self.received = self.received or number
        with suppress(BlockingIOError):  # full: `wait` is awake already
            os.write(self._wake_write, b"!")

    def watch(self, child: Child) -> None:
        """Let messages of the child's keeper wake `wait` too."""
        self._poll.register(child, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a stop signal or a message of the keeper: whether there is a message."""
        ready = {handle for handle, _ in self._poll.poll(max(timeout, 0) * 1000)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        return bool(ready - {self._wake_read})
