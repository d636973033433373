"""Tables and drawings of the documents, from what benchmarks/masters_states.py measured.

    python benchmarks/masters_report.py         # writes docs/*.svg and the tables between the documents' markers

A rate is the mean over the seeds, with the range after it where there is one. largest |u| is the largest of all seeds;
all other numbers are means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fgod.system.table import read_texts

FOLDER = Path(__file__).parent
LINES, STEPS = FOLDER / "masters_states.tsv", FOLDER / "masters_states_steps.tsv"
DOCUMENTS = FOLDER.parent / "docs"
DOCUMENT = {"rates": "why-runs-failed.md", "second": "why-runs-failed.md", "whole": "why-runs-failed.md",
            "formats": "training.md", "shipped": "training.md"}  # fmt: skip
"""Of each table."""
KEYS = ("master", "m", "v", "clip", "lr", "eps", "l2_sp", "steps")
PLAIN = {"eps": "1e-08", "l2_sp": "0.0", "steps": "120"}

Row = dict[str, str]
Group = list[Row]
"""One variant's lines, a seed each."""


def groups(rows: Iterable[Row]) -> list[Group]:
    """By variant, in the order of the first seed."""
    out: dict[tuple[str, ...], Group] = {}
    for row in rows:
        out.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    return list(out.values())


def chosen(found: list[Group], **wanted: str) -> list[Group]:
    return [group for group in found if all(group[0][key] == value for key, value in wanted.items())]


# -------------------------------------------------------------------------------------------------------------- tables


def values(group: Group, column: str) -> list[float]:
    return [float(row[column]) for row in group if row[column]]


def rate(group: Group, column: str) -> str:
    """`.85 (.82 to .89)`"""
    found = [f"{value:.2f}" for value in (mean(values(group, column)), *extremes(values(group, column)))]
    middle, low, high = (text.removeprefix("0") if text.startswith("0.") else text for text in found)
    return middle if low == high else f"{middle} ({low} to {high})"


def number(group: Group, column: str) -> str:
    """`0.037`, `1.7·10⁴`; the mean."""
    return plain(mean(values(group, column)))


def largest(group: Group, column: str) -> str:
    return plain(max(values(group, column)))


