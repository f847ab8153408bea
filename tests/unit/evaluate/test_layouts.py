"""The public sets are read as their makers lay them out, and a missing part says what to fetch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from public_sets import write_coco, write_dpg, write_geneval, write_karpathy, write_mjhq

from flowtok.errors import DataError
from flowtok.evaluate.layouts import read_coco, read_dpg, read_geneval, read_karpathy, read_mjhq


def test_coco_captions_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Which caption a picture is drawn from must not depend on the order of a file."""
    found = read_coco(write_coco(tmp_path))
    assert [one.key for one in found.pictures][:2] == ["COCO_val2014_000000000000.png", "COCO_val2014_000000000001.png"]
    assert found.pictures[0].captions == ("a red cat 0", "the cat 0") and found.pictures[0].path.is_file()
    assert {one.key for one in found.first(3)} < {one.key for one in found.first(4)}


def test_karpathy_test_split_has_its_pictures_and_sentences(tmp_path: Path) -> None:
    found = read_karpathy(write_karpathy(tmp_path))
    assert len(found.pictures) == 4 and all(len(one.captions) == 5 and one.path.is_file() for one in found.pictures)


@pytest.mark.parametrize("inside", ["mjhq30k_imgs", "."])
def test_mjhq_is_read_by_category_wherever_it_was_unpacked(tmp_path: Path, inside: str) -> None:
    found = read_mjhq(write_mjhq(tmp_path, inside))
    assert {one.category for one in found.pictures} == {"animals", "food"}
    assert all(one.path.is_file() and one.captions for one in found.pictures)


def test_geneval_and_dpg_prompts_are_read(tmp_path: Path) -> None:
    lines, digest = read_geneval(write_geneval(tmp_path / "geneval"))
    assert lines[0] == {"tag": "colors", "include": [], "prompt": "a red cat"} and len(digest) == 64
    assert read_geneval(tmp_path / "geneval")[0] == lines
    prompts, _ = read_dpg(write_dpg(tmp_path / "dpg"))
    assert prompts == (("0", "a red cat"), ("partiprompts1", "a blue dog"))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (read_coco, r"no annotations/captions_val2014.json in .*annotations_trainval2014.zip and unpack it there"),
        (read_karpathy, r"no dataset_coco.json in .*caption_datasets.zip"),
        (read_mjhq, r"no meta_data.json in .*MJHQ-30K.*meta_data.json and put it there"),
        (read_geneval, r"no evaluation_metadata.jsonl in .*github.com/djghosh13/geneval"),
        (read_dpg, r"holds no prompts.*dpg_bench/prompts"),
    ],
)
def test_what_is_missing_says_what_to_fetch(tmp_path: Path, read: object, message: str) -> None:
    assert callable(read)
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def test_missing_pictures_are_named_apart_from_their_list(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no val2014 in .*val2014.zip"):
        read_coco(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("annotations/captions_val2014.json", {"images": []}, read_coco),
        ("annotations/captions_val2014.json", [1], read_coco),
        ("dataset_coco.json", {"images": [{"split": "test"}]}, read_karpathy),
        ("dataset_coco.json", {"images": []}, read_karpathy),
        ("meta_data.json", {"a": "b"}, read_mjhq),
        ("evaluation_metadata.jsonl", {"prompt": 3}, read_geneval),
        ("evaluation_metadata.jsonl", [3], read_geneval),
    ],
)
def test_other_peoples_files_are_named(tmp_path: Path, name: str, content: object, read: object) -> None:
    assert callable(read)
    (tmp_path / "val2014").mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=Path(name).name.replace(".", r"\.")):
        read(tmp_path)
