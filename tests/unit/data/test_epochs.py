"""Each sample once an epoch, whatever the number of ranks and workers; and a stop changes nothing."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making_datasets import folder_with_texts, shard

from flowtok.data.epochs import EpochConfig, Position, Reader, Walk, shuffled
from flowtok.data.refusals import Refusal
from flowtok.data.samples import Item, Sample, Source
from flowtok.data.sources import open_source
from flowtok.errors import DataError


class Numbers:
    """A source whose parts hold the given numbers of samples."""

    name, kind, num_samples = "numbers", "numbers", None

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.parts = tuple(f"part {part}" for part in range(len(counts)))

    def read(self, part: int) -> Iterator[Item]:
        for number in range(self.counts[part]):
            yield Sample(key=f"{part}/{number}", encoded=b"", captions=("x",))

    @property
    def keys(self) -> list[str]:
        return [f"{part}/{number}" for part, count in enumerate(self.counts) for number in range(count)]


def readers(ranks: int, workers: int) -> list[Reader]:
    return [
        Reader(rank=rank, num_ranks=ranks, worker=worker, num_workers=workers)
        for rank in range(ranks)
        for worker in range(workers)
    ]


def walked(source: Source, config: EpochConfig, ranks: int = 1, workers: int = 1) -> list[list[tuple[int, str]]]:
    return [[(epoch, item.key) for epoch, item in Walk(source, config, reader)] for reader in readers(ranks, workers)]


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    ranks=st.integers(1, 5),
    workers=st.integers(1, 4),
    epochs=st.integers(1, 3),
    buffer=st.sampled_from([0, 1, 3, 500]),
    open_parts=st.integers(1, 4),
)
def test_every_sample_comes_once_an_epoch_for_any_number_of_readers(
    counts: list[int], ranks: int, workers: int, epochs: int, buffer: int, open_parts: int
) -> None:
    source = Numbers(*counts)
    config = EpochConfig(num_epochs=epochs, shuffle_buffer=buffer, open_parts=open_parts)
    came = Counter(pair for share in walked(source, config, ranks, workers) for pair in share)
    assert came == {(epoch, key): 1 for epoch in range(epochs) for key in source.keys}


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 3), (3, 2), (8, 1), (5, 4)])
def test_real_folders_and_shards_too(tmp_path: Path, ranks: int, workers: int) -> None:
    folder_with_texts(tmp_path / "folder", 37)
    for number in range(5):
        shard(tmp_path / "shards" / f"{number:05d}.tar", range(number * 7, number * 7 + 7 - number))
    for place, count in ((tmp_path / "folder", 37), (tmp_path / "shards", 25)):
        shares = walked(open_source(place), EpochConfig(num_epochs=2), ranks, workers)
        came = Counter(pair for share in shares for pair in share)
        assert len(came) == 2 * count and set(came.values()) == {1}


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 2), (3, 1), (7, 2)])
def test_without_an_end_epochs_follow_each_other(ranks: int, workers: int) -> None:
    """No reader waits for another, so no rank of a training hangs, and each epoch is still exact."""
    source, config = Numbers(5, 3, 8), EpochConfig()
    came: Counter[tuple[int, str]] = Counter()
    for reader in readers(ranks, workers):
        for epoch, item in Walk(source, config, reader):
            if epoch >= 12:  # orders of up to two epochs are mixed by the lanes of one reader
                break
            came[epoch, item.key] += 1
    assert all(came[epoch, key] == 1 for epoch in range(8) for key in source.keys)


def test_ranks_get_equal_shares_where_the_parts_are_equal() -> None:
    shares = walked(Numbers(*[6] * 12), EpochConfig(num_epochs=1), ranks=4, workers=3)
    assert {len(share) for share in shares} == {6}
    shares = walked(Numbers(12), EpochConfig(num_epochs=1), ranks=4, workers=1)
    assert {len(share) for share in shares} == {3}, "one part is shared out as well"


def test_order_changes_with_epoch_and_seed_and_nothing_else() -> None:
    source = Numbers(10, 10, 10)
    config = EpochConfig(num_epochs=2, seed=1)
    (first,) = walked(source, config)
    (again,) = walked(source, config)
    (other,) = walked(source, EpochConfig(num_epochs=2, seed=2))
    assert first == again != other
    one, two = ([key for epoch, key in first if epoch == wanted] for wanted in (0, 1))
    assert one != two and sorted(one) == sorted(two) and one != sorted(one)
    parts = [key[0] for key in one[:9]]
    assert len(set(parts)) > 1, "samples of several parts stand beside each other"
    (plain,) = walked(source, EpochConfig(num_epochs=1, shuffle_buffer=0))
    assert [key for _, key in plain] == source.keys


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any),
    ranks=st.integers(1, 3),
    stop=st.integers(0, 40),
    epochs=st.sampled_from([2, None]),
)
def test_a_walk_goes_on_where_it_was_stopped(counts: list[int], ranks: int, stop: int, epochs: int | None) -> None:
    """The position survives JSON-like copies, and what follows is what would have followed."""
    source, config = Numbers(*counts), EpochConfig(num_epochs=epochs, shuffle_buffer=3, open_parts=2)
    for reader in readers(ranks, 1):

        def some(walk: Walk, number: int) -> list[tuple[int, str]]:
            return [(epoch, item.key) for (epoch, item), _ in zip(walk, range(number), strict=False)]

        unbroken = some(Walk(source, config, reader), 70)
        walk = iter(stopped := Walk(source, config, reader))
        before = [(epoch, item.key) for _, (epoch, item) in zip(range(stop), walk, strict=False)]
        position = Position(**asdict(stopped.position))
        after = some(Walk(source, config, reader, pickle.loads(pickle.dumps(position))), 70 - len(before))
        assert (before + after)[:70] == unbroken


def test_a_position_of_other_data_is_refused() -> None:
    """Going on at a place that means something else would double some samples and lose others."""
    position = Walk(Numbers(4, 4), EpochConfig()).position
    for source, config, reader in (
        (Numbers(4, 4, 4), EpochConfig(), Reader()),
        (Numbers(4, 4), EpochConfig(seed=5), Reader()),
        (Numbers(4, 4), EpochConfig(), Reader(num_ranks=2)),
    ):
        with pytest.raises(DataError, match="other number of ranks"):
            Walk(source, config, reader, position)


@pytest.mark.parametrize("source", [Numbers(), Numbers(0), Numbers(0, 0, 0)])
def test_no_samples_end_in_words_and_not_in_an_endless_wait(source: Numbers) -> None:
    with pytest.raises(DataError, match="holds no samples"):
        for reader in readers(2, 2):
            next(iter(Walk(source, EpochConfig(), reader)))


def test_fewer_samples_than_readers_keep_everyone_going() -> None:
    for reader in readers(3, 4):
        walk = iter(Walk(Numbers(1, 0), EpochConfig(), reader))
        assert [next(walk)[1].key for _ in range(3)] == ["0/0"] * 3


def test_refusals_are_dealt_like_samples() -> None:
    """Otherwise each rank would count the same broken shard."""

    class Broken(Numbers):
        def read(self, part: int) -> Iterator[Item]:
            yield from super().read(part)
            yield Refusal(key=self.parts[part], reason="broken", whole_part=True)

    came = Counter(key for share in walked(Broken(3, 3), EpochConfig(num_epochs=1), 2, 2) for _, key in share)
    assert set(came.values()) == {1} and came["part 0"] == 1


@given(count=st.integers(0, 30), size=st.integers(1, 40), seed=st.integers(0, 5))
def test_shuffling_loses_and_doubles_nothing(count: int, size: int, seed: int) -> None:
    items: list[Item] = [Sample(key=str(n), encoded=b"", captions=("x",)) for n in range(count)]
    came = [item.key for item in shuffled(iter(items), size, random.Random(seed))]
    assert sorted(came) == sorted(item.key for item in items)


@pytest.mark.parametrize("wrong", [{"num_epochs": 0}, {"shuffle_buffer": -1}, {"open_parts": 0}])
def test_impossible_orders_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not"):
        EpochConfig(**wrong)
