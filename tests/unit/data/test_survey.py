"""What is found in a data set does not depend on how many processes look."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from making_datasets import folder_with_texts, picture
from PIL import Image

from flowtok.data.collect import CollectConfig
from flowtok.data.filters import FilterConfig
from flowtok.data.sources import open_source
from flowtok.data.survey import survey
from flowtok.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = folder_with_texts(tmp_path / "set", 130)
    (folder / "0001.png").write_bytes(picture(1, size=(40, 20), kind="JPEG"))
    (folder / "0001.txt").write_text("thing 2\na rather long caption of seven words\n")
    (folder / "0002.png").write_bytes(b"broken")
    (folder / "0003.txt").unlink()
    animation = io.BytesIO()
    frames = [Image.new("RGB", (10, 10), name) for name in ("red", "blue")]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    (folder / "0004.png").write_bytes(animation.getvalue())
    return folder


def test_counts_sizes_captions_and_refusals(folder: Path) -> None:
    found = survey(open_source(folder)).summary()
    assert (found["samples"], found["pictures"]) == (130, 128)
    assert found["refused"] == {"without a .txt of its name": 1, "not a picture": 1}
    assert found["refused_examples"]["not a picture"] == ["0002.png"]
    assert found["width"] == {"min": 10, "median": 12, "max": 40} and found["height"]["max"] == 20
    assert found["shorter_side"] == {"min": 10, "median": 12, "max": 20} and found["square"] == 127
    assert found["formats"] == {"PNG": 126, "JPEG": 1, "GIF": 1} and found["animated"] == 1
    # Two captions of one picture; "thing 2" belongs to it and to a picture that was refused.
    assert found["captions"] == 129 and found["different_captions"] == 129
    assert found["words_per_caption"] == {"min": 2, "median": 2, "max": 7}
    assert sum(found["splits"].values()) == 128 and found["splits"]["train"] > 90


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, workers: int) -> None:
    one = survey(open_source(folder), num_thumbnails=9)
    other = survey(open_source(folder), num_thumbnails=9, num_workers=workers)
    assert {**one.summary(), "refused_examples": 0} == {**other.summary(), "refused_examples": 0}
    assert [words for _, words in one.pictures()] == [words for _, words in other.pictures()]
    assert len(one.pictures()) == 9
    for (first, _), (second, _) in zip(one.pictures(), other.pictures(), strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))


def test_limit_looks_at_the_first_samples(folder: Path) -> None:
    seen = []
    found = survey(open_source(folder), limit=10, progress=lambda done, total: seen.append((done, total)))
    assert found.tally.seen == 10 and seen[-1] == (10, 10)
    with pytest.raises(DataError, match="needs one worker"):
        survey(open_source(folder), limit=10, num_workers=2)


def test_filters_show_what_they_would_leave_out(folder: Path) -> None:
    found = survey(open_source(folder), CollectConfig(filters=FilterConfig(max_aspect=1.5)))
    assert found.summary()["left_out"] == {"more than 1.5 times as long as wide": 1}
