"""Checks every kernel against its plain-torch reference on a GPU, and times variants of each beside a plain copy.

    python benchmarks/gpu_kernels.py OUT_FOLDER [--seconds 480]

Prints a table and writes gpu_kernels.json to the folder. A check or variant that fails prints its traceback and the
next one goes on; the exit code is 1 if a check failed. Times are medians of at least 10 replays of a CUDA graph over
buffers larger than the L2 cache; `share` is bytes per second over those of the copy that was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fgod.nvfp4 import codec, kernels
from fgod.nvfp4.kernels import adamw, product
from fgod.nvfp4.kernels import codec as on_gpu
from fgod.nvfp4.kernels import elementwise as fast
from fgod.selftest import adamw as twins
from fgod.selftest.case import Case
from fgod.selftest.kernels import kernel_cases
from fgod.train.codecs import block_width, segment_width
from fgod.train.device import elementwise
from tests import test_kernels as tests

LAYERS = 36
MATRICES = [(4096, 2560), (1024, 2560), (1024, 2560), (2560, 4096), (9728, 2560), (9728, 2560), (2560, 9728)]
VECTORS = [2560, 2560, 128, 128]
EMBEDDING = (151936, 2560)
"""Qwen3-4B: of a layer q, k, v, o, gate, up, down and the gains of its norms."""


def shapes() -> Iterator[tuple[int, int]]:
    """All 398 tensors as matrices, in the order in which a backward pass completes them."""
    yield (1, 2560)
    for _ in range(LAYERS):
        yield from reversed(MATRICES)
        yield from ((1, width) for width in VECTORS)
    yield EMBEDDING


class Bench:
    """Collects rows and failures; knows when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.skipped = 0
        self.copy = 0.0

    def attempt(self, name: str, what: Callable[[], Any]) -> Any:
        """Run a check or a variant; a failure is printed and kept, and does not end the run."""
        if time.monotonic() > self.end:
            print(f"SKIPPED {name}: out of time", flush=True)
            self.skipped += 1
            return None
        try:
            return what()
        except Exception:
            self.failures.append(name)
            print(f"FAILED {name}\n{traceback.format_exc(limit=-6)}", flush=True)
            return None

    def check(self, name: str, what: Callable[[], Any]) -> None:
        begin = time.monotonic()
        before = len(self.failures) + self.skipped
        told = self.attempt(f"check {name}", what)
        if len(self.failures) + self.skipped == before:
            print(f"ok      {name} ({time.monotonic() - begin:.1f} s) {told or ''}", flush=True)

    def time(self, name: str, moved: float, launch: Callable[[], None], inner: int = 1, **more: Any) -> float:
        """Median milliseconds of one `launch`, of which a graph holds `inner`; infinite where it failed."""
        found = self.attempt(name, lambda: milliseconds(launch, inner))
        if found is None:
            return float("inf")
        ms, noise = found
        share = moved / ms / 1e6 / self.copy if self.copy else 1.0
        self.rows.append({"name": name, "ms": ms, "noise": noise, "GB/s": moved / ms / 1e6, "share": share, **more})
        print(f"{name:78s} {ms:9.4f} ms ±{noise:4.1%} {moved / ms / 1e6:7.0f} GB/s {share:6.1%}", flush=True)
        return float(ms)


def milliseconds(launch: Callable[[], None], inner: int) -> tuple[float, float]:
    """Median over 15 replays, and the spread of the middle half over it."""
    for _ in range(inner):
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            launch()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / inner)
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, (high - low) / middle


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, size: float = 0.02) -> Tensor:
    return (torch.randn(shape, device="cuda", dtype=dtype)).mul_(size)


def rotate(items: list[Any]) -> Callable[[], Any]:
    """A function that gives the items in turn."""
    state = {"next": 0}

    def following() -> Any:
        state["next"] += 1
        return items[state["next"] % len(items)]

    return following


# ---- checks