def plain(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    power = math.floor(math.log10(abs(value)))
    return f"{value / 10**power:.1f}·10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def precise(group: Group, column: str) -> str:
    return f"{mean(values(group, column)):.3f}"


def seconds(group: Group, column: str) -> str:
    return f"{mean(values(group, column)):.0f}"


def text(group: Group, column: str) -> str:
    return {"None": "none"}.get(group[0][column], group[0][column])


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def extremes(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


Column = tuple[str, Callable[[Group, str], str], str]
RESULTS: tuple[Column, ...] = (
    ("identity", rate, "identity_rate"),
    ("disambiguation", rate, "disambiguation_rate"),
    ("retention", rate, "retention"),
    ("KL", number, "kl_reference"),
)
LANDING: tuple[Column, ...] = (("efficiency", number, "efficiency"), ("noise", number, "noise"))
COST: tuple[Column, ...] = (("bytes a parameter", precise, "bytes_per_parameter"), ("CPU s", seconds, "cpu_seconds"))
LARGEST: Column = ("largest \\|u\\|", largest, "largest_update")
FORMATS: tuple[Column, ...] = (("master", text, "master"), ("m", text, "m"), ("v", text, "v"))


def table(found: list[Group], columns: Sequence[Column]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(head for head, _, _ in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(group, column) for _, cell, column in columns) + " |" for group in found]
    return "\n".join(lines)


def tables(found: list[Group]) -> dict[str, str]:
    """By the name of its markers in the document."""
    rates = chosen(found, m="fp32", v="fp32", eps="1e-08")
    rates.sort(key=lambda g: (int(g[0]["steps"]), float(g[0]["lr"])))
    wide = [g for g in chosen(found, lr="0.0005", clip="4.0", **PLAIN) if "linear" not in g[0]["v"]]
    second = [
        group
        for group in chosen(found, lr="0.0005", master="fp32", **PLAIN)
        if "linear" in group[0]["v"] or group[0]["m"] in ("int8", "fp32")
    ]
    shipped = chosen(found, eps="0.001")
    clip: Column = ("clip", text, "clip")
    loss: Column = ("last loss", number, "last_loss")
    return {
        "rates": table(
            [g for g in rates if g[0]["master"] in ("fp32", "bf16", "bf16-rtn", "nvfp4-rtn")],
            (("steps", text, "steps"), ("lr", text, "lr"), FORMATS[0], *RESULTS, *LANDING),
        ),
        "second": table(second, (*FORMATS[1:], clip, *RESULTS, LARGEST, loss)),
        "whole": table(
            sorted(chosen(found, master="nvfp4-rtn", v="nvfp4-linear"), key=lambda g: float(g[0]["lr"])),
            (("lr", text, "lr"), *RESULTS, LANDING[0], LARGEST, loss),
        ),
        "formats": table(wide, (*FORMATS, *RESULTS, *LANDING, LARGEST, *COST)),
        "shipped": table(shipped, (*FORMATS, *RESULTS, LANDING[0], LARGEST, *COST)),
    }


def fill(name: str, part: str) -> None:
    """Put a table between its markers."""
    path = DOCUMENTS / DOCUMENT[name]
    before = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"{path}: no <!-- {name} --> … <!-- /{name} -->")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{part}\n{found[2]}", before), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ drawings

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 250, 52, 12, 30, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Line:
    """Points (x, y, low, high); the range is drawn where it is one."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Axis:
    label: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 to 1 along the axis."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return [
                (self.low + i * (self.high - self.low) / 4, f"{self.low + i * (self.high - self.low) / 4:g}")
                for i in range(5)
            ]
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [(10.0**power, plain(10.0**power) if -3 <= power <= 3 else f"1e{power}") for power in powers]


def panel(lines: Sequence[Line], title: str, x: Axis, y: Axis, left: float) -> str:
    """A chart as an SVG group."""

    def at(across: float, up: float) -> tuple[float, float]:
        return LEFT + x.place(across) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y.place(up) * (HEIGHT - TOP - BOTTOM)

    out = [f'<g transform="translate({left:g})"><text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for value, words in y.ticks():
        height = at(x.low, value)[1]
        out.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{words}</text>')
    for value, words in x.ticks():
        out.append(
            f'<text x="{at(value, y.low)[0]:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{words}</text>'
        )
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x.label)}</text>')
    for line, colour in zip(lines, COLOURS, strict=False):
        spots = [at(across, up) for across, up, _, _ in line.points]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for across, _, low, high in line.points:
            if high > low:
                (a, b), (_, c) = at(across, low), at(across, high)
                out.append(f'<path d="M{a:.1f} {b:.1f}V{c:.1f}" stroke="{colour}" stroke-width="5" opacity=".35"/>')
    return "".join(out) + "</g>"


def drawing(panels: Sequence[str], names: Sequence[str], words: str) -> str:
    """Panels side by side over a legend."""
    width, height = WIDTH * len(panels), HEIGHT + 22
    legend, left = [], float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        legend.append(f'<path d="M{left:g} {HEIGHT + 8}h18" stroke="{colour}" stroke-width="3"/>')
        legend.append(f'<text x="{left + 24:g}" y="{HEIGHT + 12}">{escape(name)}</text>')
        left += 46 + 6.6 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(words)}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(panels)}{"".join(legend)}</svg>\n'
    )


def learning_rates(found: list[Group]) -> str:
    """Identity and retention by learning rate, for masters that accumulate and those that do not."""
    masters = {"float32 master": "fp32", "NVFP4, packed to nearest every step": "nvfp4-rtn"}

    def lines(column: str) -> list[Line]:
        out = []
        for name, master in masters.items():
            few = chosen(found, master=master, m="fp32", v="fp32", **PLAIN)
            points = [(float(g[0]["lr"]), mean(values(g, column)), *extremes(values(g, column))) for g in few]
            out.append(Line(name, sorted(points)))
        return out

    x, y = Axis("peak learning rate", 8e-5, 1.25e-2, True), Axis("", 0, 1)
    panels = [
        panel(lines(column), title, x, y, i * WIDTH)
        for i, (column, title) in enumerate(
            (("identity_rate", "identity: 你是誰 learned"), ("retention", "retention: the rest kept"))
        )
    ]
    return drawing(panels, list(masters), "Identity and retention by learning rate")


def second_moment(steps: list[Row]) -> str:
    """Largest update and loss, step by step."""
    kinds = {"float32 v": "fp32", "√v in 8 bits": "uint8", "v in 8 bits": "uint8-linear", "v in NVFP4": "nvfp4-linear"}

    def lines(column: str) -> list[Line]:
        out = []
        for name, v in kinds.items():
            clip = "4.0" if v == "fp32" else "None"
            few = [r for r in steps if r["master"] == "fp32" and (r["v"], r["clip"], r["lr"]) == (v, clip, "0.0005")]
            few = [r for r in few if all(r[key] == value for key, value in PLAIN.items()) and r[column]]
            points = [(float(r["step"]), float(r[column])) for r in few]
            out.append(Line(name, [(a, b, b, b) for a, b in points if math.isfinite(b)]))
        return out

    x = Axis("step", 0, 120)
    panels = [
        panel(lines("largest_update"), "largest update, in learning rates", x, Axis("", 0.5, 1e6, True), 0),
        panel(lines("loss"), "training loss", x, Axis("", 0.01, 1e4, True), WIDTH),
    ]
    return drawing(panels, list(kinds), "Largest update and loss by step")


def main() -> None:
    found = groups(read_texts(LINES))
    (DOCUMENTS / "learning-rates.svg").write_text(learning_rates(found), encoding="utf-8")
    (DOCUMENTS / "second-moment.svg").write_text(second_moment(read_texts(STEPS)), encoding="utf-8")
    for name, part in tables(found).items():
        fill(name, part)


if __name__ == "__main__":
    main()
