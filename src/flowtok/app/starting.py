"""What stands around the stages of a training: recipe, language encoder, models to start from, the finished folder.

Also the line that shows how far a stage is. Knows no stage; `flowtok train` is in workshop.py, `flowtok fit` in
fitting.py.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtok.app import output
from flowtok.checkpoints.folder import TEXT_ENCODER_FOLDER
from flowtok.errors import FlowTokError

if TYPE_CHECKING:
    from flowtok.train.recipe import Recipe
    from flowtok.train.runtime import Runtime


# What stands in a training's line by itself, or not at all; the rest are terms of the loss.
_NO_TERMS = ("total", "samples_per_second", "data_wait", "seconds_left")


def teller(report: output.PartReport) -> Callable[[str, int, int, dict[str, float]], None]:
    """What shows the steps of a training: in its bar on a terminal, else a line for each logged step.

    Args:
        report: Of `output.progress_of_parts`.
    """
    interactive = sys.stderr.isatty()

    def tell(stage: str, step: int, total: int, figures: dict[str, float]) -> None:
        said = remark(figures)
        report(stage, step, total, said)
        if not interactive:
            output.note(f"{stage} {step}/{total}  {said}")

    return tell


def remark(figures: dict[str, float]) -> str:
    """What stands beside a step: the time that is left, the pace, the wait for data, the loss and its terms."""
    said = []
    if "seconds_left" in figures:
        said.append(f"{output.duration(figures['seconds_left'])} left")
    if "samples_per_second" in figures:
        said += [f"{figures['samples_per_second']:.0f} samples/s", f"{figures['data_wait']:.0%} waiting for data"]
    if "total" in figures:
        terms = [f"{name} {value:.4g}" for name, value in figures.items() if name not in _NO_TERMS]
        said.append(f"loss {figures['total']:.4g}" + (f" ({', '.join(terms)})" if terms else ""))
    return ", ".join(said)


def chosen_recipe(name: str, overrides: list[str]) -> "Recipe":
    """A named recipe, or one from a file, with its changes."""
    from flowtok.config import apply_overrides, did_you_mean, load_data
    from flowtok.recipes import RECIPES
    from flowtok.train.recipe import read_recipe

    if Path(name).suffix in (".yaml", ".yml", ".json"):
        recipe = read_recipe(load_data(name), where=name)
    elif name in RECIPES:
        recipe = RECIPES[name]
    else:
        raise FlowTokError(f"unknown recipe {name!r}, and no .yaml or .json file; {did_you_mean(name, RECIPES)}")
    return apply_overrides(recipe, overrides)


def weights_of(name: str) -> Path:
    """The weights that a training starts from: those of a model, or of a training's folder as far as it is."""
    from flowtok.checkpoints.catalogue import resolve

    trained = Path(name) / "model"
    return trained if (Path(name) / "recipe.yaml").is_file() and trained.is_dir() else resolve(name)


def encoder_of(folders: list[Path], recipe: "Recipe") -> Path | None:
    """The language encoder of the models that training starts from, if one has any.

    Raises:
        FlowTokError: None has, and the recipe is for another one than ships with flowtok.
    """
    found = next((folder / TEXT_ENCODER_FOLDER for folder in folders if (folder / TEXT_ENCODER_FOLDER).is_dir()), None)
    if found is None and recipe.text_encoder.family == "clip":
        raise FlowTokError(
            f"recipe {recipe.name} reads captions with CLIP: give its folder with --text-encoder CLIP; get it with: "
            "flowtok import --text-encoder openai/clip-vit-large-patch14-336 -o CLIP"
        )
    return found


