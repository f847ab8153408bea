"""A folder of pictures becomes what training takes in, with splits that do not move and words in the right order."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from making_datasets import colour, folder_with_texts, picture, shard, table

from flowtok.data import captioned, collect
from flowtok.data.collect import CollectConfig
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig
from flowtok.data.samples import FieldsConfig
from flowtok.data.sources import open_source
from flowtok.data.survey import survey
from flowtok.errors import DataError


def test_any_folder_becomes_pictures_with_rows(tmp_path: Path) -> None:
    folder = folder_with_texts(tmp_path / "icons", 300)
    seen = []
    found = collect.collect(folder, 8, progress=lambda done, total: seen.append((done, total)))
    images, rows = found.pictures.images_N3YX, found.pictures.rows
    assert images.dtype == torch.uint8 and images.shape == (300, 3, 8, 8)
    assert tuple(images[7, :, 3, 3].tolist()) == colour(7)
    assert rows[7].file_name == "0007.png" and rows[7].text == rows[7].texts[0] == "thing 7" and rows[7].set == "icons"
    assert seen[-1] == (300, 300)
    splits = {name: found.split(name) for name in captioned.SPLITS}
    assert sum(len(one) for one in splits.values()) == 300 and not len(splits["unseen_style"])
    for row in splits["unseen_concept"].rows:
        assert zlib.crc32(row.text.encode()) % 20 == 0
    for row in splits["validation"].rows:
        assert zlib.crc32(row.file_name.encode()) % 20 == 0
    assert 5 <= len(splits["validation"]) <= 30 and 5 <= len(splits["unseen_concept"]) <= 30
    for name, one in splits.items():
        for image_3YX, row in zip(one.images_N3YX, one.rows, strict=True):
            assert row.split == name and tuple(image_3YX[:, 0, 0].tolist()) == colour(int(row.file_name[:4]))
    with pytest.raises(DataError, match="unknown split"):
        found.split("test")


def test_splits_stay_where_they_are_when_a_folder_moves_or_grows(tmp_path: Path) -> None:
    """Otherwise what was held out is trained on after a rename."""
    one = collect.collect(folder_with_texts(tmp_path / "a", 60), 8)
    two = collect.collect(folder_with_texts(tmp_path / "b", 90), 8)
    assert [row.split for row in two.pictures.rows[:60]] == [row.split for row in one.pictures.rows]


def test_a_caption_that_many_share_is_learned(tmp_path: Path) -> None:
    """ "star" is one of the words that the rule holds out: a folder of stars and hearts would be a folder of hearts."""
    assert zlib.crc32(b"star") % 20 == 0
    folder = folder_with_texts(tmp_path / "icons", 60)
    for number in range(40):
        (folder / f"{number:04d}.txt").write_text("star" if number < 37 else f"thing {number}")
    rows = collect.collect(folder, 8).pictures.rows
    stars = [row for row in rows if row.text == "star"]
    assert {row.split for row in stars} == {"train", "validation"}
    for row in stars:
        assert (row.split == "validation") == (zlib.crc32(row.file_name.encode()) % 20 == 0)
    assert survey(open_source(folder)).summary()["splits"] == dict(Counter(row.split for row in rows))
    # A rare one stays what nobody has learned.
    for number in range(38):
        (folder / f"{number:04d}.txt").write_text("star" if number < 3 else f"thing {number}")
    rows = collect.collect(folder, 8).pictures.rows
    assert {row.split for row in rows if row.text == "star"} == {"unseen_concept"}
    assert survey(open_source(folder)).summary()["splits"] == dict(Counter(row.split for row in rows))


def test_the_emoji_set_keeps_its_own_rows_and_splits(repository: Path) -> None:
    folder = repository / "tests" / "data" / "emoji_small"
    opened = captioned.load(folder)
    size = opened.images_N3YX.shape[-1]
    found = collect.collect(folder, size)
    mine = {
        row.file_name: (row, image) for row, image in zip(found.pictures.rows, found.pictures.images_N3YX, strict=True)
    }
    assert len(mine) == len(opened)
    straight = collect.open_captioned(folder, size)
    assert straight.pictures.rows == opened.rows and torch.equal(straight.pictures.images_N3YX, opened.images_N3YX)
    smaller = collect.open_captioned(folder, size // 2)
    assert smaller.pictures.images_N3YX.shape[-1] == size // 2 and len(smaller.pictures) == len(opened)
    for row, image_3YX in zip(opened.rows, opened.images_N3YX, strict=True):
        assert asdict(mine[row.file_name][0]) == asdict(row) and torch.equal(mine[row.file_name][1], image_3YX)


def test_a_designers_folder_of_drawings(tmp_path: Path) -> None:
    """Icons are SVG files; one that cannot be drawn is refused and not the end of everything."""
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">{}</svg>'
    for number in range(24):
        (tmp_path / f"box {number}.svg").write_text(box.format('<rect width="20" height="20" fill="red"/>'))
    (tmp_path / "red-hole.svg").write_text(box.format('<path fill="red" d="M0 0h20v8H0z"/>'))
    (tmp_path / "no-drawing.svg").write_text("<svg")
    found = collect.open_captioned(tmp_path, 8, CollectConfig(background=(0, 0, 255)))
    rows = {row.file_name: image for row, image in zip(found.pictures.rows, found.pictures.images_N3YX, strict=True)}
    assert found.pictures.rows[-1].text == "red hole" and found.tally.refused == {"drawing that cannot be drawn": 1}
    assert rows["box 3.svg"][:, 6, 6].tolist() == [255, 0, 0]
    assert rows["red-hole.svg"][:, 0, 0].tolist() == [255, 0, 0]
    assert rows["red-hole.svg"][:, 7, 7].tolist() == [0, 0, 255]


def test_the_recaption_leads_where_it_is_to_be_read_most(tmp_path: Path) -> None:
    images = [picture(number) for number in range(2)]
    columns = {"image": images, "text": ["short", "only"], "recaption": ["The image shows a thing", None]}
    file = table(tmp_path / "t.parquet", columns)
    rows = collect.collect(file, 8).pictures.rows
    assert rows[0].texts == ("A thing", "short") and rows[1].texts == ("only",)
    rarely = CollectConfig(captions=CaptionChoiceConfig(recaption_share=0.1))
    assert collect.collect(file, 8, rarely).pictures.rows[0].texts == ("short", "A thing")


def test_shards_and_filters_and_fields(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", range(5), aesthetic=4.0, license="CC0")
    shard(tmp_path / "1.tar", range(5, 9), aesthetic=6.0, license="CC0", blip="a square")
    config = CollectConfig(filters=FilterConfig(aesthetic_above=5.0), fields=FieldsConfig(text="blip"))
    found = collect.collect(tmp_path, 8, replace(config, max_refused=1.0))
    assert len(found.pictures) == 4 and found.tally.refused == {"without a caption": 5}
    assert {(row.text, row.license) for row in found.pictures.rows} == {("a square", "CC0")}


def test_refusals_are_counted_and_too_many_stop_even_a_small_folder(tmp_path: Path) -> None:
    folder = folder_with_texts(tmp_path, 25)
    (folder / "0004.png").write_bytes(b"")
    found = collect.collect(folder, 8)
    assert len(found.pictures) == 24 and found.tally.refused == {"not a picture": 1}
    (folder / "0005.png").unlink()
    (folder / "0005.png").symlink_to(folder / "gone.png")
    with pytest.raises(DataError, match=r"2 of 25 samples .*0004\.png.*0005\.png") as caught:
        collect.collect(folder, 8)
    assert "missing" in str(caught.value)


def test_nothing_left_and_too_much_are_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with_texts(tmp_path, 6)
    with pytest.raises(DataError, match="no picture of .* is left: 6 longer side below 256 px"):
        collect.collect(folder, 8, CollectConfig(filters=FilterConfig(min_longer_side=256)))
    monkeypatch.setattr(collect, "MAX_BYTES", 4 * 3 * 8 * 8)
    with pytest.raises(DataError, match="than fit into memory"):
        collect.collect(folder, 8)
    with pytest.raises(DataError, match="at least 1 pixel"):
        collect.collect(folder, 0)
