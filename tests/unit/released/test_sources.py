"""Files from the Hub: the needed ones are fetched, and without a network there is one line instead of a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub.errors import EntryNotFoundError

from flowtok.errors import CheckpointError
from flowtok.released.sources import text_encoder_files, weight_file


class NoConnection(Exception):
    """Like the errors of the library below the Hub's, which are of no family that Python knows."""


def no_connection(*_: object, **__: object) -> NoReturn:
    raise NoConnection("connection\nrefused")


def test_no_connection_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", no_connection)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_connection)
    for find, source in (
        (weight_file, "someone/flow"),
        (weight_file, "someone/flow/FlowTok.pth"),
        (text_encoder_files, "someone/clip"),
    ):
        with pytest.raises(CheckpointError, match=r"someone/.*the Hub did not .*connection refused"):
            find(source)


def test_a_repository_with_one_weight_file_needs_no_file_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = ["README.md", "FlowTok-XL.pth"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda _self, _repo: held)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: str(tmp_path / repo / name))
    assert weight_file("someone/flow") == tmp_path / "someone" / "flow" / "FlowTok-XL.pth"
    held += ["FlowTok-H.pth"]
    with pytest.raises(
        CheckpointError, match=r"2 weight files; .* someone/flow/FlowTok-XL.pth, someone/flow/FlowTok-H"
    ):
        weight_file("someone/flow")


@pytest.mark.parametrize(
    "held",
    [
        ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.json"],
        ["config.json", "pytorch_model.bin", "tokenizer.json"],
        ["config.json", "model.safetensors", "vocab.json", "merges.txt"],
    ],
)
def test_only_the_needed_files_of_a_clip_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: list[str]
) -> None:
    """A CLIP repository holds its weights several times over, at 1.7 GB each."""
    fetched = []

    def fetch(repo: str, name: str) -> str:
        if name not in held:
            raise EntryNotFoundError(f"{repo} has no {name}")
        fetched.append(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert text_encoder_files("someone/clip") == tmp_path
    weights = "model.safetensors" if "model.safetensors" in held else "pytorch_model.bin"
    words = ["tokenizer.json"] if "tokenizer.json" in held else ["vocab.json", "merges.txt"]
    assert fetched == [*words, weights, "config.json"]
    held.remove("config.json")
    with pytest.raises(CheckpointError, match=r"someone/clip/config.json here, and the Hub did not give it"):
        text_encoder_files("someone/clip")


def test_a_file_that_is_not_there_says_how_the_hub_s_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no weight file FlowTok-XL.pth; one on the Hub is named OWNER/NAME/FILE"):
        weight_file("FlowTok-XL.pth")
