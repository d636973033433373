"""The checks, in the order in which they are made. Each sees a `Look` and returns findings; none catches what it does
not expect: a check that raises is a fault with its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from fgod.doctor.configs import config_findings
from fgod.doctor.finding import Finding, State, ok
from fgod.doctor.machine import Look
from fgod.doctor.told import CaseResult, TorchFacts
from fgod.guard import cgroup
from fgod.guard.cuda import Gpu
from fgod.guard.gpu import numbers_are_ours
from fgod.guard.pools import Pool
from fgod.guard.sources import UnseenError
from fgod.outlook import size
from fgod.torch_build import CUDA, INDEX

Check = Callable[[Look], Iterable[Finding]]

OLDEST_PYTHON = (3, 11)

LEAST_FREE = 2**28
"""Bytes that records, logs and snakemake's own files take of any run."""

WITHOUT_TORCH = "install fgod again in this environment, with its dependencies"

WRITE = "give this user the right to write there"

NO_GPU = "CUDA_VISIBLE_DEVICES= (empty) hides GPUs from commands that need none"


def python(look: Look) -> Iterator[Finding]:
    found, oldest = ".".join(map(str, look.machine.python)), ".".join(map(str, OLDEST_PYTHON))
    if look.machine.python[:2] >= OLDEST_PYTHON:
        yield ok("Python", found)
    else:
        yield Finding("Python", "fault", found, f"{oldest} or newer", f"make PYTHON=/path/to/python{oldest}")
    if reason := look.machine.uncompiled():
        yield Finding(
            "bytecode",
            "note",
            f"torch has none, and {reason}: each command compiles all that it imports",
            "bytecode of the installed packages, with which commands start faster by some seconds",
            "unset PYTHONDONTWRITEBYTECODE, and set PYTHONPYCACHEPREFIX=FOLDER where packages cannot be written to",
        )


def torch(look: Look) -> Iterator[Finding]:
    """torch itself, the CUDA that it is built for, and whether it computes on the GPU that the driver shows."""
    facts = look.told.torch
    if facts is None:
        yield Finding("torch", "fault", _unfinished(look), "a torch that can be imported", WITHOUT_TORCH)
        return
    yield ok("torch", facts.version)
    yield from _cuda(look, facts)


def _cuda(look: Look, facts: TorchFacts) -> Iterator[Finding]:
    state: State = "fault" if look.wants_gpu else "note"
    build = facts.cuda or "none: torch is built for CPUs alone"
    if not look.gpus:
        yield Finding("CUDA of torch", "ok" if not look.wants_gpu else "note", f"{build}; there is no GPU to use it")
    elif facts.available:
        yield ok("CUDA of torch", f"{facts.cuda}, on {facts.name}")
    elif not facts.cuda:
        todo = f"pip install torch=={facts.version.partition('+')[0]}+{CUDA} --index-url {INDEX}"
        yield Finding("CUDA of torch", state, build, f"a build for CUDA, as there is {_named(look.gpus)}", todo)
    else:
        expected = "a GPU that torch sees, as the driver shows one"
        todo = f"update the driver to one that runs CUDA {facts.cuda}; `torch.cuda.init()` in Python says what is wrong"
        yield Finding("CUDA of torch", state, f"{facts.cuda}, and torch sees no GPU", expected, todo)


def _named(gpus: Sequence[Gpu]) -> str:
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"


def triton(look: Look) -> Iterator[Finding]:
    facts = look.told.torch
    if facts is None:
        return  # said of torch
    if facts.triton:
        yield ok("Triton", facts.triton)
    elif facts.available:
        expected = "Triton, without which plain torch runs on the GPU, several times slower and with more memory"
        yield Finding("Triton", "fault" if look.wants_gpu else "note", "not installed", expected, "pip install triton")
    else:
        yield ok("Triton", "not installed; only a GPU needs it")


