"""The Inception network whose features FID and KID compare, and the two ways in which pictures are resized for it.

Its parts are named as in torch-fidelity, so that its weight file fits as it is; torch-fidelity itself, which needs
torchvision, is not needed. The distances of the features are in fid.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flowtok.checkpoints.store import load_into
from flowtok.errors import CheckpointError
from flowtok.image.pretrained_files import NotAtHand, Published, find_weights, read_weights

INCEPTION_FILE = Published(
    name="weights-inception-2015-12-05-6726825d.pth",
    beginnings=("weights-inception-2015-12-05", "pt_inception-2015-12-05"),
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
SIDE, WIDTH = 299, 2048

Sides = int | tuple[int, int]
Resize = Literal["tf1", "clean"]
RESIZES: dict[Resize, str] = {
    "tf1": "to 299 px as TensorFlow 1 did: bilinear between corners, without antialiasing (torch-fidelity)",
    "clean": "to 299 px by Pillow's bicubic filter on float channels, antialiased, clipped (clean-fid)",
}


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int, kernel: Sides, stride: int = 1, padding: Sides = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BDYX)), inplace=True)


def _mean_3x3(x_BDYX: Tensor) -> Tensor:
    """The mean of nine neighbours, of fewer at the rim: TensorFlow does not count what is padded."""
    return F.avg_pool2d(x_BDYX, 3, stride=1, padding=1, count_include_pad=False)


class Mixed5(nn.Module):
    """The blocks at 35 x 35: 1 x 1, 5 x 5, two 3 x 3, and a pool."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(channels, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BDYX)))
        wide = self.branch5x5_2(self.branch5x5_1(x_BDYX))
        return torch.cat([self.branch1x1(x_BDYX), wide, double, self.branch_pool(_mean_3x3(x_BDYX))], 1)


class Mixed6a(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(288, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_BDYX)))
        return torch.cat([self.branch3x3(x_BDYX), double, F.max_pool2d(x_BDYX, 3, stride=2)], 1)


