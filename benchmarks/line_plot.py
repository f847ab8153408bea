"""Curves over two logarithmic axes as an SVG file that GitHub shows; knows nothing of what they mean."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 150, 24, 48


def write_plot(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    across: str,
    up: str,
    level: tuple[str, float] | None = None,
) -> None:
    """Writes the file.

    Args:
        path: Where; its folder is made.
        curves: Points of each curve by its name.
        across: What the horizontal axis shows.
        up: What the vertical axis shows.
        level: A name and a value on the vertical axis, drawn as a broken line.
    """
    points = [point for curve in curves.values() for point in curve]
    values = [y for _, y in points] + ([level[1]] if level else [])
    left, right = math.log(min(x for x, _ in points)), math.log(max(x for x, _ in points))
    low, high = math.log(min(values)), math.log(max(values))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (math.log(x) - left) / ((right - left) or 1.0),
            HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (math.log(y) - low) / ((high - low) or 1.0),
        )

    shapes = [f'<path d="M{LEFT},{TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}" fill="none" stroke="#57606a"/>']
    last = -math.inf
    for x in sorted({x for x, _ in points}):
        at = place(x, math.exp(low))[0]
        if at - last > 22:
            last = at
            shapes.append(f'<text x="{at:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    for power in range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1):
        for y in (10.0**power, 3 * 10.0**power):
            if low <= math.log(y) <= high:
                at = place(math.exp(left), y)[1]
                shapes.append(f'<text x="{LEFT - 6}" y="{at + 4:.0f}" text-anchor="end">{y:g}</text>')
                shapes.append(f'<path d="M{LEFT},{at:.0f} H{WIDTH - RIGHT}" stroke="#d0d7de"/>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        spots = [place(*point) for point in sorted(curve)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        shapes.append(
            f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 18 * number + 8}" fill="{colour}">{html.escape(name)}</text>'
        )
    if level is not None:
        at = place(math.exp(left), level[1])[1]
        shapes.append(f'<path d="M{LEFT},{at:.1f} H{WIDTH - RIGHT}" stroke="#24292f" stroke-dasharray="5 4"/>')
        shapes.append(
            f'<text x="{WIDTH - RIGHT - 4}" y="{at - 5:.0f}" text-anchor="end">{html.escape(level[0])}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    shapes.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(across)}</text>')
    shapes.append(f'<text x="{LEFT}" y="{TOP - 9}">{html.escape(up)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#24292f"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(shapes)}</svg>\n",
        encoding="utf-8",
    )
