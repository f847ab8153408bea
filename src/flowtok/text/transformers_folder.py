"""CLIP's text tower out of a folder in transformers' layout, through transformers, offline and checked.

What it is for is in encoder.py, which also reads what kind of network a folder holds; BERT's is in bert.py.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowtok.errors import CheckpointError


def load_clip(folder: Path, activation: str, dtype: torch.dtype) -> nn.Module:
    """Loads config.json and model.safetensors of CLIP's text tower.

    Args:
        folder: Where they are.
        activation: Takes the place of the one that config.json names.
        dtype: Type of the weights.

    Raises:
        CheckpointError: If weights are missing, damaged or not finite.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"the text encoder's weights are missing: there is no file {weights}")
    loaded: Any
    with quiet_transformers():
        from transformers import CLIPTextConfig, CLIPTextModel

        try:
            stored = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
            stored.hidden_act = activation
            loaded = CLIPTextModel.from_pretrained(
                folder, config=stored, dtype=dtype, local_files_only=True, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:  # the library raises many kinds for a damaged folder
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"cannot load the text encoder in {folder}: {reason}") from error
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{weights} lacks {len(missing)} weights of the text encoder: {', '.join(missing[:3])}")
    if bad := [name for name, weight in network.named_parameters() if not torch.isfinite(weight).all()]:
        raise CheckpointError(f"{weights} has NaN or infinite numbers in {', '.join(bad[:3])}")
    return network


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps progress bars and load reports of the library off the user's terminal; what matters is checked here."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
