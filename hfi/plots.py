"""Charts as SVG text that goes straight into an HTML page.

Colours are classes, not values (`s0`..`s5` for series, `axis`, `grid`, `note`), so that the page's style sheet gives them in
light and in dark. Every text is escaped. Shares are given in 0..1 and shown in per cent.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

CROWD = 8  # points; of more, those whose label has no room of its own are left without
SERIES = 6  # classes s0..s5; s0 is the untouched model's grey


@dataclass(frozen=True)
class Point:
    """One system in a scatter: value and bounds on both axes (bounds None: no whisker)."""

    label: str
    x: float
    y: float
    x_bounds: tuple[float, float] | None
    y_bounds: tuple[float, float] | None
    series: int
    strong: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Bar:
    """One line of an interval chart."""

    label: str
    value: float
    bounds: tuple[float, float] | None
    text: str
    series: int


@dataclass(frozen=True)
class Share:
    """One point of a calibration chart: a predicted chance, the share that came true with its bounds, how many it is of, and the
    middle of their bin."""

    predicted: float
    value: float
    bounds: tuple[float, float]
    n: int
    middle: float


@dataclass(frozen=True)
class Line:
    """One line of a curve chart, (x, y) points in order of x."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int


def scatter(points: Sequence[Point], x_title: str, y_title: str, *, y_percent: bool = True, width: int = 620) -> str:
    """Harm (x, a share) against quality (y); the better corner is top left. Of many points, those that stand apart have labels."""
    height, left, right, top, bottom = 400, 62, 24, 26, 54
    ys = [v for p in points for v in (p.y, *(p.y_bounds or ()))]
    xs = [v for p in points for v in (p.x, *(p.x_bounds or ()))]
    x_axis = _Axis(0.0, min(1.0, max(xs) * 1.08 + 0.02), left + 10, width - right, percent=True)
    if y_percent:  # a chart that starts at 99 % would make much of nothing
        low, high = min(0.9, min(ys) - 0.02), 1.0
    else:
        pad = max(0.1 * (max(ys) - min(ys)), 0.02)
        low, high = min(ys) - pad, max(ys) + pad
    y_axis = _Axis(low, high, height - bottom, top + 14, percent=y_percent)
    out = [_open(width, height, f"{y_title} against {x_title}")]
    out += [_vertical_grid(x_axis, top, height - bottom), _horizontal_grid(y_axis, left, width - right)]
    out.append(_text(left - 8, top - 8, "◤ better", "note", anchor="start"))
    out.append(_text((left + width - right) / 2, height - 12, x_title, "title"))
    out.append(_text(16, (top + height - bottom) / 2, y_title, "title", turn=True))
    taken: list[tuple[float, float, float, float]] = []
    for p in points:
        x, y = x_axis.at(p.x), y_axis.at(p.y)
        taken.append((x - 7, y - 7, x + 7, y + 7))
    for p in points:
        x, y = x_axis.at(p.x), y_axis.at(p.y)
        name = f"s{p.series % SERIES}"
        if p.x_bounds:
            out.append(_line(x_axis.at(p.x_bounds[0]), y, x_axis.at(p.x_bounds[1]), y, f"whisker {name}"))
        if p.y_bounds:
            out.append(_line(x, y_axis.at(p.y_bounds[0]), x, y_axis.at(p.y_bounds[1]), f"whisker {name}"))
        y_text = _percent(p.y) if y_percent else f"{p.y:.3f}"
        tip = escape(f"{p.label}: {x_title} {_percent(p.x)}, {y_title} {y_text}")
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11" class="ring {name}"/>' if p.strong else ""
        kind = f'r="5" class="ring {name}"' if p.hollow else f'r="6" class="dot {name}"'
        out.append(f'<g>{ring}<circle cx="{x:.1f}" cy="{y:.1f}" {kind}/><title>{tip}</title></g>')
    for p in points:
        x, y = x_axis.at(p.x), y_axis.at(p.y)
        tx, ty, anchor, box = _place(x, y, p.label, taken, (left, top, width - right, height - bottom))
        wide = (box[0] - 12, box[1], box[2] + 12, box[3])
        if len(points) > CROWD and any(_overlap(wide, other) > 0 for other in taken):
            continue  # its name is in the tooltip
        taken.append(box)
        out.append(_text(tx, ty, p.label, f"label s{p.series % SERIES}", anchor=anchor))
    return "".join(out) + "</svg>"


