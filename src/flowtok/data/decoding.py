"""Pictures decoded by worker processes, shard by shard, for whoever encodes them.

Knows no network; train/encoding.py makes moments of what comes out.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from flowtok.data.admission import admitted
from flowtok.data.filters import FilterConfig
from flowtok.data.images import Background, resize_and_crop
from flowtok.data.refusals import Tally
from flowtok.data.samples import Item, Sample, Source, field_of
from flowtok.data.streams import as_bytes
from flowtok.errors import DataError

_LONGEST_VALUE = 10_000  # characters of a value of the metadata that is kept


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a worker hands over: some samples of a shard with their pictures, and what it counted since.

    Attributes:
        shard: Number of the shard.
        samples: Samples without their files.
        image_B3YX: Their pictures, uint8; None if there are none.
        tally: What was used, left out and refused since the last load.
        is_last: Whether the shard ends here.
        error: Why the worker has to stop, in words.
    """

    shard: int
    samples: tuple[Sample, ...] = ()
    image_B3YX: Tensor | None = None
    tally: Tally = field(default_factory=Tally)
    is_last: bool = False
    error: str | None = None


class Decoding(IterableDataset[Load]):
    """What runs in the workers: each decodes the pictures of its share of the shards, one shard after another."""

    def __init__(
        self,
        source: Source,
        numbers: Sequence[int],
        *,
        parts_per_shard: int,
        size: int,
        batch_size: int,
        filters: FilterConfig,
        background: Background,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            source: The pictures.
            numbers: The shards that are wanted.
            parts_per_shard: Parts of the source that make up one.
            size: Side of the pictures in pixels.
            batch_size: Samples of a load, at most.
            filters: Which samples are taken.
            background: What shows through transparent pictures.
        """
        super().__init__()
        self.source, self.numbers, self.parts_per_shard = source, list(numbers), parts_per_shard
        self.size, self.batch_size, self.filters, self.background = size, batch_size, filters, background

    def __iter__(self) -> Iterator[Load]:
        info = get_worker_info()
        for number in self.numbers[info.id :: info.num_workers] if info else self.numbers:
            try:
                yield from self._shard(number)
            except DataError as error:
                # Handed over as words: the loader would wrap an exception in the worker's whole traceback.
                yield Load(shard=number, error=str(error))

    def _shard(self, number: int) -> Iterator[Load]:
        samples, pictures, tally = [], [], Tally()
        for item in self._items(number):
            decoded = self._decoded(item, tally)
            if decoded is not None:
                samples.append(decoded[0])
                pictures.append(decoded[1])
            if len(samples) == self.batch_size:
                yield Load(shard=number, samples=tuple(samples), image_B3YX=torch.stack(pictures), tally=tally)
                samples, pictures, tally = [], [], Tally()
        images = torch.stack(pictures) if pictures else None
        yield Load(shard=number, samples=tuple(samples), image_B3YX=images, tally=tally, is_last=True)

    def _items(self, number: int) -> Iterator[Item]:
        first = number * self.parts_per_shard
        for part in range(first, min(first + self.parts_per_shard, len(self.source.parts))):
            yield from self.source.read(part)

    def _decoded(self, item: Item, tally: Tally) -> tuple[Sample, Tensor] | None:
        """A sample without its file, and its picture (uint8, 3YX); None if it is not used, and the tally knows why."""
        found = admitted(item, self.filters, self.background, tally)
        if found is None:
            return None
        sample, picture = found
        metadata = {name: value for name, value in sample.metadata.items() if _is_plain(value)}
        if field_of(metadata, None, ("original_width", "width", "image_width")) is None:  # for filters of later stages
            metadata |= {"original_width": picture.width, "original_height": picture.height}
        kept = replace(sample, encoded=b"", metadata=metadata)
        return kept, as_bytes(resize_and_crop(picture, self.size))


def _is_plain(value: Any) -> bool:
    """Whether a value of the metadata can be written as JSON and is no bulk of its own."""
    try:
        return len(json.dumps(value, allow_nan=False)) <= _LONGEST_VALUE
    except (TypeError, ValueError):
        return False
