"""A diagonal Gaussian over tokens: what the image tokenizer's encoder and the text projector return.

Knows nothing of the loss weights; see image/losses.py and text/projector.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A normal distribution with its own mean and variance for every token and channel.

    Attributes:
        mean_BLC: Means.
        logvar_BLC: Logarithms of the variances.
    """

    mean_BLC: Tensor
    logvar_BLC: Tensor

    @property
    def std_BLC(self) -> Tensor:
        """Standard deviations, exp(logvar / 2)."""
        return torch.exp(0.5 * self.logvar_BLC)

    def sample(self, noise_BLC: Tensor) -> Tensor:
        """A draw, mean + std * noise, where the noise is standard normal."""
        return self.mean_BLC + self.std_BLC * noise_BLC

    def kl_B(self) -> Tensor:
        """Divergence from the standard normal, summed over tokens and channels, in nats per sample (B,)."""
        return 0.5 * (self.mean_BLC**2 + self.logvar_BLC.exp() - 1.0 - self.logvar_BLC).flatten(1).sum(1)


def normal_like(reference: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, type and device of `reference`, drawn where the generator lives.

    A generator on the CPU gives the same noise on every device.
    """
    device = generator.device if generator is not None else reference.device
    noise = torch.randn(reference.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.to(device=reference.device, dtype=reference.dtype)