def prepared(runtime: "Runtime", recipe: "Recipe", data: str, out: Path, text_encoder: Path | None) -> Path:
    """Lets the main rank make what all ranks read, decoded pictures and language encoder, while the others wait.

    Returns:
        The folder of the language encoder.

    Raises:
        FlowTokError: The data or the encoder cannot be had; on every rank, so that none waits for ever.
    """
    from flowtok.data.captioned import is_built
    from flowtok.data.collect import open_captioned

    try:
        if text_encoder is not None and (text_encoder / TEXT_ENCODER_FOLDER).is_dir():
            text_encoder = text_encoder / TEXT_ENCODER_FOLDER
        if runtime.is_main:
            text_encoder = text_encoder or language_encoder(out)
            if runtime.num_ranks > 1 and recipe.stream is None and is_built(data):
                # A large set's decoded pictures are kept for the next one.
                open_captioned(data, recipe.image_tokenizer.image_size)
    finally:
        runtime.wait_for_all()
    return text_encoder or language_encoder(out)


def language_encoder(out: Path) -> Path:
    """The language encoder that ships, or else one made in OUT from the package that carries it."""
    from flowtok.checkpoints.catalogue import shipped_folder

    shipped = shipped_folder() / "emoji" / "text_encoder"
    if shipped.is_dir():
        return shipped
    made = out / "text_encoder"
    if not made.is_dir():
        from flowtok.text.minilm import prepare_minilm

        prepare_minilm(made)
    return made


def complete_model(recipe: "Recipe", folder: Path, text_encoder: Path, start: Sequence[Path] = ()) -> bool:
    """Completes the model folder, so that it can be opened; False while a stage has yet to leave its weights there.

    A recipe that trains some parts gives a model of these and of what it started from; a flow that was taken over from
    a model of `start` is sampled as that model said.
    """
    from flowtok.checkpoints.catalogue import CONFIG_FILE
    from flowtok.checkpoints.folder import read_config
    from flowtok.components import write_model_config
    from flowtok.config import to_dict
    from flowtok.sampling import SamplingConfig

    configs: dict[str, Any] = {
        "image_tokenizer": recipe.image_tokenizer,
        "text_encoder": recipe.text_encoder,
        "text_projector": recipe.text_projector,
        "velocity": recipe.velocity,
        "text_decoder": recipe.text_decoder,
    }
    trains_no_flow = recipe.flow_training is None and recipe.captioner_training is None
    if trains_no_flow and not (folder / "velocity.safetensors").is_file():  # with a new decoder they were taken over
        del configs["text_projector"], configs["velocity"]
    if recipe.text_decoder is None:
        del configs["text_decoder"]
    sampling = SamplingConfig(**_sampling(recipe))
    if "velocity" in configs and recipe.flow_training is None:
        records = [read_config(one) for one in start if (one / CONFIG_FILE).is_file()]
        sampling = next((one.part("sampling", SamplingConfig) for one in records if one.sampling), sampling)
    return write_model_config(
        folder,
        name=recipe.name,
        configs=configs,
        sampling=sampling,
        text_encoder=text_encoder,
        provenance={"summary": _summary(recipe), "recipe": to_dict(recipe)},
    )


def _sampling(recipe: "Recipe") -> dict[str, Any]:
    """Fields of SamplingConfig that differ from their defaults: how the recipe's model is meant to be sampled."""
    chosen: dict[str, Any] = {"caption_steps": recipe.captioner_stage.num_steps}
    is_flow_stage = recipe.flow_training is not None and recipe.joint_stage is None
    if is_flow_stage and recipe.flow_stage.guidance_scale > 1.0:  # guidance is in its weights
        chosen |= {"guidance_scale": 1.0}
    if recipe.distil_stage is not None:  # guidance is in its weights
        chosen |= {"num_inference_steps": recipe.distil_stage.jumps[-1], "guidance_scale": 1.0, "grid": "middle"}
    return chosen


def _summary(recipe: "Recipe") -> str:
    said = f"trained by the recipe {recipe.name}"
    if (distilled := recipe.distil_stage) is not None:
        jumps = ", ".join(str(number) for number in distilled.jumps)
        scale = distilled.guidance_scale
        guidance = f"with guidance {scale:g} in its weights" if scale > 1.0 else "as its teacher without guidance"
        said += f"; draws in {jumps} steps on the grid middle, {guidance}"
    return said
