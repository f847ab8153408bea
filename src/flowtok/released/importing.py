"""Makes a flowtok model folder of the authors' released files, and completes one that lacks a part.

Where files come from is in sources.py, the text encoder in clip.py, the way back in exporting.py, the model card in
card.py.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flowtok.checkpoints import official, store
from flowtok.checkpoints.catalogue import CONFIG_FILE, is_folder
from flowtok.checkpoints.folder import CARD_FILE, TEXT_ENCODER_FOLDER
from flowtok.checkpoints.official_keys import HEAD_KEYS, PROJECTOR_KEYS, VELOCITY_KEYS, Names, names, tokenizer_names
from flowtok.checkpoints.released_files import read_released
from flowtok.components import NETWORKS, check_fit
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.image.latents import LatentScale
from flowtok.released.card import model_card, size_name
from flowtok.released.clip import clip_config, write_clip
from flowtok.released.sources import described, text_encoder_files, weight_file
from flowtok.sampling import SamplingConfig
from flowtok.text.encoder import Activation, TextEncoderConfig

ALIGNMENT_HEAD = "alignment_head"
LATENT_SCALE = 1.0143
RELEASED_SAMPLING = SamplingConfig(num_inference_steps=20, guidance_scale=2.0, solver="euler", grid="release")
# The files of a model folder that importing a part writes anew.
WRITES = {
    "velocity": ("velocity.safetensors", "text_projector.safetensors", f"{ALIGNMENT_HEAD}.safetensors"),
    "image_tokenizer": ("image_tokenizer.safetensors", "latent_scale.safetensors"),
    "text_encoder": (f"{TEXT_ENCODER_FOLDER}/",),
}
# The released networks were trained on CLIP ViT-L/14, whose features are this wide, with this many word pieces.
RELEASED_TEXT = (768, 49408)
FILES = {f"{name}.safetensors" for name in (*store.COMPONENTS, ALIGNMENT_HEAD)} | {
    CONFIG_FILE, CARD_FILE, TEXT_ENCODER_FOLDER,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component, ready to be written.

    Attributes:
        name: Its name in a model folder.
        config: Its config; None for what config.json does not describe.
        weights: Its weights by our names, in the types that they will be stored in.
    """

    name: str
    config: Any
    weights: dict[str, Tensor]


