"""Batches out of any source: the right pictures with the right words, in the same order after a stop, on all ranks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making_datasets import archive, colour, folder_with_texts, picture, shard, table

from flowtok.data.epochs import EpochConfig
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig
from flowtok.data.sources import open_source
from flowtok.data.streams import Batch, PictureStream, StreamConfig
from flowtok.errors import DataError

ONCE = StreamConfig(size=8, batch_size=4, epochs=EpochConfig(num_epochs=1))
ENDLESS = StreamConfig(size=8, batch_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_with_texts(tmp_path / "pictures", 30)


def same(one: Batch, other: Batch) -> bool:
    words = (one.keys, one.captions, one.epochs) == (other.keys, other.captions, other.epochs)
    return words and torch.equal(one.image_B3YX, other.image_B3YX)


def some(stream: PictureStream, number: int) -> list[Batch]:
    return [batch for _, batch in zip(range(number), stream, strict=False)]


def test_pictures_and_words_belong_together(folder: Path) -> None:
    stream = PictureStream(open_source(folder), ONCE)
    batches = list(stream)
    assert [len(batch.keys) for batch in batches] == [4] * 7 + [2], "the last samples are not dropped"
    for batch in batches:
        assert batch.image_B3YX.dtype == torch.uint8 and batch.image_B3YX.shape[1:] == (3, 8, 8)
        for image_3YX, caption, key in zip(batch.image_B3YX, batch.captions, batch.keys, strict=True):
            number = int(key[:4])
            assert caption == f"thing {number}" and tuple(image_3YX[:, 0, 0].tolist()) == colour(number)
    assert stream.tally.used == 30


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_and_workers_share_an_epoch_exactly(tmp_path: Path, folder: Path, workers: int, ranks: int) -> None:
    for number in range(4):
        shard(tmp_path / "shards" / f"{number}.tar", range(number * 5, number * 5 + 5))
    config = replace(ONCE, num_workers=workers)
    for place, count in ((folder, 30), (tmp_path / "shards", 20)):
        came: Counter[str] = Counter()
        for rank in range(ranks):
            for batch in PictureStream(open_source(place), config, rank=rank, num_ranks=ranks):
                came.update(batch.keys)
        assert len(came) == count and set(came.values()) == {1}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 12])
def test_a_stopped_stream_goes_on_to_the_bit(folder: Path, workers: int, stop: int) -> None:
    """A training that was killed must see what it would have seen; also where samples are refused and left out."""
    (folder / "0003.png").write_bytes(b"broken")
    (folder / "0004.png").write_bytes(picture(4, size=(40, 12)))
    config = replace(
        ENDLESS, num_workers=workers, random_crop=True, random_flip=True, filters=FilterConfig(max_aspect=2)
    )
    whole = PictureStream(open_source(folder), config)
    unbroken = some(whole, 20)
    stream = PictureStream(open_source(folder), config)
    before = some(stream, stop)
    saved = json.loads(json.dumps(stream.position()))
    resumed = PictureStream(open_source(folder), config, position=saved)
    after = some(resumed, 20 - stop)
    assert len(before + after) == 20
    assert all(same(one, other) for one, other in zip(before + after, unbroken, strict=True))
    # At the end a run says what it has left out, and not only what since the last restart.
    assert resumed.tally == whole.tally and whole.tally.num_refused == 2 and whole.tally.left_out


def test_refusals_are_held_against_the_share_over_restarts(folder: Path) -> None:
    """A run on a machine that is often taken away would else train on broken data without a word."""
    (folder / "0003.png").write_bytes(b"broken")
    config, position = replace(ENDLESS, max_refused=0.03), None
    with pytest.raises(DataError, match=r"\d of 2\d\d samples were refused"):
        for _ in range(20):
            stream = PictureStream(open_source(folder), config, position=position)
            some(stream, 5)
            position = json.loads(json.dumps(stream.position()))
    del position["tally"]  # as an earlier version has saved it
    assert not PictureStream(open_source(folder), config, position=position).tally.seen


def test_a_position_is_not_taken_elsewhere(folder: Path, tmp_path: Path) -> None:
    position = PictureStream(open_source(folder), ENDLESS).position()
    with pytest.raises(DataError, match="1 workers a rank, not 2"):
        PictureStream(open_source(folder), replace(ENDLESS, num_workers=2), position=position)
    with pytest.raises(DataError, match="other data"):
        PictureStream(open_source(folder), ENDLESS, rank=1, num_ranks=2, position=position)
    with pytest.raises(DataError, match="no position"):
        PictureStream(open_source(folder), ENDLESS, position={"step": 3})


def test_draws_do_not_depend_on_workers(tmp_path: Path) -> None:
    """Crop, flip and caption of a sample are its own: the same run with more workers trains on the same pictures."""
    images = [picture(number, size=(40, 12)) for number in range(16)]
    columns = {"image": images, "text": [["a", "b", "c"]] * 16, "recaption": ["The image shows a thing"] * 16}
    file = table(tmp_path / "t.parquet", columns, row_group_size=2)
    config = replace(ONCE, random_crop=True, random_flip=True, captions=CaptionChoiceConfig(recaption_share=0.5))
    by_key = []
    for workers in (0, 2):
        found = {}
        for batch in PictureStream(open_source(file), replace(config, num_workers=workers)):
            found.update(zip(batch.keys, zip(batch.captions, batch.image_B3YX, strict=True), strict=True))
        by_key.append(found)
    one, two = by_key
    assert one.keys() == two.keys() and len({caption for caption, _ in one.values()}) > 2
    assert all(one[key][0] == two[key][0] and torch.equal(one[key][1], two[key][1]) for key in one)


def test_crops_and_mirrors_are_drawn_anew_each_epoch(tmp_path: Path) -> None:
    from PIL import Image

    ramp = Image.linear_gradient("L").rotate(90).resize((64, 16))
    ramp.save(tmp_path / "ramp.png")
    epochs = EpochConfig(num_epochs=16)
    config = replace(ONCE, epochs=epochs, random_crop=True, random_flip=True)
    images = torch.cat([batch.image_B3YX for batch in PictureStream(open_source(tmp_path), config)])
    rising = images[:, 0, 4, -1] > images[:, 0, 4, 0]
    assert 0 < int(rising.sum()) < 16 and len({tuple(image.flatten().tolist()) for image in images}) > 8
    plain = replace(ONCE, epochs=epochs)
    images = torch.cat([batch.image_B3YX for batch in PictureStream(open_source(tmp_path), plain)])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_refusals_stop_with_the_list(folder: Path, workers: int) -> None:
    for number in range(3):
        (folder / f"{number:04d}.png").write_bytes(b"")
    stream = PictureStream(open_source(folder), replace(ONCE, num_workers=workers))
    with pytest.raises(DataError, match=r"3 of 30 samples were refused, more than the 5%") as caught:
        list(stream)
    assert "0001.png" in str(caught.value) and "\n" not in str(caught.value)
    assert len(list(PictureStream(open_source(folder), replace(ONCE, max_refused=0.1)))) == 7


def test_a_lost_shard_is_more_than_one_lost_sample(tmp_path: Path) -> None:
    """One of four shards gone is a quarter of the data, even if it counts as one refusal among hundreds."""
    for number in range(3):
        shard(tmp_path / f"{number}.tar", range(number * 9, number * 9 + 9))
    source = open_source(str(tmp_path / "{0..3}.tar"))
    with pytest.raises(DataError, match="1 of 4 parts could not be read") as caught:
        list(PictureStream(source, ONCE))
    assert "3.tar" in str(caught.value)


def test_a_lost_shard_counts_among_all_shards_on_every_rank(tmp_path: Path) -> None:
    """One of 21 is below the 5 % that are allowed, also for the rank of many that happens to meet it."""
    for number in range(20):
        shard(tmp_path / f"{number:02d}.tar", range(number * 9, number * 9 + 9))
    source, broken = open_source(str(tmp_path / "{00..20}.tar")), 0
    for rank in range(4):
        stream = PictureStream(source, ONCE, rank=rank, num_ranks=4)
        assert list(stream)
        broken += len(stream.tally.broken_parts)
    assert broken == 1


def test_when_nothing_comes_through_the_stream_says_so(tmp_path: Path) -> None:
    """An endless stream of which a filter leaves nothing would hang the training."""
    source = open_source(folder_with_texts(tmp_path, 60))
    config = replace(ENDLESS, filters=FilterConfig(min_longer_side=256))
    with pytest.raises(DataError, match="no sample of .* came through: .* longer side below 256 px"):
        some(PictureStream(source, config), 1)


def test_what_is_left_out_by_filters_is_counted_and_no_fault(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", range(6), aesthetic=4.0)
    more = shard(tmp_path / "b.tar", range(6, 9), aesthetic=6.5)
    config = replace(ONCE, filters=FilterConfig(aesthetic_above=5.0))
    stream = PictureStream(open_source(f"{path}::{more}"), config)
    assert sorted(caption for batch in stream for caption in batch.captions) == ["thing 6", "thing 7", "thing 8"]
    assert stream.tally.left_out == {"aesthetic score not above 5": 6} and stream.tally.seen == 9


def test_a_transparent_picture_gets_the_chosen_background(tmp_path: Path) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(buffer, "PNG")
    path = archive(tmp_path / "a.tar", {"a.png": buffer.getvalue(), "a.txt": b"nothing"})
    (batch,) = PictureStream(open_source(path), replace(ONCE, background=(9, 8, 7)))
    assert batch.image_B3YX[0, :, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"batch_size": 0}, {"num_workers": -1}, {"max_refused": 1.5}, {"background": (0, 0, 300)}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not"):
        replace(ONCE, **wrong)
