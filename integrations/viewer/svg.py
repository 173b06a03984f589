"""Plots as inline SVG. Colours are CSS classes, so that a page can be light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from .curves import Point

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34
COLOURS = 7  # arms beyond are dashed: the same colours again

Limits = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve of the arm `number`; a thick one is a mean."""

    number: int
    label: str
    points: Sequence[Point]
    thick: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values on a stretch of the picture, from `start` to `end` in its units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies."""
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        value = math.log10(value) if self.log else value
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int, whole: bool = False) -> list[float]:
        """Round values in the range, about `most`; `whole`: no fractions."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        if self.log and self.high / self.low >= 10:
            between = (1.0, 2.0, 5.0) if self.high / self.low < 200 else (1.0,)
            found = LogLocator(subs=between, numticks=most).tick_values(self.low, self.high)
        else:
            locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole)
            found = locator.tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(v) for v in found if self.low - slack <= v <= self.high + slack]


def css(number: int) -> str:
    """The classes of an arm: its colour, and its dashes where colours are used again."""
    return f"a{number % COLOURS} d{number // COLOURS % 3}"


def widen(low: float, high: float, log: bool = False) -> Limits:
    """Limits with some room; a single value gets a range of its own size."""
    if log:
        return low / 1.2, high * 1.2
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _labels(values: Sequence[float]) -> list[str]:
    """Ticks with as many digits as tell them apart."""
    step = min((abs(b - a) for a, b in pairwise(values)), default=1.0)
    texts = []
    for value in values:
        value = 0.0 if abs(value) < 1e-6 * step else value
        digits = math.ceil(math.log10(abs(value) / step)) + 2 if value else 1
        texts.append(f"{value:.{max(3, digits)}g}".replace("-", "−"))
    return texts


def _frame(x: Axis, y: Axis, x_label: str, y_label: str = "") -> list[str]:
    """Grid, ticks and axis labels."""
    parts = []
    xs, ys = x.ticks(6, whole=x_label == "step"), y.ticks(5)
    for value, text in zip(ys, _labels(ys), strict=True):
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{x.end:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in zip(xs, _labels(xs), strict=True):
        parts.append(
            f'<text x="{x.at(value):.1f}" y="{y.start + 15:g}" text-anchor="middle">{text}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{x.end:g}" y1="{y.start:g}" y2="{y.start:g}"/>'
    )
    middle = (x.start + x.end) / 2
    text = escape(x_label)
    parts.append(f'<text x="{middle:g}" y="{HEIGHT - 4}" text-anchor="middle">{text}</text>')
    if y_label:
        parts.append(f'<text x="{LEFT + 4}" y="{TOP + 9}">{escape(y_label)}</text>')
    return parts


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)


def _curve(line: Line, x: Axis, y: Axis) -> str:
    kind = "mean" if line.thick else "run"
    label = escape(line.label, quote=True)
    given = f'data-arm="{line.number}"'
    if len(line.points) == 1:
        (a, b), size = line.points[0], 4 if line.thick else 2.5
        return (
            f'<circle class="{css(line.number)} {kind} dot" {given} cx="{x.at(a):.1f}" '
            f'cy="{y.at(b):.1f}" r="{size}"><title>{label}</title></circle>'
        )
    return (
        f'<polyline class="{css(line.number)} {kind}" {given} data-label="{label}" '
        f'points="{_path(line.points, x, y)}"><title>{label}</title></polyline>'
    )


