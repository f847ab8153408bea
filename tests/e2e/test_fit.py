"""`flowtok fit`: a folder of pictures in, a model that draws and reads out, also when it is stopped."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

from flowtok.app import output
from flowtok.app.cli import main
from flowtok.data.captioned import read_rows

SMALL = Path(__file__).parents[1] / "data" / "emoji_small"


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """A designer's folder: pictures whose names say what they are."""
    folder = tmp_path / "icons"
    folder.mkdir()
    for row in read_rows(SMALL):
        shutil.copy(SMALL / row.file_name, folder / f"{row.name} {row.style}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from, smaller than the shipped one."""
    folder = tmp_path_factory.mktemp("tiny")
    assert command("train", "tiny", "--data", SMALL, "-o", folder, "--device", "cpu") == 0
    return folder / "model"


@pytest.mark.slow
def test_a_folder_becomes_a_model(icons: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, picture = tmp_path / "mine", tmp_path / "heart.png"
    (icons / "broken.png").write_bytes(b"no picture")
    assert command("fit", icons, "-o", model, "--minutes", "0.05", "--from", tiny, "--device", "cpu") == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith(str(model))
    assert "broken" in said.err and "pictures to learn" in said.err and "starts from model" in said.err
    assert command("generate", "red heart", "--model", model, "--steps", "2", "-o", picture) == 0
    with Image.open(picture) as drawn:
        assert drawn.size == (64, 64)
    assert command("caption", picture, "--model", model) == 0
    assert (
        "Reconstruction" in (model / "README.md").read_text() or "reconstruction" in (model / "README.md").read_text()
    )


@pytest.mark.slow
def test_ctrl_c_leaves_the_model_as_far_as_it_is(
    icons: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whoever has seen enough wants the model, not an empty folder.
    model, note, sent = tmp_path / "mine", output.note, []

    def press(line: str) -> None:
        note(line)
        if line.startswith("flow ") and not sent:
            sent.append(line)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(output, "note", press)
    assert command("fit", icons, "-o", model, "--minutes", "0.05", "--from", tiny, "--device", "cpu") == 0
    assert sent and "as far as it is" in capsys.readouterr().err
    assert command("generate", "red heart", "--model", model, "--steps", "2", "-o", tmp_path / "a.png") == 0


def test_what_cannot_be_trained_on_is_said_before_anything_is_made(
    icons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mine"

    def refused(*arguments: object) -> str:
        assert command("fit", *arguments, "-o", model) == 2
        assert not model.exists() and not (tmp_path / "mine-training").exists()
        return capsys.readouterr().err

    assert "there is no" in refused(tmp_path / "missing")
    assert "size 65 does not fit" in refused(icons, "--size", "65")
    assert "not 32" in refused(icons, "--from", "emoji", "--size", "32")
    few = tmp_path / "few"
    few.mkdir()
    for number, path in enumerate(sorted(icons.iterdir())[:3]):
        shutil.copy(path, few / f"icon {number}.png")
    assert "too few" in refused(few)
    same = tmp_path / "same"
    same.mkdir()
    for number, path in enumerate(sorted(icons.iterdir())):
        shutil.copy(path, same / f"{number}.png")
        (same / f"{number}.txt").write_text("an icon")
    assert "same caption" in refused(same)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    assert command("fit", icons, "-o", tmp_path / "taken") == 2
    assert "letter.txt" in capsys.readouterr().err
