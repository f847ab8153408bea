"""The command `flowtok fit`: a folder of pictures in, a two-way model out, in the minutes allowed.

How the minutes are spent is planned in train/fit.py; train/course.py trains, evaluation.py measures, packing.py packs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, check_device
from flowtok.app.packing import check_free, pack
from flowtok.checkpoints.catalogue import resolve
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.data.captioned import EmojiSet
    from flowtok.train.fit import FitPlan
    from flowtok.train.recipe import Recipe
    from flowtok.train.runtime import Runtime

RECIPE_FILE = "recipe.yaml"
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
    from flowtok.data.collect import collect
    from flowtok.train.runtime import Runtime

    check_free(out)
    if device != "auto":
        check_device(device)
    runtime = Runtime.start(device=None if device == "auto" else device)
    first = _start(start, size)
    with output.progress("reading pictures") as report:
        collected = collect(place, size, progress=lambda done, total: report(done, total or done))
    for line in collected.tally.lines():
        output.note(line)
    _tell_splits(place, collected.pictures)
    work = _Work(folder=out.absolute().parent / f"{out.name}-training", out=out)
    plan = _plan(work, collected.split("train"), minutes=minutes, size=size, start=first, runtime=runtime)
    model = work.train(place, plan, runtime)
    work.finish(place, model, collected.pictures)


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


def _tell_splits(place: str, pictures: "EmojiSet") -> None:
    """Says how many pictures are learned and held out, and whether their captions tell them apart."""
    from collections import Counter

    counts = Counter(row.split for row in pictures.rows)
    held_out = sum(counts.values()) - counts["train"]
    output.note(f"{place}: {counts['train']:,} pictures to learn, {held_out:,} held out")
    different = len({row.text for row in pictures.rows})
    if len(pictures) > 1 and different == 1:
        raise FlowTokError(
            f"all {len(pictures):,} pictures have the same caption {pictures.rows[0].text!r}: give each its own, as a "
            "text file of the same name, a metadata.jsonl with file_name and text, or as its file name"
        )


def _networks(start: Path | None, size: int) -> "Recipe":
    """What is trained: the model to start from as it was made, or the recipe `emoji` for this size."""
    from flowtok.checkpoints.folder import read_config
    from flowtok.config import from_dict
    from flowtok.recipes import EMOJI
    from flowtok.train.fit import recipe_for
    from flowtok.train.recipe import Recipe

    if start is None:
        return recipe_for(EMOJI, size)
    made_by = read_config(start).provenance.get("recipe")
    if not isinstance(made_by, dict):
        raise FlowTokError(f"--from {start.name} was not trained by flowtok: its config.json holds no recipe")
    return from_dict(Recipe, made_by, where=f"the recipe of {start.name}")


def _plan(
    work: "_Work", train: "EmojiSet", *, minutes: float, size: int, start: Path | None, runtime: "Runtime"
) -> "FitPlan":
    """The plan of an earlier start in the same folder, or a new one."""
    from flowtok.config import load, save
    from flowtok.train.fit import FitPlan, measured_rates, plan_fit
    from flowtok.train.recipe import Recipe

    if work.recipe_path.is_file():
        output.note(f"going on in {work.folder} as planned there; delete it to plan anew")
        recipe = load(Recipe, work.recipe_path)
        return FitPlan(recipe=recipe, start=start if recipe.text_training is None else None, reasons=())
    shaped = _networks(start, size)
    with output.progress("trying how fast this machine trains"):
        rates = measured_rates(shaped, runtime.device)
    plan = plan_fit(shaped, name=work.out.name, num_pictures=len(train), minutes=minutes, rates=rates, start=start)
    output.note(f"starts from {start.name if start else 'nothing'}; {minutes:g} minutes in all, of which")
    for reason in plan.reasons:
        output.note(f"  {reason}")
    output.make_folder(work.folder, parents=True)
    save(plan.recipe, work.recipe_path)
    return plan


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The folder that training works in, beside the model that comes out."""

    folder: Path
    out: Path

    @property
    def recipe_path(self) -> Path:
        return self.folder / RECIPE_FILE

    def train(self, place: str, plan: "FitPlan", runtime: "Runtime") -> Path:
        """Trains all stages and returns the finished model folder, in float32."""
        from flowtok.app.starting import complete_model, language_encoder
        from flowtok.app.workshop import remark
        from flowtok.train.course import run_course
        from flowtok.train.stops import TrainingStopped

        encoder = language_encoder(self.folder)
        with output.progress_of_parts() as report:

            def tell(name: str, step: int, total: int, metrics: dict[str, float]) -> None:
                report(name, step, total, remark(metrics))
                if not sys.stderr.isatty():
                    output.note(f"{name} {step}/{total}")

            def course(*, as_it_is: bool) -> Path:
                return run_course(
                    plan.recipe, place, self.folder, text_encoder=encoder, runtime=runtime, start=plan.start,
                    as_it_is=as_it_is, report=tell,
                )  # fmt: skip

            try:
                model = course(as_it_is=False)
            except TrainingStopped as stopped:
                output.note(f"{stopped}; taking the model as far as it is")
                model = course(as_it_is=True)
        complete_model(plan.recipe, model, encoder)
        return model

    def finish(self, place: str, model: Path, pictures: "EmojiSet") -> None:
        """Measures the model on what was held out and packs it."""
        from flowtok.app.evaluation import evaluate
        from flowtok.train.course import STAGES
        from flowtok.train.page import write_page

        splits = [name for name in ("validation", "unseen_concept") if any(row.split == name for row in pictures.rows)]
        scores = []
        if splits:
            scores = [self.folder / "scores"]
            evaluate(
                str(model), data=place, task="reconstruction,captions", split=",".join(splits), limit=128,
                out=scores[0],
            )  # fmt: skip
        pack(str(model), out=self.out, scores=scores)
        page = write_page(
            self.folder / "report.html",
            [self.folder / stage for stage in STAGES],
            title=f"{self.out.name}, from {place}",
        )
        output.note(f"how it learned: {page}")