def line_plot(
    lines: Sequence[Line],
    label: str,
    limits: Limits | None = None,
    log: bool = False,
    x_label: str = "step",
    y_label: str = "",
    follow: bool = True,
) -> Markup:
    """Curves over steps; thick ones lie on top. `label` is read out in place of the picture.

    `limits`: of the values, else what they need. `follow`: whether the page shows the means where
    the pointer is. ValueError for no point at all.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError("nothing to plot: leave the panel out")
    values = [p[1] for p in points]
    low, high = limits or widen(min(values), max(values), log)
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    if x_low == x_high or not follow:
        x_low, x_high = widen(x_low, x_high)
    x = Axis(x_low, x_high, LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    parts = _frame(x, y, x_label, y_label)
    parts += [_curve(line, x, y) for line in sorted(lines, key=lambda line: line.thick)]
    if not follow:  # a path has a direction: mark its end
        parts += [_end(line, x, y) for line in lines if line.thick and len(line.points) > 1]
    facts = f'data-x="{x_low:g} {x_high:g}" data-y="{low:g} {high:g}" data-log="{int(log)}"'
    facts = f'{facts} tabindex="0"' if follow else ""
    return _svg(parts, label, facts)


def _end(line: Line, x: Axis, y: Axis) -> str:
    a, b = line.points[-1]
    return (
        f'<circle class="{css(line.number)} mean dot" data-arm="{line.number}" '
        f'cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4"/>'
    )


def _svg(parts: Sequence[str], label: str, facts: str = "", height: float = HEIGHT) -> Markup:
    text = escape(label, quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{text}" {facts}>'
    box = f'data-box="{LEFT} {WIDTH - RIGHT} {HEIGHT - BOTTOM} {TOP}"'
    head = head.replace("<svg", f"<svg {box}", 1) if facts else head
    return Markup(head + "".join(parts) + "</svg>")


def strip(number: int, values: Sequence[float], limits: Limits) -> Markup:
    """One dot per run on a common scale, and a bar at their mean."""
    axis = Axis(*limits, 6, 134)
    mean = sum(values) / len(values)
    parts = ['<line class="axis" x1="4" x2="136" y1="18" y2="18"/>']
    parts += [
        f'<circle class="{css(number)} dot" cx="{axis.at(v):.1f}" cy="10" r="3.5"/>' for v in values
    ]
    at = axis.at(mean)
    parts.append(f'<line class="{css(number)} bar" x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="18"/>')
    label = "runs: " + ", ".join(f"{v:.3g}" for v in values)
    head = f'<svg class="strip" viewBox="0 0 140 20" role="img" aria-label="{label}">'
    return Markup(head + f"<title>{label}</title>" + "".join(parts) + "</svg>")


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, of an arm in a category; number None: the start policy."""

    number: int | None
    label: str
    category: str
    mean: float
    low: float
    high: float


def interval_plot(items: Sequence[Interval], label: str, limits: Limits | None = None) -> Markup:
    """Means with intervals, side by side within each category."""
    categories = list(dict.fromkeys(item.category for item in items))
    series = list(dict.fromkeys((item.number, item.label) for item in items))
    low, high = limits or widen(min(i.low for i in items), max(i.high for i in items))
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - RIGHT - LEFT) / len(categories)
    # names that would touch are put on two levels
    wide = any(7 * min(len(category), 14) > slot for category in categories)
    parts = []
    ticks = y.ticks(5)
    for value, text in zip(ticks, _labels(ticks), strict=True):
        at = y.at(value)
        end = WIDTH - RIGHT
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for place, category in enumerate(categories):
        middle = LEFT + (place + 0.5) * slot
        text = escape(category if len(category) <= 14 else category[:13] + "…")
        y_at = HEIGHT - BOTTOM + (28 if wide and place % 2 else 15)
        parts.append(f'<text x="{middle:.1f}" y="{y_at}" text-anchor="middle">{text}</text>')
    for item in items:
        offset = (series.index((item.number, item.label)) + 0.5) / len(series) - 0.5
        at = LEFT + (categories.index(item.category) + 0.5 + 0.8 * offset) * slot
        look = "base" if item.number is None else css(item.number)
        given = "" if item.number is None else f'data-arm="{item.number}"'
        title = (
            f"{item.label}, {item.category}: {item.mean:.3g} ({item.low:.3g} to {item.high:.3g})"
        )
        parts.append(
            f'<g class="{look}" {given}><title>{escape(title)}</title><line class="bar" '
            f'x1="{at:.1f}" x2="{at:.1f}" y1="{y.at(item.low):.1f}" y2="{y.at(item.high):.1f}"/>'
            f'<circle class="dot" cx="{at:.1f}" cy="{y.at(item.mean):.1f}" r="4"/></g>'
        )
    return _svg(parts, label)