def import_released(
    folder: str | Path,
    *,
    velocity: str | None = None,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
    activation: Activation | None = None,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model folder from released files; parts that an imported folder has already are kept.

    Everything is read and checked, the parts that are kept included, before the folder is touched; config.json is
    written last.

    Args:
        folder: New, empty, or written by an earlier import.
        velocity: File of velocity network and text projector, a path or OWNER/NAME/FILE on the Hub.
        tokenizer: File of the image tokenizer, likewise.
        text_encoder: Folder of a CLIP model or of its text tower, a path or a Hub id.
        activation: Activation of the text tower; the one that its config.json names where not given.
        heads: Attention heads of velocity network and text projector where the width is none of the released ones.
        dtype: Float type of the stored weights, tables left out; as they are in the files where not given.

    Returns:
        The folder.

    Raises:
        CheckpointError: A file is missing, damaged or not what it should be, or components do not fit each other.
        FlowTokError: Nothing to import, or a folder that holds something else.
    """
    folder = Path(folder).expanduser()
    before = _imported_before(folder)
    if before is None and velocity is None:
        raise FlowTokError(f"{folder} holds no imported model yet; name the file of its velocity network first")
    if activation is not None and text_encoder is None:
        raise FlowTokError("--activation has no effect without --text-encoder")
    if heads is not None and velocity is None:
        raise FlowTokError("--heads has no effect without a velocity network")
    sources = dict(before.provenance["released"]) if before is not None else {}
    configs = {} if before is None else _configs(before)
    new = [part for part, source in zip(WRITES, (velocity, tokenizer, text_encoder), strict=True) if source is not None]
    if before is not None:
        store.verify_checksums(folder, _kept(before, new))
    sampling = RELEASED_SAMPLING
    if before is not None and before.sampling is not None and velocity is None:
        sampling = before.part("sampling", SamplingConfig)  # with what somebody changed there
    model_name = folder.absolute().name
    with _staging(folder) as staging:
        # One file after the other: each is let go of before the next is read.
        for part, source, read in (
            ("velocity", velocity, lambda state: _velocity_side(state, heads, dtype)),
            ("image_tokenizer", tokenizer, lambda state: _image_side(state, dtype)),
        ):
            if source is not None:
                path = weight_file(source)
                configs |= _stage(staging, read(read_released(path)))
                sources[part] = described(source, path)
        _check(model_name, configs)
        if text_encoder is not None:
            clip = text_encoder_files(text_encoder)
            configs["text_encoder"] = clip_config(clip, activation)
            sources["text_encoder"] = described(text_encoder, clip)
            _check(model_name, configs)
            write_clip(clip, staging / TEXT_ENCODER_FOLDER, configs["text_encoder"], dtype)
        has_head = velocity is None or (staging / f"{ALIGNMENT_HEAD}.safetensors").is_file()
        _move(staging, folder)
    if not has_head:
        (folder / f"{ALIGNMENT_HEAD}.safetensors").unlink(missing_ok=True)
    _finish(folder, configs, sampling, sources)
    return folder


def _stage(staging: Path, components: Iterable[Component]) -> dict[str, Any]:
    """Writes components and returns the configs of those that have one."""
    configs = {}
    for component in components:
        store.save_component(staging, component.name, component.weights)
        if component.config is not None:
            configs[component.name] = component.config
    return configs


def renamed(state: Mapping[str, Tensor], table: Names, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a released file by our names and in our shapes, in their own types and without a copy."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return {ours: state[theirs].detach().reshape(shapes[ours]) for theirs, ours in table.items()}


def _velocity_side(state: dict[str, Tensor], heads: int | None, dtype: torch.dtype | None) -> Iterator[Component]:
    """The velocity network, the text projector and what is there of the alignment head."""
    stored = _float_type(state.get("x_embedder.weight"))
    velocity = official.load_velocity(state, heads=heads, dtype=stored)
    width = state["context_encoder.linear.weight"].shape[-1] if "context_encoder.linear.weight" in state else None
    projector = official.load_text_projector(
        state, heads=None if width in official.PROJECTOR_HEADS else heads, dtype=stored
    )
    official.load_alignment_head(state, dtype=stored)
    yield _component("velocity", velocity, state, names(VELOCITY_KEYS, velocity.config.depth), dtype)
    yield _component("text_projector", projector, state, names(PROJECTOR_KEYS, projector.config.num_layers), dtype)
    head = {ours: state[theirs] for theirs, ours in names(HEAD_KEYS).items() if theirs in state}
    if head:
        weights = {name: weight if dtype is None else weight.to(dtype) for name, weight in head.items()}
        yield Component(name=ALIGNMENT_HEAD, config=None, weights=weights)


def _image_side(state: dict[str, Tensor], dtype: torch.dtype | None) -> Iterator[Component]:
    """The image tokenizer and the one number between its tokens and the flow's."""
    network = official.load_tokenizer(state, dtype=_float_type(state.get("latent_tokens")))
    config = network.config
    table = tokenizer_names(config.encoder.depth, config.decoder.depth)
    yield _component("image_tokenizer", network, state, table, dtype)
    scale = LatentScale.uniform(config.num_tokens, config.token_channels, LATENT_SCALE)
    yield Component(name="latent_scale", config=None, weights=scale.state_dict())


def _component(
    name: str, network: Any, state: Mapping[str, Tensor], table: Names, dtype: torch.dtype | None
) -> Component:
    """A component with its weights in the given type; tables, which nothing trains, stay as they are stored."""
    weights = renamed(state, table, network)
    if dtype is not None:
        trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        weights = {key: weight.to(dtype) if key in trained else weight for key, weight in weights.items()}
    return Component(name=name, config=network.config, weights=weights)


def _float_type(tensor: Tensor | None) -> torch.dtype:
    """The type that a file is in, so that checking its network needs no converted copy."""
    return tensor.dtype if tensor is not None and tensor.is_floating_point() else torch.float32


def _imported_before(folder: Path) -> store.ModelRecord | None:
    """What an earlier import left in the folder; None for a new one.

    Raises:
        FlowTokError: The folder holds something else, or cannot be made.
    """
    if not is_folder(folder):
        if folder.exists():
            raise FlowTokError(f"cannot import into {folder}: it is a file; name a folder")
        if not folder.absolute().parent.is_dir():
            raise FlowTokError(f"cannot make {folder}: there is no folder {folder.parent}; make it first")
        return None
    if (folder / CONFIG_FILE).is_file():
        record = store.read_config(folder)
        if not isinstance(record.provenance.get("released"), dict):
            raise FlowTokError(f"cannot import into {folder}: it holds model {record.name!r}, which is no imported one")
        return record
    visible = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if foreign := sorted(name for name in visible if name not in FILES):
        raise FlowTokError(f"cannot import into {folder}: it holds other files ({', '.join(foreign[:3])})")
    return None


def _kept(before: store.ModelRecord, new: Iterable[str]) -> list[str]:
    """The files of an imported folder that importing these parts leaves alone: damaged ones must not get checksums."""
    replaced = tuple(name for part in new for name in WRITES[part])
    return [name for name in before.files if not name.startswith(replaced)]


def _configs(before: store.ModelRecord) -> dict[str, Any]:
    """The configs of the parts that an imported folder has."""
    kinds = {name: config_class for name, (config_class, _) in NETWORKS.items()} | {"text_encoder": TextEncoderConfig}
    return {name: before.part(name, kind) for name, kind in kinds.items() if getattr(before, name) is not None}


def _check(name: str, configs: Mapping[str, Any]) -> None:
    """Raises CheckpointError where two parts do not fit, a text encoder with other words included."""
    check_fit(name, configs)
    text, projector = configs.get("text_encoder"), configs["text_projector"]
    width, vocabulary = RELEASED_TEXT
    if text is not None and projector.text_width == width and text.vocabulary_size != vocabulary:
        raise CheckpointError(
            f"the text encoder does not fit: it has {text.vocabulary_size} word pieces, "
            f"the released models read the {vocabulary} of CLIP ViT-L/14"
        )


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder on the disk of the model's, gone afterwards: inside that folder if it is there, else beside it.

    Raises:
        FlowTokError: It cannot be made there, or the disk is full.
    """
    home = folder if folder.is_dir() else folder.absolute().parent
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.absolute().name}.part-", dir=home)
    except OSError as error:
        raise FlowTokError(f"cannot make {folder}: {error.strerror or error}") from error
    try:
        with temporary as name:
            yield Path(name)
    except SafetensorError as error:  # how its writer says that the disk is full; what it reads is caught elsewhere
        raise FlowTokError(f"cannot write {folder}: {error}") from error


def _move(staging: Path, folder: Path) -> None:
    """Puts the written files in their places; a text encoder takes the place of the old one as a whole."""
    try:
        folder.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            target = folder / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
    except OSError as error:
        raise FlowTokError(f"cannot write {folder}: {error.strerror or error}") from error


def _finish(folder: Path, configs: Mapping[str, Any], sampling: SamplingConfig, sources: Mapping[str, Any]) -> None:
    """Writes the model card, then config.json with checksums of everything."""
    size = size_name(configs["velocity"])
    pixels = configs["image_tokenizer"].image_size if "image_tokenizer" in configs else None
    title = f"FlowTok{f'-{size}' if size else ''}"
    provenance = {
        "summary": f"{title} of the authors' release{f', {pixels} px' if pixels else ''}, imported",
        "licence": "not known to flowtok: the weights are the authors' (or whoever gave out the files); ask them",
        "released": dict(sources),
    }
    name = folder.absolute().name
    store.write_card(folder, model_card(name, title, pixels, configs, sources))
    store.write_config(folder, name=name, parts={**configs, "sampling": sampling}, provenance=provenance)
