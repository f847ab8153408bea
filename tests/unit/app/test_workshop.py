"""models, info, train and data: what they say, and that wrong names and files are refused before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import Run, refused

from flowtok.app import starting
from flowtok.checkpoints import catalogue
from flowtok.data import captioned, collect, emoji
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok
from flowtok.recipes import TINY
from flowtok.text import minilm
from flowtok.train import course
from flowtok.train.runtime import Runtime

SMALL = Path(__file__).parents[2] / "data" / "emoji_small"


@pytest.fixture
def shipped(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of flowtok that ships the tiny model."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_folder, folder / "tiny")
    monkeypatch.setattr(catalogue, "shipped_folder", lambda: folder)
    return folder


def test_models_lists_what_ships(run: Run, shipped: Path) -> None:
    line = run("models").out
    assert line.startswith("tiny\t16 px\t") and line.endswith("fixed weights for tests\n")
    assert json.loads(run("models", "--json").out)[0]["name"] == "tiny"
    assert run("generate", "king", "--model", "tiny").code == 0
    refused(run("generate", "king", "--model", "tyni"), "did you mean tiny")


def test_models_says_when_none_ships(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "shipped_folder", lambda: tmp_path / "none")
    result = run("models")
    assert result.code == 0 and "no model ships" in result.err


def test_info_tells_what_is_inside(run: Run, tiny_folder: Path, tiny: FlowTok) -> None:
    result = run("info", str(tiny_folder))
    assert "all files whole" in result.out and "caption_steps" in result.out and "fixed weights" in result.out
    described = json.loads(run("info", str(tiny_folder), "--json").out)
    count = sum(tensor.numel() for tensor in tiny.velocity.state_dict().values())
    assert described["components"]["velocity"] == f"{count / 1e6:.2f} M numbers"
    assert described["image_size"] == 16 and described["sampling"]["num_inference_steps"] == 4


def test_info_finds_damage(run: Run, tiny_copy: Path) -> None:
    """The command to ask when pictures look strange must not say that all is well."""
    path = tiny_copy / "text_decoder.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(run("info", str(tiny_copy)), "text_decoder.safetensors", "damaged")
    path.write_bytes(whole[:10])
    refused(run("info", str(tiny_copy)), "text_decoder.safetensors")
    path.unlink()
    refused(run("info", str(tiny_copy)), "text_decoder.safetensors")
    refused(run("info", "nowhere"), "unknown model 'nowhere'")
    refused(run("info", "x" * 300), "300 characters")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emojy", "--data", "data", "-o", "run"], ["emojy", "did you mean emoji"]),
        (["emoji", "--data", "missing", "-o", "run"], ["there is no missing", "give a folder of pictures"]),
        (["emoji", "--data", "data", "-o", "file"], ["is a file"]),
        (["emoji", "--data", "data", "-o", "run", "--stage", "flew"], ["unknown stage 'flew'", "flow"]),
        (["emoji", "velocity.dept=2", "--data", "data", "-o", "run"], ["dept", "did you mean depth"]),
        (["emoji", "velocity.depth=two", "--data", "data", "-o", "run"], ["velocity.depth", "two"]),
        (["emoji", "velocity.width=255", "--data", "data", "-o", "run"], ["255"]),
        (["emoji", "depth", "--data", "data", "-o", "run"], ["key=value"]),
        (["missing.yaml", "--data", "data", "-o", "run"], ["missing.yaml"]),
        (["broken.yaml", "--data", "data", "-o", "run"], ["broken.yaml"]),
        (["emoji", "-o", "run"], ["--data"]),
        (["emoji", "--data", "data"], ["--output"]),
        (["emoji", "--data", "data", "-o", "run", "--device", "foo"], ["device 'foo'", "--device cpu"]),
        (["emoji", "--data", "data", "-o", "run", "--device", "meta"], ["device 'meta'", "--device cpu"]),
        (["emoji", "--data", "data", "-o", "/dev/null/run"], ["/dev/null/run", "choose another"]),
        (["emoji", "--data", "data", "-o", "x" * 300], ["300 characters"]),
        (["emoji", "--data", "x" * 300, "-o", "run"], ["cannot open xxx", "too long"]),
    ],
)
def test_train_refuses_before_it_starts(run: Run, arguments: list[str], words: list[str]) -> None:
    """A typo must be found in a second, not after the first stage; and no folder is left behind."""
    Path("data").mkdir()
    Image.new("RGB", (8, 8)).save("data/square.png")
    Path("file").write_text("")
    Path("broken.yaml").write_text("name: [")
    refused(run("train", *arguments), *words)
    assert not Path("run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda can be used here")
def test_train_on_a_device_that_is_not_here_is_refused(run: Run) -> None:
    Path("data").mkdir()
    Image.new("RGB", (8, 8)).save("data/square.png")
    refused(run("train", "emoji", "--data", "data", "-o", "run", "--device", "cuda"), "device 'cuda'", "--device cpu")
    assert not Path("run").exists()


def test_a_refused_training_leaves_the_recipe_of_the_run_that_is_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file says what the weights beside it were trained by; a second try with other settings must not change it."""

    def refuse(*_arguments: object, **_options: object) -> Path:
        raise FlowTokError("holds a run of another configuration")

    monkeypatch.setattr(course, "run_course", refuse)
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text("the first one")
    options = ["--data", str(SMALL), "-o", "run", "--text-encoder", "encoder", "--device", "cpu"]
    refused(run("train", "tiny", *options), "another configuration")
    assert Path("run/recipe.yaml").read_text() == "the first one"


