"""The command `flowtok eval`: measures a model; records, a table for the model card, a report and sheets of pictures.

What is measured and how stands in `flowtok.evaluate`; here are options, progress and ranks. Records are shown and
written in scores.py.
"""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flowtok.app import output, scores
from flowtok.app.options import (
    DeviceOption,
    DtypeOption,
    GridOption,
    IntervalOption,
    JsonOption,
    SolverOption,
    open_model,
)
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.train.runtime import Runtime

PICTURES_FOLDER = "pictures"
# Options that act on some tasks only.
ACTS_ON = {
    "clip": ("retrieval", "coco30k"),
    "weights": ("reconstruction", "coco30k", "mjhq30k"),
    "reference": ("coco30k", "mjhq30k"),
    "results": ("geneval", "dpg"),
}
# And those that act wherever pictures are drawn or captions written: on which of the two, as which field of
# SamplingConfig, and, where several numbers may be given with commas, of what type.
SAMPLING: dict[str, tuple[str, str, type | None]] = {
    "steps": ("pictures", "num_inference_steps", int),
    "guidance": ("pictures", "guidance_scale", float),
    "guidance-interval": ("pictures", "guidance_interval", None),
    "solver": ("pictures", "solver", None),
    "time-grid": ("pictures", "grid", None),
    "caption-steps": ("captions", "caption_steps", int),
    "caption-guidance": ("captions", "caption_guidance_scale", float),
}


