"""The commands `flowtok data stats` and `flowtok data latents`: what a data set holds, and its moments as shards.

What is found is in data/survey.py, moments are written by train/encoding.py; the sets that flowtok builds itself are in
workshop.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, JsonOption, check_device
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.data.survey import Survey

_COLUMNS = 8


PlaceArgument = Annotated[
    str,
    Argument(
        help="Folder of pictures, shards ('DATA/*.tar', 'DATA/{000..099}.tar', 'pipe:COMMAND') or Parquet.",
        metavar="PATH",
    ),
]


def data_stats(
    place: PlaceArgument,
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
        output.check_outside(place, out)
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


def data_latents(
    place: PlaceArgument,
    overrides: Annotated[
        list[str] | None,
        Argument(help="Changes, such as filters.min_longer_side=256 or shard_size=1000.", metavar="KEY=VALUE..."),
    ] = None,
    *,
    out: Annotated[Path, Option("--output", "-o", help="Folder of the shards.")],
    model: Annotated[
        str, Option("--model", "-m", help="Whose image tokenizer: a model, a tokenizer's folder, a training's folder.")
    ],
    text: Annotated[bool, Option("--text", help="Caches text features too, of the model's text encoder.")] = False,
    text_encoder: Annotated[str | None, Option(help="Another text encoder; includes --text.")] = None,
    layout: Annotated[str, Option(help="flowtok, or release: as the authors' release reads moments.")] = "flowtok",
    dtype: Annotated[str, Option(help="Type of the stored numbers: float16 or float32.")] = "float16",
    batch_size: Annotated[int, Option(min=1, help="Pictures encoded at a time.")] = 64,
    workers: Annotated[int, Option(min=0, help="Processes that decode pictures, for each that encodes.")] = 0,
    engine: Annotated[str, Option(help="torch, one process or those of torchrun; or ray, a cluster.")] = "torch",
    actors: Annotated[int | None, Option(min=1, help="With --engine ray: processes; by default one a GPU.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Writes the moments of pictures as shards to train from; started again, it makes what is missing."""
    if engine not in ("torch", "ray"):
        raise FlowTokError(f"--engine {engine}: it is torch or ray")
    if actors is not None and engine != "ray":
        raise FlowTokError("--actors is for --engine ray; with torch start the processes by torchrun")
    from flowtok.config import apply_overrides
    from flowtok.train.encoding import EncodingConfig, EncodingJob
    from flowtok.train.encoding_ray import encode_over_ray, require_ray
    from flowtok.train.runtime import Runtime, ranks_started

    if engine == "ray" and (ranks_started() > 1 or device != "auto"):
        raise FlowTokError(
            "--engine ray starts its own processes, on GPUs where there are some: no torchrun, no --device"
        )
    if engine == "ray":
        require_ray()
    elif device != "auto":
        check_device(device)
    given = {"layout": layout, "dtype": dtype, "batch_size": batch_size, "num_workers": workers}
    config = apply_overrides(
        EncodingConfig(), [*(f"{key}={value}" for key, value in given.items()), *(overrides or [])]
    )
    output.check_outside(place, out)
    output.make_folder(out, parents=True)
    words = text_encoder or (model if text else None)
    job = EncodingJob(place=place, folder=out.absolute(), tokenizer=model, text_encoder=words, config=config)
    # With Ray this process encodes nothing: it only compares what is there with what is asked for.
    runtime = Runtime.start(device="cpu" if engine == "ray" else None if device == "auto" else device)
    encoding = job.open(runtime)
    numbers, parts = encoding.unfinished(runtime.rank, runtime.num_ranks), len(encoding.source.parts)
    total = encoding.source.num_samples
    with output.progress("encoding pictures") as report:
        tell = lambda done: report(done, total or done)  # noqa: E731
        if engine == "ray":
            encode_over_ray(job, numbers, num_parts=parts, num_actors=actors, report=tell)
        else:
            encoding.make(numbers, tell)
    manifest = encoding.finish()
    if manifest is None:
        output.note(f"rank {runtime.rank} is done, others are not")
    elif runtime.is_main or numbers:  # who had nothing to do has nothing to say
        kept = None if runtime.num_ranks > 1 else encoding.made.num_shards - len(numbers)
        _say_latents(out, manifest, kept, json=json)


def _say_latents(folder: Path, manifest: dict[str, Any], kept: int | None, *, json: bool) -> None:
    """Prints what a folder of moments holds."""
    if json:
        output.say_json(manifest)
        return
    for line in _said_of_latents(folder, manifest, kept):
        output.say(line)


def _said_of_latents(folder: Path, manifest: dict[str, Any], kept: int | None) -> list[str]:
    """What a folder of moments holds, for people, and how many of its shards were there before."""
    from_what, found = manifest["made_from"], manifest["complete"]
    num_tokens, channels = from_what["shape"]
    shards = from_what["num_shards"]
    lines = [
        f"{folder}\t{found['samples']:,} samples in {shards:,} shard{'s' * (shards != 1)}"
        + (f", {kept:,} of them from before" if kept else ""),
        f"  moments     {num_tokens} x {channels} tokens of {from_what['image_size']} px, {from_what['dtype']}, "
        f"layout {from_what['layout']}" + ("; text features" if from_what["text_encoder"] else ""),
    ]
    if found["left_out"]:
        lines.append(f"  left out    {sum(found['left_out'].values()):,} by the filters: {_counts(found['left_out'])}")
    lines.append(f"  refused     {sum(found['refused'].values()):,}")
    for reason, count in found["refused"].items():
        lines.append(f"    {count:,} {reason}")
        lines += [f"      {one['key']}" for one in found["refused_examples"][reason]]
    return lines


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
