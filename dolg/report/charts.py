"""Line charts and small bars as SVG, which show without JavaScript; colours and dashes are of page.css."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from dolg.report.curves import LEVELS, Distribution, mean_curve
from dolg.report.results import Method
from dolg.report.training import TrainingLog

WIDTH, HEIGHT = 320, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 8, 34      # margins of a line chart
_BAR, _BARS_HEIGHT = 20, 44                      # of a distribution


@dataclass(frozen=True)
class Line:
    """Points (x, y) of one series; `style` is its number, which sets colour and dashes."""

    points: Sequence[tuple[float, float]]
    style: int
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a label and the values that are written beside it."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


_PERCENT = [0, 0.2, 0.4, 0.6, 0.8, 1]


def precision_recall(methods: Sequence[Method], protocol: str) -> Markup | None:
    """Interpolated mean precision of all methods; None where no result has the places it needs."""
    curves = [mean_curve(method.ranks(protocol), method.aps(protocol)) for method in methods]
    lines = [Line(list(zip(LEVELS.tolist(), curve.tolist())), number)
             for number, curve in enumerate(curves) if curve is not None]
    if not lines:
        return None
    return line_chart(lines, Axis("recall, %", 0, 1, _PERCENT), Axis("precision, %", 0, 1, _PERCENT),
                      f"Precision by recall, {protocol}", scale=100)


def training_chart(logs: Sequence[TrainingLog], figure: str) -> Markup:
    """A figure of all trainings by epoch; what is measured on other images than the training's is
    dashed."""
    lines = [Line(points, number, dashed=where != "train") for number, log in enumerate(logs)
             for where, points in log.figures.get(figure, {}).items()]
    epochs = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    return line_chart(lines, _axis("epoch", epochs, whole=True), _axis("", values), f"{figure} by epoch")


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, title: str, scale: float = 1) -> Markup:
    """An SVG chart; `scale` multiplies what is written beside the axes."""
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place(px: float, py: float) -> tuple[float, float]:
        return _LEFT + wide * x.share(px), _TOP + high * (1 - y.share(py))

    parts = []
    for tick in y.ticks:
        _, at = place(x.low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text class="end" x="{_LEFT - 6}" y="{at + 3.5:.1f}">{tick * scale:.4g}</text>')
    for tick in x.ticks:
        at, _ = place(tick, y.low)
        parts.append(f'<text class="middle" x="{at:.1f}" y="{HEIGHT - 19}">{tick * scale:.4g}</text>')
    parts.append(f'<text class="middle axis" x="{_LEFT + wide / 2}" y="{HEIGHT - 4}">{x.label}</text>')
    if y.label:
        parts.append(f'<text class="middle axis" transform="translate(9 {_TOP + high / 2}) rotate(-90)">'
                     f"{y.label}</text>")
    for line in lines:
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line.points)
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<polyline class="series {style_class(line.style)}{dashed}" '
                     f'data-series="{line.style}" points="{points}"/>')
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        title, WIDTH, HEIGHT, Markup("".join(parts)))


def bars(spread: Distribution, most: int, style: int, title: str) -> Markup:
    """A distribution of AP as bars, `most` queries high, and its median as a mark."""
    words = ", ".join(f"{low * 10} to {low * 10 + 10} %: {count}"
                      for low, count in enumerate(spread.counts) if count)
    wide = _BAR * len(spread.counts)
    parts = [f'<line class="base" x1="0" x2="{wide}" y1="{_BARS_HEIGHT}" y2="{_BARS_HEIGHT}"/>']
    for number, count in ((n, count) for n, count in enumerate(spread.counts) if count):
        tall = max(1.5, (_BARS_HEIGHT - 6) * count / most)
        parts.append(f'<rect x="{_BAR * number + 1}" y="{_BARS_HEIGHT - tall:.1f}" width="{_BAR - 2}" '
                     f'height="{tall:.1f}"/>')
    if spread.median is not None:
        at = wide * spread.median
        parts.append(f'<path class="median" d="M{at:.1f} {_BARS_HEIGHT + 1}l-4 6h8z"/>')
    return Markup('<svg class="bars {}" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        style_class(style), f"{title}; queries by AP: {words or 'none'}", wide, _BARS_HEIGHT + 8,
        Markup("".join(parts)))


def style_class(number: int) -> str:
    """CSS classes of the `number`th method: one of seven colours, one of three dashes."""
    return f"colour-{number % 7} dash-{number // 7 % 3}"


def _axis(label: str, values: Sequence[float], whole: bool = False) -> Axis:
    """An axis around values, with three to seven round numbers."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(largest, 1e-280):      # too near for ticks between them
        margin = max(1.0, 1e-3 * largest)
        low, high = low - margin, high + margin
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    step = max(step, 1.0) if whole else step
    ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return Axis(label, low, high, ticks.tolist())
