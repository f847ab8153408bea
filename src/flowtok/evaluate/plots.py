"""What guidance and steps change: scores of records that differ in nothing else, as curves in SVG.

Knows records and no pictures; page.py puts the curves into the report.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowtok.evaluate.report import Measure, Record, hash_protocol, measures_of

# A sampling field on the axis, and the one that tells the curves apart.
AXES = {
    "guidance_scale": ("guidance", "num_inference_steps", "steps"),
    "num_inference_steps": ("steps", "guidance_scale", "guidance"),
    "caption_steps": ("steps", "caption_guidance_scale", "guidance"),
    "caption_guidance_scale": ("guidance", "caption_steps", "steps"),
}
# What no model changes, and what only repeats another score among more pictures.
_NO_CURVES = ("chance_", "nearest_", "classifier_", "all_", "pixel_all_")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 340, 210, 46, 34, 10, 12
_COLOURS = 5


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A score over guidance or steps, the other one fixed; points in the order of the axis."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves of one score of one task and split."""

    title: str
    axis: str
    measure: Measure
    curves: tuple[Curve, ...]


def trade_offs(records: Sequence[Record]) -> list[Plot]:
    """A plot for each score that was measured with several guidance scales or numbers of steps, all else equal."""
    plots = []
    for field, (axis, other, other_name) in AXES.items():
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in records:
            sampling = record.protocol.get("sampling")
            if not isinstance(sampling, dict) or field not in sampling:
                continue
            rest = {key: value for key, value in sampling.items() if key not in (field, other)}
            key = (record.task, record.split, hash_protocol({**record.protocol, "sampling": rest}))
            groups.setdefault(key, []).append(record)
        for (task, split, _), own in groups.items():
            if len({record.protocol["sampling"][field] for record in own}) < 2:
                continue
            names = dict.fromkeys(name for record in own for name in record.scores)
            for name in names:
                if name.startswith(_NO_CURVES):
                    continue
                curves = _curves(own, name, field, other, other_name)
                if curves:
                    measure = measures_of([name])[name]
                    plots.append(Plot(title=f"{task}, {split}", axis=axis, measure=measure, curves=tuple(curves)))
    return plots


def _curves(records: Sequence[Record], name: str, field: str, other: str, other_name: str) -> list[Curve]:
    """A curve for each value of the other field that has at least two points."""
    found: dict[float, dict[float, float]] = {}
    for record in records:
        if name in record.scores and math.isfinite(record.scores[name]):
            sampling = record.protocol["sampling"]
            found.setdefault(sampling[other], {})[sampling[field]] = record.scores[name]
    return [
        Curve(label=f"{other_name} {value:g}", points=tuple(sorted(points.items())))
        for value, points in sorted(found.items())
        if len(points) > 1
    ]


def draw_plot(plot: Plot) -> str:
    """The plot as a figure with axes, points and a line of what each colour is."""
    points = [point for curve in plot.curves for point in curve.points]
    across, up = [x for x, _ in points], [y for _, y in points]
    left, right, low, high = min(across), max(across), min(up), max(up)
    if low == high:
        low, high = low - abs(low) * 0.1, high + (abs(high) * 0.1 or 1.0)
    bottom = _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - left) / (right - left),
            bottom - (bottom - _TOP) * (y - low) / (high - low),
        )

    shapes = []
    for number, curve in enumerate(plot.curves):
        colour = f"var(--curve-{number % _COLOURS})"
        spots = [place(*point) for point in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        shapes.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>')
        for (x, y), (value, score) in zip(spots, curve.points, strict=True):
            told = html.escape(f"{plot.axis} {value:g}, {curve.label}: {score:.{plot.measure.digits}f}")
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{told}</title></circle>')
    legend = ", ".join(
        f'<span style="color: var(--curve-{number % _COLOURS})">{html.escape(curve.label)}</span>'
        for number, curve in enumerate(plot.curves)
    )
    ticks = "".join(
        f'<text x="{place(x, low)[0]:.1f}" y="{bottom + 13}" text-anchor="middle">{x:g}</text>'
        for x in sorted(set(across))
    )
    name = html.escape(f"{plot.title}: {plot.measure.title} over {plot.axis}")
    return (
        f"<figure><figcaption><b>{html.escape(plot.measure.title)}</b> over {plot.axis}<br>"
        f"{html.escape(plot.title)}<br>{legend}</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{name}">'
        f'<path class="axis" d="M{_LEFT},{_TOP} V{bottom} H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>{ticks}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{plot.axis}</text>'
        f"{''.join(shapes)}</svg></figure>\n"
    )
