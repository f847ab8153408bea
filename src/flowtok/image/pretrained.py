"""Networks that others trained on ImageNet and that judge pictures here: VGG16, ConvNeXt-S and MobileNetV2.

Their parts are named as in torchvision, so that its weight files fit as they are; torchvision itself is not needed.
Files are looked for in pretrained_files.py; what is measured with the networks is in perceptual.py.
"""

import torch
from torch import Tensor, nn


class VGG16(nn.Module):
    """The convolutions of VGG16.

    Source: Simonyan & Zisserman 2015, configuration D.
    """

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.last_of_stage = []
        channels = 3
        for widths in self.WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.last_of_stage.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, pixels_B3YX: Tensor) -> list[Tensor]:
        """What each of the five stages ends with, the finest first; the sides are at least 16."""
        stages, x = [], pixels_B3YX
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.last_of_stage:
                stages.append(x)
        return stages


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of a picture (B, C, Y, X)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Swapped(nn.Module):
    """Brings the channels of a picture to the end, or back to the front."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.target)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, and two linear layers around a GELU, scaled and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Swapped(1, -1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Swapped(-1, 1),
        )
        self.layer_scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x_BDYX: Tensor) -> Tensor:
        return x_BDYX + self.layer_scale * self.block(x_BDYX)


class ConvNeXtSmall(nn.Module):
    """ConvNeXt-S with its classifier: scores of the 1,000 classes of ImageNet.

    Source: Liu et al. 2022, table 9.
    """

    DEPTHS, WIDTHS = (3, 3, 27, 3), (96, 192, 384, 768)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, width in zip(self.DEPTHS, self.WIDTHS, strict=True):
            if not layers:
                layers.append(nn.Sequential(nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width, eps=1e-6)))
            else:
                layers.append(
                    nn.Sequential(ChannelNorm(width // 2, eps=1e-6), nn.Conv2d(width // 2, width, 2, stride=2))
                )
            layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        width = self.WIDTHS[-1]
        self.classifier = nn.Sequential(ChannelNorm(width, eps=1e-6), nn.Flatten(1), nn.Linear(width, 1000))

    def forward(self, pixels_B3YX: Tensor) -> Tensor:
        return self.classifier(self.features(pixels_B3YX).mean((-2, -1), keepdim=True))


class MobileBlock(nn.Module):
    """Widens by 1 x 1, filters each channel, narrows by 1 x 1; added to its input where the shapes allow."""

    def __init__(self, channels: int, width: int, factor: int, stride: int) -> None:
        super().__init__()
        hidden = channels * factor
        layers: list[nn.Module] = [_normed(channels, hidden, 1)] if factor > 1 else []
        layers += [_normed(hidden, hidden, 3, stride=stride, groups=hidden)]
        layers += [nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.conv = nn.Sequential(*layers)
        self.is_added = stride == 1 and channels == width

    def forward(self, x_BDYX: Tensor) -> Tensor:
        return x_BDYX + self.conv(x_BDYX) if self.is_added else self.conv(x_BDYX)


def _normed(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU6())


class MobileNetV2(nn.Module):
    """The part of MobileNetV2 that still sees where things are, down to a sixteenth of the side.

    Source: Sandler et al. 2018, table 2.
    """

    # Widening factor, channels, number of blocks, stride of the first one.
    BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    LAST_OF_SIZE = (1, 3, 6, 13)
    WIDTHS = (16, 24, 32, 96)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normed(3, 32, 3, stride=2)]
        channels = 32
        for factor, width, count, stride in self.BLOCKS:
            for number in range(count):
                layers.append(MobileBlock(channels, width, factor, stride if number == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, pixels_B3YX: Tensor) -> list[Tensor]:
        """The last features at a half, a quarter, an eighth and a sixteenth of the side."""
        sizes, x = [], pixels_B3YX
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.LAST_OF_SIZE:
                sizes.append(x)
        return sizes
