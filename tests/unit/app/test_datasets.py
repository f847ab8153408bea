"""`flowtok data stats` tells a user what is wrong with the data before an hour is spent on training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from making_datasets import folder_with_texts, shard
from PIL import Image
from running import Run, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = folder_with_texts(tmp_path / "icons", 20)
    (folder / "0003.png").write_bytes(b"")
    return folder


def test_stats_of_a_folder(run: Run, folder: Path) -> None:
    result = run("data", "stats", str(folder))
    assert result.code == 0 and "folder of pictures, captions in .txt files" in result.out
    assert "19 of 20 samples" in result.out and "1 not a picture\n      0003.png" in result.out
    assert "12 wide, 12 high" in result.out and "2 words" in result.out
    assert result.err == "", "5 % is not more than 5 %"
    (folder / "0004.png").write_bytes(b"")
    assert "10.0% of the samples are refused; training stops above 5%" in run("data", "stats", str(folder)).err


def test_stats_as_json_with_settings(run: Run, tmp_path: Path) -> None:
    shard(tmp_path / "data" / "0.tar", range(4), aesthetic=4.5, blip="a thing")
    arguments = [str(tmp_path / "data"), "filters.aesthetic_above=5", "--json"]
    found = json.loads(run("data", "stats", *arguments).out)
    assert found["left_out"] == {"aesthetic score not above 5": 4} and found["kind"] == "1 webdataset shard"
    found = json.loads(run("data", "stats", str(tmp_path / "data"), "fields.text=blip", "--json").out)
    assert found["pictures"] == 4 and found["different_captions"] == 1
    refused(run("data", "stats", str(tmp_path / "data"), "filters.aestetic_above=5"), "aesthetic_above")


def test_stats_draws_a_sheet(run: Run, folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert run("data", "stats", str(folder), "-o", str(sheet), "--pictures", "12").code == 0
    with Image.open(sheet) as picture:
        assert picture.width > 8 * 96 and picture.height > 2 * 96
    refused(run("data", "stats", str(folder), "-o", str(tmp_path / "sheet.jpg")), ".png")
    refused(run("data", "stats", str(folder), "-o", str(tmp_path / "gone" / "sheet.png")), "no folder")


def test_wrong_places_and_options_are_refused(run: Run, tmp_path: Path, folder: Path) -> None:
    refused(run("data", "stats", str(tmp_path / "nowhere")), "there is no", "nowhere")
    refused(run("data", "stats", str(folder), "--limit", "3", "--workers", "2"), "--workers")
    assert "first" not in run("data", "stats", str(folder), "--limit", "3").err
