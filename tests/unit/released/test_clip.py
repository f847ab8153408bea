"""A CLIP folder becomes a model's text encoder, or is refused: other features or ids draw other pictures in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_released import FOLDER, write_clip_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowtok.errors import CheckpointError
from flowtok.released.clip import clip_config, write_clip
from flowtok.text.encoder import TextEncoder

MLP = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP text tower; tests copy it before they change it."""
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def clip(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "clip"))


def written(source: Path, target: Path, dtype: torch.dtype | None = None) -> TextEncoder:
    config = clip_config(source)
    write_clip(source, target, config, dtype)
    return TextEncoder.from_folder(target, config)


def split_tokenizer(folder: Path) -> None:
    """The two files that older CLIP folders have in place of tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


@pytest.mark.parametrize("split", [False, True])
def test_the_tokenizer_gives_the_release_s_ids(clip: Path, tmp_path: Path, split: bool) -> None:
    """Whichever files the folder has, prompts are read as the weights were trained."""
    if split:
        split_tokenizer(clip)
    encoder = written(clip, tmp_path / "encoder")
    items = json.loads((FOLDER / "clip_tokens.json").read_text(encoding="utf-8"))["items"]
    expected = [item["ids"] + [0] * item["zeros_after"] for item in items]
    assert encoder.encode([item["text"] for item in items]).ids_BS.tolist() == expected
    assert encoder.words(torch.tensor(expected[:1])) == ["a photo of a cat"]
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_a_tokenizer_that_splits_words_in_other_ways_is_refused(clip: Path, tmp_path: Path) -> None:
    """It has all the word pieces, and every prompt would be spelt letter by letter."""
    split_tokenizer(clip)
    (clip / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not CLIP's: 'a photo of a cat' has the ids .* not .320, 1125, 539"):
        written(clip, tmp_path / "encoder")
    (clip / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json, nor vocab.json and merges.txt"):
        written(clip, tmp_path / "encoder")


def test_an_old_whole_clip_s_config_is_read(original: Path, tmp_path: Path) -> None:
    """The CLIP that the release names has a config of 2022, full of keys that nothing reads any more."""
    whole = write_clip_folder(tmp_path / "whole", whole=True)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {
        "model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "dropout": 0.0,
        "pruned_heads": {}, "temperature": 1.0, "torch_dtype": None, "torchscript": False, "typical_p": 1.0,
        "tie_encoder_decoder": False, "id2label": {"0": "LABEL_0"}, "transformers_version": "4.21.3",
        "projection_dim": 16,
    }  # fmt: skip
    config |= {
        "text_config_dict": {"hidden_size": 16},
        "vision_config": {"hidden_size": 1024},
        "torch_dtype": "float32",
    }
    (whole / "config.json").write_text(json.dumps(config), encoding="utf-8")
    features, expected = (
        written(source, tmp_path / name).encode(["a cat"]).features_BSE
        for source, name in ((whole, "from_whole"), (original, "from_tower"))
    )
    assert features.equal(expected)


def test_a_smaller_type_is_stored(clip: Path, tmp_path: Path) -> None:
    written(clip, tmp_path / "small", torch.bfloat16)
    assert {weight.dtype for weight in load_file(tmp_path / "small" / "model.safetensors").values()} == {torch.bfloat16}


def extra(state: dict[str, Tensor]) -> None:
    state["text_model.encoder.layers.0.adapter.weight"] = torch.ones(3)


def missing(state: dict[str, Tensor]) -> None:
    del state[f"{MLP}.weight"], state["text_model.final_layer_norm.bias"]


def another_size(state: dict[str, Tensor]) -> None:
    state[f"{MLP}.weight"] = torch.ones(3, 16)


def whole_numbers(state: dict[str, Tensor]) -> None:
    state[f"{MLP}.bias"] = torch.ones(64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (extra, r"has 1 unknown weights: encoder.layers.0.adapter.weight"),
        (missing, r"lacks 2 weights: .*(encoder.layers.0.mlp.fc1.weight|final_layer_norm.bias)"),
        (another_size, r"encoder.layers.0.mlp.fc1.weight is \(3, 16\), not \(64, 16\)"),
        (whole_numbers, r"weights of another type: encoder.layers.0.mlp.fc1.bias"),
    ],
)
def test_weights_that_are_not_the_tower_s_are_named(
    clip: Path, tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = load_file(clip / "model.safetensors")
    damage(state)
    save_file(state, clip / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        written(clip, tmp_path / "encoder")
    assert "\n" not in str(caught.value) and str(clip) in str(caught.value)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 3}, {"num_attention_heads": 0}, {"num_attention_heads": "two"},
        {"num_hidden_layers": "one"}, {"layer_norm_eps": "small"}, {"hidden_act": "relu"}, {"vocab_size": -1},
        {"intermediate_size": 32},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_tower_is_one_line(clip: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((clip / "config.json").read_text(encoding="utf-8")) | change
    (clip / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        written(clip, tmp_path / "encoder")
    assert "\n" not in str(caught.value)
