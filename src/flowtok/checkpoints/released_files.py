"""Reads weight files of others: .pth and .bin (pickles, nothing in them is run) and .safetensors.

What the names in them mean is in official.py; our own model folders are in store.py.
"""

import pickle
import warnings
import zipfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flowtok.checkpoints.official import plain
from flowtok.errors import CheckpointError

PICKLES = (".pth", ".pt", ".bin", ".ckpt")


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Reads a file of named tensors, memory-mapped where its format allows.

    Args:
        path: A .safetensors file, or a torch pickle (.pth, .pt, .bin, .ckpt), which is read as plain weights only.

    Returns:
        The tensors by their released names, without nesting and prefix.

    Raises:
        CheckpointError: If the file is missing, truncated, of another kind, or asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}")
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        try:
            return plain(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or not a safetensors file ({size} bytes): {error}") from error
    if path.suffix not in PICKLES:
        allowed = ", ".join((".safetensors", *PICKLES))
        raise CheckpointError(f"{path} is not a weight file by its name: it should end in one of {allowed}")
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters of them is an error below
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain weight file ({size} bytes): it is damaged, or it asks to run code, which is refused"
        ) from error
    except Exception as error:  # the library raises many kinds for damaged files
        if "TorchScript" in str(error):  # its advice would be to let the program in the file run
            raise CheckpointError(f"{path} is a TorchScript program, not a plain weight file; it is not run") from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a torch checkpoint ({size} bytes): {reason}") from error
    return plain(loaded)
