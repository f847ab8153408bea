"""Language encoders: the same caption gives the same features in any batch, and a damaged folder is named at once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from flowtok.errors import CheckpointError, FlowTokError
from flowtok.text.encoder import TextEncoder, TextEncoderConfig, read_text_encoder_config
from flowtok.text.minilm import prepare_minilm

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "heart", "cat", "##s", "in", ",", "style"]
TINY = TextEncoderConfig(family="bert", width=16, num_tokens=8, vocabulary_size=len(WORDS), activation="gelu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "text_encoder"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.enable_padding(length=128)  # such settings in a folder's file must not matter
    tokenizer.enable_truncation(4)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.from_folder(folder, TINY)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def test_ids_are_framed_padded_and_cut(encoder: TextEncoder) -> None:
    ids = encoder.encode(["A red heart", "cats " * 9, ""]).ids_BS.tolist()
    assert ids[0] == [2, 4, 5, 6, 3, 0, 0, 0]
    assert ids[1] == [2, 7, 8, 7, 8, 7, 8, 3]
    assert ids[2] == [2, 3, 0, 0, 0, 0, 0, 0]
    assert encoder.count(["A red heart", "cats " * 9, ""]) == [5, 20, 2]


def test_words_come_back(encoder: TextEncoder) -> None:
    texts = ["a red heart, in cat style", "cats"]
    assert encoder.words(encoder.encode(texts).ids_BS) == ["a red heart, in cat", "cats"]
    assert encoder.words(torch.tensor([[2, 5, 6, 0, 7, 3, 4, 4], [3] * 8, [0] * 8])) == ["red heart cat", "", ""]


def test_a_caption_s_features_do_not_depend_on_its_neighbours(encoder: TextEncoder) -> None:
    together = encoder.encode(["a cat", "a red heart, in cats style"]).features_BSE
    assert together.shape == (2, 8, 16)
    torch.testing.assert_close(encoder.encode(["a cat"]).features_BSE, together[:1])


def test_padding_does_not_reach_the_words_and_padded_places_read_them(encoder: TextEncoder) -> None:
    short = encoder.encode(["a cat", "red heart"])
    wide = TextEncoder(dataclasses.replace(TINY, num_tokens=12), encoder.network, encoder.tokenizer)
    torch.testing.assert_close(wide.encode(["a cat"]).features_BSE[:, :4], short.features_BSE[:1, :4])
    padded = short.features_BSE[:, 4:]
    assert not padded[0].allclose(padded[1])


def test_behind_the_words_may_stand_what_the_caption_means(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    """The mean that sentence encoders are trained for, and at each position another side of it."""
    config = dataclasses.replace(TINY, padding="sentence")
    ours = TextEncoder.from_folder(folder, config)
    texts = ["a cat", "a red heart, in cats style"]
    found, plain = ours.encode(texts).features_BSE, encoder.encode(texts).features_BSE
    torch.testing.assert_close(found[0, :4], plain[0, :4])
    mean_E = plain[0, :4].mean(0)
    for place in range(4, 8):
        torch.testing.assert_close(found[0, place], mean_E.roll(place * 16 // 8))
    torch.testing.assert_close(found[1], plain[1])  # no place is left behind its words
    # To the last digit, or int8 would draw another picture in company; what is cut is equal but for that.
    assert ours.encode(texts[:1]).features_BSE.equal(found[:1])
    torch.testing.assert_close(ours.features(ours.ids(texts[:1]), cut=True), found[:1])
    saved = ours.save_pretrained(tmp_path / "saved")
    assert TextEncoder.from_pretrained(saved).config == config


def test_only_encoders_of_whole_sentences_have_their_mean() -> None:
    with pytest.raises(ValueError, match="with a bert encoder"):
        TextEncoderConfig(family="clip", padding="sentence")
    with pytest.raises(ValueError, match='padding is "states"'):
        TextEncoderConfig(padding="zeros")  # type: ignore[arg-type]


def test_the_encoder_is_frozen_and_never_trains(encoder: TextEncoder) -> None:
    assert not any(weight.requires_grad for weight in encoder.parameters())
    encoder.train()
    assert not any(module.training for module in encoder.network.modules())
    assert encoder.encode(["a cat"]).features_BSE.equal(encoder.encode(["a cat"]).features_BSE)


def test_no_captions_are_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="no captions"):
        encoder.encode([])


@given(st.text(max_size=40))
def test_any_unicode_is_encoded(text: str) -> None:
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain = TextEncoder(TINY, torch.nn.Identity(), tokenizer)
    assert plain.count([text + "\ud800"])[0] >= 2
    assert len(plain.words(torch.tensor([[2, 1, 3, 0]]))) == 1


def test_the_folder_is_recognised(folder: Path) -> None:
    assert read_text_encoder_config(folder, num_tokens=8) == TINY
    assert read_text_encoder_config(folder).num_tokens == 16
    with pytest.raises(CheckpointError, match="16 positions, not 32"):
        read_text_encoder_config(folder, num_tokens=32)


@pytest.mark.parametrize("change", [{"width": 24}, {"vocabulary_size": 99}, {"family": "clip"}])
def test_an_encoder_that_does_not_fit_is_refused(folder: Path, change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        TextEncoder.from_folder(folder, dataclasses.replace(TINY, **change))  # type: ignore[arg-type]


def test_damaged_folders_are_named(folder: Path, tmp_path: Path) -> None:
    damaged = copy_of(folder, tmp_path)
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot load the text encoder"):
        TextEncoder.from_folder(damaged, TINY)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights are missing"):
        TextEncoder.from_folder(damaged, TINY)
    (damaged / "model.safetensors").write_bytes(weights)
    (damaged / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        TextEncoder.from_folder(damaged, TINY)
    (damaged / "config.json").write_text(json.dumps({"model_type": "t5"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="t5 model"):
        TextEncoder.from_folder(damaged, TINY)
    (damaged / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a text encoder's config"):
        TextEncoder.from_folder(damaged, TINY)
    with pytest.raises(CheckpointError, match="cannot read"):
        TextEncoder.from_folder(tmp_path / "nowhere", TINY)


def test_missing_weights_are_never_random(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    damaged = copy_of(folder, tmp_path)
    weights = load_file(damaged / "model.safetensors")
    gone = next(name for name in weights if name.endswith("query.weight"))
    save_file({n: w for n, w in weights.items() if n != gone}, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        TextEncoder.from_folder(damaged, TINY)
    save_file(weights | {gone: weights[gone] * torch.nan}, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        TextEncoder.from_folder(damaged, TINY)


def test_configs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="not 'roberta'"):
        TextEncoderConfig(family="roberta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 3"):
        TextEncoderConfig(num_tokens=2)
    with pytest.raises(ValueError, match="not 'relu'"):
        TextEncoderConfig(activation="relu")  # type: ignore[arg-type]


def test_preparing_minilm_keeps_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FlowTokError, match="there already"):
        prepare_minilm(tmp_path)
