"""Small SVG drawings by hand: a few hundred bytes each, text as text, colours from the page's CSS. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
MOST_POINTS = 240
CELL = 14
"""Spots as near as this have their names side by side."""


@dataclass(frozen=True)
class Line:
    """A line of (x, y); gaps where y is not finite."""

    name: str
    points: Sequence[tuple[float, float]]


def thinned(
    points: Sequence[tuple[float, float]], pick: Callable[[Iterable[float]], float], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """At most `most` points: each is the x of its bin's end and `pick` of the bin's y (max keeps peaks)."""
    size = math.ceil(len(points) / most) if points else 1
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], pick(y for _, y in group)) for group in bins]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that span [low, high]."""
    size = max(abs(low), abs(high))
    if high - low <= max(1e-12 * size, 1e-30):  # a flat curve: any range will do
        high = low + max(1.0, 1e-6 * size)
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def line_chart(
    lines: Sequence[Line], title: str, x_label: str, limit: float | None = None, limit_words: str = "limit"
) -> Markup:
    """A chart of lines from y = 0 up, with an optional dashed limit.

    Args:
        title: the whole chart in words, for those who do not see it.
        limit: drawn, and always in range.
        limit_words: what stands at it.
    """
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
    xs, ys = [x for x, _ in finite] or [0.0], [y for _, y in finite] or [0.0]
    y_ticks = nice_ticks(min(0.0, *ys), max([*ys, *([limit] if limit is not None else [])]))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    place = _placed((x_low, x_high), (y_ticks[0], y_ticks[-1]))
    parts = [_grid(y_ticks, place, x_low), _x_axis(x_low, x_high, place, y_ticks[0], x_label)]
    if limit is not None:
        parts.append(_limit_line(limit, place, x_low, x_high, limit_words))
    parts += [_path(line, place, i) for i, line in enumerate(lines)]
    return _chart(title, parts)


