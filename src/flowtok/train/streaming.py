"""Samples of a stage out of a stream: any number of captioned pictures, read as they come by workers of each rank.

Reading and its order are data/streams.py's; what becomes of the pictures on the device is in frozen.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowtok.data.collect import CollectConfig
from flowtok.data.epochs import EpochConfig
from flowtok.data.sources import open_source
from flowtok.data.streams import Batch, PictureStream, StreamConfig
from flowtok.errors import DataError
from flowtok.text.encoder import TextEncoder
from flowtok.train.frozen import View
from flowtok.train.runtime import Runtime
from flowtok.train.samples import FromStream

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class StreamingConfig:
    """How pictures are read while a stage trains.

    Attributes:
        moments: The data are cached moments of the image tokenizer (docs/latents.md) and not pictures.
        num_workers: Processes of each rank that read and decode; 0 reads in the training process.
        shuffle_buffer: Samples of a part of the data that are shuffled with each other.
        open_parts: Parts that one worker reads in turn.
        random_crop: Crops anywhere along the longer side instead of the centre.
        hold_out: Leaves the samples of other splits than `train` out of training, by the rule that `flowtok eval`
            knows (docs/data.md); without it all samples are trained on.
    """

    moments: bool = False
    num_workers: int = 4
    shuffle_buffer: int = 500
    open_parts: int = 4
    random_crop: bool = False
    hold_out: bool = True

    def __post_init__(self) -> None:
        if self.moments and self.random_crop:
            raise ValueError("random_crop has no effect on cached moments; set it or moments to false")
        if self.num_workers < 0 or self.shuffle_buffer < 1 or self.open_parts < 1:
            raise ValueError(
                "num_workers must be at least 0, shuffle_buffer and open_parts at least 1, not "
                f"{self.num_workers}, {self.shuffle_buffer} and {self.open_parts}"
            )

    def epochs(self, seed: int) -> EpochConfig:
        """The order of a training."""
        return EpochConfig(seed=seed, shuffle_buffer=self.shuffle_buffer, open_parts=self.open_parts)

    @property
    def split(self) -> str | None:
        """What is trained on; None for all."""
        return "train" if self.hold_out else None


class StreamedData:
    """Captioned pictures that are read as they come, with the settings that all stages share."""

    def __init__(self, place: str | Path, size: int, data: CollectConfig, config: StreamingConfig) -> None:
        """Opens the data.

        Args:
            place: Where it is; see `open_source`.
            size: Side of the pictures in pixels.
            data: Which samples are taken.
            config: How they are read.
        """
        self.source, self.config = open_source(place, data.fields), config
        self.settings = StreamConfig(
            size=size,
            batch_size=_AT_ONCE,
            filters=data.filters,
            captions=data.captions,
            background=data.background,
            max_refused=data.max_refused,
        )

    def training(self, seed: int) -> StreamConfig:
        """The settings of an endless stream; its batches are of whatever size is asked for."""
        config = self.config
        return replace(
            self.settings,
            num_workers=config.num_workers,
            epochs=config.epochs(seed),
            random_crop=config.random_crop,
            split=config.split,
        )

    def first(self, count: int) -> Iterator[Batch]:
        """The first samples that training uses, in the order of the source, in batches; fewer if there are not enough.

        Raises:
            DataError: There is none.
        """
        found = self._first(self.config.split, count)
        batch = next(found, None)
        if batch is None:
            raise DataError(f"no sample of {self.source.name} is left to train on; look at it with: flowtok data stats")
        yield batch
        yield from found

    def shown(self, count: int) -> Batch:
        """Samples to look at while a stage trains: held-out ones if there are any, else those that it trains on.

        Args:
            count: How many, at most; there may be fewer.
        """
        held_out = next(self._first("unseen_concept", count), None) if self.config.hold_out else None
        return held_out or next(self.first(count))

    def _first(self, split: str | None, count: int) -> Iterator[Batch]:
        epochs = EpochConfig(num_epochs=1, shuffle_buffer=0)
        settings = replace(self.settings, epochs=epochs, split=split, batch_size=min(count, _AT_ONCE))
        taken = 0
        for batch in PictureStream(self.source, settings):
            yield batch
            taken += len(batch.keys)
            if taken >= count:
                return


class StreamSamples(FromStream[Batch]):
    """This rank's share of a stream, as samples of a stage.

    A batch has the pictures (uint8), the ids of their captions and what was drawn for them; it is completed on the
    device.
    """

    def __init__(
        self, data: StreamedData, view: View, text_encoder: TextEncoder, runtime: Runtime, *, seed: int = 1234
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            data: The pictures.
            view: What becomes of them.
            text_encoder: Knows the ids of captions.
            runtime: Where.
            seed: Fixes the order.
        """
        self.data, self.view, self.text_encoder, self.runtime = data, view, text_encoder, runtime
        self.settings = data.training(seed)
        # Other people's networks are left out where the losses are compiled.
        apart: Any = torch.compiler.disable(self._completed)
        self._completed_apart: Callable[[dict[str, Any]], dict[str, Any]] = apart
        super().__init__(self._opened)

    def _opened(self, batch_size: int, position: dict[str, Any] | None) -> PictureStream:
        settings = replace(self.settings, batch_size=batch_size)
        return PictureStream(self.data.source, settings, position=position, **self.runtime.place())

    def take(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        batch = self.next_batch(len(indices_B))
        found = {"image_B3YX": batch.image_B3YX, "ids_BS": self.text_encoder.ids(batch.captions)}
        return found | self.view.draw(len(batch.keys), generator)

    def complete(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._completed_apart(batch)

    def _completed(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.runtime.frozen():
            return batch | self.view.made(batch)