def driver(look: Look) -> Iterator[Finding]:
    if look.driver_error:
        expected = "a driver that answers, as the guard cannot watch a GPU that it does not see"
        todo = f"restart the machine, or install the driver anew; {NO_GPU}"
        yield Finding("driver", "fault", look.driver_error, expected, todo)
        return
    if not look.gpus:
        found = "no GPU that the CUDA driver shows"
        if look.wants_gpu:
            todo = "install NVIDIA's driver, look whether CUDA_VISIBLE_DEVICES hides it, or set train.device and "
            yield Finding("driver", "fault", found, "one, for train.device: cuda", f"{todo}probe.device to cpu")
        else:
            yield ok("driver", f"{found}; none is needed")
        return
    if isinstance(look.nvml, UnseenError):
        yield Finding("driver", "note", f"it shows {_named(look.gpus)}; its version is not known without NVML")
        return
    version = ".".join(map(str, look.nvml.cuda()))
    facts = look.told.torch
    found = f"{look.nvml.driver()}, for CUDA up to {version}"
    if facts is not None and facts.cuda and int(facts.cuda.split(".")[0]) > look.nvml.cuda()[0]:
        expected = f"CUDA {facts.cuda}, for which torch is built"
        state: State = "fault" if look.wants_gpu else "note"
        yield Finding("driver", state, found, expected, "update the driver, or install a build of torch for its CUDA")
    else:
        yield ok("driver", found)


def nvml(look: Look) -> Iterator[Finding]:
    if isinstance(look.nvml, UnseenError):
        if not look.gpus:
            yield ok("NVML", f"{look.nvml}; no GPU needs it")
            return
        alone = all(gpu.integrated for gpu in look.gpus)
        expected = "NVML, by which the guard reads the memory of GPUs and who uses them"
        todo = "make libnvidia-ml.so.1 visible here (in a container: its capability `utility`)"
        yield Finding("NVML", "note" if alone else "fault", str(look.nvml), expected, todo)
        return
    names = [look.nvml.name(device) for device in look.nvml.devices()]
    yield ok("NVML", f"it answers for {', '.join(names) or 'no GPU'}")


def capability(look: Look) -> Iterator[Finding]:
    """Whether this build of torch has code for the GPU."""
    facts = look.told.torch
    if facts is None or not facts.available:
        return  # said of torch, or of the driver
    major, minor = facts.capability
    found = f"{major}.{minor} ({facts.name})"
    if runs_on(facts.capability, facts.architectures):
        yield ok("compute capability", found)
        return
    expected = f"one of those that this build of torch has code for: {', '.join(facts.architectures)}"
    todo = f"install a build of torch for this GPU ({INDEX} has those for CUDA {CUDA[2:-1]}.{CUDA[-1]})"
    yield Finding("compute capability", "fault" if look.wants_gpu else "note", found, expected, todo)


