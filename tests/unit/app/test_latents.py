"""`flowtok data latents` says what it wrote, goes on with what is there, and refuses what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from making_datasets import folder_with_texts
from running import Run, refused

from flowtok.data.latent_folders import open_latents
from flowtok.data.latent_streams import collect_latents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = folder_with_texts(tmp_path / "icons", 40)
    (folder / "0003.png").write_bytes(b"")
    return folder


def test_moments_of_a_folder_and_again(run: Run, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    command = ["data", "latents", str(folder), "-o", str(out), "--model", str(tiny_folder)]
    result = run(*command, "--text")
    assert result.code == 0 and result.err == ""
    assert "39 samples in 1 shard\n" in result.out and "8 x 4 tokens of 16 px, float16" in result.out
    assert "text features" in result.out and "1 not a picture\n      0003.png" in result.out
    assert "1 of them from before" in run(*command, "--text").out
    refused(run(*command), "holds moments of something else", "text_encoder was")
    found = collect_latents(open_latents(out))
    assert len(found.rows) == 39 and found.caption_features(["thing 7"]).features_MSE.shape == (1, 8, 16)


def test_settings_and_json(run: Run, folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    command = ["data", "latents", str(folder), "-o", str(tmp_path / "out"), "--model", str(tiny_folder)]
    result = run(*command, "--json", "--layout", "release", "filters.max_aspect=2", "max_refused=0.1")
    manifest = json.loads(result.out)
    assert manifest["complete"]["samples"] == 39 and manifest["made_from"]["layout"] == "release"
    assert manifest["made_from"]["settings"]["filters"]["max_aspect"] == 2.0


def test_what_cannot_be_is_refused_before_anything_is_made(
    run: Run, folder: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    model = ["--model", str(tiny_folder)]
    command = ["data", "latents", str(folder), "-o", str(out)]
    refused(run(*command), "--model")
    refused(run(*command, *model, "--engine", "spark"), "torch or ray")
    refused(run(*command, *model, "--actors", "2"), "--engine ray", "torchrun")
    refused(run(*command, *model, "--engine", "ray", "--device", "cpu"), "--device")
    refused(run(*command, *model, "--dtype", "float8"), "float16")
    refused(run(*command, *model, "--layout", "release", "--dtype", "float32"), "float16")
    refused(run(*command, *model, "shardsize=3"), "shard_size")
    refused(run(*command, "--model", "emojy"), "unknown model", "emoji")
    refused(run("data", "latents", str(tmp_path / "nowhere"), "-o", str(out), *model), "there is no")
    # Shards beside the pictures would make the folder unreadable as data: it must not get that far.
    inside = folder / "moments"
    refused(run("data", "latents", str(folder), "-o", str(inside), *model), "lies in the data folder")
    assert not inside.exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    refused(run(*command, *model, "--engine", "ray"), "pip install 'flowtok[ray]'")
    assert not out.exists() or not list(out.iterdir())
