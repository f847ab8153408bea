"""The command `flowtok pack`: a trained model as a folder to give away, compact, with checksums and a card.

What stands on the card is in card.py; how a folder is written in components.py.
"""

import filecmp
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DTYPES
from flowtok.checkpoints.catalogue import CONFIG_FILE, is_folder, resolve
from flowtok.checkpoints.folder import CARD_FILE, PARTS, TEXT_ENCODER_FOLDER, read_config, write_card, write_config
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.components import Model
    from flowtok.evaluate.report import Record


def pack(
    model: Annotated[str, Argument(help="A trained model, such as OUT/model of `flowtok train`.", metavar="MODEL")],
    out: Annotated[Path, Option("--output", "-o", help="The model folder that is written.")],
    overrides: Annotated[
        list[str] | None, Argument(help="How it is sampled by default: guidance_scale=3.", metavar="KEY=VALUE...")
    ] = None,
    dtype: Annotated[str, Option(help="Store the weights in float32, bfloat16 or float16.")] = "float16",
    scores: Annotated[
        list[Path] | None, Option(help="Folder that `flowtok eval -o` wrote, for the card; may be given again.")
    ] = None,
    data: Annotated[Path | None, Option(help="The set it was trained on; its licences go on the card.")] = None,
    notes: Annotated[Path | None, Option(help="A Markdown file with more words for the card.")] = None,
    licence: Annotated[str | None, Option("--license", help="Licence of the weights, such as apache-2.0.")] = None,
) -> None:
    """Makes a model folder to give away: compact weights, checksums and a card with scores and licences."""
    if dtype not in DTYPES:
        raise FlowTokError(f"--dtype {dtype}: weights are stored in {', '.join(DTYPES)}")
    source = resolve(model)
    recipe = read_config(source).provenance.get("recipe")
    if not isinstance(recipe, dict):
        raise FlowTokError(f"{source} was not trained by flowtok train: its {CONFIG_FILE} holds no recipe")
    _check_target(out, source)
    words = _text(notes) if notes is not None else ""
    with output.progress("packing"), _beside(out) as beside:
        import torch

        from flowtok.app.card import DataFacts, model_card
        from flowtok.components import Model
        from flowtok.config import apply_overrides

        staging = Path(beside)
        facts = DataFacts.read(data) if data is not None else None
        opened = Model.from_pretrained(source)
        opened.sampling = apply_overrides(opened.sampling, overrides or [])
        opened.provenance |= {
            "summary": _summary(opened, facts.counts.get("train") if facts else None),
            "stored": dtype,
        }
        if licence:
            opened.provenance["license"] = licence
        opened.save_pretrained(staging, dtype=getattr(torch, dtype))
        _take_over(out, staging)
        card = model_card(
            opened, reference=out.absolute().name, dtype=dtype, training=_training(recipe), data=facts, notes=words,
            licence=licence, scores=_scores(scores or [], source, staging, out, dtype),
        )  # fmt: skip
        write_card(staging, card)
        _move(staging, out)
    output.say(str(out))


def _check_target(out: Path, source: Path) -> None:
    """Raises FlowTokError where the target holds anything but an earlier pack of the same model."""
    if out.absolute().resolve() == source.resolve():
        raise FlowTokError(f"cannot pack {source} into itself; name another folder")
    check_free(out)
    if (out / CONFIG_FILE).is_file() and (held := read_config(out).name) != (ours := read_config(source).name):
        raise FlowTokError(f"cannot pack model {ours!r} into {out}: it holds model {held!r}; name another folder")


def check_free(out: Path) -> None:
    """Raises FlowTokError where a model folder cannot be: a file, or a folder with anything that is no part of one."""
    from flowtok.checkpoints.store import COMPONENTS
    from flowtok.components import TRAINING_ONLY

    if not is_folder(out):
        if out.exists():
            raise FlowTokError(f"cannot pack into {out}: it is a file; name a folder")
        return
    known = {f"{name}.safetensors" for name in (*COMPONENTS, *TRAINING_ONLY)}
    known |= {CONFIG_FILE, CARD_FILE, TEXT_ENCODER_FOLDER}
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise FlowTokError(f"cannot pack into {out}: it holds other files ({', '.join(foreign[:3])})")