def check_case(case: Case) -> None:
    wrong = [str(one) for one in case.run(torch.device("cuda")) if not one.ok]
    assert not wrong, wrong


def check_all(bench: Bench) -> None:
    for case in kernel_cases(gpu=True):
        bench.check(str(case), lambda case=case: check_case(case))
    bench.check("refusals", tests.test_what_the_quantiser_cannot_take_is_refused)
    bench.check("quantiser, a real matrix", check_real_matrix)
    bench.check("adamw, tiles", tests.test_programs_and_tiles_change_no_bit)
    bench.check("adamw, NaN", lambda: tests.test_a_gradient_that_is_not_finite_steps_nothing(float("nan")))
    bench.check("adamw, a real matrix", lambda: check_real_adamw(adamw.ADAMW))
    bench.check("adamw, a real matrix, exact", lambda: check_real_adamw(replace(adamw.ADAMW, exact=True)))
    bench.check("adamw, NVFP4 m, a real matrix", lambda: check_real_adamw(adamw.ADAMW, m="nvfp4"))
    bench.check("adamw, again gives the same bits", check_repeats)


def check_real_matrix() -> str:
    """[9728, 2560] BF16 against the CPU's bits."""
    weight = random((9728, 2560))
    scale = on_gpu.global_scale([weight])
    expected = codec.fake_quantise(weight.cpu().float(), codec.shared_global_scale([weight.cpu()], "w")).bfloat16()
    assert torch.equal(on_gpu.fake_quantise(weight, scale).cpu().view(torch.int16), expected.view(torch.int16))
    packed, scales = on_gpu.quantise(weight, scale)
    assert torch.equal(on_gpu.dequantise(packed, scales, scale).cpu().view(torch.int16), expected.view(torch.int16))
    return "equal bits"


def check_real_adamw(tuning: adamw.Tuning, **modes: Any) -> str:
    """[2560, 4096] against the twin: the shares of what differs."""
    case = twins.make_case((2560, 4096), clip=None if tuning.exact else 1.0, **modes)
    grad = (torch.randn(2560, 4096, generator=torch.Generator().manual_seed(1)) * 1e-3).bfloat16()
    found = twins.compare(case, grad, "cuda", tuning)
    if tuning.exact:
        assert not any(share for part, share in found.items() if part.endswith("differ")), found
    assert all(
        apart <= 1 for part, apart in found.items() if part.endswith("0 apart") and "nvfp4" not in modes.values()
    )
    assert found["weight differ"] < 1e-2, found
    return str({part: float(f"{share:.2g}") for part, share in found.items() if share})


def check_repeats() -> str:
    case = twins.make_case((2560, 1024), clip=1.0)
    grad = random((2560, 1024), size=1e-3)
    results = []
    for _ in range(2):
        one = One((2560, 1024), "int8", case)
        for _ in range(3):
            one.step(grad, adamw.ADAMW)
        results.append([one.tensors.weight, *one.tensors.m, *one.tensors.v, one.sums])
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(*results, strict=True))
    return "equal bits"


# ---- timings


