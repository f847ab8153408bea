"""The report of a measurement with its pictures: one HTML file that needs no other file and no network.

Knows records and pictures, no model; bench.py gathers the pictures while the tasks run, plots.py draws the curves.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowtok.evaluate.plots import draw_plot, trade_offs
from flowtok.evaluate.published import published_for
from flowtok.evaluate.report import SWEPT, Measure, Occasion, Record, measures_of, sampled
from flowtok.files import write_file_atomically

LARGEST_SIDE = 256
_MOST_COLUMNS = 12

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #d7dae0; --paper: #fff; --good: #15803d;
  --bad: #b91c1c; --curve-0: #2563eb; --curve-1: #c2410c; --curve-2: #15803d; --curve-3: #7e22ce; --curve-4: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ee; --soft: #9aa1ad; --line: #3a3f48; --paper: #16181c;
  --good: #4ade80; --bad: #f87171; --curve-0: #7aa2ff; --curve-1: #fdba74; --curve-2: #4ade80; --curve-3: #d8b4fe;
  --curve-4: #67e8f9; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin-bottom: .3rem; } .soft { color: var(--soft); font-size: .85rem; }
.grid { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; } figure { margin: 0; }
figcaption { color: var(--soft); font-size: .8rem; max-width: 16rem; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
img { min-width: 4rem; border: 1px solid var(--line); image-rendering: auto; } img.small { image-rendering: pixelated; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td, th { padding: .2rem .6rem; text-align: right;
  border-bottom: 1px solid var(--line); } td:first-child, th:first-child { text-align: left; }
pre { overflow: auto; font-size: .8rem; border: 1px solid var(--line); padding: .7rem; }
svg text { fill: var(--soft); font-size: 10px; } svg .axis { stroke: var(--line); fill: none; }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Pictures side by side with words below.

    Attributes:
        pictures: One or more, such as an original and its reconstruction.
        words: What stands below, a line each.
        is_right: Colours the first line, where something can be right or wrong.
    """

    pictures: tuple[Image.Image, ...]
    words: tuple[str, ...] = ()
    is_right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A row of pictures under a headline.

    Attributes:
        section: The task and split, under which exhibits stand together.
        title: What is seen.
        cells: The pictures.
    """

    section: str
    title: str
    cells: tuple[Shown, ...]


def write_report(
    path: Path, records: Sequence[Record], exhibits: Sequence[Exhibit], title: str, occasion: Occasion | None = None
) -> Path:
    """Writes the report: when and where, scores with the paper's where they fit, trade-offs, pictures, protocols."""
    sections = "".join(
        f"<h2>{_text(section)}</h2>\n" + "".join(_exhibit(one) for one in exhibits if one.section == section)
        for section in dict.fromkeys(one.section for one in exhibits)
    )
    plots = "".join(draw_plot(plot) for plot in trade_offs(records))
    curves = f"<h2>What guidance and steps change</h2>\n<div class=grid>{plots}</div>\n" if plots else ""
    told = [] if occasion is None else [occasion.date, occasion.hardware]
    told += [f"config.json {one[:12]}" for one in dict.fromkeys(record.model_sha256 for record in records) if one]
    measured = f"<p class=soft>{_text(' · '.join(told))}</p>\n" if told else ""
    content = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body><h1>{_text(title)}</h1>\n{measured}<h2>Scores</h2>\n{_scores(records)}"
        f"{curves}{sections}<h2>Protocols</h2>\n{''.join(_protocol(record) for record in records)}</body></html>\n"
    )
    return write_file_atomically(path, content)


def _text(value: str) -> str:
    return html.escape(value)


def _scores(records: Sequence[Record]) -> str:
    """A table for each task: a row (of many scores a column) for each record, and for what the paper says of it."""
    parts = []
    for task in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == task]
        measures = measures_of(name for record in own for name in record.scores)
        how = [name for name in SWEPT if any(sampled(record, name) is not None for record in own)]
        titles = ("split", "samples", *how, *(one.title for one in measures.values()))
        rows = []
        for record in own:
            cells = (
                record.split.replace("_", " "),
                f"{record.num_samples:,}",
                *(_number(record, name) for name in how),
            )
            rows.append((*cells, *_values(record.scores, measures)))
            for one in published_for(record):
                rows.append((f"{one.name} ({one.source})", "", *("" for _ in how), *_values(one.scores, measures)))
        lines = [titles, *rows]
        if len(lines) < len(titles) > _MOST_COLUMNS:  # a line for each score, where these are many
            lines = list(zip(*lines, strict=True))
        head = "".join(f"<th>{_text(title)}</th>" for title in lines[0])
        body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in line)}</tr>\n" for line in lines[1:])
        parts.append(f"<h3>{_text(task)}</h3>\n<div class=scroll><table><tr>{head}</tr>\n{body}</table></div>\n")
    return "".join(parts) or "<p class=soft>Nothing was scored.</p>\n"


def _number(record: Record, name: str) -> str:
    value = sampled(record, name)
    return "" if value is None else f"{value:g}"


def _values(scores: Mapping[str, float], measures: Mapping[str, Measure]) -> tuple[str, ...]:
    return tuple(f"{scores[name]:.{one.digits}f}" if name in scores else "–" for name, one in measures.items())


def _exhibit(exhibit: Exhibit) -> str:
    cells = "".join(_cell(cell) for cell in exhibit.cells)
    return f"<h3>{_text(exhibit.title)}</h3>\n<div class=grid>{cells}</div>\n"


def _cell(cell: Shown) -> str:
    tone = "" if cell.is_right is None else " class=good" if cell.is_right else " class=bad"
    lines = [f"<div{tone if not number else ''}>{_text(line)}</div>" for number, line in enumerate(cell.words)]
    alternative = _text(cell.words[0]) if cell.words else "a picture"
    pictures = "".join(_picture(picture, alternative) for picture in cell.pictures)
    return f"<figure>{pictures}<figcaption>{''.join(lines)}</figcaption></figure>\n"


def _picture(picture: Image.Image, alternative: str) -> str:
    shown = picture.convert("RGB")
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    small = ' class=small width="96"' if max(shown.size) < 96 else ""
    return f'<img{small} alt="{alternative}" src="data:image/png;base64,{data}">'


def _protocol(record: Record) -> str:
    said = {"protocol": record.protocol, "versions": record.versions, "model_sha256": record.model_sha256}
    said["command"] = record.command
    return (
        f"<details><summary>{_text(record.task)}, {_text(record.split)}: {record.protocol_sha256[:12]}</summary>"
        f"<pre>{_text(json.dumps(said, indent=2, ensure_ascii=False))}</pre></details>\n"
    )
