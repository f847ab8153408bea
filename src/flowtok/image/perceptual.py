"""How different two pictures look: to networks that know pictures, or at several scales where no such network is.

Knows pixels in [0, 1] and the networks of pretrained.py; train/tokenizer.py adds what comes out to its losses.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowtok.checkpoints.store import load_into
from flowtok.errors import CheckpointError
from flowtok.image.pretrained import VGG16, ConvNeXtSmall, MobileNetV2
from flowtok.image.pretrained_files import (
    CONVNEXT_FILE,
    LPIPS_FILE,
    MOBILENET_FILE,
    VGG16_FILE,
    NotAtHand,
    find_weights,
    read_weights,
)

SMALLEST_BAND = 4


class Judge(nn.Module, ABC):
    """A network trained elsewhere that compares pictures; here it is never trained.

    `smallest_side` is the least number of rows and columns that it can look at.
    """

    smallest_side = 1

    def __init__(self) -> None:
        super().__init__()
        # All of them were trained on pixels in [0, 1] that were shifted and scaled like this.
        self.register_buffer("mean_311", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std_311", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    @classmethod
    @abstractmethod
    def opened(cls, place: str | None) -> tuple[Self, list[Path]]:
        """The network with its weights, and the files that they came from; `place` as in `find_weights`."""

    def seen(self, image_B3YX: Tensor) -> Tensor:
        """Pixels as the network was trained to see them."""
        return (image_B3YX.float() - self.get_buffer("mean_311")) / self.get_buffer("std_311")


class LPIPS(Judge):
    """Learned perceptual distance of the features of VGG16.

    Source: Zhang et al. 2018, version 0.1 with VGG.
    """

    smallest_side = 16

    def __init__(self) -> None:
        super().__init__()
        self.vgg = VGG16()
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(1, widths[-1], 1, 1)) for widths in VGG16.WIDTHS])

    @classmethod
    def opened(cls, place: str | None) -> tuple[Self, list[Path]]:
        """Reads the heads, and VGG16 from the same file where that holds it, as `lpips.LPIPS(net="vgg")` is saved."""
        paths = [find_weights(LPIPS_FILE, place)]
        weights = read_weights(paths[0])
        # lin3.model.1.weight is the head of the fourth stage, net.slice3.12.weight is features.12.weight of VGG16.
        ours = {f"heads.{name[3]}": tensor for name, tensor in weights.items() if name[:3] == "lin" and name[3] != "s"}
        vgg = {f"features.{name.split('.', 2)[2]}": tensor for name, tensor in weights.items() if name[:4] == "net."}
        if not vgg:
            paths.append(find_weights(VGG16_FILE, place))
            vgg = {name: tensor for name, tensor in read_weights(paths[1]).items() if name.startswith("features.")}
        judge = cls()
        load_into(judge, ours | {f"vgg.{name}": tensor for name, tensor in vgg.items()}, what=_named("LPIPS", paths))
        return judge, paths

    def forward(self, image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.vgg(self.seen(image_B3YX))
        given = self.vgg(self.seen(rebuilt_B3YX))
        stages = zip(wanted, given, self.heads, strict=True)
        parts = [((_unit(a_BDYX) - _unit(b_BDYX)).square() * head).sum(1).mean() for a_BDYX, b_BDYX, head in stages]
        return torch.stack(parts).sum()


class ClassScores(Judge):
    """Mean squared error of the 1,000 class scores that ConvNeXt-S gives at 224 px.

    Source: the TA-TiTok recipe.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = ConvNeXtSmall()

    @classmethod
    def opened(cls, place: str | None) -> tuple[Self, list[Path]]:
        path = find_weights(CONVNEXT_FILE, place)
        judge = cls()
        load_into(judge.network, read_weights(path), what=_named("ConvNeXt-S", [path]))
        return judge, [path]

    def forward(self, image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_BK = self._scores(image_B3YX)
        return (self._scores(rebuilt_B3YX) - wanted_BK).square().mean()

    def _scores(self, image_B3YX: Tensor) -> Tensor:
        resized = F.interpolate(image_B3YX.float(), (224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.network(self.seen(resized))


class SmallFeatures(Judge):
    """Distance of MobileNetV2's features, for machines on which VGG16 is too slow.

    The mean, over four sizes and all places, of the squared distance between features of unit length: 0 to 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = MobileNetV2()

    @classmethod
    def opened(cls, place: str | None) -> tuple[Self, list[Path]]:
        path = find_weights(MOBILENET_FILE, place)
        judge, weights = cls(), read_weights(path)
        # The layers behind the last size that is compared are not needed.
        used = {name: weights[name] for name in judge.network.state_dict() if name in weights}
        load_into(judge.network, used, what=_named("MobileNetV2", [path]))
        return judge, [path]

    def forward(self, image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network(self.seen(image_B3YX))
        given = self.network(self.seen(rebuilt_B3YX))
        pairs = zip(wanted, given, strict=True)
        return torch.stack([(_unit(a_BDYX) - _unit(b_BDYX)).square().sum(1).mean() for a_BDYX, b_BDYX in pairs]).mean()


def _unit(features_BDYX: Tensor) -> Tensor:
    """Features of length 1 at every place; the small number keeps the gradient finite where all of them are 0."""
    return features_BDYX / (features_BDYX.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _named(what: str, paths: list[Path]) -> str:
    return f"{what} of {' and '.join(str(path) for path in paths)}"


def multi_scale_distance(image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
    """Mean absolute error of each band of a Laplacian pyramid, summed over the bands.

    Large shapes weigh as much as fine detail, which an error of pixels alone blurs. It needs no weights.

    Source: the Lap1 loss of Bojanowski et al. 2018, with 2 x 2 means for the blur.
    """
    error_B3YX = rebuilt_B3YX.float() - image_B3YX.float()  # the pyramid of a difference is that of the two pictures
    distance = error_B3YX.new_zeros(())
    while min(error_B3YX.shape[-2:]) >= 2 * SMALLEST_BAND:
        coarse_B3YX = F.avg_pool2d(error_B3YX, 2)
        smooth_B3YX = F.interpolate(coarse_B3YX, error_B3YX.shape[-2:], mode="bilinear", align_corners=False)
        distance = distance + (error_B3YX - smooth_B3YX).abs().mean()
        error_B3YX = coarse_B3YX
    return distance + error_B3YX.abs().mean()


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Weights of the distances that look at more than single pixels; the defaults are the TA-TiTok recipe's.

    Attributes:
        lpips: Weight of LPIPS (VGG16).
        logits: Weight of the squared error of ConvNeXt-S's class scores.
        features: Weight of the distance of MobileNetV2's features.
        multi_scale: Weight of the multi-scale distance, which takes part only if none of the networks is asked for, or
            none can be had; 0 stops instead.
        weights: Folder or Hub repository OWNER/NAME with the networks' files under their usual names (lpips*, vgg16*,
            convnext_small*, mobilenet_v2*; .pth or .safetensors). None looks in installed packages and the cache of
            torch.hub and fetches what is missing from its makers.
    """

    lpips: float = 1.0
    logits: float = 0.1
    features: float = 0.0
    multi_scale: float = 1.0
    weights: str | None = None

    def __post_init__(self) -> None:
        weights = (self.lpips, self.logits, self.features, self.multi_scale)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"perceptual weights must not be negative, and one of them above 0: {self}")
        if self.weights is not None and max(weights[:3]) == 0:
            raise ValueError(f"weights={self.weights} has no effect: no network is asked for")

    def of_networks(self) -> dict[str, tuple[type[Judge], float]]:
        """The networks that are asked for, with their weights."""
        asked: dict[str, tuple[type[Judge], float]] = {
            "lpips": (LPIPS, self.lpips),
            "logits": (ClassScores, self.logits),
            "features": (SmallFeatures, self.features),
        }
        return {name: (judge, weight) for name, (judge, weight) in asked.items() if weight > 0}


class PerceptualLoss(nn.Module):
    """The weighted distances of a PerceptualConfig that can be computed here.

    Attributes:
        scales: Weight of each distance that takes part.
        sources: What it was made of, for the record of a run: the hash of each network's files.
        notice: A line for the log if a network that is asked for is not there, else None.
    """

    def __init__(self, judges: dict[str, Judge], scales: dict[str, float]) -> None:
        super().__init__()
        self.judges = nn.ModuleDict(judges)
        self.scales = scales
        self.sources = dict.fromkeys(scales, "no weights")
        self.notice: str | None = None
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def opened(cls, config: PerceptualConfig) -> "PerceptualLoss":
        """Opens the networks that are asked for; the multi-scale distance stands in where none of them can be had.

        Raises:
            CheckpointError: A file is damaged, or not in the place that was named, or no distance is left.
        """
        judges: dict[str, Judge] = {}
        sources: dict[str, str] = {}
        missing: dict[str, str] = {}
        for name, (kind, _) in config.of_networks().items():
            try:
                judges[name], paths = kind.opened(config.weights)
            except NotAtHand as error:
                missing[name] = str(error)
            else:
                sources[name] = " ".join(_digest(path) for path in paths)
        scales = {name: weight for name, (_, weight) in config.of_networks().items() if name in judges}
        if not scales and not config.multi_scale:
            raise CheckpointError(f"{'; '.join(missing.values())}; give the files with perceptual.weights=FOLDER")
        loss = cls(judges, scales or {"multi_scale": config.multi_scale})
        loss.sources |= sources
        if missing:
            instead = "the multi-scale distance, which needs no weights" if not scales else f"{', '.join(scales)} alone"
            loss.notice = (
                f"no weights for the perceptual networks {', '.join(missing)}: training with {instead}; "
                f"perceptual.weights=FOLDER gives them ({next(iter(missing.values()))})"
            )
        return loss

    @property
    def smallest_side(self) -> int:
        """Least rows and columns of a picture."""
        return max([judge.smallest_side for judge in self.judges.values() if isinstance(judge, Judge)], default=1)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever is asked of the modules around it."""
        return super().train(False)

    def forward(self, image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the rebuilt pictures from the true ones, in float32 whatever the rest is computed in.

        Args:
            image_B3YX: True pixels in [0, 1].
            rebuilt_B3YX: What came back; the gradient flows here.

        Returns:
            The weighted sum, and its parts without their weights; means over the batch.
        """
        with torch.autocast(image_B3YX.device.type, enabled=False):
            parts = {name: judge(image_B3YX, rebuilt_B3YX) for name, judge in self.judges.items()}
            if "multi_scale" in self.scales:
                parts["multi_scale"] = multi_scale_distance(image_B3YX, rebuilt_B3YX)
        total = torch.stack([self.scales[name] * part for name, part in parts.items()]).sum()
        return total, parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
