"""A tiny model folder with fixed weights: small enough to draw in milliseconds, built like a real one.

Its pictures are noise; what is tested with it is everything around the weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.pipeline import FlowTok, SamplingConfig
from flowtok.text.decoder import TextDecoder, TextDecoderConfig
from flowtok.text.encoder import TextEncoder, TextEncoderConfig
from flowtok.text.projector import TextProjector, TextProjectorConfig

WORDS = (
    *("a", "the", "red", "blue", "smiling", "cat", "dog", "heart", "king", "queen", "man", "woman"),
    *("in", "twemoji", "style", ",", ".", "-", "+", "s", "##s", "##t", "e"),
)
LENGTH, WIDTH, CHANNELS, SIZE = 8, 16, 4, 16


def write_text_encoder(folder: Path) -> TextEncoderConfig:
    """A BERT of two narrow layers with a word-piece vocabulary, in the layout of transformers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    torch.manual_seed(0)
    network = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("Made for tests; no licence needed.\n")
    return TextEncoderConfig(family="bert", width=WIDTH, num_tokens=LENGTH, vocabulary_size=len(words))


def shake(network: nn.Module, seed: int) -> None:
    """Weights that no part of the output ignores: fresh ones leave gates and last layers at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def tiny_model(folder: Path, *, text_guided: bool = False, tied: bool = True) -> FlowTok:
    """Builds the model in memory; its language encoder is written below `folder`."""
    encoder_folder = folder / "text_encoder_source"
    encoder_folder.mkdir(parents=True, exist_ok=True)
    text_config = write_text_encoder(encoder_folder)
    vision = VisionTransformerConfig(width=32, depth=1, num_heads=2)
    generator = torch.Generator().manual_seed(1)
    image_tokenizer = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=SIZE, patch_size=4, num_tokens=LENGTH, token_channels=CHANNELS, encoder=vision, decoder=vision,
            text_width=WIDTH if text_guided else None, num_text_tokens=LENGTH,
        )
    )  # fmt: skip
    projector = TextProjector(
        TextProjectorConfig(
            text_width=WIDTH, num_tokens=LENGTH, token_channels=CHANNELS, num_layers=1, num_heads=2, hidden=16
        )
    )
    velocity = VelocityTransformer(
        VelocityTransformerConfig(depth=2, width=32, num_heads=2, num_tokens=LENGTH, token_channels=CHANNELS)
    )
    decoder = TextDecoder(
        TextDecoderConfig(
            vocabulary_size=text_config.vocabulary_size, num_tokens=LENGTH, token_channels=CHANNELS, width=16, depth=1,
            num_heads=2, tied_width=WIDTH if tied else None,
        )
    )  # fmt: skip
    for number, network in enumerate((image_tokenizer, projector, velocity, decoder)):
        network.initialize(generator)
        shake(network, number)
    return FlowTok(
        name="tiny",
        text_encoder=TextEncoder.from_folder(encoder_folder, text_config),
        text_projector=projector,
        velocity=velocity,
        image_tokenizer=image_tokenizer,
        latent_scale=LatentScale.uniform(LENGTH, CHANNELS, 0.8),
        text_decoder=decoder,
        sampling=SamplingConfig(num_inference_steps=4, caption_steps=3),
        provenance={"summary": "fixed weights for tests"},
        text_encoder_folder=encoder_folder,
    )


def without(folder: Path, part: str) -> None:
    """Takes a component out of a model folder, as a model that was never given it looks."""
    config = json.loads((folder / "config.json").read_text())
    config[part] = None
    del config["files"][f"{part}.safetensors"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / f"{part}.safetensors").unlink()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder; tests that damage it copy it first."""
    folder = tmp_path_factory.mktemp("model")
    return tiny_model(folder).save_pretrained(folder / "tiny", card="# tiny\n")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> FlowTok:
    """The model in that folder, opened as a user opens it."""
    return FlowTok.from_pretrained(tiny_folder)


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model-copy"))
