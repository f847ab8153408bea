"""What the buttons of the demo page do, without a browser; what people see of it: tests/e2e/test_demo_page.py."""

from __future__ import annotations

import base64
import io
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_tiny_model import without
from PIL import Image, ImageDraw
from running import Run, refused

from flowtok.app import ui
from flowtok.app.ui.actions import MOST_FRAMES, Actions
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok, load

FIXED = (False, 7, 2.0, 3)  # no new seed, the seed, guidance, steps


@pytest.fixture
def actions(tiny: FlowTok) -> Actions:
    return Actions(tiny)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(picture).ellipse((8, 4, 30, 26), fill="red")
    picture.save(tmp_path / "secret-name.png")
    return tmp_path / "secret-name.png"


def pictures(html: str) -> list[Image.Image]:
    """The pictures that people see in a result; a link to save one is none of them."""
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', html)
    ]


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def test_draw_gives_the_picture_of_the_seed_and_its_flow(actions: Actions, tiny: FlowTok) -> None:
    """The page must draw what the command line draws, so that a seed found here can be used there."""
    html, seed = actions.draw("a red cat", *FIXED)
    large, *frames = pictures(html)
    assert seed == 7 and same(large, tiny.generate("a red cat", 3, 2.0, 7)[0])
    assert len(frames) == 4 and same(frames[-1], large) and not same(frames[0], large)
    assert large.text["seed"] == "7" and large.text["prompt"] == "a red cat"  # type: ignore[attr-defined]
    assert re.findall(r'data-label="([^"]+)"', html) == ["t = 0.00", "t = 0.33", "t = 0.67", "t = 1.00"]
    assert "seed 7 · guidance 2 · 3 steps" in html


def test_a_new_seed_is_taken_and_told(actions: Actions) -> None:
    """Whoever likes a picture must be able to keep its seed."""
    html, seed = actions.draw("a cat", True, None, 1.0, 2)
    assert actions.draw("a cat", False, seed, 1.0, 2) == (html, seed)
    assert actions.draw("a cat", True, seed, 1.0, 2)[1] != seed


def test_another_type_is_told_in_the_saved_file(actions: Actions, tiny_folder: Path) -> None:
    """It draws a slightly different picture: whoever saves one must find what it takes to draw it again."""
    other = Actions(load(str(tiny_folder), dtype="bfloat16"))
    for html, _ in (other.draw("a cat", *FIXED), other.blend("a cat", "a dog", 2, *FIXED)):
        assert pictures(html)[0].text["dtype"] == "bfloat16"  # type: ignore[attr-defined]
    assert "dtype" not in pictures(actions.draw("a cat", *FIXED)[0])[0].text  # type: ignore[attr-defined]


def test_a_drawing_is_told_to_those_who_do_not_see_it(actions: Actions) -> None:
    """Once, by its title: what changes while the flow plays would be read out each time."""
    assert '<strong role="status">a red cat</strong>' in actions.draw("a red cat", *FIXED)[0]


def test_many_steps_show_a_strip_that_fits(actions: Actions) -> None:
    assert len(pictures(actions.draw("a cat", False, 1, 1.0, 30)[0])) == 1 + MOST_FRAMES


def test_a_solver_without_stops_draws_without_a_strip(tmp_path: Path, tiny_folder: Path) -> None:
    """dopri5 chooses its own steps: the picture comes all the same."""
    from dataclasses import replace

    model = FlowTok.from_pretrained(tiny_folder)
    model.sampling = replace(model.sampling, solver="dopri5")
    html, _ = Actions(model).draw("a cat", *FIXED)
    assert len(pictures(html)) == 1 and "ft-range" not in html


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((False, None, 2.0, 3), "the seed must be"),
        ((False, -1, 2.0, 3), "the seed must be"),
        ((False, 1.5, 2.0, 3), "the seed must be"),
        ((False, "7", 2.0, 3), "the seed must be"),
        ((True, 0, None, 3), "guidance must be"),
        ((True, 0, float("nan"), 3), "guidance must be"),
        ((True, 0, -1.0, 3), "guidance"),
        ((True, 0, 2.0, None), "steps must be"),
        ((True, 0, 2.0, 0), "steps must be"),
        ((True, 0, 2.0, 10**9), "steps must be"),
        ((True, 0, 2.0, 10**400), "steps must be"),
        ((True, 0, 2.0, True), "steps must be"),
    ],
)
def test_fields_that_cannot_be_used_are_named(actions: Actions, fields: tuple[Any, ...], words: str) -> None:
    """An emptied field, or a hand-made request, is told what is wrong and never starts a day of steps."""
    with pytest.raises(FlowTokError, match=words):
        actions.draw("a cat", *fields)


