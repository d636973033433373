"""The second line of defence: torch's allocator refuses what would break the guard's limit.

A reading every 50 ms is too slow where gigabytes are allocated in a second; the allocator checks before it allocates.
The environment variable FGOD_GUARD_ROOM_MIB says how much GPU memory the command may use; the command calls
`cap_allocator` before it touches a GPU. Past the cap torch raises OutOfMemoryError there, and `refusal` distinguishes
that from a device that others have filled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from fgod.errors import UsageError
from fgod.guard import cuda

VARIABLE = "FGOD_GUARD_ROOM_MIB"

RESERVE = 0.05
"""Part of the room that is not the allocator's: CUDA context, libraries' workspaces, fragments …"""

RESERVE_MIB = 1024.0
""" … and at least this, of which a small room gives a quarter at most."""


def capped_mib(room_mib: float) -> float:
    """What the allocator may take of the room that the guard gives."""
    return room_mib - max(RESERVE * room_mib, min(RESERVE_MIB, room_mib / 4))


def fraction(room_mib: float, total_mib: float) -> float:
    """The same as a part of the device, 0 to 1."""
    return min(max(capped_mib(room_mib) / total_mib, 0.0), 1.0)


def room_mib(environment: Mapping[str, str] = os.environ) -> float | None:
    """GPU memory that the guard allows, in MiB; None without a guard.

    Raises:
        UsageError: the variable holds no number above 0.
    """
    text = environment.get(VARIABLE)
    if text is None:
        return None
    try:
        room = float(text)
    except ValueError:
        room = 0.0
    if not 0 < room < float("inf"):
        raise UsageError(f"{VARIABLE}: found {text!r}, expected MiB above 0")
    return room


def cap_allocator(room: float | None) -> dict[int, float]:
    """Cap torch's CUDA allocator on every visible device: the caps in MiB by device; empty without CUDA or a guard.

    Args:
        room: MiB that the guard allows (`room_mib()`); None sets no cap.
    """
    if room is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    caps = {}
    for device in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(device).total_memory / 2**20
        torch.cuda.set_per_process_memory_fraction(fraction(room, total), device)
        caps[device] = fraction(room, total) * total
    return caps


def refusal(room: float | None) -> str:
    """After torch's OutOfMemoryError: what the cap refused, in words; empty if not the cap did, but a full device.

    What we hold and what is free are together enough for the cap, or the device was too full to come so far.

    Args:
        room: MiB that the guard allows, as above.
    """
    import torch

    for device, cap in cap_allocator(room).items():
        free, _ = torch.cuda.mem_get_info(device)
        if (free + torch.cuda.memory_reserved(device)) / 2**20 >= cap:
            name = cuda.here()[device].pool
            return f"torch was to take more than {cap:.0f} MiB of {name}, the guard's limit less a reserve"
    return ""
