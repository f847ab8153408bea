"""The scale between the image tokenizer's tokens and the tokens that the flow learns on.

Knows neither network; pipeline.py and train/flow.py stand on both sides of it.
"""

import torch
from torch import Tensor, nn


class LatentScale(nn.Module):
    """Shifts and scales tokens so that each number the flow sees has mean 0 and standard deviation 1.

    The authors' release multiplies by one number (1.0143); here every token and channel may have its own.
    """

    mean_LC: Tensor
    scale_LC: Tensor

    def __init__(self, num_tokens: int, token_channels: int) -> None:
        super().__init__()
        self.register_buffer("mean_LC", torch.zeros(num_tokens, token_channels))
        self.register_buffer("scale_LC", torch.ones(num_tokens, token_channels))

    @classmethod
    def uniform(cls, num_tokens: int, token_channels: int, scale: float) -> "LatentScale":
        """One scale for all, without a shift."""
        latent_scale = cls(num_tokens, token_channels)
        latent_scale.scale_LC.fill_(scale)
        return latent_scale

    @classmethod
    def fitted(cls, mean_NLC: Tensor, logvar_NLC: Tensor) -> "LatentScale":
        """The scale that whitens samples of N posteriors, number by number."""
        latent_scale = cls(mean_NLC.shape[1], mean_NLC.shape[2])
        variance_LC = mean_NLC.var(0) + logvar_NLC.exp().mean(0)
        latent_scale.mean_LC.copy_(mean_NLC.mean(0))
        latent_scale.scale_LC.copy_(variance_LC.clamp_min(1e-8).rsqrt())
        return latent_scale

    def to_flow(self, z_BLC: Tensor) -> Tensor:
        """Tokens of the image tokenizer as the flow sees them."""
        return (z_BLC - self.mean_LC) * self.scale_LC

    def from_flow(self, z_BLC: Tensor) -> Tensor:
        """Tokens of the flow as the image tokenizer's decoder takes them."""
        return z_BLC / self.scale_LC + self.mean_LC
