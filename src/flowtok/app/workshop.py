"""The commands around a model: models, info, train, data emoji.

models and info read no weights and need no torch; train hands over to train/course.py, data to data/emoji.py. What a
training needs before its first stage is in starting.py.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, JsonOption, check_device
from flowtok.app.starting import chosen_recipe, complete_model, encoder_of, prepared, teller, weights_of
from flowtok.checkpoints.catalogue import is_folder
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.train.recipe import Recipe

# A stage that leaves several files leaves this one when it ends.
LEFT_BY_STAGE = {
    "tokenizer": "latent_scale.safetensors",
    "text": "text_projector.safetensors",
    "flow": "velocity.safetensors",
    "captioner": "text_decoder.safetensors",
}


def models(json: JsonOption = False) -> None:
    """Lists the models that ship with flowtok."""
    from flowtok.checkpoints.catalogue import list_models, shipped_folder

    described = [_described(shipped_folder() / name) for name in list_models()]
    if json:
        output.say_json(described)
        return
    if not described:
        output.note("no model ships with this copy; name a model folder or a Hub id with --model")
    for one in described:
        output.say(f"{one['name']}\t{one['image_size']} px\t{one['bytes'] / 1e6:.0f} MB\t{one['summary']}".rstrip())


def info(
    model: Annotated[str, Argument(help="A shipped model, a model folder or a Hub id.")] = "emoji",
    json: JsonOption = False,
) -> None:
    """Says what is inside a model, and checks that its files are whole."""
    from flowtok.checkpoints.catalogue import resolve
    from flowtok.checkpoints.folder import verify_checksums

    folder = resolve(model)
    described = _described(folder)
    verify_checksums(folder)
    if json:
        output.say_json(described)
        return
    output.say(f"{described['name']}  ({folder}, {described['bytes'] / 1e6:.1f} MB, all files whole)")
    for title in ("components", "sampling", "provenance"):
        output.say(f"\n{title}")
        for key, value in (described[title] or {}).items():
            output.say(f"  {key:18} {value}")


def train(
    recipe: Annotated[str, Argument(help="A named recipe, or a .yaml or .json file of one.", metavar="RECIPE")],
    data: Annotated[
        str, Option(help="Captioned pictures: the set of `flowtok data emoji`, a folder, shards or Parquet.")
    ],
    out: Annotated[Path, Option("--output", "-o", help="Folder for runs, caches and the model.")],
    overrides: Annotated[
        list[str] | None, Argument(help="Changes, such as flow_training.num_steps=500.", metavar="KEY=VALUE...")
    ] = None,
    start: Annotated[
        list[str] | None,
        Option("--from", help="Model to start from; given again, the first that has a part gives it."),
    ] = None,
    stage: Annotated[list[str] | None, Option(help="A stage to run; all in order if left out.")] = None,
    text_encoder: Annotated[
        Path | None,
        Option(help="Folder of the language encoder; that of --from, or all-MiniLM-L6-v2, if left out."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Trains a model, stage by stage; started again, it goes on where it was stopped."""
    from flowtok.config import save
    from flowtok.data.sources import open_source

    chosen = chosen_recipe(recipe, overrides or [])
    if not is_folder(out) and out.exists():
        raise FlowTokError(f"cannot train in {out}: it is a file, not a folder")
    output.check_outside(data, out)
    from flowtok.train.course import STAGES, run_course
    from flowtok.train.page import write_page
    from flowtok.train.runtime import Runtime
    from flowtok.train.stops import told_of_sigterm

    _check_stages(stage or [], chosen)
    folders = [weights_of(name) for name in start or []]
    if device != "auto":
        check_device(device)
    open_source(data, chosen.data.fields)  # says what is wrong with it before a folder is made
    output.make_folder(out, parents=True)
    runtime = Runtime.start(device=None if device == "auto" else device)
    encoder = prepared(runtime, chosen, data, out, text_encoder or encoder_of(folders, chosen))
    saved = False
    # Ranks are ended by who started them.
    ending = told_of_sigterm() if runtime.num_ranks == 1 else contextlib.nullcontext()
    with ending, output.progress_of_parts() as report:
        show = teller(report)

        def tell(*step: Any) -> None:
            nonlocal saved
            if not saved:  # not earlier: a run of another recipe is refused and keeps its own file
                save(chosen, out / "recipe.yaml")
                saved = True
            show(*step)

        model = run_course(
            chosen, data, out, text_encoder=encoder, runtime=runtime, stages=tuple(stage or STAGES), start=folders,
            report=tell,
        )  # fmt: skip
    if not runtime.is_main:
        return
    save(chosen, out / "recipe.yaml")
    write_page(out / "report.html", [out / name for name in chosen.trained_stages], title=chosen.name)
    if complete_model(chosen, model, encoder, folders):
        output.say(str(model))
    done = [name for name in chosen.trained_stages if (model / LEFT_BY_STAGE[name]).is_file()]
    if remaining := [name for name in chosen.trained_stages if name not in done]:
        output.note(f"trained so far: {', '.join(done)}; still to train: {', '.join(remaining)}")


