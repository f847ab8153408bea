"""CLIP's text tower and tokenizer give the features and ids that the release was trained on, with either activation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from filling import FOLDER, Golden
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from flowtok.text.encoder import CLIP_L14, Activation, TextEncoder, TextEncoderConfig


def transformers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names (those of the fixture) in the names of the usual CLIP folders."""
    state = {
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "text_model.final_layer_norm.weight": weights["ln_final.weight"],
        "text_model.final_layer_norm.bias": weights["ln_final.bias"],
    }
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inside["attn.out_proj"] = "self_attn.out_proj"
    for name, weight in weights.items():
        if not name.startswith("transformer.resblocks."):
            continue
        number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
        layer = f"text_model.encoder.layers.{number}"
        module, _, leaf = rest.rpartition(".")
        if leaf.startswith("in_proj_"):
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                state[f"{layer}.self_attn.{part}_proj.{leaf.removeprefix('in_proj_')}"] = third.clone()
        else:
            state[f"{layer}.{inside[module]}.{leaf}"] = weight
    return state


def write_folder(folder: Path, golden: Golden) -> TextEncoderConfig:
    shape = golden.spec["config"]
    vocabulary = shape["vocab"]
    config = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "hidden_size": shape["width"],
        "intermediate_size": 4 * shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": shape["context"],
        "vocab_size": vocabulary,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(transformers_names(golden.weights()), folder / "model.safetensors", metadata={"format": "pt"})
    words = {"<|startoftext|>": vocabulary - 2, "<|endoftext|>": vocabulary - 1}
    Tokenizer(models.BPE(vocab=words, merges=[])).save(str(folder / "tokenizer.json"))
    return TextEncoderConfig(
        family="clip",
        width=shape["width"],
        num_tokens=shape["context"],
        vocabulary_size=vocabulary,
        activation="quick_gelu",
    )


@pytest.mark.parametrize("name", ["clip_text_tiny", pytest.param("clip_text_l14", marks=pytest.mark.slow)])
def test_features_with_both_activations(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    config = write_folder(tmp_path, golden)
    ids = golden.input("token_ids")
    outputs: list[tuple[str, Activation, torch.dtype]] = [
        ("hidden", "quick_gelu", torch.float32),
        ("hidden_plain_gelu", "gelu", torch.float32),
        ("hidden.f64", "quick_gelu", torch.float64),
    ]
    for output, activation, dtype in outputs:
        encoder = TextEncoder.from_folder(tmp_path, dataclasses.replace(config, activation=activation), dtype)
        golden.check(output, encoder.features(ids))


def test_token_ids() -> None:
    """The tokenizer file is CLIP's (OpenAI, MIT) cut down to the word pieces that these captions need."""
    golden = json.loads((FOLDER / "clip_tokens.json").read_text(encoding="utf-8"))
    network = CLIPTextModel(
        CLIPTextConfig(vocab_size=49408, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    tokenizer = Tokenizer.from_file(str(FOLDER / "clip_tokenizer_cut.json"))
    encoder = TextEncoder(dataclasses.replace(CLIP_L14, width=8), network, tokenizer)
    texts = [item["text"] for item in golden["items"]]
    expected = [item["ids"] + [0] * item["zeros_after"] for item in golden["items"]]
    assert encoder.encode(texts).ids_BS.tolist() == expected
    assert encoder.words(encoder.encode(["a photo of a CAT"]).ids_BS) == ["a photo of a cat"]
    assert encoder.count(texts)[0] == 7
