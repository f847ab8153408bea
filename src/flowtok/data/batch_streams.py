"""Batches out of any source, read by worker processes, rank by rank, epoch by epoch, resumed where they stopped.

What a sample becomes is said by streams.py (pictures) and latent_streams.py (cached moments). The order is made in
epochs.py. Knows no network and no process group: the caller says which rank it is.
"""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flowtok.data.captioned import SPLITS
from flowtok.data.epochs import EpochConfig, Position, Reader, Walk
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig
from flowtok.data.refusals import Tally, check_share
from flowtok.data.samples import Item, Source
from flowtok.errors import DataError

Entry = TypeVar("Entry")
Batch = TypeVar("Batch")
_Batch_co = TypeVar("_Batch_co", covariant=True)

# After so many samples a worker reports, though its batch is not full.
_REPORT_EVERY = 200
_SECONDS_TO_SAVE = 60


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How samples become batches.

    Attributes:
        batch_size: Samples of a batch of one rank.
        num_workers: Processes of each rank that read; 0 reads in the process itself.
        epochs: The order.
        filters: Which samples are taken.
        captions: Which of their captions.
        split: Takes the samples of this split alone; of all if None.
        max_refused: Share of refused samples, or of broken parts, beyond which reading stops.
    """

    batch_size: int
    num_workers: int = 0
    epochs: EpochConfig = EpochConfig()
    filters: FilterConfig = FilterConfig()
    captions: CaptionChoiceConfig = CaptionChoiceConfig()
    split: str | None = None
    max_refused: float = 0.05

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size must be at least 1 and num_workers at least 0, not {self.batch_size} and "
                f"{self.num_workers}"
            )
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, or None for all, not {self.split!r}")
        check_share(self.max_refused)


class Rule(Protocol[Entry, _Batch_co]):
    """What a sample becomes. It is sent to the workers, so it holds nothing that cannot be."""

    def entry(self, item: Item, set_name: str, epoch: int, tally: Tally) -> Entry | None:
        """What of a sample goes into a batch; None if it is not used, and the tally knows why.

        What is drawn for a sample depends on the seed, the epoch and its key, and so neither on workers nor on ranks.
        """
        ...

    def batch(self, entries: Sequence[Entry]) -> _Batch_co:
        """The entries together."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Parcel(Generic[Batch]):
    """What a worker hands over: a batch or its last words, what it counted since, and where it stands."""

    worker: int
    position: Position
    tally: Tally
    batch: Batch | None = None
    error: str | None = None


class BatchStream(Generic[Entry, Batch]):
    """Batches of one rank's share. Iterating goes on behind the last batch given, also after a restart.

    `tally` tells what was used, left out and refused so far by this rank; `position()` is saved with a checkpoint and
    given to the next run's stream, and then batches and tally are the same as without the stop.
    """

    def __init__(
        self,
        source: Source,
        config: BatchConfig,
        rule: Rule[Entry, Batch],
        *,
        rank: int = 0,
        num_ranks: int = 1,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            source: The samples.
            config: How they become batches.
            rule: What a sample becomes.
            rank: Which share this is.
            num_ranks: Of how many.
            position: What `position()` gave in an earlier run with the same source, config and ranks.

        Raises:
            DataError: The position belongs to another order.
        """
        self.source, self._config, self._rule, self.tally = source, config, rule, Tally()
        # Each epoch deals the parts anew: in the course of a training a rank meets all of them.
        self._num_parts = len(source.parts)
        workers = max(1, config.num_workers)
        self._readers = [
            Reader(rank=rank, num_ranks=num_ranks, worker=worker, num_workers=workers) for worker in range(workers)
        ]
        self._next = 0
        self._positions = [Walk(source, config.epochs, reader).position for reader in self._readers]
        if position is not None:
            self._take_over(position)

    def position(self) -> dict[str, Any]:
        """Where the stream stands behind the last batch given, and what it has counted up to there, as plain data."""
        return {
            "next": self._next,
            "workers": [asdict(position) for position in self._positions],
            "tally": self.tally.to_plain(),
        }

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: Too much was refused, or nothing at all came through.
        """
        config, workers = self._config, len(self._readers)
        dataset = _Reading(self.source, config, self._rule, self._readers, self._positions, self._next)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=config.num_workers, worker_init_fn=_leave_signals_to_the_main_one
        )
        for parcel in loader:
            if parcel.error is not None:
                raise DataError(parcel.error)
            self.tally.add(parcel.tally)
            self.tally.check(config.max_refused, num_parts=self._num_parts, at_end=False)
            self._positions[parcel.worker] = parcel.position
            if parcel.batch is not None:
                self._next = (parcel.worker + 1) % workers
                yield parcel.batch
        self.tally.check(config.max_refused, num_parts=self._num_parts, at_end=True)

    def _take_over(self, saved: Mapping[str, Any]) -> None:
        try:
            positions = [
                Position(**{**worker, "turns": tuple(worker["turns"]), "offsets": tuple(worker["offsets"])})
                for worker in saved["workers"]
            ]
            following = int(saved["next"])
            # Earlier versions did not save it.
            tally = Tally.from_plain(saved["tally"]) if "tally" in saved else Tally()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"this is no position in the data ({error})") from error
        if len(positions) != len(self._readers):
            raise DataError(
                f"the position in the data was saved with {len(positions)} workers a rank, not {len(self._readers)}; "
                "take as many as then"
            )
        for reader, position in zip(self._readers, positions, strict=True):
            Walk(self.source, self._config.epochs, reader, position)
        self._positions, self._next, self.tally = positions, following, tally


def _leave_signals_to_the_main_one(_worker: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach all processes of a group: the one that trains is fed until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_TO_SAVE))  # an alarm that nobody hears ends us


class _Reading(IterableDataset[_Parcel[Batch]], Generic[Entry, Batch]):
    """What runs in the workers."""

    def __init__(
        self,
        source: Source,
        config: BatchConfig,
        rule: Rule[Entry, Batch],
        readers: list[Reader],
        positions: list[Position],
        first: int,
    ) -> None:
        super().__init__()
        self.source, self.config, self.rule = source, config, rule
        self.readers, self.positions, self.first = readers, positions, first

    def __iter__(self) -> Iterator[_Parcel[Batch]]:
        info = get_worker_info()
        # The loader starts with its worker 0; after a stop that one takes the place of the one whose turn it is.
        worker = ((info.id if info else 0) + self.first) % len(self.readers)
        walk = Walk(self.source, self.config.epochs, self.readers[worker], self.positions[worker])
        entries: list[Entry] = []
        tally, used = Tally(), False
        try:
            for epoch, item in walk:
                entry = self.rule.entry(item, self.source.name, epoch, tally)
                if entry is not None:
                    entries.append(entry)
                    used = True
                full = len(entries) == self.config.batch_size
                if full or (tally.seen >= _REPORT_EVERY and not entries):
                    # Without this a stream of which nothing comes through would be silent for ever.
                    if not used and epoch > 1 + walk.num_stripes:
                        raise DataError(f"no sample of {self.source.name} came through: {'; '.join(tally.reasons())}")
                    batch = self.rule.batch(entries) if full else None
                    yield _Parcel(worker=worker, position=walk.position, tally=tally, batch=batch)
                    entries, tally = [], Tally()
            batch = self.rule.batch(entries) if entries else None
            yield _Parcel(worker=worker, position=walk.position, tally=tally, batch=batch)
        except DataError as error:
            # Handed over as words: the loader would wrap an exception in the worker's whole traceback.
            yield _Parcel(worker=worker, position=walk.position, tally=tally, error=str(error))