def intervals(groups: Sequence[tuple[str, Sequence[Bar]]], title: str, *, width: int = 620) -> str:
    """Shares with their bounds, one line a bar, under a heading for each group; the axis runs from 0 to 100 %."""
    step, heading, top, bottom = 24, 30, 6, 34
    left = 24 + max((_width(bar.label) for _, bars in groups for bar in bars), default=0)
    right = 74
    heads = [textwrap.wrap(name, int(width / 8.5)) for name, _ in groups]  # bold letters are wider than `_width` takes them to be
    height = (
        top
        + bottom
        + sum(heading + 16 * (len(lines) - 1) + step * len(bars) for lines, (_, bars) in zip(heads, groups, strict=True))
    )
    axis = _Axis(0.0, 1.0, left, width - right, percent=True)
    out = [_open(width, height, title), _vertical_grid(axis, top + 20, height - bottom)]
    y = float(top)
    for lines, (_, bars) in zip(heads, groups, strict=True):
        y += heading
        for i, line in enumerate(lines):
            y += 16 if i else 0
            out.append(_text(0, y - 8, line, "heading", anchor="start"))
        for bar in bars:
            mid = y + step / 2
            series = f"s{bar.series % SERIES}"
            out.append(_text(left - 12, mid + 4, bar.label, "label-left", anchor="end"))
            if bar.bounds:
                low, high = axis.at(bar.bounds[0]), axis.at(bar.bounds[1])
                out.append(f'<rect x="{low:.1f}" y="{mid - 4:.1f}" width="{max(1.0, high - low):.1f}" height="8" rx="4" ')
                out.append(f'class="range {series}"/>')
            out.append(f'<circle cx="{axis.at(bar.value):.1f}" cy="{mid:.1f}" r="5.5" class="dot {series}"/>')
            out.append(_text(width - right + 16, mid + 4, bar.text, "value", anchor="start"))
            y += step
    out.append(_text((left + width - right) / 2, height - 2, title, "title"))
    return "".join(out) + "</svg>"


def curves(lines: Sequence[Line], x_title: str, *, share: bool = False, width: int = 620) -> str:
    """Long lines are drawn twice, thin as logged and bold as a running mean. Non-finite points are left out. Shares run from 0 to
    100 % whatever is drawn, so that several charts compare."""
    height, left, right, top, bottom = 280, 62, 20, 18, 46
    clean = [(line, [(x, y) for x, y in line.points if math.isfinite(y)]) for line in lines]
    clean = [(line, points) for line, points in clean if points]
    if not clean:
        return ""
    xs = [x for _, points in clean for x, _ in points]
    ys = np.array([y for _, points in clean for _, y in points])
    # one spike must not flatten the rest: the axis ends at the 99.5th percentile, the line is cut there
    low, high = min(0.0, float(ys.min())), float(np.quantile(ys, 0.995)) or 1.0
    x_axis = _Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, left, width - right)
    y_axis = _Axis(low, high * 1.05 if high > 0 else low + 1, height - bottom, top)
    if share:
        y_axis = _Axis(0.0, 1.0, height - bottom, top, percent=True)
    out = [
        _open(width, height, "shares" if share else "loss curves"),
        _horizontal_grid(y_axis, left, width - right),
        _vertical_ticks(x_axis, height - bottom),
    ]
    for line, points in clean:
        window = len(points) // 25
        if window > 1:
            out.append(_path(points, x_axis, y_axis, f"thin s{line.series % SERIES}"))
            points = _smooth(points, window)
        out.append(_path(points, x_axis, y_axis, f"line s{line.series % SERIES}"))
    x = float(left + 12)
    for line, _ in clean:
        if line.label:
            swatch = f"range solid s{line.series % SERIES}"
            out.append(f'<rect x="{x:.1f}" y="{top - 9}" width="14" height="4" rx="2" class="{swatch}"/>')
            out.append(_text(x + 20, top - 3, line.label, "label-left", anchor="start"))
            x += 44 + _width(line.label)
    out.append(_text((left + width - right) / 2, height - 8, x_title, "title"))
    return "".join(out) + "</svg>"


