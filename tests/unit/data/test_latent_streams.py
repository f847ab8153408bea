"""Batches of cached moments: exact epochs over ranks and workers, to the bit after a stop, words with features."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowtok.data.admission import split_of_sample
from flowtok.data.batch_streams import BatchConfig
from flowtok.data.captioned import SPLITS
from flowtok.data.epochs import EpochConfig
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig
from flowtok.data.latent_shards import LatentSample, LatentSource, shard_writer
from flowtok.data.latent_streams import LatentBatch, LatentStream, collect_latents
from flowtok.data.latents import CaptionTable
from flowtok.errors import DataError

SHAPE = (2, 3)
ONCE = BatchConfig(batch_size=4, epochs=EpochConfig(num_epochs=1))
ENDLESS = BatchConfig(batch_size=3)


def sample(number: int, *, words: bool = True, **metadata: object) -> LatentSample:
    """The number stands in every part of it: in moments, captions, features and ids."""
    texts = [number * 10.0, number * 10.0 + 1, number * 10.0 + 2]
    return LatentSample(
        key=f"{number:04d}",
        captions=(f"thing {number}", f"an item {number}"),
        recaption=f"The image shows number {number}",
        metadata={"original_width": 300, "original_height": 400, **metadata},
        moments_2LC=torch.full((2, *SHAPE), float(number)),
        features_KSE=torch.tensor(texts)[:, None, None].expand(3, 4, 5).clone() if words else None,
        ids_KS=torch.tensor(texts, dtype=torch.int32)[:, None].expand(3, 4).clone() if words else None,
    )


def source(folder: Path, *sizes: int, words: bool = True) -> LatentSource:
    folder.mkdir(exist_ok=True)
    paths, number = [], 0
    for shard, size in enumerate(sizes):
        paths.append(str(folder / f"{shard}.tar"))
        with shard_writer(Path(paths[-1]), "flowtok") as add:
            for _ in range(size):
                add(sample(number, words=words, aesthetic=float(number)))
                number += 1
    return LatentSource(paths, shape=SHAPE)


@pytest.fixture
def shards(tmp_path: Path) -> LatentSource:
    return source(tmp_path / "shards", 7, 0, 9, 4)


def some(stream: LatentStream, number: int) -> list[LatentBatch]:
    return [batch for _, batch in zip(range(number), stream, strict=False)]


def same(one: LatentBatch, other: LatentBatch) -> bool:
    words = (one.keys, one.captions, one.epochs) == (other.keys, other.captions, other.epochs)
    return words and torch.equal(one.moments.mean_NLC, other.moments.mean_NLC)


def test_moments_captions_features_and_names_belong_together(shards: LatentSource) -> None:
    batches = list(LatentStream(shards, ONCE))
    assert sum(len(batch.keys) for batch in batches) == 20
    kinds = set()
    for batch in batches:
        assert batch.features_BSE.shape == (len(batch.keys), 4, 5) and batch.ids_BS.dtype == torch.int64
        for place, (key, caption) in enumerate(zip(batch.keys, batch.captions, strict=True)):
            number = int(key)
            assert int(batch.moments.mean_NLC[place, 0, 0]) == number == int(batch.moments.logvar_NLC[place, 1, 2])
            choice = [f"thing {number}", f"an item {number}", f"Number {number}"].index(caption)
            assert float(batch.features_BSE[place, 0, 0]) == number * 10 + choice == int(batch.ids_BS[place, 0])
            kinds.add(choice)
    assert 2 in kinds, "recaptions are read 95 times in 100"


def test_a_draw_is_around_the_mean(tmp_path: Path) -> None:
    with shard_writer(tmp_path / "0.tar", "flowtok") as add:
        for number in range(4):
            moments_2LC = torch.stack([torch.full(SHAPE, float(number)), torch.full(SHAPE, -30.0)])
            add(replace(sample(number), moments_2LC=moments_2LC.half()))
    (batch,) = LatentStream(LatentSource([str(tmp_path / "0.tar")], shape=SHAPE), ONCE)
    z_BLC = batch.sample(torch.Generator().manual_seed(0))
    assert z_BLC.dtype == torch.float32
    assert z_BLC[:, 0, 0].round().tolist() == [float(key) for key in batch.keys]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_each_sample_comes_once_an_epoch(shards: LatentSource, workers: int, ranks: int) -> None:
    """For any number of ranks and workers, fewer shards than readers among them."""
    config = replace(ONCE, num_workers=workers, epochs=EpochConfig(num_epochs=2))
    came: Counter[tuple[int, str]] = Counter()
    for rank in range(ranks):
        for batch in LatentStream(shards, config, rank=rank, num_ranks=ranks):
            came.update(zip(batch.epochs, batch.keys, strict=True))
    assert came == {(epoch, f"{number:04d}"): 1 for epoch in range(2) for number in range(20)}


@pytest.mark.parametrize(("workers", "stop"), [(0, 0), (0, 5), (0, 12), (2, 7)])
def test_a_stopped_stream_goes_on_to_the_bit(shards: LatentSource, workers: int, stop: int) -> None:
    config = replace(ENDLESS, num_workers=workers)
    unbroken = some(LatentStream(shards, config), 20)
    stream = LatentStream(shards, config)
    before = some(stream, stop)
    position = json.loads(json.dumps(stream.position()))
    after = some(LatentStream(shards, config, position=position), 20 - stop)
    assert len(before + after) == 20
    assert all(same(one, other) for one, other in zip(before + after, unbroken, strict=True))


def test_a_position_is_not_taken_elsewhere(shards: LatentSource) -> None:
    position = LatentStream(shards, ENDLESS).position()
    with pytest.raises(DataError, match="1 workers a rank, not 2"):
        LatentStream(shards, replace(ENDLESS, num_workers=2), position=position)
    with pytest.raises(DataError, match="other data"):
        LatentStream(shards, ENDLESS, rank=1, num_ranks=2, position=position)
    with pytest.raises(DataError, match="no position"):
        LatentStream(shards, ENDLESS, position={"step": 3})


def test_later_stages_filter_what_is_cached(shards: LatentSource) -> None:
    """The paper's second stage takes finer pictures of the same data: no need to encode them again."""
    config = replace(ONCE, filters=FilterConfig(aesthetic_above=12.0, min_longer_side=400))
    stream = LatentStream(shards, config)
    assert sorted(int(key) for batch in stream for key in batch.keys) == list(range(13, 20))
    assert stream.tally.left_out == {"aesthetic score not above 12": 13}
    with pytest.raises(DataError, match="no sample of .* came through: .* longer side below 500 px"):
        next(iter(LatentStream(shards, replace(ENDLESS, filters=FilterConfig(min_longer_side=500)))))


