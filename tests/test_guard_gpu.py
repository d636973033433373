"""The guard on a real GPU; skipped without one. Memory is taken with the CUDA driver itself, without torch.

python -m pytest tests/test_guard_gpu.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fgod import guard
from fgod.guard import cap, cuda, pools
from tests.test_guard import python

TAKE = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0 and cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(sys.argv[1]) << 30)) == 0
time.sleep(float(sys.argv[2]))
"""
GPUS = cuda.visible()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no GPU is visible")]


def pool_of_gpu_0(limits: guard.Limits) -> guard.Pool:
    return next(pool for pool in pools.of_this_machine(limits) if pool.uuids)


def test_all_pools_can_be_seen() -> None:
    found = pools.of_this_machine(guard.Limits(limit_gb=4))
    assert pools.require_sight(found, blind_ok=False) == []
    print([(pool.name, pool.current, pool.source.machine_mib(), pool.source.total_mib()) for pool in found])


def test_no_gpu_is_visible_where_the_environment_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda.visible() == []


def test_memory_of_the_gpu_breaks_the_limit_and_comes_back(tmp_path: Path) -> None:
    used = pool_of_gpu_0(guard.Limits(limit_gb=4)).source.machine_mib()
    assert used is not None
    limits = guard.Limits(limit_gb=used / 1024 + 4, poll_secs=0.05)
    result = guard.run(python(TAKE, 8, 30), limits, tmp_path / "guard.tsv")
    assert result.killed and ("gpu0" in result.reason or "unified" in result.reason), result
    assert result.events == ()
    assert result.peak_mib is not None and result.peak_mib > 8 * 1024


def test_a_grandchild_behind_a_shell_counts(tmp_path: Path) -> None:
    used = pool_of_gpu_0(guard.Limits(limit_gb=4)).source.machine_mib()
    assert used is not None
    limits = guard.Limits(limit_gb=used / 1024 + 4, poll_secs=0.05)
    result = guard.run(["sh", "-c", '"$@"; exit 0', "sh", *python(TAKE, 8, 30)], limits)
    assert result.killed, result


def test_below_the_limit_nothing_happens() -> None:
    used = pool_of_gpu_0(guard.Limits(limit_gb=4)).source.machine_mib()
    assert used is not None
    result = guard.run(python(TAKE, 1, 0.5), guard.Limits(limit_gb=used / 1024 + 4, poll_secs=0.05))
    assert (result.exit_code, result.end) == (0, "own"), result


def test_the_allocator_refuses_what_would_break_the_limit() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    code = """
import torch
from fgod.guard import cap
print(cap.cap_allocator(cap.room_mib()))
try:
    torch.empty(6 << 30, dtype=torch.uint8, device="cuda")
except torch.cuda.OutOfMemoryError:
    raise SystemExit(42)
"""
    root = str(Path(__file__).parents[1])
    words = [*python("")[:1], "-c", f"import sys; sys.path.insert(0, {root!r}){code}"]
    used = pool_of_gpu_0(guard.Limits(limit_gb=4)).source.machine_mib() or 0.0
    limit = 4 + (used / 1024 if GPUS[0].integrated else 0)
    assert guard.run(words, guard.Limits(limit_gb=max(limit, 4))).exit_code == 42
    assert cap.VARIABLE not in os.environ


def test_polling_a_gpu_is_cheap() -> None:
    before = time.process_time()
    guard.run(["sleep", "3"], guard.Limits(limit_gb=64, poll_secs=0.05))
    assert time.process_time() - before < 0.3
