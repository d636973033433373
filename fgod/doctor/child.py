"""The child of `fgod doctor`: self-tests and benchmarks in a process of its own, so that a crash is a finding.

python -m fgod.doctor.child < ASKED.json       prints a line of JSON for each thing that it did
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fgod.doctor.told import Asked, CaseResult, Speed, Told, TorchFacts, parsed

if TYPE_CHECKING:
    import torch

    from fgod.selftest.case import Case

PATIENCE_S = 1200.0
"""After which a child that does not end is killed. Triton and torch compile for minutes where nothing is cached."""

Tell = Callable[[str, Any], None]


def ask(asked: Asked, patience_s: float = PATIENCE_S) -> Told:
    """Run a child; however it ends, what it told."""
    words = [sys.executable, "-m", "fgod.doctor.child"]
    try:
        ended = subprocess.run(words, input=asked.text(), capture_output=True, text=True, timeout=patience_s)
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        return parsed(out.decode() if isinstance(out, bytes) else out, f"it did not end within {patience_s:g} s")
    return parsed(ended.stdout, how_it_ended(ended.returncode, ended.stderr))


def how_it_ended(code: int, errors: str) -> str:
    """In words, with the last line of what it said."""
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    last = errors.strip().splitlines()[-1:]
    return f"it ended {how}{f': {last[0]}' if last else ''}"


# ------------------------------------------------------------------------------------------------------ in the child


def main() -> None:
    """Do what standard input asks. What libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}, ensure_ascii=False), file=out, flush=True)

    work(Asked.read(sys.stdin.read()), tell)
    tell("done", True)


def work(asked: Asked, tell: Tell) -> None:
    """All of it, in this process."""
    from fgod.imports import lasting_imports

    tell("begin", "the import of torch")
    with lasting_imports():
        import torch

        from fgod.selftest.plain import cpu_cases
        from fgod.train.device.settings import repeatable_cuda

    tell("begin", "what torch says of the GPU")
    facts = torch_facts()
    tell("torch", asdict(facts))
    run_cases(cpu_cases(), torch.device("cpu"), tell)
    if facts.available:
        gpu = torch.device("cuda", torch.cuda.current_device())
        with repeatable_cuda(gpu):
            run_cases(_gpu_cases(gpu, asked.compiled, tell), gpu, tell)
    for benchmark in asked.benchmarks:
        from fgod.doctor.speed import measure

        tell("begin", f"the benchmark of {benchmark.name}")
        try:
            speed = measure(benchmark, lambda text: tell("said", text))
        except Exception as error:  # whatever a library raises here is a finding
            speed = Speed(benchmark.name, error=_in_words(error))
        tell("speed", asdict(speed))


def torch_facts() -> TorchFacts:
    """What torch says here and now."""
    import torch

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    cuda, available = torch.version.cuda or "", torch.cuda.is_available()
    if not available:
        return TorchFacts(str(torch.__version__), cuda, triton=triton)
    number = torch.cuda.current_device()
    return TorchFacts(
        version=str(torch.__version__),
        cuda=cuda,
        available=True,
        architectures=tuple(torch.cuda.get_arch_list()),
        triton=triton,
        name=torch.cuda.get_device_name(number),
        capability=torch.cuda.get_device_capability(number),
    )


def _gpu_cases(gpu: torch.device, compiled: bool, tell: Tell) -> list[Case]:
    from fgod.nvfp4 import kernels
    from fgod.selftest.torch_ops import torch_cases

    cases = torch_cases(gpu, compiled, lambda text: tell("said", text))
    if kernels.run_on(gpu):
        tell("begin", "the import of Triton")
        from fgod.selftest.kernels import kernel_cases

        cases += kernel_cases(gpu=True)
    return cases


def run_cases(cases: Iterable[Case], device: torch.device, tell: Tell) -> None:
    """Run cases one after the other; what one raises is told, and the next goes on."""
    for case in cases:
        tell("begin", f"the self-test of {case}")
        wrong: tuple[str, ...] = ()
        error = ""
        try:
            wrong = tuple(str(one) for one in case.run(device) if not one.ok)
        except Exception as raised:  # Triton, CUDA and torch share no narrower kind; it is told, and a fault
            error = _in_words(raised)
        on = "cpu" if device.type == "cpu" else "gpu"
        tell("case", asdict(CaseResult(case.kernel, case.name, on, wrong, error)))


def _in_words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


if __name__ == "__main__":
    main()