def test_a_size_that_nobody_noted_is_left_out(tmp_path: Path) -> None:
    """Shards of the authors' release have no metadata; a rule about sizes cannot be followed there."""
    with shard_writer(tmp_path / "0.tar", "release") as add:
        add(replace(sample(1), moments_2LC=torch.zeros(2, *SHAPE).half()))
    found = LatentSource([str(tmp_path / "0.tar")], shape=SHAPE)
    stream = LatentStream(found, replace(ONCE, filters=FilterConfig(min_longer_side=64)))
    assert list(stream) == [] and stream.tally.left_out == {"no size": 1}


def test_splits_are_those_of_the_pictures(shards: LatentSource) -> None:
    """What was held out while it was a picture must not be trained on as moments."""
    config = replace(ONCE, captions=CaptionChoiceConfig(recaption_share=0.0))
    by_split = {
        split: {key for batch in LatentStream(shards, replace(config, split=split)) for key in batch.keys}
        for split in SPLITS
    }
    for number in range(20):
        expected = split_of_sample(f"{number:04d}", f"thing {number}")
        assert [split for split, keys in by_split.items() if f"{number:04d}" in keys] == [expected]
    assert by_split["train"] and len(by_split["train"]) < 20


def test_too_many_refusals_stop_with_the_list(tmp_path: Path, shards: LatentSource) -> None:
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"nothing of the kind")
    stream = LatentStream(LatentSource([*shards.shards, str(broken)], shape=SHAPE), ONCE)
    with pytest.raises(DataError, match="1 of 5 parts could not be read to their end") as caught:
        list(stream)
    assert "broken" in str(caught.value)
    other = LatentSource(shards.shards, shape=(77, 16))
    with pytest.raises(DataError, match="with moments of another shape"):
        list(LatentStream(other, ONCE))


def test_shards_with_and_without_features_are_not_mixed(tmp_path: Path, shards: LatentSource) -> None:
    without = source(tmp_path / "without", 9, words=False)
    (batch,) = LatentStream(without, replace(ONCE, batch_size=9))
    assert batch.features_BSE is None and batch.ids_BS is None
    mixed = LatentSource([*shards.shards, *without.shards], shape=SHAPE)
    with pytest.raises(DataError, match="have no text features"):
        list(LatentStream(mixed, ONCE))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"num_workers": -1}, {"max_refused": 1.5}, {"split": "trian"}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not"):
        replace(ONCE, **wrong)


def test_collected_in_memory_the_stages_take_them_as_they_are(shards: LatentSource) -> None:
    """Moments by number, rows in words, and features of every caption that the table knows."""
    found = collect_latents(shards)
    assert found.moments.mean_NLC[:, 0, 0].tolist() == list(range(20)) and found.tally.used == 20
    table = CaptionTable.of([row.texts for row in found.rows])
    assert table.captions[:3] == ("Number 0", "thing 0", "an item 0"), "the recaption is the caption of record"
    features = found.caption_features(table.captions)
    assert features.features_MSE[:, 0, 0].tolist()[:3] == [2.0, 0.0, 1.0]
    assert features.ids_MS[table.choices_NK[7, 0]].tolist() == [72] * 4
    with pytest.raises(DataError, match="1 of 1 captions have no cached text features, first 'else'"):
        found.caption_features(["else"])
    few = collect_latents(shards, limit=5)
    assert len(few.rows) == 5 and len(few.moments.mean_NLC) == 5


def test_nothing_left_to_collect_says_why(shards: LatentSource) -> None:
    config = replace(ONCE, filters=FilterConfig(aesthetic_above=100.0))
    with pytest.raises(DataError, match="20 aesthetic score not above 100"):
        collect_latents(shards, config)
