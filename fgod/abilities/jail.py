"""Becomes one Python program with as few rights as the OS lets it have. Run by its path, it imports the standard
library alone:

    python -I -S jail.py STATUS_FD MEMORY_BYTES CPU_SECS FOLDER PROGRAM

What it could take away is written as JSON to the file descriptor before the program starts (`sandbox.Walls`). It does
not start a program that could start others.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
"""System calls of landlock(7); the same numbers on every architecture."""
LANDLOCK_VERSION = 1
LANDLOCK_PATH_BENEATH = 1
WRITES = 0b1111111110010
"""Rights of landlock's first version that change files: write, remove, make each kind of file."""

SECCOMP_MODE_FILTER = 2
SECCOMP_KILL, SECCOMP_ALLOW, SECCOMP_EPERM = 0x80000000, 0x7FFF0000, 0x00050001
BPF_LOAD, BPF_EQUAL, BPF_AT_LEAST, BPF_RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of the filter: load a word, jump if equal, jump if at least, return."""
X32 = 0x40000000
"""Calls from here on are x86's older form of the same calls."""
COMMON = (424, 425, 434, 435)
"""pidfd_send_signal, io_uring_setup, pidfd_open, clone3."""
FORBIDDEN = {
    # clone fork vfork · kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo · ptrace process_vm_writev
    # socket · unshare setns mount bpf · setpriority sched_setscheduler sched_setaffinity prlimit64
    "x86_64": (0xC000003E, (56, 57, 58, 62, 200, 234, 129, 297, 101, 311, 41, 272, 308, 165, 321, 141, 144, 203, 302)),
    "aarch64": (0xC00000B7, (220, 129, 130, 131, 138, 240, 117, 271, 198, 97, 268, 40, 280, 140, 119, 122, 261)),
}
"""The kernel's number of an architecture, and of calls that start, signal or change processes, or use a network."""

FILE_BYTES, OPEN_FILES = 16 * 2**20, 64

_libc = ctypes.CDLL(None, use_errno=True)


def leave_network() -> bool:
    """Enter a network namespace of our own, which has no network; whether that was allowed."""
    return any(_libc.unshare(flags) == 0 for flags in (CLONE_NEWUSER | CLONE_NEWNET, CLONE_NEWNET))


def keep_to(folder: str) -> bool:
    """Forbid, by landlock(7), to change files outside a folder; whether that was allowed."""
    version = _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION)
    if version < 1:
        return False
    writes = WRITES | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)  # move, truncate
    rules = _libc.syscall(LANDLOCK_CREATE_RULESET, struct.pack("=Q", writes), ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    allowed = _libc.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_PATH_BENEATH, struct.pack("=Qi", writes, place), 0) == 0
    done = allowed and _libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(place)
    os.close(rules)
    return bool(done)


def stay_alone() -> bool:
    """Forbid, by seccomp(2), to start processes, to signal others and to open sockets; whether that was allowed."""
    if platform.machine() not in FORBIDDEN:
        return False
    architecture, calls = FORBIDDEN[platform.machine()]
    calls = (*calls, *COMMON)
    program = [(BPF_LOAD, 0, 0, 4), (BPF_EQUAL, 1, 0, architecture), (BPF_RETURN, 0, 0, SECCOMP_KILL)]
    program += [(BPF_LOAD, 0, 0, 0), (BPF_AT_LEAST, len(calls) + 1, 0, X32)]
    program += [(BPF_EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    program += [(BPF_RETURN, 0, 0, SECCOMP_ALLOW), (BPF_RETURN, 0, 0, SECCOMP_EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    filters = struct.pack("@HP", len(program), ctypes.addressof(code))
    return bool(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filters, 0, 0) == 0)


def limit(memory: int, secs: int) -> None:
    """Set limits of setrlimit(2). That of processes does not hold for root."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, secs),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(what)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def main() -> None:
    status, memory, secs = (int(text) for text in sys.argv[1:4])
    folder, program = sys.argv[4:]
    user = os.getuid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # it ends with the process that started it
    network = leave_network()
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # landlock and seccomp ask for it
    files = keep_to(folder)
    limit(memory, secs)
    alone = stay_alone()
    walls = {
        "network": "none" if network or alone else "open",
        "files": "own folder" if files else "open",
        "processes": "one" if alone or user != 0 else "open",
    }
    os.write(status, json.dumps(walls).encode())
    os.close(status)
    if walls["processes"] == "one":
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", program])


if __name__ == "__main__":
    main()
