"""What ranks tell each other. Sums are made in float32, in the order of the ranks: the same bits every time."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

GATHER: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Its name since torch 2.13, and before."""

GRACE_SECS = 30.0
"""Later than the launcher, which names the rank that hangs, ranks end by themselves (NCCL's and gloo's timeout)."""


@dataclass
class Pending:
    """A result under way; what is sent must stay as it is until `wait`."""

    work: Any
    sent: Tensor
    result: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """The result, once it is there: on a GPU what is launched later waits, not this process."""
        if self.work is not None:
            self.work.wait()
        return self.result()


class Ranks:
    """This rank among all. Every method but `agreed` and the properties must be called by all of them, in one order."""

    def __init__(
        self, rank: int, count: int, device: torch.device, store: Store, beat: Callable[[], None] = lambda: None
    ) -> None:
        """`beat`: called each time that something is told to others."""
        self.rank, self.count, self.device, self.beat = rank, count, device, beat
        self._store, self._agreed = store, 0
        self.received = 0
        """Bytes that came from other ranks, as far as this process asked for them: a CUDA graph asks once."""

    @classmethod
    def join(
        cls,
        store: Store,
        rank: int,
        count: int,
        device: torch.device,
        secs: float,
        beat: Callable[[], None] = lambda: None,
    ) -> Ranks:
        """Start the process group: NCCL on GPUs, gloo on CPUs.

        Args:
            secs: that a rank may wait for another (0: as long as torch's default).
        """
        if device.type == "cpu":  # the host's name may be no address of it
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        timeout = timedelta(seconds=secs + GRACE_SECS) if secs else None  # None: torch's default
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=count,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        agreed = PrefixStore("agreed", store)
        if timeout is not None:
            agreed.set_timeout(timeout)
        return cls(rank, count, device, agreed, beat)

    @classmethod
    def from_environment(
        cls,
        device: torch.device,
        secs: float,
        beat: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] = os.environ,
    ) -> Ranks:
        """The rank that torch's launcher made of this process."""
        rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(host, port, count, is_master=rank == 0 and not hosted, wait_for_workers=False)
        run = PrefixStore(environment.get("TORCHELASTIC_RUN_ID", ""), store)
        return cls.join(run, rank, count, device, secs, beat)

    @staticmethod
    def leave() -> None:
        """End the process group, when all is done: CUDA graphs that nobody needs any more must be gone by then."""
        gc.collect()
        dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and tells people."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.count}"

    # ------------------------------------------------------------------------------------------------ on the device

    def gather(self, part: Tensor) -> Pending:
        """[count, …] of every rank's contiguous part […]."""
        self.beat()
        self.received += part.nbytes * (self.count - 1)
        part = part.contiguous()
        out = torch.empty(self.count, *part.shape, dtype=part.dtype, device=part.device)
        work = GATHER(out.flatten(), part.flatten(), async_op=True)
        return Pending(work, part, lambda: out)

    def parts(self, whole: Tensor) -> Pending:
        """[count, n, …]: this rank's part of every rank's `whole` [count · n, …], in the order of the ranks."""
        self.beat()
        self.received += whole.nbytes * (self.count - 1) // self.count
        whole = whole.contiguous()
        got = torch.empty_like(whole)
        work = dist.all_to_all_single(got.view(-1), whole.view(-1), async_op=True)
        return Pending(work, whole, lambda: got.unflatten(0, (self.count, -1)))

    def exchange(self, whole: Tensor) -> Pending:
        """float32 [n, …]: this rank's part of the sum over ranks of `whole` [count · n, …].

        Parts travel in their own format and are added in float32, in the order of the ranks.
        """
        pending = self.parts(whole)
        return Pending(pending.work, pending.sent, lambda: pending.result().sum(0, dtype=torch.float32))

    def sums(self, values: Tensor) -> Pending:
        """Sums of few float32 values over ranks, in the order of the ranks."""
        pending = self.gather(values)
        return Pending(pending.work, pending.sent, lambda: pending.result().sum(0))

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each value; NaN where one is."""
        return self.gather(values).wait().amax(0)

    def send(self, part: Tensor, rank: int) -> None:
        """Send contiguous bytes to a rank, which calls `receive` at the same time; others do neither."""
        dist.send(part.view(torch.uint8), rank)

    def receive(self, out: Tensor, rank: int) -> None:
        """Into contiguous memory of the same size."""
        dist.recv(out.view(torch.uint8), rank)

    # --------------------------------------------------------------------------------------------------- on the host

    def agreed(self, value: float) -> float:
        """The first rank's value, on all; asks no device."""
        self.beat()
        key, self._agreed = f"{self._agreed}", self._agreed + 1
        if self.first:
            self._store.set(key, repr(float(value)))
            if self._agreed > 100:
                self._store.delete_key(f"{self._agreed - 100}")
            return value
        return float(self._store.get(key))

    def all_here(self) -> None:
        """Wait until every rank is here."""
        self.largest(torch.zeros(1, device=self.device)).item()