def evaluate(
    model: Annotated[str | None, Argument(help="A shipped model, a model folder or a Hub id.")] = None,
    data: Annotated[
        str | None,
        Option(help="The set that `flowtok data emoji` built, any captioned pictures, or what a public task reads."),
    ] = None,
    task: Annotated[
        str | None,
        Option(
            help="Of reconstruction,retrieval,captions (these if left out, none with --sheets alone), paraphrases,"
            "round_trip,styles, with commas, or one of coco30k, mjhq30k, karpathy, geneval, dpg."
        ),
    ] = None,
    split: Annotated[
        str | None,
        Option(help="Of train,validation,unseen_concept,unseen_style, with commas; the task's own if left out."),
    ] = None,
    out: Annotated[
        Path | None,
        Option("--output", "-o", help="Folder for records.json, table.md, report.html and generated pictures."),
    ] = None,
    sheets: Annotated[Path | None, Option(help="Folder for sheets of pictures and captions.")] = None,
    limit: Annotated[int | None, Option(help="Samples of each split; the task's own number if left out.")] = None,
    steps: Annotated[
        str | None, Option(help="Steps from text to image, several with commas; the model's own if left out.")
    ] = None,
    guidance: Annotated[
        str | None, Option(help="Guidance scale, several with commas; 1 is none. The model's own if left out.")
    ] = None,
    guidance_interval: IntervalOption = None,
    solver: SolverOption = None,
    time_grid: GridOption = None,
    caption_steps: Annotated[
        str | None, Option(help="Steps from image to text, several with commas; the model's own if left out.")
    ] = None,
    caption_guidance: Annotated[
        str | None, Option(help="Guidance from image to text, several with commas; the model's own if left out.")
    ] = None,
    seed: Annotated[int, Option(help="Prompt number k, from 0, is drawn with seed + k.")] = 0,
    weights: Annotated[
        str | None,
        Option(help="Folder with the networks of FID and LPIPS, or `download`; adds rFID and LPIPS to reconstruction."),
    ] = None,
    clip: Annotated[str | None, Option(help="Folder or Hub id of a CLIP: adds what is measured with one.")] = None,
    reference: Annotated[
        Path | None, Option(help="Pictures, or an .npz of their statistics, instead of the task's own reference.")
    ] = None,
    results: Annotated[Path | None, Option(help="What the official scorer of geneval or dpg wrote.")] = None,
    batch_size: Annotated[
        int | None, Option(help="Pictures computed together: 1 if left out, best on a CPU; of captions 32.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None, Option(help="Show two measurements (folders of -o) side by side.", metavar="A B")
    ] = None,
    publish: Annotated[
        Path | None, Option(help="Make the page FOLDER.md of the records in a folder (docs/results).", metavar="FOLDER")
    ] = None,
    force: Annotated[bool, Option("--force", help="Compare what was measured under other protocols too.")] = False,
    json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Measures a model: how true its pictures are, how findable what it draws, how right its captions.

    Started by torchrun, all ranks draw and the first one measures. docs/evaluation.md tells each task's protocol.
    """
    sampled = {
        "steps": steps, "guidance": guidance, "guidance-interval": guidance_interval, "solver": solver,
        "time-grid": time_grid, "caption-steps": caption_steps, "caption-guidance": caption_guidance,
    }  # fmt: skip
    named = {"clip": clip, "weights": weights, "reference": reference, "results": results}
    if compare is not None or publish is not None:
        asked = (model, data, task, split, out, sheets, limit, batch_size, *sampled.values(), *named.values())
        if any(value is not None for value in asked) or seed or (compare and publish):
            word = "--compare" if compare is not None else "--publish"
            raise FlowTokError(f"{word} reads what was measured and measures nothing: leave MODEL and its options out")
    if compare is not None:
        scores.compare(*compare, force=force, json=json)
        return
    if force:
        raise FlowTokError("--force has no effect without --compare")
    if publish is not None:
        from flowtok.evaluate.results import write_results

        output.say(str(write_results(publish)))
        return
    if model is None or data is None:
        raise FlowTokError("name a model and its data: flowtok eval MODEL --data FOLDER (or --compare A B)")
    from flowtok.checkpoints.catalogue import resolve
    from flowtok.data.sources import open_source
    from flowtok.evaluate.bench import Bench, silent
    from flowtok.evaluate.drawing import Share
    from flowtok.evaluate.results import occasion_of
    from flowtok.evaluate.sheets import write_sheets
    from flowtok.evaluate.tasks import BY_DEFAULT, TASKS, check_tasks, draw_tasks, run_tasks

    tasks = ([] if sheets is not None else list(BY_DEFAULT)) if task is None else _names(task)
    splits = None if split is None else _names(split)
    check_tasks(tasks or list(BY_DEFAULT) if task is None else tasks, splits, limit)
    if not tasks and (splits is not None or limit is not None or out is not None):
        raise FlowTokError("--split, --limit and -o have no effect on sheets alone; name a --task or leave them out")
    if batch_size is not None and batch_size < 1:
        raise FlowTokError(f"--batch-size must be at least 1, not {batch_size}")
    _check_effect(tasks, named | ({} if sheets is not None else sampled))
    public = [name for name in tasks if not TASKS[name].is_captioned]
    if public and sheets is not None:
        raise FlowTokError(f"sheets are made of captioned sets; leave --sheets out or {public[0]}")
    if out is None and any(TASKS[name].draw is not None for name in public):
        raise FlowTokError(f"{public[0]} keeps the pictures that it draws: name a folder with -o")
    drawn, read = _combinations("pictures", sampled), _combinations("captions", sampled)
    model_folder = resolve(model)
    for opened in {TASKS[name].read or open_source for name in tasks or BY_DEFAULT}:
        opened(data)  # what is missing is said before a model is opened
    runtime = _joined(device, out)
    for folder in (out, sheets):
        if folder is not None:
            output.make_folder(folder)
    flow = open_model(model_folder, device if runtime is None else str(runtime.device), dtype, packed=False)
    flow.batch_size = batch_size or flow.batch_size
    with output.progress_of_parts() as report:
        bench = Bench(
            model=flow, folder=data, model_folder=model_folder, sampling=drawn[0] | read[0], seed=seed,
            batch_size=-(-64 // flow.batch_size) * flow.batch_size, captions_together=batch_size or 32,
            progress=report if runtime is None or runtime.is_main else silent,
            work=out / PICTURES_FOLDER if out is not None else None,
            weights=weights, clip=clip, reference=reference, results=results, note=output.note,
        )  # fmt: skip
        # Steps and guidance of pictures change nothing in captions, and neither do anything to reconstructions.
        benches = [(bench, tasks)] if tasks else []
        for kind, combinations in (("pictures", drawn), ("captions", read)):
            own = [name for name in tasks if kind in TASKS[name].sampled]
            benches += [(bench.with_sampling(sampling), own) for sampling in combinations[1:] if own]
        if runtime is not None:
            share = Share(rank=runtime.rank, num_ranks=runtime.num_ranks, gather=runtime.gather)
            for one, names in benches:
                draw_tasks(one.shared(share), names, splits, limit)
            if not runtime.is_main:
                return
        records = [record for one, names in benches for record in run_tasks(one, names, splits, limit)]
        paths = write_sheets(bench, sheets) if sheets is not None else []
    options = {
        "task": ",".join(tasks), "split": split, "limit": limit, **sampled, "seed": seed or None,
        "batch-size": batch_size, "dtype": None if dtype == "float32" else dtype,
        "weights": "FOLDER" if weights not in (None, "download") else weights,
        "clip": clip and (Path(clip).name if Path(clip).is_dir() else clip), "reference": reference and "PLACE",
        "results": results and results.name,
    }  # fmt: skip
    records = [replace(record, command=_command(model, options)) for record in records]
    if out is not None:
        title, ranks = f"{flow.name}: {', '.join(tasks)}", 1 if runtime is None else runtime.num_ranks
        paths += scores.write(records, out, bench.exhibits, title, occasion_of(flow.device, ranks))
    scores.say(records, paths, json=json)


def _check_effect(tasks: Sequence[str], given: Mapping[str, object]) -> None:
    """Raises FlowTokError where an option acts on none of the tasks."""
    from flowtok.evaluate.tasks import sampled

    for name, value in given.items():
        known = sampled(SAMPLING[name][0]) if name in SAMPLING else ACTS_ON[name]
        if value is not None and not set(tasks) & set(known):
            raise FlowTokError(f"--{name} acts on {', '.join(known)}, and none of them is measured")


def _combinations(kind: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number of steps with every guidance scale, as fields of SamplingConfig; the model's own where left out.

    Args:
        kind: What is sampled: "pictures" or "captions".
        given: The options of SAMPLING by name.
    """
    asked = {}
    for name, (acts_on, field, number) in SAMPLING.items():
        if acts_on == kind and given[name] is not None:
            asked[field] = [given[name]] if number is None else _numbers(name, given[name], number)
    return [dict(zip(asked, one, strict=True)) for one in itertools.product(*asked.values())]


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        numbers = [kind(one) for one in _names(text)]
    except ValueError as error:
        wanted = "whole numbers" if kind is int else "numbers"
        raise FlowTokError(f"--{name} {text}: {wanted} are expected, several with commas") from error
    if not numbers:
        raise FlowTokError(f"--{name} names no number")
    return list(dict.fromkeys(numbers))


def _joined(device: str, out: Path | None) -> "Runtime | None":
    """The ranks that torchrun started, or None for a single process."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if out is None:
        raise FlowTokError("several ranks share pictures through a folder: name it with -o")
    from flowtok.train.runtime import Runtime

    return Runtime.start(device=None if device == "auto" else device)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _command(model: str, options: Mapping[str, object]) -> str:
    """The command line that measures the same again, without the way to a folder of this machine."""
    named = Path(model).name if Path(model).is_absolute() else model
    words = ["flowtok", "eval", named, "--data", "FOLDER"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)
