"""The command `flowtok fit`: a folder of pictures in, a two-way model out, in the minutes allowed.

Looks at pictures, machine and start; how the minutes are spent is planned in train/fit.py, and carried out in
fit_work.py.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.fit_work import Work
from flowtok.app.options import DeviceOption, check_device
from flowtok.checkpoints.catalogue import resolve
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.data.collect import Collected
    from flowtok.train.fit import FitPlan
    from flowtok.train.recipe import Recipe
    from flowtok.train.runtime import Runtime

FRESH = "none"


def fit(
    place: Annotated[str, Argument(help="Folder of pictures with captions, shards or Parquet.", metavar="FOLDER")],
    out: Annotated[Path, Option("--output", "-o", help="The model folder that is written.")],
    minutes: Annotated[float, Option(help="Time to take, from now to the finished model.")] = 60.0,
    size: Annotated[int, Option(help="Side of the pictures in pixels.")] = 64,
    start: Annotated[
        str | None, Option("--from", help=f"Model to start from; emoji where the size fits, else {FRESH}.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Trains a model of your own pictures, both ways; started again, it goes on where it was stopped."""
    from flowtok.data.collect import open_captioned
    from flowtok.train.runtime import Runtime, ranks_started
    from flowtok.train.stops import told_of_sigterm

    if ranks_started() > 1:
        raise FlowTokError(
            "fit is for one process; train on several with: torchrun ... flowtok train emoji --data FOLDER"
        )
    time_left = _clock(minutes)
    work = Work(folder=out.absolute().parent / f"{out.name}-training", out=out, place=place, device=device)
    output.check_outside(place, out, work.folder)
    begun = work.begun(size)
    work.check_free()
    if device != "auto":
        check_device(device)
    runtime = Runtime.start(device=None if device == "auto" else device)
    first = _start(start, size)
    base = begun or _networks(first, size)
    with told_of_sigterm():
        with output.progress("reading pictures") as report:
            pictures = open_captioned(place, size, base.data, progress=lambda done, total: report(done, total or done))
        for line in pictures.tally.lines():
            output.note(line)
        _tell_splits(place, pictures)
        spent = 60.0 * minutes - time_left()
        # Whoever measures reads the pictures once more.
        seconds = lambda: time_left() - spent  # noqa: E731
        plan = _plan(work, base, pictures, seconds=seconds, start=first, runtime=runtime)
        model, stopped = work.train(plan, pictures, runtime, seconds)
        work.finish(model, pictures, again=stopped)


def _clock(minutes: float) -> Callable[[], float]:
    """Tells the seconds that are left, from now on."""
    if not minutes > 0:
        raise FlowTokError(f"--minutes must be above 0, not {minutes:g}")
    end = time.monotonic() + 60.0 * minutes
    return lambda: end - time.monotonic()


def _start(name: str | None, size: int) -> Path | None:
    """The model to start from: the one that was named, or the shipped one if its pictures are of this size."""
    if name == FRESH:
        return None
    from flowtok.checkpoints.folder import read_config

    folder = resolve(name or "emoji")
    has = (read_config(folder).image_tokenizer or {}).get("image_size")
    if has == size:
        return folder
    if name is not None:
        raise FlowTokError(f"--from {name} has pictures of {has} px, not {size}; leave --from or --size out")
    output.note(f"starts fresh: the shipped model has pictures of {has} px, not {size}")
    return None


def _tell_splits(place: str, pictures: "Collected") -> None:
    """Says how many pictures are learned and held out, by which captions, and whether these tell them apart."""
    import re
    import textwrap
    from collections import Counter

    rows = pictures.pictures.rows
    counts = Counter(row.split for row in rows)
    held_out = sum(counts.values()) - counts["train"]
    shown = dict.fromkeys(rows[number].text for number in (0, len(rows) // 2, len(rows) - 1))
    output.note(
        f"{place}: {counts['train']:,} pictures to learn, {held_out:,} held out; their captions are such as "
        + ", ".join(repr(textwrap.shorten(text, 60)) for text in shown)
    )
    captions = {row.text for row in rows}
    how = (
        "give each its own, as a text file of the same name, a metadata.jsonl with file_name and text, or as its file "
        "name"
    )
    if len(rows) > 1 and len(captions) == 1:
        raise FlowTokError(f"all {len(rows):,} pictures have the same caption {rows[0].text!r}: {how}")
    # As cameras name their files. Where numbers come again, as of digits that somebody wrote, they say something.
    if len({re.sub(r"\d+", "", text) for text in captions}) == 1 and len(captions) == len(rows) > 1:
        output.note(f"these captions differ in a number only, and so no prompt will mean anything: {how}")


def _networks(start: Path | None, size: int) -> "Recipe":
    """What may be trained: the recipe `emoji`, for this size or with the networks of the model to start from."""
    from flowtok.checkpoints.folder import read_config
    from flowtok.recipes import EMOJI
    from flowtok.train.fit import READING_SHARE_STARTED, recipe_for

    if start is None:
        return recipe_for(EMOJI, size)
    record = read_config(start)
    shapes = {
        name: record.part(name, type(getattr(EMOJI, name)))
        for name in ("image_tokenizer", "text_encoder", "text_projector", "text_decoder", "velocity")
    }
    return replace(EMOJI, **shapes, flow_stage=replace(EMOJI.flow_stage, reading_share=READING_SHARE_STARTED))


def _plan(
    work: Work,
    base: "Recipe",
    pictures: "Collected",
    *,
    seconds: Callable[[], float],
    start: Path | None,
    runtime: "Runtime",
) -> "FitPlan":
    """The plan of an earlier start in the same folder, or a new one for the seconds that are left."""
    from flowtok.train.fit import (
        SHARE_OF_TRAINING,
        FitPlan,
        check_enough,
        choose_networks,
        plan_fit,
        rebuilt_psnr,
    )
    from flowtok.train.rates import measured_rates

    if work.recipe_path.is_file():
        output.note(f"going on in {work.folder} as planned there; delete it to plan anew")
        return FitPlan(recipe=base, start=start if base.text_training is None else None, rates={}, reasons=())
    train = pictures.split("train")
    count, psnr = len(train), None
    check_enough(count)
    with output.progress("trying how fast this machine trains"):
        if start is None:
            shaped, rates, reason = choose_networks(
                base, num_pictures=count, seconds=SHARE_OF_TRAINING * seconds(),
                rates_of=lambda recipe: measured_rates(recipe, runtime.device),
            )  # fmt: skip
        else:
            shaped, rates, reason = base, measured_rates(base, runtime.device), f"networks: those of {start.name}"
            psnr = rebuilt_psnr(start, train.images_N3YX, runtime.device)
    given = max(1.0, SHARE_OF_TRAINING * seconds())
    plan = plan_fit(
        shaped, name=work.out.name, num_pictures=count, seconds=given, rates=rates, start=start, psnr=psnr,
        reason=reason,
    )  # fmt: skip
    where = str(runtime.device) if runtime.device.type != "cpu" else f"{_threads()} CPU threads"
    output.note(f"starts from {start.name if start else 'nothing'}, on {where}; trains for {output.duration(given)}:")
    for reason in plan.reasons:
        output.note(f"  {reason}")
    output.make_folder(work.folder, parents=True)
    work.save(plan)
    return plan


def _threads() -> int:
    import torch

    return torch.get_num_threads()