def _beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """An empty folder beside the target, gone afterwards."""
    try:
        return tempfile.TemporaryDirectory(prefix=f".{out.name}.part-", dir=out.absolute().parent)
    except OSError as error:
        raise FlowTokError(f"cannot make {out}: {error.strerror or error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowTokError(f"cannot read the notes {path}: {error}") from error


def _summary(model: "Model", pictures: int | None) -> str:
    """The line that `flowtok models` shows."""
    ways = "both ways" if "text_decoder" in model.parts else "text to image"
    learned = f" on {pictures:,} captioned pictures" if pictures else ""
    return f"{model.image_tokenizer.config.image_size} px, {ways}; trained by the recipe {model.name}{learned}"


def _training(recipe: dict[str, object]) -> str:
    """The command that trains the same: by name where the recipe is a named one but for its name, else from a file."""
    from flowtok.recipes import RECIPES
    from flowtok.train.recipe import read_recipe

    trained = read_recipe(recipe, where="the recipe of the model")
    named = [name for name, known in RECIPES.items() if replace(known, name=trained.name) == trained]
    start = "" if trained.tokenizer_training and trained.flow_training else " --from MODEL"
    return f"flowtok train {named[0] if named else 'recipe.json'}{start} --data FOLDER -o OUT"


def _take_over(out: Path, staging: Path) -> None:
    """Keeps the target's own file of every component whose numbers stay, as two files of the same may differ in bytes.

    So a model that is packed once more is the same to the last byte, and its scores remain its own.
    """
    import torch

    from flowtok.checkpoints.store import load_state

    for path in staging.glob("*.safetensors"):
        if (out / path.name).is_file():
            ours, theirs = load_state(path), load_state(out / path.name)
            if list(ours) == list(theirs) and all(
                ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
            ):
                shutil.copyfile(out / path.name, path)
    record = read_config(staging)
    parts = {part: getattr(record, part) for part in PARTS}
    write_config(staging, name=record.name, parts=parts, provenance=record.provenance)


def _scores(folders: Sequence[Path], source: Path, staging: Path, out: Path, dtype: str) -> str:
    """Tables of records, with the commands that measured them.

    Raises:
        FlowTokError: There are none, or they are neither of the trained model nor of what is being packed.
    """
    from flowtok.evaluate.report import RECORDS_FILE, markdown, read_records

    records = [record for folder in folders for record in read_records(folder / RECORDS_FILE)]
    trained, packed = (hashlib.sha256((one / CONFIG_FILE).read_bytes()).hexdigest() for one in (source, staging))
    if foreign := [record for record in records if record.model_sha256 not in (trained, packed)]:
        raise FlowTokError(
            f"the scores ({foreign[0].task}, {foreign[0].split}) are of another model than {source}; pack without "
            f"--scores, then measure it: flowtok eval {out} --data FOLDER -o SCORES"
        )
    if not records:
        return ""
    said = markdown([_told(record, out.absolute().name) for record in records])
    if dtype != "float32" and any(record.model_sha256 != packed for record in records):
        said += f"\nMeasured before the weights were rounded to {dtype}.\n"
    return said


def _told(record: "Record", reference: str) -> "Record":
    """The record with its command as the users of the packed model would write it."""
    words = shlex.split(record.command)
    return replace(record, command=shlex.join([*words[:2], reference, *words[3:]])) if words else record


def _move(staging: Path, out: Path) -> None:
    """Puts what has changed in its place, config.json last, and takes away what the model does not have."""
    paths = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
    try:
        out.mkdir(exist_ok=True)
        for path in sorted(paths, key=lambda path: (path.name == CONFIG_FILE and path.parent == Path(), path)):
            target = out / path
            if not target.is_file() or not filecmp.cmp(staging / path, target, shallow=False):
                target.parent.mkdir(exist_ok=True)
                (staging / path).replace(target)
        for path in out.rglob("*"):
            if path.is_file() and path.relative_to(out) not in paths:
                path.unlink()
    except OSError as error:
        raise FlowTokError(f"cannot write {out}: {error.strerror or error}") from error
