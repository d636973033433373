"""What the child of `fgod doctor` is asked, and tells line by line: what it did before a crash is known. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """Steps that are to be timed.

    Args:
        config: sizes of a model as config.json has them, small enough to be timed in seconds.
        recipe: a stage's `train`, resolved.
        ask: rows that are asked at once, and where; none are with 0.
    """

    name: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    ask: int = 0
    ask_device: str = "cpu"


@dataclass(frozen=True)
class Asked:
    """What the child is to do besides the self-tests of the CPU and of a GPU, if torch sees one.

    Args:
        compiled: self-test also what torch compiles.
    """

    benchmarks: tuple[Benchmark, ...] = ()
    compiled: bool = True

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Asked:
        found = json.loads(text)
        return cls(tuple(Benchmark(**one) for one in found["benchmarks"]), found["compiled"])


@dataclass(frozen=True)
class TorchFacts:
    """What torch says of itself and of the GPU that it would use. `name` is empty without one."""

    version: str
    cuda: str = ""
    """The version of CUDA that it is built for; empty: CPUs alone."""
    available: bool = False
    architectures: tuple[str, ...] = ()
    """Those that it has kernels for, as `sm_90` or, to be compiled by the driver, `compute_90`."""
    triton: str = ""
    name: str = ""
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class CaseResult:
    """A case of the self-test. `wrong`: how far results are off that are too far; `error`: what it raised."""

    kernel: str
    name: str
    on: str
    """cpu or gpu."""
    wrong: tuple[str, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.wrong and not self.error


@dataclass(frozen=True)
class Speed:
    """Of a benchmark: seconds of a step, with so many tokens, and of a token of every row that is asked at once."""

    name: str
    step_s: float = 0.0
    tokens: int = 0
    token_s: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Told:
    """All that a child told. `begun`: the case or benchmark that it was at when it ended without saying that it was
    done; `ended`: how it then did, in words."""

    torch: TorchFacts | None = None
    cases: tuple[CaseResult, ...] = ()
    speeds: tuple[Speed, ...] = ()
    said: tuple[str, ...] = ()
    begun: str = ""
    ended: str = ""
    done: bool = field(default=False)


def parsed(text: str, ended: str) -> Told:
    """What a child told.

    Args:
        text: its lines, of which the last may be cut off.
        ended: how it ended, in words, for the case that it was not done.
    """
    torch: TorchFacts | None = None
    cases: list[CaseResult] = []
    speeds: list[Speed] = []
    said: list[str] = []
    begun, done = "", False
    for line in text.split("\n")[:-1]:  # what stands after the last line break is no whole line
        [(kind, value)] = json.loads(line).items()
        match kind:
            case "torch":
                lists = {"architectures": tuple(value["architectures"]), "capability": tuple(value["capability"])}
                torch = TorchFacts(**{**value, **lists})
            case "begin":
                begun = value
            case "case":
                cases.append(CaseResult(**{**value, "wrong": tuple(value["wrong"])}))
            case "speed":
                speeds.append(Speed(**value))
            case "said":
                said.append(value)
            case "done":
                done = True
            case _:
                raise ValueError(f"the child told {kind!r}")
    return Told(torch, tuple(cases), tuple(speeds), tuple(said), "" if done else begun, "" if done else ended, done)