class One:
    """A tensor with random weights and moments on the GPU, ready to be stepped."""

    numbers: Tensor | None = None
    squares: Tensor | None = None

    def __init__(
        self, shape: tuple[int, int], m: str, case: twins.Case | None = None, clip: float | None = None
    ) -> None:
        self.shape = shape
        columns = shape[1]
        if shape[0] == 1 and case is None:
            self.modes = adamw.Modes("fp32", "fp32", "fp32", 16, 16)
            weight, moments = random(shape, torch.float32), [(random(shape, torch.float32),) for _ in range(2)]
            moments[1][0].square_()
        else:
            self.modes = adamw.Modes("bf16", m, "uint8", block_width(columns), segment_width(columns))
            weight, moments = random(shape), [self.moment(m), self.moment("uint8")]
        self.tensors = adamw.Tensors(weight, *moments, None)
        if case is not None:
            self.tensors, self.modes = case.tensors("cuda"), case.modes
        self.settings = adamw.Settings(0.9, 0.95, 1e-8, 0.0, 0.0, clip, 1.0, (123456789, 3987654321))
        self.sums = torch.zeros(8, 1, device="cuda")
        if One.numbers is None:
            One.numbers = adamw.numbers_of(1e-5, 3, (0.9, 0.95), 4.0).cuda()
            One.squares = torch.zeros(adamw.NORM_PROGRAMS, device="cuda")

    def moment(self, kind: str) -> tuple[Tensor, ...]:
        rows, columns = self.shape
        if kind == "nvfp4":
            return (
                torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda"),
                torch.full((rows, columns // 16), 8.0, device="cuda").to(torch.float8_e4m3fn),
                torch.full((rows, columns // segment_width(columns)), 1e-5, device="cuda"),
            )
        low, high, dtype = (-127, 128, torch.int8) if kind == "int8" else (1, 256, torch.uint8)
        scales = torch.full((rows, columns // block_width(columns)), 1e-5, device="cuda")
        return torch.randint(low, high, self.shape, dtype=dtype, device="cuda"), scales

    def step(self, grad: Tensor, tuning: adamw.Tuning, norm: bool = False) -> None:
        assert One.numbers is not None and One.squares is not None
        wanted = adamw.programs(grad.numel(), tuning)
        if self.sums.shape[1] != wanted:
            self.sums = torch.zeros(8, wanted, device="cuda")
        squares = adamw.sum_squares(grad, One.squares) if norm else One.squares
        adamw.step(self.tensors, grad, self.modes, self.settings, One.numbers, squares, self.sums, tuning)

    def moved(self) -> float:
        """Bytes that one step must read and write."""
        held = sum(t.nbytes for t in (self.tensors.weight, *self.tensors.m, *self.tensors.v))
        return 2 * held + self.tensors.weight.numel() * self.tensors.weight.element_size()


def time_copy(bench: Bench) -> None:
    source, target = random((1 << 29,)), torch.empty(1 << 29, device="cuda", dtype=torch.bfloat16)
    ms = bench.time("copy of 1 GiB", 2 * source.nbytes, lambda: target.copy_(source))
    bench.copy = 2 * source.nbytes / ms / 1e6
    bench.rows[-1]["share"] = 1.0


def time_quantiser(bench: Bench) -> None:
    for shape, count, inner in (((9728, 2560), 4, 12), ((1024, 2560), 40, 40), (EMBEDDING, 1, 1)):
        weights = rotate([random(shape) for _ in range(count)])
        scale = on_gpu.global_scale([weights()])
        out = rotate([torch.empty(shape, device="cuda", dtype=torch.bfloat16) for _ in range(count)])
        elements = shape[0] * shape[1]
        bench.time(f"copy {shape}", 4 * elements, lambda w=weights, o=out: o().copy_(w()), inner)
        for tile, warps in ((1024, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8)):
            tuning = on_gpu.Tuning(tile, warps)

            kept: deque[Tensor] = deque(maxlen=count)  # else each result would lie where the last one did, in the cache

            def launch(weights: Any = weights, scale: Tensor = scale, tuning: Any = tuning, kept: Any = kept) -> None:
                kept.append(on_gpu.fake_quantise(weights(), scale, tuning=tuning))

            bench.time(f"fake-quantise {shape} tile {tile} warps {warps}", 4 * elements, launch, inner)
        bench.time(f"amax and scale {shape}", 2 * elements, lambda w=weights: on_gpu.global_scale([w()]), inner)
        for tile, warps in ((1024, 4), (2048, 4), (4096, 8)):
            tuning = on_gpu.Tuning(tile, warps)
            bench.time(
                f"quantise {shape} tile {tile} warps {warps}",
                2.5625 * elements,
                lambda w=weights, s=scale, t=tuning: on_gpu.quantise(w(), s, tuning=t),
                inner,
            )
            packed, scales = on_gpu.quantise(weights(), scale)
            bench.time(
                f"dequantise {shape} tile {tile} warps {warps}",
                2.5625 * elements,
                lambda p=packed, e=scales, s=scale, t=tuning: on_gpu.dequantise(p, e, s, tuning=t),
                inner,
            )
        bench.time(
            f"fake-quantise four-over-six {shape}",
            4 * elements,
            lambda w=weights, s=scale: on_gpu.fake_quantise(w(), s, block_scales="four-over-six"),
            inner,
        )


def tunings() -> Iterator[adamw.Tuning]:
    several = 1 << 30
    for tile, warps in ((1024, 4), (2048, 8), (512, 2), (1024, 2), (2048, 4), (4096, 8)):
        for programs in (132 * 6, 132 * 12, 132 * 24, several):
            yield adamw.Tuning(tile, warps, programs)
    for stages in (2, 3):
        for tile, warps, per in ((1024, 4, 6), (2048, 8, 3), (2048, 4, 3)):
            yield adamw.Tuning(tile, warps, 132 * per, stages)
    for tile, warps, per, registers in ((2048, 4, 4, 128), (2048, 4, 5, 96), (1024, 2, 8, 128), (1024, 2, 10, 96)):
        yield adamw.Tuning(tile, warps, 132 * per, registers=registers)
    yield adamw.Tuning(1024, 4, 132 * 12, 1, True)


NVFP4_TUNINGS = [
    *(adamw.Tuning(tile, warps, 132 * 12) for tile, warps in ((1024, 4), (2048, 8), (1024, 2), (2048, 4))),
    *(one for one in tunings() if one.registers),
]


def time_adamw(bench: Bench) -> adamw.Tuning:
    """Variants on one matrix larger than the cache; returns the fastest that is not exact."""
    best = (float("inf"), adamw.ADAMW)
    for m in ("int8", "nvfp4"):
        ones = rotate([One((9728, 2560), m) for _ in range(3)])
        grads = rotate([random((9728, 2560), size=1e-3) for _ in range(3)])
        moved = ones().moved()
        for tuning in tunings():
            if m == "nvfp4" and tuning not in NVFP4_TUNINGS:
                continue
            ms = bench.time(
                f"adamw {m} {tuning.tile}x{tuning.warps} programs {tuning.programs} stages {tuning.stages}"
                f"{f' registers {tuning.registers}' if tuning.registers else ''}{' exact' if tuning.exact else ''}",
                moved,
                lambda o=ones, g=grads, t=tuning: o().step(g(), t),
                6,
                tuning=asdict(tuning),
            )
            if m == "int8" and not tuning.exact and ms < best[0]:
                best = (ms, tuning)
    bench.time(
        "sum of squares (9728, 2560)",
        2 * 9728 * 2560,
        lambda: adamw.sum_squares(grads(), torch.empty(adamw.NORM_PROGRAMS, device="cuda")),
        6,
    )
    return best[1]


def time_whole(bench: Bench, best: adamw.Tuning) -> None:
    """All tensors of Qwen3-4B in one graph. Gradients of one shape share memory, which is larger than the cache."""
    for m in ("int8", "nvfp4"):
        ones = [One(shape, m, clip=1.0) for shape in shapes()]
        grads = {}
        for one in ones:
            if one.shape not in grads:
                dtype = torch.float32 if one.shape[0] == 1 else torch.bfloat16
                grads[one.shape] = rotate(
                    [random(one.shape, dtype, 1e-3) for _ in range(1 if one.shape[0] > 1e5 else 3)]
                )
        parameters = sum(one.tensors.weight.numel() for one in ones)
        moved = sum(one.moved() for one in ones)
        for name, tuning, norm in (
            ("", best, False),
            (", default tuning", adamw.ADAMW, False),
            (", with each gradient's norm", best, True),
        ):
            for one in ones:
                one.settings = replace(one.settings, clip=1.0 if norm else None)

            def launch(ones: Any = ones, grads: Any = grads, tuning: Any = tuning, norm: bool = norm) -> None:
                for one in ones:
                    one.step(grads[one.shape](), tuning, norm)

            bench.time(f"adamw {m}, all {parameters / 1e9:.3f} B parameters{name}", moved, launch)
        if m == "int8":
            time_whole_quantiser(bench, [one.tensors.weight for one in ones if one.shape[0] not in (1, EMBEDDING[0])])
        del ones, grads
        torch.cuda.empty_cache()


def time_whole_quantiser(bench: Bench, weights: list[Tensor]) -> None:
    """All projections: their scales (each tensor alone), then their quantised values."""
    elements = sum(weight.numel() for weight in weights)
    scale = on_gpu.global_scale(weights[:1])

    def quantise() -> None:
        for weight in weights:
            on_gpu.fake_quantise(weight, scale)

    def scales() -> None:
        for weight in weights:
            on_gpu.global_scale([weight])

    bench.time(f"fake-quantise, all {elements / 1e9:.3f} B of {len(weights)} projections", 4 * elements, quantise)
    bench.time("their scales", 2 * elements, scales)


TOKENS = 96
PRODUCTS = [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728)]
"""Qwen3-4B's groups that share a scale: q, k and v; o; gate and up; down."""
FORWARD = [
    product.FORWARD, *(product.Tuning(rows, columns, warps, stages, registers, 132 * per)
                       for rows, columns, warps, stages, registers, per in (
        (64, 64, 4, 3, None, 2), (64, 64, 4, 3, 128, 2), (64, 64, 8, 3, None, 3), (128, 64, 8, 3, None, 2),
        (64, 32, 4, 4, None, 3), (64, 64, 4, 2, None, 3))),
]  # fmt: skip
BACKWARD = [
    product.BACKWARD, *(product.Tuning(rows, columns, warps, stages, registers, 132 * per)
                        for rows, columns, warps, stages, registers, per in (
        (32, 128, 8, 4, None, 2), (32, 128, 4, 4, None, 2), (32, 128, 4, 4, 168, 3), (32, 64, 4, 4, None, 4),
        (64, 64, 4, 3, None, 3))),
]  # fmt: skip
GRADIENT = [
    product.GRADIENT, *(product.Tuning(rows, columns, warps, stages, programs=512)
                        for rows, columns, warps, stages in (
        (128, 128, 8, 3), (64, 64, 4, 1), (64, 128, 4, 2), (64, 256, 8, 2))),
]  # fmt: skip


def time_products(bench: Bench) -> None:
    """Products of 96 tokens with each group of weights of a layer, which no cache holds, and gradients of those."""
    scale, squares = torch.full((1,), 16.0, device="cuda"), torch.empty(512, device="cuda")
    for height, width in PRODUCTS:
        count = max(2, 2**28 // (2 * height * width))
        weights = rotate([random((height, width)) for _ in range(count)])
        inputs, outputs = random((TOKENS, width), size=1.0), random((TOKENS, height), size=1.0)
        kinds: list[tuple[str, list[product.Tuning], Callable[[product.Tuning], Any]]] = [
            ("forward", FORWARD, lambda t, x=inputs, w=weights: product.forward(x, w(), scale, tuning=t)),  # type: ignore[misc]
            ("backward", BACKWARD, lambda t, x=outputs, w=weights: product.backward(x, w(), scale, tuning=t)),  # type: ignore[misc]
            ("gradient", GRADIENT, lambda t, y=outputs, x=inputs: product.gradient(y, x, squares, t)),  # type: ignore[misc]
        ]
        for kind, tunings, launch in kinds:
            for tuning in tunings:
                bench.time(
                    f"{kind} {TOKENS} x ({height}, {width}) {tuning.rows}x{tuning.columns} warps {tuning.warps} stages "
                    f"{tuning.stages} registers {tuning.registers} programs {tuning.programs}",
                    2 * height * width,
                    lambda launch=launch, t=tuning: launch(t),  # type: ignore[misc]
                    count,
                    tuning=asdict(tuning),
                )


def time_elementwise(bench: Bench) -> None:
    """Kernels beside what torch compiles, for 8 rows of 512 tokens of Qwen3-4B, and their bytes."""
    tokens, hidden, mlp, queries, keys, size, labels, chunk = 4096, 2560, 9728, 32, 8, 128, 2048, 16384
    x, grad, residual = (rotate([random((tokens, hidden), size=1.0) for _ in range(3)]) for _ in range(3))
    qkv = rotate([random((8, 512, queries + 2 * keys, size), size=1.0) for _ in range(3)])
    to_heads = [random((8, 512, heads, size), size=1.0) for heads in (queries, keys, keys)]
    gain, head_gain = torch.ones(hidden, device="cuda"), torch.ones(size, device="cuda")
    angles = [random((512, size), torch.float32, 1.0) for _ in range(2)]
    gate_up = rotate([random((tokens, 2 * mlp), size=1.0) for _ in range(2)])
    to_active = rotate([random((tokens, mlp), size=1.0) for _ in range(2)])
    logits = rotate([random((labels, chunk), size=1.0) for _ in range(3)])
    ids = torch.randint(0, EMBEDDING[0], (labels,), device="cuda")
    row = random((labels,), torch.float32, 1.0) + 10
    gains = head_gain, head_gain
    parts: dict[str, tuple[float, Callable[[], tuple[Any, ...]]]] = {
        "joined_norm_backward": (8 * tokens * hidden, lambda: (x(), gain, 1e-6, grad(), residual())),
        "heads": (4 * tokens * (queries + keys) * size, lambda: (qkv(), *gains, *angles, queries, keys, 1e-6)),
        "heads_backward": (
            4 * tokens * (queries + keys) * size + 2 * tokens * (queries + 3 * keys) * size,
            lambda: (qkv(), *gains, *angles, 1e-6, *to_heads),
        ),
        "swiglu_backward": (12 * tokens * mlp, lambda: (gate_up(), to_active())),
        "logit_slopes": (4 * labels * chunk, lambda: (logits(), ids, 2 * chunk, row, row)),
    }
    for name, (moved, arguments) in parts.items():
        for words, function in (
            ("compiled", torch.compile(getattr(elementwise, name))),
            ("kernel", getattr(fast, name)),
        ):
            bench.time(f"{name}, {words}", moved, lambda f=function, a=arguments: f(*a()), 6)  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0, help="no new variant is begun after this long")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_kernels: torch finds no CUDA device; expected one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    assert kernels.run_on(torch.device("cuda"))
    torch.manual_seed(0)
    bench = Bench(arguments.seconds)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    print(about, flush=True)
    try:
        bench.attempt("copy", lambda: time_copy(bench))
        bench.attempt("checks", lambda: check_all(bench))
        best = bench.attempt("adamw", lambda: time_adamw(bench)) or adamw.ADAMW
        torch.cuda.empty_cache()
        bench.attempt("whole", lambda: time_whole(bench, best))
        about["best"] = str(best)
        bench.attempt("products", lambda: time_products(bench))
        bench.attempt("elementwise", lambda: time_elementwise(bench))
        bench.attempt("quantiser", lambda: time_quantiser(bench))
    finally:
        report = {
            **about,
            "copy_gb_s": bench.copy,
            "failures": bench.failures,
            "skipped": bench.skipped,
            "rows": bench.rows,
        }
        (arguments.out / "gpu_kernels.json").write_text(json.dumps(report, indent=1))
    whole = [row for row in bench.rows if "all " in row["name"] or "scales" in row["name"]]
    print(f"\ncopy {bench.copy:.0f} GB/s; best tuning {about.get('best')}")
    for row in whole:
        print(f"{row['name']:70s} {row['ms']:9.3f} ms {row['share']:6.1%} of copy bandwidth")
    print(f"{len(bench.failures)} failures: {bench.failures}; {bench.skipped} skipped for want of time")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
