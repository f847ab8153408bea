"""The scale between tokenizer and flow, and the tokenizer's losses."""

import pytest
import torch

from flowtok.image.latents import LatentScale
from flowtok.image.losses import ReconstructionLossConfig, psnr_B, reconstruction_terms
from flowtok.nn.gaussian import Gaussian


def test_a_fitted_scale_whitens_every_number_and_goes_back() -> None:
    generator = torch.Generator().manual_seed(0)
    spread_LC, shift_LC = torch.rand(3, 2, generator=generator) + 0.5, torch.randn(3, 2, generator=generator)
    mean_NLC = torch.randn(20_000, 3, 2, generator=generator) * spread_LC + shift_LC
    logvar_NLC = torch.full_like(mean_NLC, -1.0)
    scale = LatentScale.fitted(mean_NLC, logvar_NLC)
    drawn_NLC = mean_NLC + (0.5 * logvar_NLC).exp() * torch.randn(mean_NLC.shape, generator=generator)
    flow_NLC = scale.to_flow(drawn_NLC)
    assert torch.allclose(flow_NLC.mean(0), torch.zeros(3, 2), atol=0.03)
    assert torch.allclose(flow_NLC.std(0), torch.ones(3, 2), atol=0.03)
    assert torch.allclose(scale.from_flow(flow_NLC), drawn_NLC, atol=1e-5)


def test_one_scale_for_all_multiplies_as_the_release_does() -> None:
    z_BLC = torch.randn(2, 3, 2)
    assert torch.equal(LatentScale.uniform(3, 2, 1.0143).to_flow(z_BLC), z_BLC * 1.0143)


def test_psnr_of_known_errors() -> None:
    image = torch.full((2, 3, 4, 4), 0.5)
    assert torch.allclose(
        psnr_B(image, image + torch.tensor([0.1, 0.01])[:, None, None, None]), torch.tensor([20.0, 40.0])
    )
    # What lies outside [0, 1] is clamped as a picture's bytes are.
    assert psnr_B(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 7.0)).item() == pytest.approx(100.0)


def test_loss_terms_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2)
    rebuilt = image.clone()
    rebuilt[0, 0, 0, 0] = 0.6
    posterior = Gaussian(mean_BLC=torch.full((1, 2, 1), 2.0), logvar_BLC=torch.zeros(1, 2, 1))
    terms = reconstruction_terms(image, rebuilt, posterior)
    assert terms["squared"].item() == pytest.approx(0.36 / 12)
    assert terms["absolute"].item() == pytest.approx(0.6 / 12)
    assert terms["gradient"].item() == pytest.approx(0.6 / 6 + 0.6 / 6)
    assert terms["kl"].item() == pytest.approx(0.5 * 4.0 * 2)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ReconstructionLossConfig(kl=-1.0)