def histogram(scores: Sequence[float], labels: Sequence[bool], names: tuple[str, str], *, width: int = 620) -> str:
    """Scores in 0..1 of two classes, in 20 bins: True above the axis, False below it."""
    height, left, right, top, bottom = 260, 62, 20, 26, 46
    bins = np.linspace(0, 1, 21)
    flags = np.asarray(labels, dtype=bool)
    values = np.clip(np.asarray(scores, dtype=float), 0, 1)
    up, down = (np.histogram(values[mask], bins)[0] for mask in (flags, ~flags))
    most = max(1, int(up.max()), int(down.max()))
    middle = (top + height - bottom) / 2
    reach = (height - bottom - top) / 2 - 4
    axis = _Axis(0.0, 1.0, left, width - right)
    out = [_open(width, height, "scores of held-out images")]
    for i in range(20):
        x, w = axis.at(bins[i]) + 1, axis.at(bins[i + 1]) - axis.at(bins[i]) - 2
        for count, series, sign in ((up[i], "harm", -1), (down[i], "keep", 1)):
            if count:
                h = reach * count / most
                y = middle - h if sign < 0 else middle
                out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" class="column {series}">')
                out.append(f"<title>{count} images</title></rect>")
    out.append(_line(left, middle, width - right, middle, "axis"))
    out.append(_text(left, top - 8, f"▲ {names[0]} ({int(flags.sum())})", "label-left", anchor="start"))
    out.append(_text(left, height - bottom + 6, f"▼ {names[1]} ({int((~flags).sum())})", "label-left", anchor="start"))
    for tick in (0.0, 0.5, 1.0):
        out.append(_text(axis.at(tick), height - 24, f"{tick:g}", "tick"))
    out.append(_text((left + width - right) / 2, height - 6, "score", "title"))
    return "".join(out) + "</svg>"


def calibration(points: Sequence[Share], x_title: str, y_title: str, *, low: float = 0.0, width: int = 620) -> str:
    """Predicted chances (from `low` to 1) against shares; on the diagonal they are equal. Counts stand on the axis below."""
    height, left, right, top, bottom = 400, 62, 24, 18, 54
    x_axis = _Axis(low, 1.0, left + 10, width - right - 10, percent=True)
    y_axis = _Axis(0.0, 1.0, height - bottom - 26, top, percent=True)
    out = [_open(width, height, f"{y_title} against {x_title}")]
    out += [_horizontal_grid(y_axis, left, width - right), _vertical_ticks(x_axis, height - bottom)]
    out.append(_line(x_axis.at(low), y_axis.at(low), x_axis.at(1), y_axis.at(1), "axis"))
    out.append(_line(left, height - bottom, width - right, height - bottom, "axis"))
    out.append(_text(left - 8, height - bottom - 6, "n", "tick", anchor="end"))
    for p in points:
        x, y = x_axis.at(p.predicted), y_axis.at(p.value)
        tip = f"{x_title} {_percent(p.predicted)}, {y_title} {_percent(p.value)}, n = {p.n}"
        out.append(f'<g class="bin">{_line(x, y_axis.at(p.bounds[0]), x, y_axis.at(p.bounds[1]), "whisker s2")}')
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="dot s2"/><title>{escape(tip)}</title></g>')
        out.append(_text(x_axis.at(p.middle), height - bottom - 6, str(p.n), "tick"))
    out.append(_text((left + width - right) / 2, height - 12, x_title, "title"))
    out.append(_text(16, (top + height - bottom) / 2, y_title, "title", turn=True))
    return "".join(out) + "</svg>"