def runs_on(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether a build with code for these architectures runs on a GPU: code for the same major version and a minor one
    that is not newer; or code that the driver compiles, for any older one.

    Args:
        architectures: as `sm_90`, `sm_90a` (for 9.0 alone) or `compute_90`.
    """
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        special = not digits.isdecimal()
        number = int(digits.rstrip("af"))
        version = divmod(number, 10)
        if special and version != capability:
            continue
        if kind == "compute" and version <= capability:
            return True
        if version[0] == capability[0] and version[1] <= capability[1]:
            return True
    return False


def unified(look: Look) -> Iterator[Finding]:
    for gpu in look.gpus:
        total = size(gpu.total_mib * 2**20)
        kind = "shares the memory of the host" if gpu.integrated else "has memory of its own"
        yield ok("memory of the GPU", f"{gpu.pool} {kind}, {total}")


def disk(look: Look) -> Iterator[Finding]:
    free, where = look.machine.free(look.folder), look.folder.resolve()
    if not look.machine.writable(look.folder):
        yield Finding("disk", "fault", f"{where} is read-only", "a folder to write to", WRITE)
    elif free < LEAST_FREE:
        expected = f"at least {size(LEAST_FREE)} for the records of any run"
        yield Finding("disk", "fault", f"{size(free)} free at {where}", expected, "free some room there")
    else:
        yield ok("disk", f"{size(free)} free at {where}")


def sight(look: Look) -> Iterator[Finding]:
    """What the guard can see of each pool of memory, and what limits it."""
    allowed = [one for one in look.own if one.checked is not None and one.checked["guard"]["blind_ok"]]
    blind_ok = bool(look.own) and len(allowed) == len(look.own)
    for pool in look.pools:
        yield _sight(pool, blind_ok)
    if look.gpus and not numbers_are_ours():
        found = "NVML's process numbers are not those of this container"
        expected = "those of the host: then others' GPU memory, which comes later, is not counted as the command's"
        yield Finding("guard's sight of others", "note", found, expected, "start the container with --pid=host")
    limit = cgroup.own().limit_mib()
    yield ok("control group", "no limit on memory" if limit is None else f"memory is limited to {size(limit * 2**20)}")


def _sight(pool: Pool, blind_ok: bool) -> Finding:
    name, troubles = f"guard's sight of {pool.name}", pool.troubles()
    if troubles:
        expected = "one way to read it: a limit that is not seen is none, and no command starts"
        todo = f"mend what it says; {NO_GPU}; guard.blind_ok: true in the config goes on without protection"
        return Finding(name, "note" if blind_ok else "fault", "; ".join(troubles), expected, todo)
    sources = ", then ".join(source.name for source in pool.sources)
    total = pool.sources[0].total_mib()
    found = f"read from {sources}; {size((total or 0) * 2**20)} in all, {size(pool.room_mib() * 2**20)} for a command"
    if pool.sources[0].name == "host_rss":
        expected = "PSS, which counts shared pages once: a run of several processes seems larger than it is"
        return Finding(name, "note", found, expected, "use a kernel with /proc/PID/smaps_rollup (Linux 4.14 or newer)")
    return ok(name, found)


def numerics(look: Look) -> Iterator[Finding]:
    """One finding for each kernel."""
    told = look.told
    yield from _cases([one for one in told.cases if one.on == "cpu"], "on the CPU")
    gpu = [one for one in told.cases if one.on == "gpu"]
    yield from _cases(gpu, "on the GPU")
    if not told.done and told.torch is not None:
        expected = "all self-tests and benchmarks, to the end"
        todo = "try another driver, torch or Triton; what comes after it was not tested"
        yield Finding("self-test", "fault", _unfinished(look), expected, todo)
    if told.done and not gpu:
        yield ok("self-test of GPU kernels", "no GPU kernel was tested: torch sees no GPU here")
    elif told.done and told.torch is not None and not told.torch.triton:
        yield Finding("self-test of Triton kernels", "note", "none was tested: Triton is not installed")
    for text in told.said:
        yield Finding("self-test", "note", text)


def _unfinished(look: Look) -> str:
    return f"at {look.told.begun or 'its start'}: {look.told.ended}"


def _cases(cases: Sequence[CaseResult], where: str) -> Iterator[Finding]:
    for kernel in dict.fromkeys(one.kernel for one in cases):
        own = [one for one in cases if one.kernel == kernel]
        wrong = [one for one in own if not one.ok]
        name = f"self-test of {kernel} {where}"
        if not wrong:
            yield ok(name, f"{len(own)} of {len(own)} cases agree with the reference")
            continue
        first = wrong[0]
        said = f"{len(wrong)} of {len(own)} cases are wrong; {first.name}: {first.error or first.wrong[0]}"
        expected = "what the reference computes"
        todo = "do not train here: it computes garbage without a word. Try another driver, torch or Triton"
        yield Finding(name, "fault", said, expected, todo)


def benchmark(look: Look) -> Iterator[Finding]:
    for speed in look.told.speeds:
        name = f"benchmark of {speed.name}"
        if speed.error:
            expected = "steps of training that run"
            todo = "mend what it says: a training of this config would end so, too"
            yield Finding(name, "fault", speed.error, expected, todo)
        else:
            rate = speed.tokens / speed.step_s
            yield ok(name, f"{speed.step_s * 1000:.0f} ms a step of {speed.tokens} tokens, {rate:.0f} tokens/s")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("Python", python),
    ("torch", torch),
    ("Triton", triton),
    ("driver", driver),
    ("NVML", nvml),
    ("compute capability", capability),
    ("memory of the GPU", unified),
    ("disk", disk),
    ("guard's sight", sight),
    ("self-test", numerics),
    ("benchmark", benchmark),
    ("configs", config_findings),
)
"""By the name under which a check that raises is a fault."""


def findings(look: Look, checks: Sequence[tuple[str, Check]] = CHECKS) -> Iterator[Finding]:
    """What all checks find, one after the other."""
    for name, check in checks:
        try:
            yield from check(look)
        except Exception as error:  # a check that breaks must not hide what the others find
            expected = "a check that comes to its end"
            todo = "report this, with the machine that it is"
            yield Finding(name, "fault", f"the check broke: {type(error).__name__}: {error}", expected, todo)
