"""How glibc's malloc treats memory that is freed."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""

_NEVER = -1
"""As _TRIM_THRESHOLD: however many bytes are free at the heap's end, it does not shrink."""


def return_freed_memory() -> None:
    """Give what was freed by now back to the kernel, also where it lies between what is in use. Without glibc nothing
    changes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """From now on freed memory waits for the next request of this process instead of going back to the kernel, which
    would fill each page with zeros again. For work that asks for the same large sizes again and again. Without glibc
    nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
