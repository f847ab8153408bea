"""Batches of pictures and captions out of any source.

For data that does not fit into memory; what does is opened by collect.py. How workers read batches is in
batch_streams.py; which samples and captions are taken is in filters.py. Knows no network.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowtok.data.admission import admitted, row_of
from flowtok.data.batch_streams import BatchConfig, BatchStream
from flowtok.data.filters import choose_caption
from flowtok.data.images import Background, resize_and_crop
from flowtok.data.refusals import Tally
from flowtok.data.samples import Item, Sample, Source


@dataclass(frozen=True, kw_only=True)
class StreamConfig(BatchConfig):
    """How samples become batches of pictures.

    Attributes:
        size: Side of the pictures in pixels.
        background: What shows through transparent pictures.
        random_crop: Crops anywhere along the longer side instead of the centre.
        random_flip: Mirrors every other picture, left and right.
    """

    size: int
    background: Background = (255, 255, 255)
    random_crop: bool = False
    random_flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise ValueError(f"background is red, green and blue from 0 to 255, not {self.background}")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some samples.

    Attributes:
        image_B3YX: Pictures, uint8 in [0, 255].
        captions: One for each.
        keys: Their names.
        epochs: The epoch each belongs to, from 0.
    """

    image_B3YX: Tensor
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    epochs: tuple[int, ...]


class PictureStream(BatchStream["_Taken", Batch]):
    """Batches of one rank's share of captioned pictures; see `BatchStream`."""

    def __init__(
        self,
        source: Source,
        config: StreamConfig,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares, as `BatchStream` does."""
        super().__init__(source, config, _Pictures(config), rank=rank, num_ranks=num_ranks, position=position)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A sample as it goes into a batch; the picture is uint8."""

    key: str
    image_3YX: Tensor
    caption: str
    epoch: int


@dataclass(frozen=True)
class _Pictures:
    """Opens pictures, cuts them to size and takes one of their captions."""

    config: StreamConfig

    def entry(self, item: Item, set_name: str, epoch: int, tally: Tally) -> _Taken | None:
        config, elsewhere = self.config, None
        if config.split is not None and isinstance(item, Sample):
            split = row_of(item, set_name, config.captions).split
            elsewhere = None if split == config.split else f"in the split {split}"
        found = admitted(item, config.filters, config.background, tally, left_out=elsewhere)
        if found is None:
            return None
        sample, picture = found
        generator = random.Random(f"{config.epochs.seed}/{epoch}/{sample.key}")
        caption = choose_caption(sample, config.captions, generator)
        across, down, mirror = generator.random(), generator.random(), generator.random()
        cropped = resize_and_crop(picture, config.size, (across, down) if config.random_crop else (0.5, 0.5))
        if config.random_flip and mirror < 0.5:
            cropped = ImageOps.mirror(cropped)
        return _Taken(key=sample.key, image_3YX=as_bytes(cropped), caption=caption, epoch=epoch)

    def batch(self, entries: Sequence[_Taken]) -> Batch:
        return Batch(
            image_B3YX=torch.stack([one.image_3YX for one in entries]),
            captions=tuple(one.caption for one in entries),
            keys=tuple(one.key for one in entries),
            epochs=tuple(one.epoch for one in entries),
        )


def as_bytes(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8, (3, Y, X)."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()
