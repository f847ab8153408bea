"""Weights in and out of a model folder: one safetensors file per component, loaded strictly or not at all.

Knows no particular network: it fills whatever module it is given. The authors' released files: official.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from flowtok.checkpoints.catalogue import list_models, resolve, shipped_folder
from flowtok.checkpoints.folder import (
    PARTS,
    TEXT_ENCODER_FOLDER,
    FileRecord,
    ModelRecord,
    how_to_get,
    read_config,
    verify_checksums,
    write_card,
    write_config,
)
from flowtok.errors import CheckpointError
from flowtok.files import replacing, write_file_atomically

__all__ = [
    "COMPONENTS",
    "PARTS",
    "FileRecord",
    "ModelRecord",
    "build",
    "component_file",
    "list_models",
    "load_component",
    "load_into",
    "load_state",
    "read_config",
    "resolve",
    "save_component",
    "shipped_folder",
    "text_encoder_folder",
    "verify_checksums",
    "write_card",
    "write_config",
    "write_file_atomically",
]

COMPONENTS = ("image_tokenizer", "latent_scale", "text_projector", "velocity", "text_decoder")
_NAMES_SHOWN = 3

Module = TypeVar("Module", bound=nn.Module)


def component_file(folder: str | Path, name: str) -> Path:
    """The weight file of a component.

    Raises:
        CheckpointError: the folder has none; the message says how to get it.
    """
    path = Path(folder) / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"model folder {folder} has no {path.name}; {how_to_get(Path(folder).name)}")
    return path


def text_encoder_folder(folder: str | Path) -> Path:
    """The sub-folder with the language encoder, in the layout of transformers.

    Raises:
        CheckpointError: a file of it is missing; the message names it.
    """
    path = Path(folder) / TEXT_ENCODER_FOLDER
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"model folder {folder} has no {TEXT_ENCODER_FOLDER}/{missing[0]}; {how_to_get(Path(folder).name)}"
        )
    return path


def save_component(
    folder: str | Path, name: str, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Path:
    """Writes a component's weights as NAME.safetensors; a crash leaves the old file or the new one.

    Args:
        folder: the model folder; made if it is missing.
        name: the component, such as "velocity".
        state_dict: its weights, on any device.
        dtype: float type to store the floating-point weights in; as they are where not given.

    Raises:
        CheckpointError: a weight is NaN or infinite, or becomes so in `dtype`; or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        kept = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None)
        # A clone where memory is shared: safetensors refuses two names for the same bytes.
        part_of_more = kept.untyped_storage().nbytes() > kept.nbytes
        tensors[key] = kept.clone(memory_format=torch.contiguous_format) if part_of_more else kept.contiguous()
    _check_finite(tensors, f"{name} as {dtype}" if dtype else name)
    path = folder / f"{name}.safetensors"
    with replacing(path) as temporary:
        try:
            # One key only: several are written in an order of chance, and the same weights would differ in bytes.
            safetensors.torch.save_file(_unshared(tensors), temporary, metadata={"component": name})
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error
    return path


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Opens a safetensors file as memory-mapped tensors: nothing is read before it is used.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is only a Git LFS pointer; run `git lfs pull` to get the weights")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({size} bytes): {error}") from error


def build(factory: Callable[[], Module]) -> Module:
    """Calls `factory` so that its parameters take no memory: it is filled by `load_into` before it can be used."""
    with torch.device("meta"):
        return factory()


def load_into(module: Module, state: Mapping[str, Tensor], *, what: str, dtype: torch.dtype | None = None) -> Module:
    """Fills `module` with exactly the weights in `state`: same names, same shapes, all finite.

    A module from `build` takes the tensors over without a copy wherever their type fits; any other keeps its own
    parameters and gets their values.

    Args:
        module: the network.
        state: its weights by name.
        what: what the messages call them, such as "velocity of model 'emoji'".
        dtype: float type for the network's floating-point parameters, for modules from `build` only; the network's
            own where not given. Buffers, which are tables, always keep the network's own.

    Raises:
        CheckpointError: missing or unknown names, other shapes or kinds of numbers, NaN or infinite weights; one
            line with the first few names. The module is left as it was.
    """
    expected = module.state_dict()
    _check_names(expected, state, what)
    _check_shapes(expected, state, what)
    _check_finite(state, what)
    on_meta = any(tensor.is_meta for tensor in expected.values())
    assert dtype is None or on_meta, "dtype is for modules from build(); a live module keeps its own"
    if on_meta:
        wanted = _wanted_types(module, dtype)
        state = {key: state[key].to(wanted[key]) for key in expected}
    module.load_state_dict(state, strict=True, assign=on_meta)
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not left, f"buffers that no checkpoint fills must not be built on the meta device: {left}"
    return module


def load_component(
    folder: str | Path, name: str, factory: Callable[[], Module], dtype: torch.dtype | None = None
) -> Module:
    """Builds a network and fills it from NAME.safetensors in a model folder; it comes back in evaluation mode.

    Memory stays near the size of the network: the file is mapped, and where its float type differs it is read weight by
    weight, so that at no time both are there.

    Raises:
        CheckpointError: as `component_file`, `load_state` and `load_into`.
    """
    path = component_file(folder, name)
    module = build(factory)
    state, wanted = load_state(path), _wanted_types(module, dtype)
    for key, tensor in state.items():
        if key in wanted and tensor.is_floating_point() and tensor.dtype != wanted[key]:
            # A mapping of its own for each: pages that were read count as memory until their mapping goes.
            with safetensors.safe_open(path, framework="pt") as file:
                state[key] = file.get_tensor(key).to(wanted[key])
    return load_into(module, state, what=str(path), dtype=dtype).eval()


def _wanted_types(module: nn.Module, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The type that each weight gets: `dtype` for floating-point parameters, the network's own for all else."""
    wanted = {key: tensor.dtype for key, tensor in module.state_dict().items()}
    if dtype is not None:
        wanted |= {key: dtype for key, parameter in module.named_parameters() if parameter.is_floating_point()}
    return wanted


def _check_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of {len(expected)} weights are missing ({_first(missing)})")
    if unknown:
        complaints.append(f"{len(unknown)} are unknown ({_first(unknown)})")
    if complaints:
        raise CheckpointError(f"{what} does not fit the network: {' and '.join(complaints)}")


def _check_shapes(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    shapes = [
        f"{key} is {tuple(state[key].shape)}, the network has {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if state[key].shape != tensor.shape
    ]
    if shapes:
        raise CheckpointError(
            f"{what} does not fit the network: {len(shapes)} of another shape ({_first(shapes, '; ')})"
        )
    kinds = [
        f"{key} is {state[key].dtype}, the network has {tensor.dtype}"
        for key, tensor in expected.items()
        if state[key].is_floating_point() != tensor.is_floating_point()
    ]
    if kinds:
        raise CheckpointError(f"{what} does not fit the network: {len(kinds)} of another kind ({_first(kinds, '; ')})")


def _check_finite(state: Mapping[str, Tensor], what: str) -> None:
    bad = [key for key, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        raise CheckpointError(
            f"{what} has NaN or infinite values in {len(bad)} of {len(state)} weights ({_first(bad)})"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; one pass that needs no memory of its own (NaN survives min and max)."""
    if tensor.is_meta or tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with a copy of each that lies on the bytes of an earlier one (tied weights)."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return result


def _first(names: Iterable[str], joint: str = ", ") -> str:
    """The first few names of a list, for a message."""
    names = list(names)
    return joint.join(names[:_NAMES_SHOWN]) + (f"{joint}..." if len(names) > _NAMES_SHOWN else "")
