"""Epochs that are exact over ranks and workers: each sample comes once, none is lost, none comes twice.

Parts of the data (shards) are shuffled anew for each epoch and dealt like cards; a deal depends on nothing but the
seed, so nobody has to talk to anybody. Knows sources and no picture; streams.py makes batches of what comes out.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from flowtok.data.samples import Item, Source
from flowtok.errors import DataError

# Epochs without a single sample after which a reader gives up; with one sample in all, some do come in a row.
_PATIENCE = 20


@dataclass(frozen=True, kw_only=True)
class EpochConfig:
    """The order in which samples come.

    Attributes:
        num_epochs: How often each sample comes; without end if None.
        seed: Fixes the order.
        shuffle_buffer: Samples of a part that are shuffled with each other; 0 leaves parts and samples in order.
        open_parts: Parts that one reader reads in turn, to mix their samples; fewer where there are few parts.
    """

    num_epochs: int | None = None
    seed: int = 1234
    shuffle_buffer: int = 500
    open_parts: int = 4

    def __post_init__(self) -> None:
        if self.num_epochs is not None and self.num_epochs < 1:
            raise ValueError(f"num_epochs must be at least 1, or None for no end, not {self.num_epochs}")
        if self.shuffle_buffer < 0 or self.open_parts < 1:
            raise ValueError(
                f"shuffle_buffer must be at least 0 and open_parts at least 1, not {self.shuffle_buffer} and "
                f"{self.open_parts}"
            )


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One of all the processes that read: a worker of a rank."""

    rank: int = 0
    num_ranks: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.num_ranks and 0 <= self.worker < self.num_workers):
            raise ValueError(
                f"no rank {self.rank} among {self.num_ranks} or no worker {self.worker} among {self.num_workers}"
            )


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a reader has come; plain numbers, to be saved with a checkpoint.

    Attributes:
        turns: For each part that is open, how many the reader has finished in its place.
        offsets: For each part that is open, how many items were taken from it.
        lane: Which of the open parts comes next.
        layout: A checksum of the data, the order and the number of readers: elsewhere the position means nothing.
    """

    turns: tuple[int, ...]
    offsets: tuple[int, ...]
    lane: int
    layout: int


class Walk:
    """What one reader reads, in order.

    An epoch is a row of units: the parts in a new order or, where there are more readers than parts, stripes of them.
    The epochs' rows are laid end to end and the units dealt in turn to the lanes of all readers. A reader takes one
    item after another from each of its lanes; nobody waits at the end of an epoch. With `num_epochs` a walk ends when
    its units are read, and readers may differ by a unit.
    """

    def __init__(
        self, source: Source, config: EpochConfig, reader: Reader | None = None, position: Position | None = None
    ) -> None:
        reader = reader or Reader()
        self.source, self.config = source, config
        num_parts, num_readers = len(source.parts), reader.num_ranks * reader.num_workers
        if not num_parts:
            raise DataError(f"{source.name} holds no samples")
        self.num_lanes = max(1, min(config.open_parts, num_parts // num_readers))
        if config.shuffle_buffer == 0:
            self.num_lanes = 1  # in order
        self.all_lanes = self.num_lanes * num_readers
        self.num_stripes = -(-self.all_lanes // num_parts)
        self.units_per_epoch = num_parts * self.num_stripes
        # Ranks first: where units do not divide evenly, ranks differ by one and not by as many as they have workers.
        self.first_lane = reader.worker * reader.num_ranks + reader.rank
        self.num_readers = num_readers
        described = repr((source.parts, source.num_samples, config, reader.num_ranks, reader.num_workers))
        layout = zlib.crc32(described.encode())
        start = Position(turns=(0,) * self.num_lanes, offsets=(0,) * self.num_lanes, lane=0, layout=layout)
        self.position = position or start
        if self.position.layout != layout:
            raise DataError(
                "the position in the data belongs to other data, another order or another number of ranks and workers; "
                "take the ones it was saved with, or start this epoch anew"
            )
        self._orders: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        """Pairs of epoch and item; `position` stands behind the last one given."""
        turns, offsets = list(self.position.turns), list(self.position.offsets)
        lanes = [self._lane(lane, turns, offsets) for lane in range(self.num_lanes)]
        ended = [False] * self.num_lanes
        lane = self.position.lane
        while not all(ended):
            got = None if ended[lane] else next(lanes[lane], None)
            ended[lane] = got is None
            lane = (lane + 1) % self.num_lanes
            if got is not None:
                self.position = Position(
                    turns=tuple(turns), offsets=tuple(offsets), lane=lane, layout=self.position.layout
                )
                yield got

    def _lane(self, lane: int, turns: list[int], offsets: list[int]) -> Iterator[tuple[int, Item]]:
        """The items of one lane; says in `turns` and `offsets` where it is."""
        number, empty = lane * self.num_readers + self.first_lane, 0
        while True:
            epoch, place = divmod(turns[lane] * self.all_lanes + number, self.units_per_epoch)
            if self.config.num_epochs is not None and epoch >= self.config.num_epochs:
                return
            taken = 0
            for item in self._unit(epoch, place):
                taken += 1
                if taken > offsets[lane]:
                    offsets[lane] = taken
                    yield epoch, item
            empty = 0 if taken else empty + 1
            # A part or a stripe may be empty; as they change places, a lane that goes on finds what there is.
            if empty > _PATIENCE * (self.num_stripes + 1) * (self.units_per_epoch // self.all_lanes + 1):
                raise DataError(f"{self.source.name} holds no samples")
            turns[lane], offsets[lane] = turns[lane] + 1, 0

    def _unit(self, epoch: int, place: int) -> Iterator[Item]:
        num_parts = len(self.source.parts)
        part = self._order(epoch)[place % num_parts]
        stripe = (place // num_parts + epoch) % self.num_stripes
        items = islice(self.source.read(part), stripe, None, self.num_stripes)
        if self.config.shuffle_buffer == 0:
            return items
        return shuffled(items, self.config.shuffle_buffer, random.Random(f"{self.config.seed}/{epoch}/{place}"))

    def _order(self, epoch: int) -> list[int]:
        """The order of the parts in an epoch."""
        if epoch not in self._orders:
            order = list(range(len(self.source.parts)))
            if self.config.shuffle_buffer:
                random.Random(f"{self.config.seed}/{epoch}").shuffle(order)
            # Lanes stand in neighbouring epochs at most, unless there are fewer parts than lanes and orders are short.
            self._orders = {known: self._orders[known] for known in sorted(self._orders)[-3:]} | {epoch: order}
        return self._orders[epoch]


def shuffled(items: Iterator[Item], size: int, generator: random.Random) -> Iterator[Item]:
    """The items in an order that is random within a window of `size`; as many as come in come out.

    It starts when the window is full, and is the same for the same generator, wherever it stops: a walk that goes on
    shuffles again what it had before. (webdataset has a like buffer, but a folder needs to be read without it.)
    """
    window = list(islice(items, size))
    for item in items:
        place = generator.randrange(len(window))
        window[place], item = item, window[place]
        yield item
    generator.shuffle(window)
    yield from window
