"""Line charts: from (step, value) points to the coordinates that the report draws as SVG.

All arithmetic of a chart is here, none in the template. A chart has one y axis and any number of
lines. A line of more than `MAX_POINTS` points is cut into that many equal ranges of steps, each
drawn as its mean, with a band from the lowest to the highest value, so that no spike is hidden and
the page stays small however long the run was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from titan_recipes.launch.text import number

WIDTH, WIDE, HEIGHT = 560, 1168, 216
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 186  # the plot's edges; RIGHT from the picture's right edge
MAX_POINTS = 480
FLAT = 1e-3  # a smaller relative spread is noise in the last digit shown: drawn as a flat line

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """One named line: (step, value) in ascending steps."""

    name: str
    points: Points
    dotted: bool = False
    """Few points, far apart: draw each as a dot as well."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line: where it is in the picture, and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series in picture coordinates. path and band are SVG path data; dots are (x, y)."""

    name: str
    path: str
    band: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, ready to draw.

    hover: for the page's script, one [x in the picture, step, each line's value or null] a step.
    """

    title: str
    latest: str
    width: int
    right: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    marks: tuple[float, ...]
    hover: tuple[tuple[float | str | None, ...], ...]


@dataclass(frozen=True, slots=True)
class _Bucket:
    step: float
    mean: float
    low: float
    high: float


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _buckets(points: Points) -> list[_Bucket]:
    if len(points) <= MAX_POINTS:
        return [_Bucket(step, value, value, value) for step, value in points]
    first, span = points[0][0], points[-1][0] - points[0][0]
    groups: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        index = min(int((point[0] - first) / span * MAX_POINTS), MAX_POINTS - 1)
        groups.setdefault(index, []).append(point)
    return [
        _Bucket(
            group[-1][0],
            math.fsum(value for _, value in group) / len(group),
            min(value for _, value in group),
            max(value for _, value in group),
        )
        for group in groups.values()
    ]


def _value_range(buckets: Sequence[_Bucket]) -> tuple[float, float]:
    """Lowest and highest value with 5 % of air; a flat line lies in the middle."""
    low, high = min(b.low for b in buckets), max(b.high for b in buckets)
    if high - low <= FLAT * abs(high):
        air = abs(low) * 0.1 or 1.0
        return low - air, high + air
    air = (high - low) * 0.05
    return (0.0 if 0 <= low < air else low - air), high + air


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def draw(
    title: str, series: Sequence[Series], marks: Sequence[float] = (), width: int = WIDTH
) -> Chart | None:
    """Lay out a chart; None where no series has a point. marks: steps with a dashed line."""
    series = [one for one in series if one.points]
    if not series:
        return None
    buckets = [_buckets(one.points) for one in series]
    steps = [bucket.step for line in buckets for bucket in line]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    y_low, y_high = _value_range([bucket for line in buckets for bucket in line])
    right = width - RIGHT

    def x(step: float) -> float:
        return round(LEFT + (step - x_low) / (x_high - x_low) * (right - LEFT), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)

    lines: list[Line] = []
    for one, line in zip(series, buckets, strict=True):
        there = [(x(b.step), y(b.mean)) for b in line]
        edge = [(x(b.step), y(b.high)) for b in line] + [(x(b.step), y(b.low)) for b in line[::-1]]
        merged = len(line) < len(one.points)
        dots = there if one.dotted or len(there) == 1 else []
        lines.append(Line(one.name, _path(there), _path(edge) if merged else "", tuple(dots)))
    values = [{b.step: number(b.mean) for b in line} for line in buckets]
    hover = tuple((x(s), f"{s:,.0f}", *(v.get(s) for v in values)) for s in sorted(set(steps)))
    whole = [step for step in nice_ticks(x_low, x_high, width // 90) if step == int(step)]
    return Chart(
        title=title,
        latest=number(series[0].points[-1][1]),
        width=width,
        right=right,
        x_ticks=tuple(Tick(x(step), number(step)) for step in whole),
        y_ticks=tuple(Tick(y(value), number(value)) for value in nice_ticks(y_low, y_high, 5)),
        lines=tuple(lines),
        marks=tuple(x(step) for step in marks if x_low < step < x_high),
        hover=hover,
    )