class _Axis:
    """A linear axis from `low`..`high` to pixels `start`..`end`, with round ticks; values outside are cut to its ends."""

    def __init__(self, low: float, high: float, start: float, end: float, *, percent: bool = False) -> None:
        self.low, self.high, self.start, self.end, self.percent = low, high, start, end, percent

    def at(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        room = 60 if self.end > self.start else 36  # pixels of a tick: text is wide but not high; upright axes run down
        raw = (self.high - self.low) / max(2, abs(self.end - self.start) // room)
        base = 10 ** math.floor(math.log10(raw))
        step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, tick: float) -> str:
        return f"{100 * tick:.4g} %" if self.percent else f"{tick:.4g}"


def _place(
    x: float,
    y: float,
    label: str,
    taken: Sequence[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> tuple[float, float, str, tuple[float, float, float, float]]:
    """Where a label fits beside its point: the first place inside the frame that covers nothing, else the least covered."""
    w = _width(label)
    best = None
    for dx, dy in (
        (10, -9),
        (10, 19),
        (-10, -9),
        (-10, 19),
        (14, 4),
        (-14, 4),
        (12, -25),
        (12, 35),
        (-12, -25),
        (-12, 35),
    ):
        anchor = "start" if dx > 0 else "end"
        x0 = x + dx if dx > 0 else x + dx - w
        box = (x0, y + dy - 12, x0 + w, y + dy + 3)
        covered = sum(_overlap(box, other) for other in taken)
        outside = sum(max(0.0, d) for d in (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3]))
        cost = covered + 100 * outside
        if best is None or cost < best[0]:
            best = (cost, (x + dx, y + dy, anchor, box))
    assert best is not None
    return best[1]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _smooth(line: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Centred running mean; at the ends over what there is."""
    ys = np.array([y for _, y in line])
    sums = np.concatenate([[0.0], np.cumsum(ys)])
    half = window // 2
    starts = np.maximum(0, np.arange(len(ys)) - half)
    ends = np.minimum(len(ys), np.arange(len(ys)) + half + 1)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return [(x, float(y)) for (x, _), y in zip(line, means, strict=True)]


def _path(line: Sequence[tuple[float, float]], x_axis: _Axis, y_axis: _Axis, name: str, most: int = 500) -> str:
    every = -(-len(line) // most)
    points = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in line[::every])
    return f'<polyline points="{points}" class="{name}"/>'


def _vertical_grid(axis: _Axis, top: float, bottom: float) -> str:
    lines = [_line(axis.at(t), top, axis.at(t), bottom, "grid") for t in axis.ticks()]
    return "".join(lines) + _vertical_ticks(axis, bottom)


def _vertical_ticks(axis: _Axis, bottom: float) -> str:
    return "".join(_text(axis.at(t), bottom + 18, axis.text(t), "tick") for t in axis.ticks())


def _horizontal_grid(axis: _Axis, left: float, right: float) -> str:
    parts = []
    for t in axis.ticks():
        parts.append(_line(left, axis.at(t), right, axis.at(t), "grid"))
        parts.append(_text(left - 8, axis.at(t) + 4, axis.text(t), "tick", anchor="end"))
    return "".join(parts)


def _open(width: float, height: float, title: str) -> str:
    label = escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}"/>'


def _text(x: float, y: float, text: str, name: str, *, anchor: str = "middle", turn: bool = False) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{name}"{turned}>{escape(text)}</text>'


def _width(text: str) -> float:
    return 7.0 * len(text)  # 12 px system font, on the wide side


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
