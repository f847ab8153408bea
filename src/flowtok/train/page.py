"""The page that a run leaves: its curves, pictures and settings in one HTML file that needs no other file.

Knows only run folders, so it can be made of any old one. What stands in them is written by watch.py and record.py.
"""

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowtok.files import write_file_atomically

MOST_PICTURES = 6
MOST_POINTS = 400
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 340, 190, 46, 22, 10

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #d7dae0; --paper: #fff; --curve: #2563eb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ee; --soft: #9aa1ad; --line: #3a3f48; --paper: #16181c; --curve: #7aa2ff; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
figcaption { color: var(--soft); font-size: .85rem; }
figure b { color: var(--ink); font-weight: 600; }
img { max-width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
svg text { fill: var(--soft); font-size: 10px; } svg .axis { stroke: var(--line); }
svg .curve { fill: none; stroke: var(--curve); stroke-width: 1.5; stroke-linejoin: round; }
pre { overflow: auto; font-size: .85rem; border: 1px solid var(--line); padding: .7rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The figures of one name over the steps, finite ones only."""

    name: str
    points: tuple[tuple[float, float], ...]


def write_page(path: Path, runs: Sequence[Path], title: str) -> Path:
    """Writes the page of one or more runs, such as all stages of a model in their order.

    Args:
        path: The HTML file.
        runs: Run folders; one that is not there yet is left out.
        title: The headline.
    """
    sections = [_section(run) for run in runs if (run / "config.json").is_file()]
    content = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    )
    return write_file_atomically(path, content)


def read_curves(metrics: Path) -> list[Curve]:
    """The curves of a metrics.jsonl, in the order in which their names first come."""
    found: dict[str, list[tuple[float, float]]] = {}
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        for name, value in record.items():
            if name not in ("stage", "step", "time") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((record["step"], value))
    return [Curve(name=name, points=tuple(points)) for name, points in found.items()]


def draw(curve: Curve) -> str:
    """A curve as SVG with its axes; logarithmic where its values span more than two powers of ten."""
    points = curve.points[:: -(-len(curve.points) // MOST_POINTS)]
    if points[-1] != curve.points[-1]:
        points = (*points, curve.points[-1])
    values = [value for _, value in points]
    logarithmic = min(values) > 0 and max(values) > 100 * min(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9
    last = max(points[-1][0], 1)

    def place(step: float, value: float) -> str:
        share = (value - low) / (high - low)
        if logarithmic:
            share = math.log(value / low) / math.log(high / low)
        across = _LEFT + (_WIDTH - _LEFT - 8) * step / last
        return f"{across:.1f},{_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * share:.1f}"

    bottom = _HEIGHT - _BOTTOM
    shape = " ".join(place(step, value) for step, value in points)
    scale = ", logarithmic" if logarithmic else ""
    return (
        f"<figure><figcaption><b>{html.escape(curve.name)}</b> {curve.points[-1][1]:.4g} at the end{scale}</figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{html.escape(curve.name)} over the steps">'
        f'<path class="axis" fill="none" d="M{_LEFT},{_TOP} V{bottom} H{_WIDTH - 8}"/>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{last:g} steps</text>'
        f'<polyline class="curve" points="{shape}"/></svg></figure>\n'
    )


def _section(run: Path) -> str:
    config = (run / "config.json").read_text()
    curves = "".join(draw(curve) for curve in read_curves(run / "metrics.jsonl"))
    pictures = "".join(_picture(path) for path in _some(sorted(run.glob("preview-*.png"), reverse=True)))
    return (
        f"<h2>{html.escape(run.resolve().name)}</h2>\n"
        f"<div class=grid>{curves}</div>\n<div class=grid>{pictures}</div>\n"
        f"<details><summary>settings</summary><pre>{html.escape(config)}</pre></details>\n"
    )


def _some(paths: list[Path]) -> list[Path]:
    """The first path, the last one, and some evenly between."""
    if len(paths) <= MOST_PICTURES:
        return paths
    return [paths[round(i * (len(paths) - 1) / (MOST_PICTURES - 1))] for i in range(MOST_PICTURES)]


def _picture(path: Path) -> str:
    step = path.stem.rpartition("-")[2].lstrip("0") or "0"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><figcaption>after {step} steps</figcaption><img alt="preview after {step} steps" '
        f'src="data:image/png;base64,{data}"></figure>\n'
    )
