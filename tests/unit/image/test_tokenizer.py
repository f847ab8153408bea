"""The image tokenizer's contract: shapes, guidance by text, patches in their places, and what it must refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig

SIDE = VisionTransformerConfig(width=16, depth=1, num_heads=2)
PLAIN = ImageTokenizerConfig(
    image_size=16, patch_size=4, num_tokens=3, token_channels=2, encoder=SIDE, decoder=SIDE, text_width=None
)
GUIDED = ImageTokenizerConfig(
    image_size=16,
    patch_size=4,
    num_tokens=3,
    token_channels=2,
    encoder=SIDE,
    decoder=SIDE,
    text_width=6,
    num_text_tokens=5,
)


def tokenizer(config: ImageTokenizerConfig) -> ImageTokenizer:
    network = ImageTokenizer(config)
    network.initialize(torch.Generator().manual_seed(0))
    return network


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_there_and_back_has_the_right_shapes() -> None:
    network = tokenizer(PLAIN)
    posterior = network.encode(pictures())
    assert posterior.mean_BLC.shape == posterior.logvar_BLC.shape == (2, 3, 2)
    assert network.decode(posterior.mean_BLC).shape == (2, 3, 16, 16)
    torch.testing.assert_close(network.encode(pictures()[:1]).mean_BLC, posterior.mean_BLC[:1])


def test_log_variances_are_clamped() -> None:
    network = tokenizer(PLAIN)
    with torch.no_grad():
        network.encoder.to_moments.bias.fill_(1000.0)
    assert network.encode(pictures()).logvar_BLC.unique().tolist() == [20.0]


def test_text_guides_the_decoder() -> None:
    network = tokenizer(GUIDED)
    z, text = torch.zeros(2, 3, 2), torch.zeros(2, 5, 6)
    first = network.decode(z, text)
    assert not first.allclose(network.decode(z, text + 1.0), atol=1e-9)
    with pytest.raises(ValueError, match="guided by text"):
        network.decode(z)
    with pytest.raises(ValueError, match="takes no text"):
        tokenizer(PLAIN).decode(z, text)


def test_a_decoder_may_be_told_how_far_off_tokens_are() -> None:
    network = tokenizer(replace(PLAIN, flow_noise=0.3))
    z = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    true = network.decode(z)
    torch.testing.assert_close(network.decode_drawn(z), true)  # fresh: it has not learned to listen
    torch.nn.init.normal_(network.decoder.off_D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.decode(z), true)
    torch.testing.assert_close(network.decode(z, off_B=torch.zeros(2)), true)
    drawn = network.decode_drawn(z)
    assert not drawn.allclose(true)
    torch.testing.assert_close(network.decode(z, off_B=torch.tensor([0.3, 0.0])), torch.stack([drawn[0], true[1]]))
    plain = tokenizer(PLAIN)
    torch.testing.assert_close(plain.decode_drawn(z), plain.decode(z))
    with pytest.raises(ValueError, match="not told how far off"):
        plain.decode(z, off_B=torch.zeros(2))
    with pytest.raises(ValueError, match="flow_noise must not be negative"):
        replace(PLAIN, flow_noise=-1.0)


def test_patches_are_laid_out_row_by_row_with_colours_fastest() -> None:
    network = tokenizer(PLAIN)
    pixels = torch.zeros(1, 16, 48)
    pixels[0, 6, (2 * 4 + 3) * 3 + 1] = 1.0  # patch 6 is row 1, column 2; pixel row 2, column 3, green
    image = network.decoder.unpatch(pixels)
    assert image.nonzero().tolist() == [[0, 1, 1 * 4 + 2, 2 * 4 + 3]]


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, 16, 16\), not \(1, 3, 32, 32\)"):
        tokenizer(PLAIN).encode(torch.zeros(1, 3, 32, 32))


def test_sizes_that_clash_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 16"):
        ImageTokenizerConfig(image_size=30)
    with pytest.raises(ValueError, match="width 20 is not a multiple of 4 x num_heads = 16"):
        VisionTransformerConfig(width=20, depth=1, num_heads=4)


def test_latent_scale_returns() -> None:
    z = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(2)) * 3.0 + 1.0
    scale = LatentScale.fitted(z, torch.full_like(z, -30.0))
    scaled = scale.to_flow(z)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.var(0), torch.ones(3, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(scale.from_flow(scaled), z)
    torch.testing.assert_close(LatentScale.uniform(3, 2, 1.0143).to_flow(z), z * 1.0143)
