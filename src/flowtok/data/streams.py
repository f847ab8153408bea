"""Batches of pictures and captions out of any source, read by worker processes, rank by rank, epoch by epoch.

For data that does not fit into memory; what does is opened by collect.py. The order is made in epochs.py; which samples
and captions are taken is in filters.py. Knows no network and no process group: the caller says which rank it is.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flowtok.data.epochs import EpochConfig, Position, Reader, Walk
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig, choose_caption, why_not
from flowtok.data.images import Background, resize_and_crop
from flowtok.data.refusals import Refusal, Refused, Tally
from flowtok.data.samples import Sample, Source
from flowtok.errors import DataError


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How samples become batches.

    Attributes:
        size: Side of the pictures in pixels.
        batch_size: Samples of a batch of one rank.
        num_workers: Processes of each rank that read; 0 reads in the process itself.
        epochs: The order.
        filters: Which samples are taken.
        captions: Which of their captions.
        background: What shows through transparent pictures.
        random_crop: Crops anywhere along the longer side instead of the centre.
        random_flip: Mirrors every other picture, left and right.
        max_refused: Share of refused samples, or of broken parts, beyond which reading stops.
    """

    size: int
    batch_size: int
    num_workers: int = 0
    epochs: EpochConfig = EpochConfig()
    filters: FilterConfig = FilterConfig()
    captions: CaptionChoiceConfig = CaptionChoiceConfig()
    background: Background = (255, 255, 255)
    random_crop: bool = False
    random_flip: bool = False
    max_refused: float = 0.05

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"size and batch_size must be at least 1 and num_workers at least 0, not {self.size}, "
                f"{self.batch_size} and {self.num_workers}"
            )
        if not 0.0 <= self.max_refused <= 1.0:
            raise ValueError(f"max_refused must lie in [0, 1], not {self.max_refused}")
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


@dataclass(frozen=True, kw_only=True)
class _Parcel:
    """What a worker hands over: a batch or its last words, what it counted since, and where it stands."""

    worker: int
    position: Position
    tally: Tally
    batch: Batch | None = None
    error: str | None = None


