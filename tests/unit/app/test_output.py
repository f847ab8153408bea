"""Names of files: never one that the user did not choose and that exists already."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from flowtok.app import output, starting
from flowtok.errors import FlowTokError


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A smiling cat!", "a-smiling-cat"),
        ("../../etc/passwd", "etc-passwd"),
        ("ÉCLAIR, ﬁne", "éclair-fine"),
        ("猫 と 犬", "猫-と-犬"),
        ("--help", "help"),
        ("con.png", "con-png"),
        ("♥ \u200b", "picture"),
        ("x" * 100, "x" * 48),
        ("word " * 30, "-".join(["word"] * 9)),
    ],
)
def test_slug_is_a_plain_file_name(prompt: str, name: str) -> None:
    """A prompt must not climb out of the folder, hide a file or look like an option."""
    assert output.slug(prompt) == name


def test_plan_numbers_on_after_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "cat-7.png", "cat-x.png", "dog-2.png"):
        (tmp_path / name).touch()
    assert output.plan(None, ["cat"]) == [Path("cat-8.png")]
    assert output.plan(None, ["cat", "cat"]) == [Path("cat-8.png"), Path("cat-9.png")]
    assert output.plan(None, ["dog"]) == [Path("dog.png")]
    assert output.plan("dog.png", ["a", "b"]) == [Path("dog-3.png"), Path("dog-4.png")]
    assert output.plan("cat.png", ["a"]) == [Path("cat.png")]
    assert output.plan("new", ["cat"]) == [Path("new/cat.png")]
    assert output.plan("new/", ["cat", "cat"]) == [Path("new/cat-1.png"), Path("new/cat-2.png")]
    assert not (tmp_path / "new").exists(), "planning makes nothing"


def test_a_name_that_no_system_takes_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 300 + ".png", "x" * 300 + "/"):
        with pytest.raises(FlowTokError, match="30. characters"):
            output.plan(name, ["cat"])


def test_progress_shows_each_part_with_its_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal, whoever waits must see which part runs, how far it is and how it goes."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress_of_parts() as report:
        report("tokenizer", 12, 12, "loss 0.5")
        report("flow", 3, 12, "loss 0.25")
    shown = terminal.getvalue()
    assert "tokenizer" in shown and "12/12" in shown and "loss 0.5" in shown
    assert "flow" in shown and "3/12" in shown and "loss 0.25" in shown


def test_a_step_is_told_with_time_left_pace_and_terms() -> None:
    """Whoever watches a night's training must see in one line when it ends, what holds it up, and how it learns."""
    figures = {"total": 0.25, "flow": 0.2, "kl": 0.05, "gradient_norm": 1.5, "samples_per_second": 81.4}
    said = starting.remark({**figures, "data_wait": 0.031, "seconds_left": 700.0})
    assert said == ("12 min left, 81 samples/s, 3% waiting for data, loss 0.25 (flow 0.2, kl 0.05, gradient_norm 1.5)")


def test_png_keeps_any_text(tmp_path: Path) -> None:
    story = {"prompt": "猫 “x”\n\udc80\0", "seed": 7, "nothing": None}
    path = output.save_png(tmp_path / "made" / "x.png", Image.new("RGB", (2, 2)), story)
    with Image.open(path) as picture:
        assert picture.info == {"prompt": "猫 “x”\n?\0", "seed": "7"}


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlowTokError, match="cannot make folder"):
        output.save_png(tmp_path / "file" / "x" / "x.png", Image.new("RGB", (2, 2)), {})


def test_enlarged_keeps_the_picture(tmp_path: Path) -> None:
    small = Image.new("RGB", (4, 4), (10, 200, 30))
    assert output.enlarged(small, 4) is small
    assert output.enlarged(small, 12).size == (12, 12) and output.enlarged(small, 12).getpixel((6, 6)) == (10, 200, 30)