class Mixed6(nn.Module):
    """The blocks at 17 x 17: 1 x 1, 7 x 7 in two halves, twice that, and a pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        across: dict = {"kernel": (1, 7), "padding": (0, 3)}
        down: dict = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, width, 1), Conv(width, width, **across)
        self.branch7x7_3 = Conv(width, 192, **down)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width, 1), Conv(width, width, **down)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, **across), Conv(width, width, **down)
        self.branch7x7dbl_5 = Conv(width, 192, **across)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_BDYX)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_BDYX)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x_BDYX), single, double, self.branch_pool(_mean_3x3(x_BDYX))], 1)


class Mixed7a(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), padding=(3, 0)), Conv(192, 192, 3, stride=2)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_BDYX))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x_BDYX)), long, F.max_pool2d(x_BDYX, 3, stride=2)], 1)


class Mixed7(nn.Module):
    """The blocks at 8 x 8. The last one pools by the maximum: so the network of 2015 does, though not its paper."""

    def __init__(self, channels: int, *, pools_by_maximum: bool) -> None:
        super().__init__()
        self.pools_by_maximum = pools_by_maximum
        across: dict = {"kernel": (1, 3), "padding": (0, 1)}
        down: dict = {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **across), Conv(384, 384, **down)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **across), Conv(384, 384, **down)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x_BDYX), self.branch3x3dbl_2(self.branch3x3dbl_1(x_BDYX))
        pooled = F.max_pool2d(x_BDYX, 3, stride=1, padding=1) if self.pools_by_maximum else _mean_3x3(x_BDYX)
        parts = [self.branch1x1(x_BDYX), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Inception of 2015-12-05 up to its last pool: pixels at 299 x 299 to 2,048 features.

    Source: Szegedy et al. 2016; the weights that TTUR's FID made common, as torch-fidelity converted them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = Mixed5(192, 32), Mixed5(256, 64), Mixed5(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = Mixed6a(), Mixed6(128), Mixed6(160)
        self.Mixed_6d, self.Mixed_6e = Mixed6(160), Mixed6(192)
        self.Mixed_7a, self.Mixed_7b = Mixed7a(), Mixed7(1280, pools_by_maximum=False)
        self.Mixed_7c = Mixed7(2048, pools_by_maximum=True)

    def forward(self, pixels_B3YX: Tensor) -> Tensor:
        """Features (B, 2048) of pixels at 299 x 299 in [0, 255]."""
        x = (pixels_B3YX.float() - 128.0) / 128.0
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((-2, -1))


class FeatureNetwork:
    """Pictures to the features that FID and KID compare; float32 on any device, TF32 off.

    Attributes:
        sha256: Of the weight file.
    """

    def __init__(self, network: nn.Module, sha256: str, device: torch.device | str = "cpu") -> None:
        self.network, self.sha256, self.device = network.to(device).eval().requires_grad_(False), sha256, device

    @classmethod
    def opened(cls, place: str | None, device: torch.device | str = "cpu") -> FeatureNetwork:
        """Reads the weights from a folder or Hub repository; None looks in torch.hub's cache and fetches them.

        Raises:
            CheckpointError: They are not there, damaged, or do not fit.
        """
        try:
            path = find_weights(INCEPTION_FILE, place)
        except NotAtHand as error:
            raise CheckpointError(
                f"FID needs the Inception weights: {error}; fetch {INCEPTION_FILE.url}, put it into a folder and name "
                "that with --weights"
            ) from error
        network = Inception()
        # The classifier behind the last pool is not needed; batch norm's counters are not in every copy.
        weights = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith("fc.")}
        counters = {name: value for name, value in network.state_dict().items() if name.endswith("batches_tracked")}
        load_into(network, counters | weights, what=f"Inception of {path}")
        with Path(path).open("rb") as file:
            return cls(network, hashlib.file_digest(file, "sha256").hexdigest(), device)

    def protocol(self, resize: Resize) -> dict[str, str]:
        """What a score says of it."""
        return {"network": "Inception 2015-12-05, last pool, 2048", "sha256": self.sha256, "resize": RESIZES[resize]}

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], resize: Resize) -> Tensor:
        """Features (B, 2048), float32 on the CPU, of RGB pictures of any sizes."""
        pixels_B3YX = torch.cat([tf1(_pixels(one)) if resize == "tf1" else clean(one) for one in pictures])
        with (
            torch.backends.cudnn.flags(allow_tf32=False),
            torch.autocast(torch.device(self.device).type, enabled=False),
        ):
            return self.network(pixels_B3YX.to(self.device)).float().cpu()


def _pixels(picture: Image.Image) -> Tensor:
    """A picture as (1, 3, Y, X) in [0, 255]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32)).permute(2, 0, 1)[None]


def tf1(pixels_B3YX: Tensor, side: int = SIDE) -> Tensor:
    """Resizes as TensorFlow 1 did: pixel i of the result is taken at i * size / side, between its two neighbours."""
    resized = pixels_B3YX.float()
    for axis in (3, 2):
        size = resized.shape[axis]
        place = torch.arange(side, dtype=torch.float32, device=resized.device) * torch.tensor(size / side)
        low = place.long()
        share = (place - low).view([-1 if number == axis else 1 for number in range(4)])
        first = resized.index_select(axis, low)
        resized = first + (resized.index_select(axis, (low + 1).clamp_max(size - 1)) - first) * share
    return resized


def clean(picture: Image.Image, side: int = SIDE) -> Tensor:
    """Resizes as clean-fid does; (1, 3, side, side) in [0, 255].

    Source: Parmar et al. 2022.
    """
    bands = [
        np.asarray(
            Image.fromarray(np.asarray(band, dtype=np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        ).clip(0, 255)
        for band in picture.convert("RGB").split()
    ]
    return torch.from_numpy(np.stack(bands))[None]
