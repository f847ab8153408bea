"""The figures of merit of rebuilt pictures are what they are called."""

from __future__ import annotations

import math

import pytest
import torch

from flowtok.errors import FlowTokError
from flowtok.evaluate import reconstruction


def test_psnr_of_a_known_error() -> None:
    """An error of 0.1 in every pixel is 20 dB, one of 0.01 is 40 dB: other numbers compare with nobody's."""
    image_B3YX = torch.full((2, 3, 8, 8), 0.5)
    error = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(
        reconstruction.psnr_B(image_B3YX, image_B3YX + error), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0
    )


def test_scores_are_the_mean_and_the_worst_twentieth() -> None:
    """The mean alone hides a few pictures that are lost."""
    psnr_N = torch.linspace(20.0, 40.0, 101)
    scores = reconstruction.reconstruction_scores(psnr_N)
    assert scores == {"psnr": pytest.approx(30.0), "psnr_worst": pytest.approx(21.0)}
    assert reconstruction.reconstruction_scores(psnr_N, torch.tensor([0.5, 1.0]))["ssim"] == pytest.approx(0.75)


def test_ssim_is_one_for_the_same_picture_and_by_the_formula_for_flat_ones() -> None:
    """For two flat pictures only the luminance term is left: (2ab + c) / (a^2 + b^2 + c) with c = 0.01^2.

    Their variances are differences of squares in float32: 1e-7 beside the formula's 9e-4, so 1e-3 is allowed.
    """
    pytest.importorskip("torchmetrics")
    noise_B3YX = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.ones(1, 3, 32, 32)
    first = torch.cat([noise_B3YX, 0.4 * flat])
    second = torch.cat([noise_B3YX, 0.6 * flat])
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(reconstruction.ssim_B(first, second), torch.tensor([1.0, expected]), atol=1e-3, rtol=0)


def test_ssim_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "find_spec", lambda name: None)
    with pytest.raises(FlowTokError, match=r"flowtok\[eval\]"):
        reconstruction.ssim_B(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_a_perfect_picture_has_a_finite_psnr() -> None:
    """One perfect picture (all white, say) must not make the mean of a split infinite."""
    image_B3YX = torch.ones(1, 3, 4, 4)
    assert math.isfinite(reconstruction.psnr_B(image_B3YX, image_B3YX).item())