def test_other_ranks_wait_for_what_the_main_one_makes(
    run: Run, tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that make one folder at once leave a broken one, or stop each other."""
    made: list[str] = []
    monkeypatch.setattr(collect, "open_captioned", lambda data, size: made.append(f"pictures of {size} px"))
    monkeypatch.setattr(captioned, "is_built", lambda data: data == str(tmp_path))
    monkeypatch.setattr(minilm, "prepare_minilm", lambda folder: (made.append("encoder"), folder.mkdir(parents=True)))

    class Rank(Runtime):
        def wait_for_all(self) -> None:
            made.append("waited")
            (tmp_path / "other" / "text_encoder").mkdir(parents=True, exist_ok=True)  # made by the main rank

    main, other = (Rank(device=torch.device("cpu"), rank=rank, num_ranks=2) for rank in (0, 1))
    found = starting.prepared(other, TINY, str(tmp_path), tmp_path / "other", None)
    assert found == tmp_path / "other" / "text_encoder" and made == ["waited"]
    made.clear()
    found = starting.prepared(main, TINY, str(tmp_path), tmp_path / "main", None)
    assert found == tmp_path / "main" / "text_encoder" and made == ["encoder", "pictures of 64 px", "waited"]


def test_data_emoji_says_what_was_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever misses an icon must learn that it was dropped, and why."""

    def build(folder: Path, *, progress: emoji.Progress, **_options: object) -> emoji.Summary:
        progress("fetch", 1, 1)
        progress("draw", 1, 1)
        return emoji.Summary(
            folder=folder, size=64, pictures=5, concepts=4, per_set={"a": 5}, per_split={"train": 5}, identical=3,
            failed=("images/a/x.png", "images/a/y.png"),
        )  # fmt: skip

    monkeypatch.setattr(emoji, "build", build)
    said = run("data", "emoji", "-o", "set").out
    assert "3 icons that look just like another" in said and "2 icons that could not be drawn (images/a/x.png" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["-o", "set", "--size", "4"], "size"), (["-o", "set", "--sets", "twemojy"], "twemojy"), ([], "--output")],
)
def test_data_emoji_refuses_before_it_fetches(run: Run, arguments: list[str], word: str) -> None:
    refused(run("data", "emoji", *arguments), word)
    assert not Path("set").exists()
