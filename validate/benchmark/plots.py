"""Plots of a run as inline SVG: no library, no script, the same on a screen and on paper."""

from collections.abc import Sequence
from html import escape

import numpy as np

from validate.benchmark.published import SEED, SEED_SHAPE
from validate.benchmark.results import Run, Steps

COLOURS = {
    "preprocess": "#9d86c4",
    "vision": "#3b75af",
    "prefill": "#e1812c",
    "prefix": "#e1812c",
    "denoise": "#3a923a",
    "decision": "#555555",
    "rest": "#b8b8b8",
}
LINES = ("#1b4f8a", "#c85200", "#2f7d32", "#8b1a1a", "#5f3d8c", "#4a4a4a")
HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#f0f0f0"/><line x1="0" y1="0" x2="0" y2="6" stroke="#c4c4c4" '
    'stroke-width="3"/></pattern>'
)
LEFT, TOP, HEIGHT = 52, 34, 210
ABOVE_ALL = 1.14
"""Room above the highest bar, for its figure."""


def figure(number: float) -> str:
    """Three significant digits, and never an exponent."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 1 else f"{number:.3f}"


def count(number: float) -> str:
    """As a whole number once it is large."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def text(x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, title: str = "") -> str:
    said = f"<title>{escape(title)}</title>" if title else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}">{said}</rect>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "#ddd", width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width}"/>'


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(label)}"><defs>{HATCH}</defs>{"".join(parts)}</svg>'
    )


def ticks(largest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at least `largest`."""
    exponent = 10 ** np.floor(np.log10(largest / most))
    step = next(s * exponent for s in (1, 2, 2.5, 5, 10) if s * exponent * most >= largest)
    return [float(step * i) for i in range(int(np.ceil(largest / step)) + 1)]


def stack(steps: Steps) -> dict[str, float]:
    """What a column is made of: what each part adds, and what the total has beyond them."""
    parts = steps.added
    if not steps.alone:
        parts = {n: t.median_ms for n, t in steps.inside.items()}
    return parts | {"rest": max(steps.total.median_ms - sum(parts.values()), 0)}


def latency(run: Run) -> str:
    """Columns of the run by step count, and the seed's beside them on a scale of their own."""
    own = [(f"{s.steps}", s.total.median_ms, stack(s)) for s in run.steps]
    seed = [(f"{n}", total, {"": total}) for n, total in SEED.items()]
    wide, gap = max(76 * len(own), 290), 90
    parts = _columns(LEFT, wide, own, f"{run.name} on {run.target}: median ms by Euler steps")
    parts += _columns(LEFT + wide + gap, 210, seed, "published, of another device and shape")
    x = LEFT + wide + gap + 105
    parts.append(text(x, TOP + HEIGHT + 34, SEED_SHAPE, style='class="small"'))
    names = dict.fromkeys(name for _, _, stacked in own for name in stacked)
    x = LEFT
    for name in names:
        parts.append(rectangle(x, TOP + HEIGHT + 44, 11, 11, COLOURS[name]))
        parts.append(text(x + 16, TOP + HEIGHT + 54, name, "start"))
        x += 30 + 7.5 * len(name)
    return svg(LEFT + wide + gap + 270, TOP + HEIGHT + 66, f"latency of {run.name}", parts)


def _columns(
    left: float, width: float, columns: Sequence[tuple[str, float, dict[str, float]]], title: str
) -> list[str]:
    scale = ticks(max(total for _, total, _ in columns) * ABOVE_ALL)
    bottom, unit = TOP + HEIGHT, HEIGHT / scale[-1]
    parts = [text(left, TOP - 16, title, "start", 'class="title"')]
    for tick in scale:
        y = bottom - tick * unit
        parts += [line(left, y, left + width, y), text(left - 6, y + 4, f"{tick:g}", "end")]
    slot = width / len(columns)
    for i, (name, total, stacked) in enumerate(columns):
        x, y = left + i * slot + slot * 0.2, float(bottom)
        for part, value in stacked.items():
            y -= value * unit
            fill = COLOURS.get(part, "url(#hatch)")
            parts.append(rectangle(x, y, slot * 0.6, value * unit, fill, f"{part} {figure(value)} ms"))
        parts.append(text(x + slot * 0.3, y - 5, figure(total), style='class="value"'))
        parts.append(text(x + slot * 0.3, bottom + 16, name))
    return [*parts, line(left, bottom, left + width, bottom, "#555")]


def distances(run: Run) -> str:
    """Each component's measured time over its floor, 1 being the floor."""
    last = max(run.steps, key=lambda s: s.steps)
    rows = [(name if name != "denoise" else "denoise, a step", f.distance) for name, f in run.floors.items()]
    rows.append((f"decision, {last.steps} steps", last.distance))
    found = [(name, distance) for name, distance in rows if distance]
    if not found:
        return ""
    left, width, height = 140, 420, 26
    scale = ticks(max(d for _, d in found) * 1.1)
    unit, bottom = width / scale[-1], 28 + height * len(found)
    parts = [text(left, 16, "measured over floor (1 is the floor)", "start", 'class="title"')]
    for tick in scale:
        x = left + tick * unit
        parts += [line(x, 26, x, bottom), text(x, bottom + 15, f"{tick:g}")]
    for i, (name, distance) in enumerate(found):
        y = 30 + i * height
        parts.append(text(left - 8, y + 13, name, "end"))
        parts.append(rectangle(left, y, distance * unit, height - 8, COLOURS.get(name.split(",")[0], "#777")))
        parts.append(text(left + distance * unit + 6, y + 13, f"{distance:.2f}", "start", 'class="value"'))
    parts.append(line(left + unit, 22, left + unit, bottom, "#b00020", 1.5))
    return svg(left + width + 60, bottom + 24, f"distance to floor of {run.name}", parts)


def distribution(run: Run) -> str:
    """The share of decisions that were done within a time, which is a ratio to the median of their count."""
    ratios = {s.steps: np.sort(np.asarray(s.samples_ms)) / s.total.median_ms for s in run.steps}
    low = min(float(r[0]) for r in ratios.values())
    high = max(float(np.quantile(r, 0.99)) for r in ratios.values()) * 1.02
    left, width = LEFT, 520
    unit, bottom = width / (high - low), TOP + HEIGHT
    parts = [text(left, TOP - 16, "share of decisions done within a time", "start", 'class="title"')]
    for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
        y = bottom - share * HEIGHT
        parts += [line(left, y, left + width, y), text(left - 6, y + 4, f"{share:g}", "end")]
    digits = 2 if high - low > 0.5 else 3
    for tick in np.linspace(low, high, 6):
        parts.append(text(left + (tick - low) * unit, bottom + 16, f"{tick:.{digits}f}"))
    for i, (steps, sorted_ratios) in enumerate(ratios.items()):
        colour, count = LINES[i % len(LINES)], len(sorted_ratios)
        points = [
            (left + (r - low) * unit, bottom - (j + 1) / count * HEIGHT)
            for j, r in enumerate(sorted_ratios)
            if r <= high
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        y = TOP + 14 + 18 * i
        parts += [line(left + width + 16, y - 4, left + width + 40, y - 4, colour, 3)]
        parts.append(text(left + width + 46, y, f"{steps} steps" if steps > 1 else "1 step", "start"))
    parts.append(
        text(
            left + width / 2,
            bottom + 34,
            "time over the median of its step count; cut at the 99th percentile",
        )
    )
    return svg(left + width + 130, bottom + 44, f"distribution of {run.name}", parts)