def _chart(title: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


_Place = Callable[[float, float], tuple[float, float]]


def _placed(across: tuple[float, float], up: tuple[float, float]) -> _Place:
    """Where values of these ranges lie in the frame."""

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - across[0]) / (across[1] - across[0])
        high = (y - up[0]) / (up[1] - up[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - high * (HEIGHT - TOP - BOTTOM)

    return place


@dataclass(frozen=True)
class Spot:
    """A point of a plot. `good`: whether it passed."""

    name: str
    x: float
    y: float
    good: bool


def plot(
    spots: Sequence[Spot],
    title: str,
    labels: tuple[str, str],
    limits: tuple[Sequence[float], Sequence[float]],
) -> Markup:
    """Points from 0 up, with the limits of x and of y as dashed lines. Points in one place share their names.

    Args:
        title: the whole plot in words, for those who do not see it.
        labels: of the axes, x and y.
    """
    x_ticks = nice_ticks(0.0, max([*(s.x for s in spots), *limits[0]], default=1.0))
    y_ticks = nice_ticks(0.0, max([*(s.y for s in spots), *limits[1]], default=1.0))
    low, high = (min(x_ticks[0], *(s.x for s in spots)), x_ticks[-1]) if spots else (x_ticks[0], x_ticks[-1])
    place = _placed((low, high), (min(y_ticks[0], *(s.y for s in spots)) if spots else y_ticks[0], y_ticks[-1]))
    parts = [_grid(y_ticks, place, low), _x_axis(low, high, place, y_ticks[0], labels[0])]
    parts.append(Markup('<text class="tick" x="{}" y="8">{}</text>').format(LEFT, labels[1]))
    parts += [_level(limit, place, low, high) for limit in limits[1]]
    parts += [_upright(limit, place, y_ticks[0], y_ticks[-1]) for limit in limits[0]]
    names: dict[tuple[int, int], list[str]] = {}
    at: dict[tuple[int, int], tuple[float, float]] = {}
    for spot in spots:
        x, y = place(spot.x, spot.y)
        mood = "good" if spot.good else "bad"
        shape = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>')
        parts.append(shape.format(mood, x, y, spot.name))
        cell = round(x / CELL), round(y / CELL)
        at.setdefault(cell, (x, y))
        names.setdefault(cell, []).append(spot.name)
    parts += [_named(*at[cell], ", ".join(found)) for cell, found in names.items()]
    return _chart(title, parts)


def _named(x: float, y: float, text: str) -> Markup:
    """A text beside a spot, towards the middle of the plot."""
    side, x = ("end", x - 6) if x > WIDTH / 2 else ("", x + 6)
    y += -4 if y > HEIGHT / 2 else 10
    return Markup('<text class="strong {}" x="{:.1f}" y="{:.1f}">{}</text>').format(side, x, y, text)


def _upright(limit: float, place: _Place, low: float, high: float) -> Markup:
    (x, bottom), (_, top) = place(limit, low), place(limit, high)
    return Markup('<path class="limit" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, bottom, top)


def _grid(ticks: Sequence[float], place: _Place, x: float) -> Markup:
    out = Markup("")
    for tick in ticks:
        _, y = place(x, tick)
        out += Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
        out += Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, y + 3.5, _label(tick))
    return out


def _x_axis(low: float, high: float, place: _Place, y: float, label: str) -> Markup:
    out = Markup("")
    inner = [t for t in nice_ticks(low, high) if low <= t <= high]
    for tick in inner:
        x, bottom = place(tick, y)
        out += Markup('<text class="tick mid" x="{:.1f}" y="{:.1f}">{}</text>').format(x, bottom + 14, _label(tick))
    return out + Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, HEIGHT - 4, label)


def _limit_line(limit: float, place: _Place, low: float, high: float, words: str) -> Markup:
    left, y = place(low, limit)
    text = Markup('<text class="tick limit-text" x="{:.1f}" y="{:.1f}">{}</text>').format(left + 4, y - 3, words)
    return _level(limit, place, low, high) + text


def _level(limit: float, place: _Place, low: float, high: float) -> Markup:
    (left, y), (right, _) = place(low, limit), place(high, limit)
    return Markup('<path class="limit" d="M{:.1f} {:.1f}H{:.1f}"/>').format(left, y, right)


def _path(line: Line, place: _Place, index: int) -> Markup:
    """The line as one path that is lifted over gaps; a lone point becomes a dot."""
    commands, pen, spots = [], "M", [(x, y) for x, y in line.points]
    for x, y in spots:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        commands.append("{}{:.1f} {:.1f}".format(pen, *place(x, y)))
        pen = "L"
    if len(commands) == 1:
        commands.append("h0.01")
    return Markup('<path class="line s{}" d="{}"><title>{}</title></path>').format(index, "".join(commands), line.name)


def strip(
    value: float,
    low: float | None,
    high: float | None,
    limit: float | None,
    scale: tuple[float, float],
    good: bool | None,
) -> Markup:
    """A value on a line over `scale` (from, to) with its interval and, as an upright stroke, its limit."""
    width, middle = 150, 9

    def at(x: float) -> str:
        place = (x - scale[0]) / (scale[1] - scale[0])
        return f"{4 + (width - 8) * min(max(place, 0.0), 1.0):.1f}"

    out = Markup('<path class="grid" d="M4 {}H{}"/>').format(middle, width - 4)
    if limit is not None:
        out += Markup('<path class="limit" d="M{} 1V17"/>').format(at(limit))
    if low is not None and high is not None:
        out += Markup('<path class="whisker" d="M{} {}H{}"/>').format(at(low), middle, at(high))
    mood = {None: "", True: " good", False: " bad"}[good]
    out += Markup('<circle class="dot{}" cx="{}" cy="{}" r="3.5"/>').format(mood, at(value), middle)
    return Markup('<svg class="strip" viewBox="0 0 {} 18" aria-hidden="true">{}</svg>').format(width, out)
