"""Writes the text encoder of an imported model: CLIP's text tower alone, from any CLIP folder in transformers' layout.

The released weights come without it. text/encoder.py reads what is written here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flowtok.checkpoints import store
from flowtok.checkpoints.official import FLOATS
from flowtok.checkpoints.released_files import read_released
from flowtok.errors import CheckpointError
from flowtok.text.encoder import Activation, TextEncoder, TextEncoderConfig, read_text_encoder_config

PREFIX = "text_model."
# Older transformers stored this list of numbers with the weights.
POSITION_IDS = "embeddings.position_ids"
CONFIG_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "vocab_size", "layer_norm_eps", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# A caption and CLIP's ids of it: a tokenizer with the right number of word pieces may still split words in other ways.
CLIP_VOCABULARY = 49408
CAPTION, CAPTION_IDS = "a photo of a cat", [320, 1125, 539, 320, 2368]


def clip_config(source: Path, activation: Activation | None = None) -> TextEncoderConfig:
    """What a CLIP folder holds; the activation is the folder's own unless one is given.

    Raises:
        CheckpointError: No CLIP model, or a damaged config.json.
    """
    config = read_text_encoder_config(source, activation=activation)
    if config.family != "clip":
        raise CheckpointError(f"{source} holds a {config.family} model; the released models read CLIP's text tower")
    return config


def write_clip(source: Path, target: Path, config: TextEncoderConfig, dtype: torch.dtype | None = None) -> None:
    """Writes config.json, model.safetensors and tokenizer.json of the text tower, and opens them once to be sure.

    Args:
        source: A CLIPTextModel or a whole CLIPModel, with tokenizer.json or with vocab.json and merges.txt.
        target: The text encoder's folder; made here.
        config: From `clip_config`.
        dtype: Float type of the stored weights; as they are where not given.

    Raises:
        CheckpointError: A file is missing or damaged, weights do not fit, or the tokenizer is not the encoder's.
    """
    stored, shapes = _architecture(source)
    weights = _text_tower(read_released(_weights_of(source)), str(source))
    _check_layers(weights, int(stored.num_hidden_layers), str(source))
    _check_weights(weights, shapes, str(source))
    target.mkdir(parents=True, exist_ok=True)
    stored.hidden_act = config.activation
    plain = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    plain |= {key: getattr(stored, key, None) for key in CONFIG_KEYS}
    store.write_file_atomically(target / "config.json", json.dumps(plain, indent=2) + "\n")
    store.save_component(target, "model", {PREFIX + name: weight for name, weight in weights.items()}, dtype)
    _write_tokenizer(source, target / "tokenizer.json", config)
    kept = next(iter(weights.values())).dtype if dtype is None else dtype
    encoder = TextEncoder.from_folder(target, config, dtype=kept)
    ids = encoder.tokenizer.encode(CAPTION, add_special_tokens=False).ids
    if config.vocabulary_size == CLIP_VOCABULARY and ids != CAPTION_IDS:
        raise CheckpointError(
            f"the tokenizer in {source} is not CLIP's: {CAPTION!r} has the ids {ids[:8]}, not {CAPTION_IDS}"
        )


def _architecture(source: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The text tower's config as transformers reads it, and the shape of each weight by its name without prefix."""
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        stored = CLIPTextConfig.from_pretrained(source, local_files_only=True)
        with torch.device("meta"):
            network = CLIPTextModel(stored)
    except Exception as error:  # the library raises many kinds for numbers that make no network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{source / 'config.json'} is not a text encoder's config: {reason}") from error
    return stored, {name.removeprefix(PREFIX): tuple(weight.shape) for name, weight in network.named_parameters()}


def _weights_of(source: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (source / name).is_file():
            return source / name
    raise CheckpointError(f"the text encoder's weights are missing: {source} has no model.safetensors")


def _text_tower(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tower's weights without prefix, whether it stands alone or in a whole CLIP."""
    inside = {name.removeprefix(PREFIX): weight for name, weight in state.items() if name.startswith(PREFIX)}
    alone = {name: weight for name, weight in state.items() if name.startswith(("embeddings.", "encoder.", "final_"))}
    found = inside or alone
    found.pop(POSITION_IDS, None)
    if not found:
        raise CheckpointError(f"{where} holds no text tower: none of its weights begins with {PREFIX}")
    return found


def _check_layers(weights: Mapping[str, Tensor], expected: int, where: str) -> None:
    numbers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    if len(numbers) != expected:
        raise CheckpointError(f"{where} has weights of {len(numbers)} layers; its config.json says {expected}")


def _check_weights(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raises CheckpointError where names, shapes or types are not those of the network; numbers are checked later."""
    if missing := [name for name in shapes if name not in weights]:
        raise CheckpointError(f"the text encoder in {where} lacks {len(missing)} weights: {_first(missing)}")
    if extra := [name for name in weights if name not in shapes]:
        raise CheckpointError(f"the text encoder in {where} has {len(extra)} unknown weights: {_first(extra)}")
    if wrong := [
        f"{name} is {tuple(weight.shape)}, not {shapes[name]}"
        for name, weight in weights.items()
        if tuple(weight.shape) != shapes[name]
    ]:
        raise CheckpointError(f"the text encoder in {where} does not fit its config.json: {_first(wrong, '; ')}")
    if unreal := [name for name, weight in weights.items() if weight.dtype not in FLOATS]:
        raise CheckpointError(
            f"the text encoder in {where} has {len(unreal)} weights of another type: {_first(unreal)}"
        )


def _first(names: list[str], joint: str = ", ") -> str:
    return joint.join(names[:3]) + (f"{joint}..." if len(names) > 3 else "")


def _write_tokenizer(source: Path, path: Path, config: TextEncoderConfig) -> None:
    """Copies the tokenizer, or makes it from vocab.json and merges.txt; its ids must be the encoder's."""
    try:
        if (source / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        elif (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
            from transformers import CLIPTokenizer

            tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True).backend_tokenizer
        else:
            raise CheckpointError(
                f"the text encoder's tokenizer is missing: {source} has no tokenizer.json, "
                f"nor vocab.json and merges.txt"
            )
    except CheckpointError:
        raise
    except Exception as error:  # the libraries raise many kinds for damaged files
        raise CheckpointError(f"cannot read the tokenizer in {source}: {error}") from error
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest != config.vocabulary_size - 1:
        raise CheckpointError(
            f"the tokenizer in {source} does not fit its encoder: the highest of its ids is {highest}, "
            f"the encoder has {config.vocabulary_size} word pieces"
        )
    there = source / "tokenizer.json"
    store.write_file_atomically(path, there.read_bytes() if there.is_file() else tokenizer.to_str())
