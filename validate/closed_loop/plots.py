"""Plots of a run in the form of the benchmark's: inline SVG, no library, no script."""

from collections.abc import Mapping, Sequence

import numpy as np

from validate.benchmark.plots import HEIGHT, LEFT, LINES, TOP, line, rectangle, svg, text
from validate.closed_loop.records import Episode
from validate.closed_loop.results import Row

SOLVED, FAILED, LOST, WON, REFERENCE = "#3a923a", "#c9c9c9", "#b00020", "#1b4f8a", "#b00020"
CELL, ROW = 12, 26
SMALLEST = 1e-8
"""What a smaller divergence, zero too, is drawn as."""
LETTER = 7.5
"""Pixels of one, about."""


def success(rows: Sequence[Row], reference: str | None) -> str:
    """Each policy's rate of success with its interval; a line at the reference's."""
    left, width = _margin([row.policy for row in rows]), 420
    bottom = 28 + ROW * len(rows)
    parts = [text(left, 16, "success, with its 95% interval", "start", 'class="title"')]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * width
        parts += [line(x, 26, x, bottom), text(x, bottom + 15, f"{share:.0%}")]
    for i, row in enumerate(rows):
        y, rate = 28 + ROW * (i + 0.5), row.success
        low, share, high = (left + x * width for x in (rate.low, rate.share, rate.high))
        parts.append(text(left - 8, y + 4, row.policy, "end"))
        parts += [line(low, y, high, y, "#555", 2), rectangle(share - 4, y - 4, 8, 8, LINES[0])]
        parts.append(text(left + width + 12, y + 4, f"{rate.count}/{rate.of}", "start", 'class="value"'))
        if row.policy == reference:
            parts.append(line(share, 22, share, bottom, REFERENCE, 1))
    return svg(left + width + 80, bottom + 24, "success of each policy", parts)


def divergence(found: Mapping[str, Sequence[float]]) -> str:
    """The share of decisions that differ from the reference's by no more than an amount, on a log scale."""
    drawn = {name: np.maximum(np.sort(x), SMALLEST) for name, x in found.items() if len(x)}
    if not drawn:
        return ""
    smallest, largest = min(x[0] for x in drawn.values()), max(x[-1] for x in drawn.values())
    low, high = int(np.floor(np.log10(smallest))), int(np.floor(np.log10(largest))) + 1
    width, bottom = 520, TOP + HEIGHT
    unit = width / (high - low)
    title = "share of decisions that differ from the reference's by no more than"
    parts = [text(LEFT, TOP - 16, title, "start", 'class="title"')]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - share * HEIGHT
        parts += [line(LEFT, y, LEFT + width, y), text(LEFT - 6, y + 4, f"{share:g}", "end")]
    for power in range(low, high + 1):
        x = LEFT + (power - low) * unit
        parts += [line(x, TOP, x, bottom), text(x, bottom + 16, f"{10.0**power:g}")]
    for i, (name, numbers) in enumerate(drawn.items()):
        colour, shares = LINES[i % len(LINES)], np.linspace(0, 1, 201)
        x = LEFT + (np.log10(np.quantile(numbers, shares)) - low) * unit
        curve = " ".join(f"{a:.1f},{bottom - b * HEIGHT:.1f}" for a, b in zip(x, shares, strict=True))
        end, y = LEFT + width + 16, TOP + 14 + 18 * i
        drawn_as = f'fill="none" stroke="{colour}" stroke-dasharray="{"6 3" if i >= len(LINES) else "none"}"'
        parts.append(f'<polyline points="{curve}" stroke-width="1.8" {drawn_as}/>')
        parts.append(f'<polyline points="{end},{y - 4} {end + 24},{y - 4}" stroke-width="3" {drawn_as}/>')
        parts.append(text(end + 30, y, name, "start"))
    said = "mean absolute difference of the executed actions, in the robot's units"
    parts.append(text(LEFT + width / 2, bottom + 34, said))
    tall = max(bottom + 44, TOP + 14 + 18 * len(drawn))
    return svg(LEFT + width + 50 + LETTER * max(map(len, drawn)), tall, "divergence of each policy", parts)


def scenes(episodes: Sequence[Episode], policies: Sequence[str], reference: str | None) -> str:
    """Policies by scenes of a task: dark where one succeeded, framed where it ended otherwise than the
    reference."""
    numbers = sorted({e.scene for e in episodes})
    ended = {(e.policy, e.scene): e for e in episodes}
    left, width = _margin(policies), CELL * len(numbers)
    parts = [text(left, 16, f"scenes {numbers[0]} to {numbers[-1]}", "start", 'class="title"')]
    for i, policy in enumerate(policies):
        y = 26 + i * (CELL + 4)
        parts.append(text(left - 8, y + CELL - 2, policy, "end"))
        for j, scene in enumerate(numbers):
            if (e := ended.get((policy, scene))) is None:
                continue
            x, other = left + j * CELL, ended.get((reference or "", scene))
            if other is not None and other.success != e.success:
                parts.append(rectangle(x, y - 1, CELL, CELL + 2, WON if e.success else LOST))
            told = f"scene {scene}: {'success' if e.success else e.error or 'failure'}, {e.steps} steps"
            fill = SOLVED if e.success else FAILED
            parts.append(rectangle(x + 2, y + 1, CELL - 4, CELL - 2, fill, told))
    return svg(left + max(width, 240), 30 + len(policies) * (CELL + 4), "scenes of each policy", parts)


def _margin(names: Sequence[str]) -> float:
    return 20 + LETTER * max(map(len, names))
