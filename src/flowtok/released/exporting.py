"""Writes an imported model back in the layout of the authors' release, every number as it is stored.

The key tables are in checkpoints/official_keys.py; the way in is importing.py.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from flowtok.checkpoints import store
from flowtok.checkpoints.official_keys import (
    HEAD_KEYS,
    POINTWISE,
    PROJECTOR_KEYS,
    VELOCITY_KEYS,
    Names,
    names,
    tokenizer_names,
)
from flowtok.components import NETWORKS
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.files import replacing
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizerConfig
from flowtok.released.card import size_name
from flowtok.released.importing import ALIGNMENT_HEAD, LATENT_SCALE


def export_released(model: str | Path, out: str | Path, *, safetensors: bool = False) -> list[Path]:
    """Writes FlowTok-SIZE.pth and, if the model has an image tokenizer, FlowTiTok_PIXELS.bin.

    What the imported file lacked (alignment head, temperature) is left out again.

    Args:
        model: A model folder.
        out: Folder for the files; made if it is missing.
        safetensors: Writes .safetensors files instead of torch pickles.

    Returns:
        The files.

    Raises:
        CheckpointError: The model has no velocity network, is damaged, or has what the released layout cannot hold.
        FlowTokError: A file of that name is there already, or it cannot be written.
    """
    folder, out = store.resolve(model), Path(out).expanduser()
    store.verify_checksums(folder)
    record = store.read_config(folder)
    velocity = record.part("velocity", NETWORKS["velocity"][0])
    projector = record.part("text_projector", NETWORKS["text_projector"][0])
    if projector.noise_std is not None:
        raise CheckpointError(
            f"model {record.name!r} has no released layout: its text tokens have a fixed noise of {projector.noise_std}"
        )
    ending = ".safetensors" if safetensors else None
    path = out / f"FlowTok-{size_name(velocity) or 'other'}{ending or '.pth'}"
    plan = {
        path: _velocity_file(folder, names(VELOCITY_KEYS, velocity.depth), names(PROJECTOR_KEYS, projector.num_layers))
    }
    if record.image_tokenizer is not None:
        config = record.part("image_tokenizer", ImageTokenizerConfig)
        if config.text_width is None:
            raise CheckpointError(f"model {record.name!r} has no released layout: its decoder is not guided by text")
        if config.flow_noise:
            raise CheckpointError(f"model {record.name!r} has no released layout: its image decoder is told of noise")
        scale = LatentScale.uniform(config.num_tokens, config.token_channels, LATENT_SCALE).state_dict()
        found = store.load_state(store.component_file(folder, "latent_scale"))
        if any(not weight.equal(found.get(name, weight + 1)) for name, weight in scale.items()):
            raise CheckpointError(
                f"model {record.name!r} has no released layout: its tokens are scaled other than by {LATENT_SCALE}"
            )
        plan[out / f"FlowTiTok_{config.image_size}{ending or '.bin'}"] = _tokenizer_file(folder, config)
    if there := [path for path in plan if path.exists()]:
        raise FlowTokError(f"{there[0]} exists already; move it away or name another folder")
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise FlowTokError(f"cannot make folder {out}: {error.strerror or error}") from error
    for path, state in plan.items():
        with replacing(path) as temporary:
            _write(state, temporary, safetensors)
    return list(plan)


def _write(state: dict[str, Tensor], path: Path, safetensors: bool) -> None:
    """Writes a file of named tensors.

    Raises:
        FlowTokError: The disk is full, which neither library says as an OSError.
    """
    # A pickle stores whole storages; mapped tensors share the one of their file.
    plain = state if safetensors else {name: weight.clone() for name, weight in state.items()}
    try:
        if safetensors:
            save_file(plain, path, metadata={"format": "pt"})
        else:
            torch.save(plain, path)
    except (SafetensorError, RuntimeError) as error:
        raise FlowTokError(f"cannot write into {path.parent}; is there room? ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _velocity_file(folder: Path, velocity: Names, projector: Names) -> dict[str, Tensor]:
    state = _component(folder, "velocity", velocity)
    state |= _component(folder, "text_projector", projector)
    if not (folder / f"{ALIGNMENT_HEAD}.safetensors").is_file():
        return state
    weights = store.load_state(store.component_file(folder, ALIGNMENT_HEAD))
    head = {theirs: weights[ours] for theirs, ours in names(HEAD_KEYS).items() if ours in weights}
    first = {name: head.pop(name) for name in ("t2t_temperature",) if name in head}
    return {**first, **state, **head}


def _tokenizer_file(folder: Path, config: ImageTokenizerConfig) -> dict[str, Tensor]:
    state = _component(folder, "image_tokenizer", tokenizer_names(config.encoder.depth, config.decoder.depth))
    return {name: weight[:, :, None, None] if name in POINTWISE else weight for name, weight in state.items()}


def _component(folder: Path, name: str, table: Names) -> dict[str, Tensor]:
    """A component's stored weights by their released names."""
    weights = store.load_state(store.component_file(folder, name))
    if odd := set(weights).symmetric_difference(table.values()):
        raise CheckpointError(f"{folder / name}.safetensors does not fit its config: {', '.join(sorted(odd)[:3])}")
    return {theirs: weights[ours] for theirs, ours in table.items()}