class PictureStream:
    """Batches of one rank's share. Iterating goes on behind the last batch given, also after a restart.

    `tally` tells what was used, left out and refused so far by this rank; `position()` is saved with a checkpoint and
    given to the next run's stream, and then the batches are the same as without the stop.
    """

    def __init__(
        self,
        source: Source,
        config: StreamConfig,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            source: The samples.
            config: How they become batches.
            rank: Which share this is.
            num_ranks: Of how many.
            position: What `position()` gave in an earlier run with the same source, config and ranks.

        Raises:
            DataError: The position belongs to another order.
        """
        self.source, self.config, self.tally = source, config, Tally()
        workers = max(1, config.num_workers)
        self._readers = [
            Reader(rank=rank, num_ranks=num_ranks, worker=worker, num_workers=workers) for worker in range(workers)
        ]
        self._next = 0
        self._positions = [Walk(source, config.epochs, reader).position for reader in self._readers]
        if position is not None:
            self._take_over(position)

    def position(self) -> dict[str, Any]:
        """Where the stream stands behind the last batch given, as plain data."""
        return {"next": self._next, "workers": [asdict(position) for position in self._positions]}

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: Too much was refused, or nothing at all came through.
        """
        first, workers = self._next, len(self._readers)
        dataset = _Reading(self.source, self.config, self._readers, self._positions, first)
        for parcel in DataLoader(dataset, batch_size=None, num_workers=self.config.num_workers):
            if parcel.error is not None:
                raise DataError(parcel.error)
            self.tally.add(parcel.tally)
            self.tally.check(self.config.max_refused, num_parts=len(self.source.parts), at_end=False)
            self._positions[parcel.worker] = parcel.position
            if parcel.batch is not None:
                self._next = (parcel.worker + 1) % workers
                yield parcel.batch
        self.tally.check(self.config.max_refused, num_parts=len(self.source.parts), at_end=True)

    def _take_over(self, saved: Mapping[str, Any]) -> None:
        try:
            positions = [
                Position(**{**worker, "turns": tuple(worker["turns"]), "offsets": tuple(worker["offsets"])})
                for worker in saved["workers"]
            ]
            following = int(saved["next"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no position in the data ({error})") from error
        if len(positions) != len(self._readers):
            raise DataError(
                f"the position in the data was saved with {len(positions)} workers a rank, not {len(self._readers)}; "
                "take as many as then"
            )
        for reader, position in zip(self._readers, positions, strict=True):
            Walk(self.source, self.config.epochs, reader, position)
        self._positions, self._next = positions, following


class _Reading(IterableDataset[_Parcel]):
    """What runs in the workers."""

    def __init__(
        self, source: Source, config: StreamConfig, readers: list[Reader], positions: list[Position], first: int
    ) -> None:
        super().__init__()
        self.source, self.config, self.readers = source, config, readers
        self.positions, self.first = positions, first

    def __iter__(self) -> Iterator[_Parcel]:
        info = get_worker_info()
        # The loader starts with its worker 0; after a stop that one takes the place of the one whose turn it is.
        worker = ((info.id if info else 0) + self.first) % len(self.readers)
        walk = Walk(self.source, self.config.epochs, self.readers[worker], self.positions[worker])
        filling, tally, used = _Filling(), Tally(), False
        try:
            for epoch, item in walk:
                sample = prepare(item, self.config, epoch, tally)
                if sample is not None:
                    filling.add(*sample, epoch)
                    used = True
                if len(filling.keys) == self.config.batch_size:
                    yield _Parcel(worker=worker, position=walk.position, tally=tally, batch=filling.batch())
                    filling, tally = _Filling(), Tally()
                elif tally.seen >= _REPORT_EVERY and not filling.keys:
                    # Without this a stream of which nothing comes through would be silent for ever.
                    if not used and epoch > 1 + walk.num_stripes:
                        raise DataError(f"no sample of {self.source.name} came through: {'; '.join(reasons(tally))}")
                    yield _Parcel(worker=worker, position=walk.position, tally=tally)
                    tally = Tally()
            batch = filling.batch() if filling.keys else None
            yield _Parcel(worker=worker, position=walk.position, tally=tally, batch=batch)
        except DataError as error:
            # Handed over as words: the loader would wrap an exception in the worker's whole traceback.
            yield _Parcel(worker=worker, position=walk.position, tally=tally, error=str(error))


_REPORT_EVERY = 200


@dataclass(kw_only=True)
class _Filling:
    """A batch while it fills."""

    pictures: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def add(self, key: str, image_3YX: Tensor, caption: str, epoch: int) -> None:
        self.pictures.append(image_3YX)
        self.captions.append(caption)
        self.keys.append(key)
        self.epochs.append(epoch)

    def batch(self) -> Batch:
        return Batch(
            image_B3YX=torch.stack(self.pictures),
            captions=tuple(self.captions),
            keys=tuple(self.keys),
            epochs=tuple(self.epochs),
        )


def prepare(item: Sample | Refusal, config: StreamConfig, epoch: int, tally: Tally) -> tuple[str, Tensor, str] | None:
    """Key, picture (uint8, 3YX) and caption of a sample; None if it is not used, and the tally knows why.

    What is drawn for a sample depends on the seed, the epoch and its key, and so neither on workers nor on ranks.
    """
    if isinstance(item, Refusal):
        tally.refuse(item)
        return None
    try:
        unwanted = why_not(item, config.filters)
        if unwanted is not None:
            tally.leave_out(unwanted)
            return None
        picture = item.open(config.background)
    except Refused as refused:
        tally.refuse(Refusal(key=item.key, reason=refused.reason))
        return None
    generator = random.Random(f"{config.epochs.seed}/{epoch}/{item.key}")
    caption = choose_caption(item, config.captions, generator)
    across, down, mirror = generator.random(), generator.random(), generator.random()
    cropped = resize_and_crop(picture, config.size, (across, down) if config.random_crop else (0.5, 0.5))
    if config.random_flip and mirror < 0.5:
        cropped = ImageOps.mirror(cropped)
    tally.use()
    return item.key, as_bytes(cropped), caption


def as_bytes(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8, (3, Y, X)."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def reasons(tally: Tally) -> list[str]:
    """Why samples were not used, filters first."""
    return [f"{count} {reason}" for reason, count in tally.left_out.most_common()] + tally.lines()