def test_what_people_type_is_text_and_never_html(actions: Actions) -> None:
    """A prompt that is shown to others must not run in their browsers."""
    prompt = 'cat <img src=x onerror="alert(1)">'
    shown = [
        actions.draw(prompt, *FIXED)[0],
        actions.blend(prompt, "dog", 2, *FIXED)[0],
        actions.add(f"{prompt} + dog", *FIXED)[0],
    ]
    for html in shown:
        assert "<img src=x" not in html and 'onerror="' not in html and "&lt;img src=x" in html


def test_an_upload_gets_the_words_of_the_model(actions: Actions, tiny: FlowTok, file: Path) -> None:
    html = actions.read_upload({"path": str(file), "orig_name": "secret-name.png"})
    (seen,) = pictures(html)
    (words,) = tiny.caption(file)
    assert (words or "(no words)") in html and seen.width == tiny.image_tokenizer.config.image_size


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n cut short", b"<svg/>"])
def test_a_broken_upload_is_one_clear_sentence(actions: Actions, tmp_path: Path, content: bytes) -> None:
    """No stack trace, and no path of the server."""
    path = tmp_path / "secret-name.png"
    path.write_bytes(content)
    with pytest.raises(FlowTokError, match="picture") as refusal:
        actions.read_upload({"path": str(path)})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("upload", [None, {}, {"path": None}, {"path": "/nowhere/at-all.png"}, "text", 3])
def test_no_upload_says_what_to_do(actions: Actions, upload: Any) -> None:
    with pytest.raises(FlowTokError, match=r"choose (a file|it again)"):
        actions.read_upload(upload)


def test_a_drawing_gets_words_and_an_empty_canvas_does_not(actions: Actions, file: Path) -> None:
    """An untouched canvas is no picture: captions of plain white would look like a broken model."""
    drawn = Image.open(file)
    assert "ft-words" in actions.read_drawing({"background": None, "layers": [], "composite": drawn})
    for empty in (None, {"composite": None}, {"composite": Image.new("RGB", (9, 9), "white")}):
        with pytest.raises(FlowTokError, match="canvas is empty"):
            actions.read_drawing(empty)


def test_the_round_trip_draws_the_words_it_read(
    actions: Actions, tiny: FlowTok, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "caption", lambda picture: ["a blue dog"])
    for html, seed in (
        actions.round_upload({"path": str(file)}, *FIXED),
        actions.round_drawing({"composite": Image.open(file)}, *FIXED),
    ):
        _, again = pictures(html)
        assert seed == 7 and "a blue dog" in html and same(again, tiny.generate("a blue dog", 3, 2.0, 7)[0])
    monkeypatch.setattr(tiny, "caption", lambda picture: [" "])
    with pytest.raises(FlowTokError, match="no words"):
        actions.round_upload({"path": str(file)}, *FIXED)


def test_a_blend_starts_and_ends_at_its_prompts(actions: Actions, tiny: FlowTok) -> None:
    html, _ = actions.blend("a red cat", "a blue dog", 4, *FIXED)
    _, *strip = pictures(html)
    ends = tiny.generate(["a red cat", "a blue dog"], 3, 2.0, 7)
    assert len(strip) == 4 and same(strip[0], ends[0]) and same(strip[-1], ends[1])
    for number in (1, 13, None):
        with pytest.raises(FlowTokError, match="number of pictures"):
            actions.blend("a cat", "a dog", number, *FIXED)


def test_a_sum_shows_its_words_with_their_signs(actions: Actions, tiny: FlowTok) -> None:
    html, _ = actions.add("king - man + woman", *FIXED)
    *terms, result = pictures(html)
    assert len(terms) == 3 and same(terms[1], tiny.generate("man", 3, 2.0, 7)[0])
    assert same(result, tiny.interpolate("king - man + woman", "king", 1, 3, 2.0, 7)[0])
    assert re.findall(r'ft-sign">(.)<', html) == ["−", "+", "="]
    for wrong in ("king", "king -", "king - man", " + ".join(["cat"] * 7), " "):
        with pytest.raises(FlowTokError):
            actions.add(wrong, *FIXED)


def test_importing_the_command_line_does_not_import_gradio() -> None:
    """`flowtok --help` must stay instant, and work where the extra is not installed."""
    code = "import sys, flowtok.app.cli; sys.exit('gradio' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_gradio_the_command_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(run("demo"), "gradio", "pip install 'flowtok[ui]'")


# From here on with gradio itself


@pytest.fixture
def gradio() -> Any:
    return pytest.importorskip("gradio", reason="the extra `ui` is not installed: pip install 'flowtok[ui]'")


