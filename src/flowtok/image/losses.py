"""What the image tokenizer is trained on: distance of pixels and size of the posterior.

Knows no network; weights of the parts come from the stage that calls. Everything is computed in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowtok.nn.gaussian import Gaussian


@dataclass(frozen=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights of the tokenizer's losses.

    Attributes:
        squared: Weight of the mean squared error over pixels.
        absolute: Weight of the mean absolute error over pixels.
        gradient: Weight of the mean absolute error of horizontal and vertical pixel differences (sharp edges).
        kl: Weight of the divergence from the standard normal (sum over a sample's numbers, mean over samples).
    """

    squared: float = 1.0
    absolute: float = 0.2
    gradient: float = 0.0
    kl: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.squared, self.absolute, self.gradient, self.kl) < 0:
            raise ValueError(f"loss weights must not be negative: {self}")


def reconstruction_terms(image_B3YX: Tensor, rebuilt_B3YX: Tensor, posterior: Gaussian) -> dict[str, Tensor]:
    """The unweighted parts by the names of ReconstructionLossConfig."""
    error = rebuilt_B3YX.float() - image_B3YX.float()
    return {
        "squared": error.square().mean(),
        "absolute": error.abs().mean(),
        "gradient": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "kl": posterior.kl_B().float().mean(),
    }


def psnr_B(image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in decibels, for pixels in [0, 1] and the rebuilt ones clamped."""
    error = rebuilt_B3YX.float().clamp(0.0, 1.0) - image_B3YX.float()
    return -10.0 * torch.log10(error.square().flatten(1).mean(1).clamp_min(1e-10))
