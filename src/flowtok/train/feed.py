"""Which samples an update takes, in which order, on which rank; and their batches, made ahead of time.

Knows a stage only as something that makes batches. What is done with them stands in loop.py.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.train.runtime import Runtime, generator_of


class MakesBatches(Protocol):
    """What is asked of a stage here."""

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The samples of these numbers, with whatever is drawn at random for them."""
        ...


@runtime_checkable
class NamesSamples(Protocol):
    """A stage may also offer this: words for messages, such as file names."""

    def names(self, indices_B: Tensor) -> Sequence[str]:
        """The names of the samples of these numbers; asked right after their batch was made."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A stage that reads its samples one after another and not by their numbers also offers this.

    Its `batch` takes only the count from `indices_B`. A rank reads its own share of the data.
    """

    def position(self) -> dict[str, Any] | None:
        """Where in the data the batches made so far end, as plain data; None if samples have numbers after all."""
        ...

    def go_to(self, position: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


@dataclass(frozen=True, kw_only=True)
class Deal:
    """How the samples of an update are dealt: into parts, and the parts to the ranks.

    A part is drawn and computed in one go. What it holds depends on its number alone, not on the rank that gets it: a
    run whose parts are given gives the same weights on any number of ranks, up to the order in which floats are added.

    Attributes:
        num_samples: Samples in an epoch; None for a stream, where numbers only count.
        batch_size: Samples of an update.
        num_parts: Parts of an update.
        seed: Fixes the order.
        epoch_M: Sample numbers that make up an epoch, some of them several times; each once if None.
    """

    num_samples: int | None
    batch_size: int
    num_parts: int
    seed: int
    epoch_M: Tensor | None = field(default=None, repr=False)

    @classmethod
    def over_ranks(
        cls,
        num_samples: int | None,
        batch_size: int,
        part_size: int | None,
        seed: int,
        num_ranks: int,
        epoch_M: Tensor | None,
    ) -> "Deal":
        """As many parts as `part_size` asks for, or else one for each rank.

        Raises:
            FlowTokError: If the parts cannot be dealt evenly.
        """
        num_parts = num_ranks if part_size is None else batch_size // part_size
        if batch_size % num_parts:
            raise FlowTokError(f"a batch of {batch_size} cannot be dealt evenly to {num_ranks} ranks")
        if num_parts % num_ranks:
            raise FlowTokError(
                f"a batch of {batch_size} in parts of {part_size} makes {num_parts}, which cannot be dealt evenly to "
                f"{num_ranks} ranks; change batch_size or micro_batch_size"
            )
        if epoch_M is not None:
            num_samples = len(epoch_M)
        return cls(num_samples=num_samples, batch_size=batch_size, num_parts=num_parts, seed=seed, epoch_M=epoch_M)

    def indices(self, step: int, part: int) -> Tensor:
        """Sample numbers of one part."""
        if self.num_samples is None:
            first = step * self.batch_size
            return torch.arange(first + part, first + self.batch_size, self.num_parts)
        places_B = indices_at(
            step,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            part=part,
            num_parts=self.num_parts,
        )
        return places_B if self.epoch_M is None else self.epoch_M[places_B]


def indices_at(step: int, *, num_samples: int, batch_size: int, seed: int, part: int, num_parts: int) -> Tensor:
    """Sample numbers of one part of a step: shuffled epochs laid end to end, cut into batches, dealt to the parts.

    Every sample comes once in an epoch. The order is a function of the seed alone, so a run that goes on after a stop
    needs no memory of its position.
    """
    first = step * batch_size
    numbers = []
    for position in range(first + part, first + batch_size, num_parts):
        numbers.append((position // num_samples, position % num_samples))
    orders = {}
    for epoch in {epoch for epoch, _ in numbers}:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(num_samples, generator=generator)
    return torch.stack([orders[epoch][place] for epoch, place in numbers])


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of an update's samples.

    Attributes:
        number: Which part of the update.
        indices_B: Sample numbers.
        names: What the samples are called.
        batch: What the stage made of them.
        seed: For draws that take no generator.
        position: Where a stream stands behind it.
    """

    number: int
    indices_B: Tensor
    names: Sequence[str]
    batch: dict[str, Any]
    seed: int
    position: dict[str, Any] | None


class Feed:
    """This rank's parts in their order. The next one is made in a thread while the present one is computed."""

    def __init__(self, stage: MakesBatches, deal: Deal, runtime: Runtime, *, step: int, num_steps: int) -> None:
        self.stage, self.deal, self.runtime = stage, deal, runtime
        self.own_parts = range(runtime.rank, deal.num_parts, runtime.num_ranks)
        self.waited = 0.0
        self._numbers: Iterator[tuple[int, int]] = (
            (number, part) for number in range(step, num_steps) for part in self.own_parts
        )
        # Not an executor of concurrent.futures: workers that a stream forks from its thread would fail to end in order.
        self._maker = ThreadPool(1)
        self._ahead: AsyncResult[Part] | None = None
        self._present: dict[int, Part] = {}

    def __enter__(self) -> "Feed":
        self._begin_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._maker.close()
        self._maker.join()

    def next(self) -> Part:
        """The next part; `waited` counts the seconds that this took."""
        assert self._ahead is not None, "more parts were asked for than there are"
        started = time.perf_counter()
        part = self._ahead.get()
        self.waited += time.perf_counter() - started
        if part.number == self.own_parts[0]:
            self._present.clear()
        self._present[part.number] = part
        self._begin_next()
        return part

    def given(self, number: int) -> Part:
        """A part of the present update, as it was given: a stream would not give it again."""
        return self._present[number]

    def _make(self, step: int, number: int) -> Part:
        indices_B = self.deal.indices(step, number)
        generator = generator_of(self.deal.seed, step, number)
        seed = generator.initial_seed()
        batch = self.runtime.pinned(self.stage.batch(indices_B, generator))
        names = [str(index) for index in indices_B.tolist()]
        if isinstance(self.stage, NamesSamples):
            names = self.stage.names(indices_B)
        position = self.stage.position() if isinstance(self.stage, Streams) else None
        return Part(number=number, indices_B=indices_B, names=names, batch=batch, seed=seed, position=position)

    def _begin_next(self) -> None:
        following = next(self._numbers, None)
        self._ahead = None if following is None else self._maker.apply_async(self._make, following)