def test_postscript_starts_no_program(gradio: Any, actions: Actions, tmp_path: Path) -> None:
    """A page may be open to strangers; PIL reads PostScript by running it."""
    from PIL import EpsImagePlugin

    from flowtok.app.ui.page import make_page

    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png", "EPS")
    with pytest.raises(FlowTokError, match="not a picture"):
        actions.read_upload({"path": str(tmp_path / "picture.png")})
    make_page(actions.model)  # drawings are opened by Gradio
    with pytest.raises(OSError, match="Ghostscript"), Image.open(tmp_path / "picture.png") as opened:
        opened.load()
    assert not EpsImagePlugin.has_ghostscript()


def test_a_taken_port_is_said_before_the_model_is_opened(gradio: Any, run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(run("demo", "no-such-model", "--port", port), port, "listens there already")
    refused(run("demo", "--host", "no.such.host.invalid"), "no.such.host.invalid", "--host")


def test_the_model_computes_one_request_at_a_time(gradio: Any, tiny: FlowTok) -> None:
    """Two visitors at once must not share the model's memory; whoever comes second waits."""
    from flowtok.app.ui.page import ONE_AT_A_TIME, make_page

    page = make_page(tiny)
    use_model = [fn for fn in page.fns.values() if getattr(fn.fn, "__wrapped__", None) is not None]
    assert len(use_model) >= 12  # seven actions, and their examples
    assert {(fn.concurrency_id, fn.concurrency_limit, fn.queue) for fn in use_model} == {
        (ONE_AT_A_TIME["concurrency_id"], 1, True)
    }
    assert page.api_open is False, "requests could pass by the queue"


def test_errors_reach_the_page_as_text(gradio: Any, actions: Actions) -> None:
    """Gradio shows messages as HTML, and ours quote what people typed."""
    from flowtok.app.ui.page import _clearly

    with pytest.raises(gradio.Error) as shown:
        _clearly(actions.add)("<b>king</b> -", *FIXED)
    assert "&lt;b&gt;king" in shown.value.message and "<b>" not in shown.value.message
    assert shown.value.print_exception is False


def test_the_unforeseen_is_said_without_its_details(gradio: Any) -> None:
    """Whoever clicks must learn that nothing comes; paths and traces are for the terminal."""
    from flowtok.app.ui.page import _clearly

    def failing() -> None:
        raise RuntimeError(__file__)

    with pytest.raises(gradio.Error) as shown:
        _clearly(failing)()
    assert "terminal" in shown.value.message and __file__ not in shown.value.message


def test_nothing_of_the_page_is_elsewhere(gradio: Any, tiny: FlowTok) -> None:
    """No fonts, scripts or statistics from other hosts; the browser test sees what is really asked for."""
    from flowtok.app.ui.page import make_page, theme

    assert theme()._stylesheets == [] and theme()._font_css == []
    assert make_page(tiny).analytics_enabled is False
    for name in ("page.css", "player.js", "brush.js"):
        text = (Path(ui.__file__).parent / name).read_text(encoding="utf-8")
        assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE) and "@import" not in text


def test_a_model_that_cannot_read_has_no_tabs_for_it(gradio: Any, tiny_copy: Path) -> None:
    from flowtok.app.ui.page import make_page

    without(tiny_copy, "text_decoder")
    page = make_page(FlowTok.from_pretrained(tiny_copy))
    labels = [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]
    assert labels == ["Draw", "Blend", "Add"]


@pytest.mark.slow
def test_the_folder_of_a_space_stands_alone(gradio: Any, repository: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """What is pushed to a Space must hold all it needs: here it is opened away from this working copy."""
    space = tmp_path / "space"
    build = [str(repository / "runs" / "space" / "build.sh"), str(space), str(tiny_folder)]
    subprocess.run(build, check=True, capture_output=True)
    again = subprocess.run(build, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "not empty" in again.stderr
    code = "import app, flowtok; print(flowtok.__file__, len(app.page.fns))"
    made = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(str(space.resolve()))


def test_a_space_asks_for_what_the_package_asks_for(repository: Path) -> None:
    """A dependency that is added to the package must reach the Space, with the version that is tested."""
    import tomllib

    space = repository / "runs" / "space"
    name = re.compile(r"[A-Za-z0-9_-]+")
    wanted = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = (space / "requirements.txt").read_text().splitlines()
    assert {name.match(one)[0].lower() for one in wanted} == {name.match(one)[0].lower() for one in pinned}  # type: ignore[index]
    constraints = (repository / "constraints.txt").read_text().splitlines()
    assert not set(pinned) - set(constraints)
    (sdk,) = re.findall(r"^sdk_version: (\S+)$", (space / "README.md").read_text(), re.MULTILINE)
    assert f"gradio=={sdk}" in constraints
