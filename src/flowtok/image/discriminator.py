"""Tells true pictures from rebuilt ones, patch by patch: the tokenizer's adversary, its losses and what holds it back.

Knows pixels only; when it takes part and how the two are updated is said in train/tokenizer.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Size of the discriminator; the defaults are the TA-TiTok recipe's.

    Attributes:
        channels: Width before and in the first stage; each further stage has twice as many.
        num_stages: Stages, each of which halves rows and columns.
    """

    channels: int = 128
    num_stages: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1 or self.num_stages < 1:
            raise ValueError(f"channels and num_stages must be positive, not {self.channels} and {self.num_stages}")


class BlurPool(nn.Module):
    """Halves rows and columns after a blur with (1, 3, 3, 1), so that a shift of the picture changes little.

    Source: Zhang 2019, "Making convolutional networks shift-invariant again".
    """

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
        self.register_buffer("taps_44", torch.outer(taps, taps), persistent=False)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        channels = x_BDYX.shape[1]
        taps_D144 = self.get_buffer("taps_44").to(x_BDYX.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(F.pad(x_BDYX, (1, 1, 1, 1), mode="reflect"), taps_D144, stride=2, groups=channels)


class PatchDiscriminator(nn.Module):
    """Convolutions that judge every place of a picture by its surroundings.

    Source: PatchGAN (Isola et al. 2017), in the form of the TA-TiTok recipe: with blur pooling.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 5, padding=2), nn.LeakyReLU(LEAK)]
        for stage in range(config.num_stages):
            wider = config.channels * 2**stage
            layers += [nn.Conv2d(width, wider, 3, padding=1), BlurPool()]
            layers += [nn.GroupNorm(math.gcd(32, wider), wider), nn.LeakyReLU(LEAK)]
            width = wider
        layers += [nn.Conv2d(width, width, 1), nn.LeakyReLU(LEAK), nn.Conv2d(width, 1, 5, padding=2)]
        self.layers = nn.Sequential(*layers)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights that keep the size of what passes through; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAK, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image_B3YX: Tensor) -> Tensor:
        """Pixels in [0, 1] to one score for each patch (B, Y / 2^stages, X / 2^stages): high for true pictures."""
        return self.layers(2.0 * image_B3YX - 1.0).squeeze(1)


def hinge_loss(true_BPP: Tensor, rebuilt_BPP: Tensor) -> Tensor:
    """What the discriminator pays: true patches below 1 and rebuilt ones above -1.

    Source: Lim & Ye 2017, halved.
    """
    return 0.5 * (F.relu(1.0 - true_BPP.float()).mean() + F.relu(1.0 + rebuilt_BPP.float()).mean())


def deception_loss(rebuilt_BPP: Tensor) -> Tensor:
    """What the tokenizer pays: minus the mean score of its rebuilt pictures."""
    return -rebuilt_BPP.float().mean()


class LeCam(nn.Module):
    """Holds the discriminator back: its mean scores may not run away from what they were for the other side.

    Source: Tseng et al. 2021, on the means of a batch as in the TA-TiTok recipe.
    """

    true_mean: Tensor
    rebuilt_mean: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("true_mean", torch.zeros(()))
        self.register_buffer("rebuilt_mean", torch.zeros(()))

    def forward(self, true_mean: Tensor, rebuilt_mean: Tensor) -> Tensor:
        """The squared lead of true pictures over the average of rebuilt ones, and of that average over rebuilt ones."""
        lead = F.relu(true_mean - self.rebuilt_mean).square()
        return lead + F.relu(self.true_mean - rebuilt_mean).square()

    @torch.no_grad()
    def follow(self, true_mean: float, rebuilt_mean: float) -> None:
        """Moves the averages a little towards the mean scores of a batch."""
        self.true_mean.mul_(self.decay).add_((1.0 - self.decay) * true_mean)
        self.rebuilt_mean.mul_(self.decay).add_((1.0 - self.decay) * rebuilt_mean)