def _check_stages(stages: list[str], recipe: "Recipe") -> None:
    """Raises FlowTokError for a stage that there is not, or that the recipe does not train."""
    from flowtok.train.recipe import STAGES

    if unknown := [name for name in stages if name not in STAGES]:
        raise FlowTokError(f"unknown stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    if idle := [name for name in stages if name not in recipe.trained_stages]:
        raise FlowTokError(f"recipe {recipe.name} has no stage {idle[0]}; it has {', '.join(recipe.trained_stages)}")


def data_emoji(
    out: Annotated[Path, Option("--output", "-o", help="Folder of the set.")],
    size: Annotated[int, Option(help="Side of the pictures in pixels.")] = 64,
    sets: Annotated[str | None, Option(help="Icon sets, separated by commas; a fixed choice if left out.")] = None,
    workers: Annotated[int, Option(help="Processes that draw.")] = 2,
) -> None:
    """Builds the captioned emoji set: fetches open icon sets with npm, draws them and writes captions."""
    from flowtok.data.emoji import build

    names = [name.strip() for name in sets.split(",") if name.strip()] if sets is not None else None
    titles = {"fetch": "fetching icon sets", "draw": "drawing icons"}
    with output.progress_of_parts() as report:
        summary = build(
            out,
            size=size,
            sets=names,
            workers=workers,
            progress=lambda what, done, total: report(titles[what], done, total),
        )
    output.say(f"{summary.folder}\t{summary.pictures} pictures, {summary.concepts} concepts, {summary.size} px")
    for split, count in summary.per_split.items():
        output.say(f"  {split:18} {count}")
    if summary.identical:
        output.say(f"left out: {summary.identical} icons that look just like another")
    if summary.failed:
        shown = ", ".join(summary.failed[:3]) + (", ..." if len(summary.failed) > 3 else "")
        output.say(f"left out: {len(summary.failed)} icons that could not be drawn ({shown})")


def _described(folder: Path) -> dict[str, Any]:
    """What config.json and the heads of the weight files say of a model."""
    from flowtok.checkpoints.folder import PARTS, read_config

    record = read_config(folder)
    components = {}
    for name in (*(part for part in PARTS if part != "sampling"), "latent_scale"):
        path = folder / "text_encoder/model.safetensors" if name == "text_encoder" else folder / f"{name}.safetensors"
        if name == "latent_scale" or getattr(record, name) is not None:
            components[name] = f"{_count(path) / 1e6:.2f} M numbers" if path.is_file() else "missing"
    return {
        "name": record.name,
        "summary": str(record.provenance.get("summary", "")),
        "image_size": (record.image_tokenizer or {}).get("image_size"),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "components": components,
        "sampling": record.sampling,
        "provenance": record.provenance,
        "flowtok_version": record.flowtok_version,
    }


def _count(path: Path) -> int:
    """How many numbers a weight file holds, from its head alone.

    Raises:
        FlowTokError: It is not a safetensors file.
    """
    import json
    import math

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            head = json.loads(file.read(min(length, 100_000_000)))
            return sum(math.prod(entry["shape"]) for key, entry in head.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FlowTokError(f"{path} is truncated or not a safetensors file") from error
