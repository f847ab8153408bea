"""`flowtok fit`: a folder of pictures in, a model that draws and reads out, also when it is stopped."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from PIL import Image

from flowtok.app import evaluation, fitting, output
from flowtok.app.cli import main
from flowtok.data import collect
from flowtok.data.captioned import read_rows
from flowtok.train import fit, rates

SMALL = Path(__file__).parents[1] / "data" / "emoji_small"
Fit = Callable[[Path], int]


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


@pytest.fixture
def fit_to(icons: Path, tiny: Path) -> Fit:
    """Fits for three seconds, from the model to start from, into the folder that is named; gives the exit code."""
    return lambda model: command("fit", icons, "-o", model, "--minutes", "0.05", "--from", tiny, "--device", "cpu")


@pytest.mark.slow
def test_a_folder_becomes_a_model(icons: Path, fit_to: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, picture = tmp_path / "mine", tmp_path / "heart.png"
    (icons / "broken.png").write_bytes(b"no picture")
    assert fit_to(model) == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith(str(model))
    assert "broken" in said.err and "pictures to learn" in said.err and "starts from model" in said.err
    assert command("generate", "red heart", "--model", model, "--steps", "2", "-o", picture) == 0
    with Image.open(picture) as drawn:
        assert drawn.size == (64, 64)
    assert command("caption", picture, "--model", model) == 0
    assert "reconstruction" in (model / "README.md").read_text().lower()
    page = (model / "report.html").read_text()
    assert "tokenizer" in page and "flow" in page and "data:image/png" in page
    # The page is no part of the model: it neither hinders who opens the model nor who goes on with it.
    assert command("info", model) == 0
    assert fit_to(model) == 0
    assert (model / "report.html").read_text() == page
    assert command("fit", icons, "-o", model, "--size", "32") == 2
    assert "was begun with --size 64, not 32" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_the_model_as_far_as_it_is(
    fit_to: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whoever has seen enough wants the model, not an empty folder.
    model, note, sent = tmp_path / "mine", output.note, []

    def press(line: str) -> None:
        note(line)
        if line.startswith("flow ") and not sent:
            sent.append(line)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(output, "note", press)
    assert fit_to(model) == 0
    assert sent and "as far as it is" in capsys.readouterr().err
    assert command("generate", "red heart", "--model", model, "--steps", "2", "-o", tmp_path / "a.png") == 0


def interrupted(monkeypatch: pytest.MonkeyPatch, place: str) -> list[str]:
    """Lets Ctrl-C come at the first call of a function; where it came is noted in the list."""
    owner, _, name = place.rpartition(".")
    original, came = resolve_name(place), []
    # A shell starts what it puts in the background deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def pressed(*arguments: object, **values: object) -> object:
        if not came:
            came.append(place)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # a signal is heard between two instructions
        return original(*arguments, **values)

    monkeypatch.setattr(resolve_name(owner), name, pressed)
    return came


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("flowtok.train.inputs.Inputs.sketch", "taking the model as far as it is"),
        ("flowtok.evaluate.tasks.run_tasks", "its card holds no scores"),
        ("flowtok.train.page.write_page", "stopping"),
    ],
    ids=["between two stages", "while it is measured", "while it is packed"],
)
def test_ctrl_c_outside_the_loop_leaves_a_model_too(
    fit_to: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    place: str,
    said: str,
) -> None:
    # Half of the time goes into caches, previews and scores: a night's work must not hang on when the key is pressed.
    came, model = interrupted(monkeypatch, place), tmp_path / "mine"
    assert fit_to(model) == 0
    assert came and said in capsys.readouterr().err + caplog.text
    assert (model / "report.html").is_file()
    assert command("generate", "red heart", "--model", model, "--steps", "2", "-o", tmp_path / "a.png") == 0


@pytest.mark.slow
def test_ctrl_c_pressed_again_leaves_at_once(
    fit_to: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first one asks for the model as far as it is; whoever presses again does not want to wait for that either.
    first = interrupted(monkeypatch, "flowtok.train.inputs.Inputs.sketch")
    second = interrupted(monkeypatch, "flowtok.app.fit_work.complete_model")
    model = tmp_path / "mine"
    assert fit_to(model) == 130
    assert first and second and "as far as it is" in capsys.readouterr().err and not model.exists()


@pytest.mark.slow
def test_a_fresh_fit_that_is_stopped_early_says_what_is_missing(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # There is nothing to draw with before the flow has begun; a traceback or an empty folder would leave one puzzled.
    monkeypatch.setattr(rates, "measured_rates", lambda *_: {"tokenizer": 1.0, "text": 1.0, "flow": 1.0})
    interrupted(monkeypatch, "flowtok.app.starting.remark")
    model = tmp_path / "mine"
    assert command("fit", icons, "-o", model, "--minutes", "0.1", "--from", "none", "--device", "cpu") == 130
    said = capsys.readouterr().err
    assert "networks: small" in said and "300 pictures" in said
    assert "stopped before stage text had saved anything, so there is no model yet" in said and not model.exists()


@pytest.mark.slow
def test_minutes_count_reading_and_measuring_too_and_pictures_are_read_once_for_training(
    icons: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading took a minute of three, and measuring will take it again: training has less than the last one.
    seconds, read, asked = [], [], []
    clock, collect_all, measure = time.monotonic, collect.collect, evaluation.evaluate
    late = [0.0]
    monkeypatch.setattr(fitting.time, "monotonic", lambda: clock() + late[0])

    def slow(*arguments: Any, **values: Any) -> Any:
        read.append(arguments)
        late[0] += 60.0 if len(read) == 1 else 0.0
        return collect_all(*arguments, **values)

    def planned(*arguments: Any, **values: Any) -> Any:
        seconds.append(values["seconds"])
        return plan_fit(*arguments, **{**values, "seconds": 0.1})

    def measured(*arguments: Any, **values: Any) -> None:
        asked.append(values["device"])
        measure(*arguments, **values)

    plan_fit = fit.plan_fit
    monkeypatch.setattr(collect, "collect", slow)
    monkeypatch.setattr(fit, "plan_fit", planned)
    monkeypatch.setattr(fit, "plan_flow", lambda plan, **_: plan)
    monkeypatch.setattr(evaluation, "evaluate", measured)
    model = tmp_path / "mine"
    assert command("fit", icons, "-o", model, "--minutes", "3", "--from", tiny, "--device", "cpu") == 0
    assert 0.5 * fit.SHARE_OF_TRAINING * 60.0 < seconds[0] <= fit.SHARE_OF_TRAINING * 60.0
    assert len(read) == 2, "once to train on, once to measure"
    assert asked == ["cpu"], "a GPU that was not to be used is not used for measuring either"


@pytest.mark.slow
def test_a_machine_that_is_slower_than_it_seemed_is_done_in_time(
    icons: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Who gives three minutes must not find it training an hour later because something else ran beside it.
    monkeypatch.setattr(rates, "measured_rates", lambda *_: {"tokenizer": 1e4, "text": 1e4, "flow": 1e4})
    told = ("fit", icons, "-o", tmp_path / "mine", "--from", tiny, "--device", "cpu")
    assert command(*told, "--minutes", "0.05") == 0
    assert "stage tokenizer: ended at step " in caplog.text  # the flow is planned anew, in the time that is left
    assert command("info", tmp_path / "mine") == 0
    # Given again it is done: it does not go on with steps that were planned for a faster machine.
    caplog.clear()
    capsys.readouterr()
    assert command(*told, "--minutes", "60") == 0
    assert "going on" in capsys.readouterr().err and "ended at step" not in caplog.text


def test_what_cannot_be_trained_on_is_said_before_anything_is_made(
    icons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "mine"

    def icons_as(folder: Path, names: list[str]) -> Path:
        folder.mkdir()
        for path, name in zip(sorted(icons.iterdir()), names, strict=False):
            shutil.copy(path, folder / name)
        return folder

    def refused(*arguments: object) -> str:
        assert command("fit", *arguments, "-o", model) == 2
        assert not model.exists() and not (tmp_path / "mine-training").exists()
        return capsys.readouterr().err

    assert "there is no" in refused(tmp_path / "missing")
    assert "size 65 does not fit" in refused(icons, "--size", "65")
    assert "not 32" in refused(icons, "--from", "emoji", "--size", "32")
    assert "too few" in refused(icons_as(tmp_path / "few", [f"icon {number}.png" for number in range(3)]))
    assert "--minutes must be above 0" in refused(icons, "--minutes", "0")
    assert "lies in the data folder" in refused(tmp_path)
    assert command("fit", icons, "-o", icons) == 2 and "lies in the data folder" in capsys.readouterr().err
    same = icons_as(tmp_path / "same", [f"{number}.png" for number in range(len(list(icons.iterdir())))])
    for path in list(same.iterdir()):
        path.with_suffix(".txt").write_text("an icon")
    assert "same caption" in refused(same)
    # As a camera names them: nothing to train on for an hour without a word.
    said = refused(icons_as(tmp_path / "numbered", [f"IMG_{number}.png" for number in (1201, 1202, 1203)]))
    assert "captions are such as 'img 1201', 'img 1202', 'img 1203'" in said and "differ in a number only" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "fit is for one process" in refused(icons)
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    assert command("fit", icons, "-o", tmp_path / "taken") == 2
    assert "letter.txt" in capsys.readouterr().err
