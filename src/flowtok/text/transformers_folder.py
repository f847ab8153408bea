"""Networks of language encoders out of folders in transformers' layout, offline and checked.

What the networks are for is in encoder.py, which also reads what kind a folder holds.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowtok.errors import CheckpointError

CLASSES = {"bert": ("BertConfig", "BertModel"), "clip": ("CLIPTextConfig", "CLIPTextModel")}


def load_network(folder: Path, family: str, activation: str, dtype: torch.dtype) -> nn.Module:
    """Loads config.json and model.safetensors of a BERT-like encoder or of CLIP's text tower.

    Args:
        folder: Where they are.
        family: "bert" or "clip".
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
        import transformers

        # By name: the library imports a network's module when it is asked for, and each takes its time.
        config_class, network_class = (getattr(transformers, name) for name in CLASSES[family])
        options = {"add_pooling_layer": False} if family == "bert" else {}
        try:
            stored = config_class.from_pretrained(folder, local_files_only=True)
            stored.hidden_act = activation
            loaded = network_class.from_pretrained(
                folder, config=stored, dtype=dtype, local_files_only=True, use_safetensors=True,
                output_loading_info=True, **options,
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
