"""The command `flowtok data stats`: what a data set holds, on screen, as JSON and as a sheet of pictures.

What is found is in data/survey.py; the sets that flowtok builds itself are in workshop.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flowtok.app import output
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.data.survey import Survey

_COLUMNS = 8


def data_stats(
    place: Annotated[
        str,
        Argument(
            help="Folder of pictures, shards ('DATA/*.tar', 'DATA/{000..099}.tar', 'pipe:COMMAND') or Parquet.",
            metavar="PATH",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        Argument(help="Changes, such as filters.min_longer_side=256 or fields.text=caption.", metavar="KEY=VALUE..."),
    ] = None,
    out: Annotated[
        Path | None, Option("--output", "-o", help="Write a sheet of pictures with their captions to this .png file.")
    ] = None,
    pictures: Annotated[int, Option(min=1, max=400, help="Pictures on the sheet.")] = 40,
    limit: Annotated[int | None, Option(min=1, help="Look at the first samples only.")] = None,
    workers: Annotated[int, Option(min=0, help="Processes that read.")] = 0,
    json: Annotated[bool, Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Says what a data set holds: counts, sizes, captions, and what would be refused and why."""
    if out is not None:
        if out.suffix.lower() != ".png":
            raise FlowTokError(f"cannot write {out}: the sheet is a PNG file; end its name in .png")
        output.plan(str(out), ["sheet"])
    if limit is not None and workers > 1:
        raise FlowTokError("--limit takes the first samples in order and so cannot be shared: leave out --workers")
    from flowtok.config import apply_overrides
    from flowtok.data.collect import CollectConfig
    from flowtok.data.sources import open_source
    from flowtok.data.survey import survey

    config = apply_overrides(CollectConfig(), overrides or [])
    source = open_source(place, config.fields)
    with output.progress("looking at pictures") as report:
        found = survey(
            source,
            config,
            num_workers=workers,
            num_thumbnails=pictures,
            limit=limit,
            progress=lambda done, total: report(done, total),  # type: ignore[arg-type]
        )
    if out is not None:
        _write_sheet(out, found, source.name)
    summary = {"path": place, "kind": source.kind, "parts": len(source.parts), **found.summary()}
    if json:
        output.say_json(summary)
    else:
        for line in _lines(summary):
            output.say(line)
    if found.tally.num_refused > config.max_refused * found.tally.seen:
        output.note(
            f"{summary['refused_share']:.1%} of the samples are refused; training stops above {config.max_refused:.0%}"
        )


def _lines(summary: dict[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [
        f"{summary['path']}  ({summary['kind']})",
        f"  pictures    {summary['pictures']:,} of {summary['samples']:,} samples",
    ]
    if summary["pictures"]:
        lines += [
            f"  size        {_range(summary['width'])} wide, {_range(summary['height'])} high (pixels); "
            f"{summary['square']:,} are square",
            f"  formats     {_counts(summary['formats'])}; modes {_counts(summary['modes'])}"
            + (f"; {summary['animated']:,} animated, first frame taken" if summary["animated"] else ""),
            f"  captions    {summary['captions']:,}, {summary['different_captions']:,} different; "
            f"{_range(summary['captions_per_picture'])} a picture, {_range(summary['words_per_caption'])} words"
            + (f"; {summary['recaptions']:,} recaptions" if summary["recaptions"] else ""),
            f"  splits      {_counts(summary['splits'])}",
        ]
    if summary["left_out"]:
        lines.append(
            f"  left out    {sum(summary['left_out'].values()):,} by the filters: {_counts(summary['left_out'])}"
        )
    lines.append(f"  refused     {sum(summary['refused'].values()):,} ({summary['refused_share']:.1%})")
    for reason, count in summary["refused"].items():
        lines.append(f"    {count:,} {reason}")
        lines += [f"      {example}" for example in summary["refused_examples"][reason]]
    return lines


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']:,}"
    return f"{spread['min']:,} to {spread['max']:,} (median {spread['median']:,g})"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _write_sheet(path: Path, found: "Survey", name: str) -> None:
    """A sheet of the kept pictures with their captions below.

    Raises:
        FlowTokError: There is no picture to show.
    """
    from flowtok.evaluate.sheets import Cell, labelled_sheet

    kept = found.pictures()
    if not kept:
        raise FlowTokError(f"no picture of {name} can be shown: {'; '.join(found.tally.lines()) or 'all are left out'}")
    cells = [Cell(pictures=(picture,), words=((caption, (60, 60, 60)),)) for picture, caption in kept]
    title = f"{name}: {len(kept)} of {found.tally.used:,} pictures"
    output.save_png(path, labelled_sheet(cells, min(_COLUMNS, len(cells)), title), {"data": name})
