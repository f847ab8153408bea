"""The demo page in a real browser: clicks, uploads, the keyboard, a phone, and not one request to another host.

Needs gradio, playwright (its core is enough) and a Chromium: Debian's package `chromium`, or CHROMIUM names one.
A test that fails leaves what the browser showed in outputs/screenshots.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image, ImageDraw

from flowtok.app import ui
from flowtok.pipeline import FlowTok

pytestmark = pytest.mark.slow

PHONE = (375, 740)
DESKTOP = (1200, 900)
PATIENCE = 300_000  # milliseconds; a busy machine is no failure
TABS = ("Draw", "Read", "Round trip", "Blend", "Add")
Open = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def address(browser: Any, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the tiny model, started as a user starts it."""
    del browser  # first, so that nothing is started where it is missing
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra `ui` is not installed: pip install 'flowtok[ui]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "flowtok.app.cli", "demo", str(tiny_folder), "--port", str(port)]
    command += ["--dtype", "float32"]  # as the model of these tests computes
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(place / "cache")}
    log = place / "log.txt"
    with log.open("w") as errors:
        server = subprocess.Popen(
            command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )  # fmt: skip
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith(f"the page is at http://127.0.0.1:{port}"), line + log.read_text()
    yield f"http://127.0.0.1:{port}/"
    server.terminate()
    server.communicate()


@pytest.fixture
def open_page(browser: Any, address: str, repository: Path, request: pytest.FixtureRequest) -> Open:
    """Opens the page; when the block ends, every request must have gone to this machine."""

    @contextlib.contextmanager
    def opened(size: tuple[int, int] = DESKTOP) -> Iterator[Any]:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        context.set_default_timeout(PATIENCE)
        asked: list[str] = []
        context.on("request", lambda made: asked.append(made.url))
        page = context.new_page()
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        try:
            page.goto(address)
            page.get_by_role("button", name="Draw", exact=True).wait_for()
            yield page
            parts = [urlsplit(url) for url in asked]
            elsewhere = {part.geturl() for part in parts if part.scheme not in ("data", "blob")
                         and part.hostname != "127.0.0.1"}  # fmt: skip
            assert len(parts) > 5 and not elsewhere
            assert not broken
        except BaseException:
            folder = repository / "outputs" / "screenshots"
            folder.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
            raise
        finally:
            context.close()

    return opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    drawn = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(drawn).ellipse((30, 10, 90, 80), fill="red")
    drawn.save(tmp_path / "a picture.png")
    return tmp_path / "a picture.png"


def tab(page: Any, name: str) -> None:
    """Chooses a tab of the page."""
    page.get_by_role("tab", name=name, exact=True).first.click()
    chosen = "name => document.querySelector('[role=tab][aria-selected=true]').innerText.trim() === name"
    page.wait_for_function(chosen, arg=name)


def test_a_click_draws_and_the_flow_plays(open_page: Open) -> None:
    """The first thing anybody does; then the slider and the play button show the way from words to picture."""
    with open_page() as page:
        page.get_by_role("button", name="Draw", exact=True).click()
        large = page.locator(".ft-large")
        large.wait_for()
        assert large.evaluate("image => image.naturalWidth") == 16
        assert large.bounding_box()["width"] > 400, "a small picture is to be seen large"
        label, play = page.locator(".ft-label"), page.get_by_role("button", name="Play", exact=True)
        play.wait_for()  # it plays once by itself
        page.wait_for_function("document.querySelector('.ft-label').innerText === 't = 1.00'")
        end = large.get_attribute("src")
        slider = page.get_by_role("slider", name="The flow, from words to picture")
        slider.focus()
        page.keyboard.press("Home")
        assert label.inner_text() == "t = 0.00" and large.get_attribute("src") != end
        page.keyboard.press("ArrowRight")
        assert label.inner_text() == "t = 0.25" and slider.get_attribute("aria-valuetext") == "t = 0.25"
        play.click()
        page.wait_for_function("document.querySelector('.ft-label').innerText === 't = 1.00'")
        assert large.get_attribute("src") == end
        page.locator(".ft-frame").nth(1).click()
        assert label.inner_text() == "t = 0.25"
        with page.expect_download() as saved:
            page.get_by_role("link", name="Save the picture").click()
        assert Image.open(saved.value.path()).text["prompt"] == "a red heart"  # type: ignore[attr-defined]


def test_what_is_typed_is_shown_as_typed(open_page: Open) -> None:
    """Templates and HTML in a prompt must neither run nor vanish; Enter draws."""
    prompt = "a {{red}} ${1 + 1} <b>cat</b> & dog"
    with open_page() as page:
        field = page.get_by_label("Prompt", exact=True)
        field.fill(prompt)
        field.press("Enter")
        page.locator(".ft-player strong").wait_for()
        assert page.locator(".ft-player strong").inner_text() == prompt


def test_an_error_is_a_sentence(open_page: Open) -> None:
    with open_page() as page:
        page.get_by_label("Prompt", exact=True).fill("  ")
        page.get_by_role("button", name="Draw", exact=True).click()
        shown = page.locator(".toast-body")
        shown.wait_for()
        assert "is blank" in shown.inner_text() and "Traceback" not in shown.inner_text()
        assert not page.locator(".ft-result-place .error").is_visible(), "nothing lies over the last picture"


def test_a_fixed_seed_draws_the_same_again(open_page: Open) -> None:
    """The seed of a drawing is shown; keeping it keeps the picture."""
    with open_page() as page:
        button, large = page.get_by_role("button", name="Draw", exact=True), page.locator(".ft-large")
        button.click()
        page.get_by_role("button", name="Play", exact=True).wait_for()
        note = page.locator(".ft-player figcaption span").inner_text()
        page.get_by_text("Seed, guidance and steps").click()
        seed = page.get_by_label("Seed", exact=True).first
        assert f"seed {seed.input_value()} " in note + " "
        first = page.get_by_role("link", name="Save the picture").get_attribute("href")
        page.get_by_label("A new seed each time").uncheck()
        page.wait_for_function("!document.querySelector('input[type=number][aria-label=\"Seed\"]')?.disabled")
        page.get_by_label("Prompt", exact=True).fill("a blue dog")
        button.click()
        page.wait_for_function("document.querySelector('.ft-player strong').innerText === 'a blue dog'")
        assert page.locator(".ft-player figcaption span").inner_text() == note
        page.get_by_label("Prompt", exact=True).fill("a red heart")
        button.click()
        page.wait_for_function("document.querySelector('.ft-player strong').innerText === 'a red heart'")
        assert page.get_by_role("link", name="Save the picture").get_attribute("href") == first
        assert large.is_visible()


def test_an_upload_gets_its_words(open_page: Open, picture: Path, tiny: FlowTok, tmp_path: Path) -> None:
    """The words are those of the command line; a file that is no picture is named as such, without any path."""
    with open_page() as page:
        tab(page, "Read")
        page.locator("input[type=file]:visible, [role=tabpanel]:visible input[type=file]").first.set_input_files(
            picture
        )
        page.get_by_role("button", name="Read it").first.click()
        words = page.locator(".ft-reading .ft-words")
        words.wait_for()
        assert words.inner_text() == (tiny.caption(picture)[0].strip() or "(no words)")
        seen = page.locator(".ft-reading img")
        before = seen.get_attribute("src")
        page.get_by_role("button", name="sun", exact=False).first.click()  # an example answers at once
        page.wait_for_function("before => document.querySelector('.ft-reading img').src !== before", arg=before)
        sun = Path(ui.__file__).parent / "pictures" / "sun.png"
        assert words.inner_text() == (tiny.caption(sun)[0].strip() or "(no words)")
    with open_page() as page:
        tab(page, "Read")
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture at all")
        page.locator("[role=tabpanel]:visible input[type=file]").first.set_input_files(broken)
        page.get_by_role("button", name="Read it").first.click()
        shown = page.locator(".toast-body")
        shown.wait_for()
        assert "not a picture" in shown.inner_text() and "/" not in shown.inner_text()


def test_a_drawing_goes_round(open_page: Open) -> None:
    """From a drawing with the mouse to words and a new picture."""
    with open_page() as page:
        tab(page, "Round trip")
        page.locator("[role=tab]:visible", has_text="A drawing").click()
        page.locator("button.highlight[aria-label=Brush]:visible").wait_for()  # whoever opens it can draw at once
        canvas = page.locator("canvas:visible").first
        canvas.wait_for()
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.mouse.down()
        for i in range(1, 8):
            page.mouse.move(middle[0] + 12 * i, middle[1] + 6 * i)
        page.mouse.up()
        page.locator("button:visible", has_text="Go round").click()
        page.locator(".ft-round, .toast-body").first.wait_for()
        if not page.locator(".ft-round").count():  # the tiny model may have no words for it, and says so
            assert "no words" in page.locator(".toast-body").inner_text()


def test_blends_and_sums_are_strips(open_page: Open) -> None:
    with open_page() as page:
        tab(page, "Blend")
        page.locator("button:visible", has_text="Blend").last.click()
        page.locator(".ft-player:visible").wait_for()
        assert page.locator(".ft-frame:visible").count() == 7
        tab(page, "Add")
        page.get_by_role("button", name="a cat + a fish").click()  # an example is filled in and drawn
        page.locator(".ft-equation:visible").wait_for()
        assert page.locator(".ft-equation img:visible").count() == 3


def test_a_phone_needs_no_sideways_scrolling(open_page: Open) -> None:
    """Neither before nor after a picture is there, in any tab."""
    width = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    with open_page(PHONE) as page:
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_role("button", name="Play", exact=True).wait_for()
        for name in TABS:
            assert page.get_by_role("tab", name=name, exact=True).first.is_visible(), f"{name} is behind a menu"
            tab(page, name)
            assert max(page.evaluate(width)) <= PHONE[0], name
        page.locator("button:visible", has_text="Add up").click()
        page.locator(".ft-equation").wait_for()
        assert max(page.evaluate(width)) <= PHONE[0]


def test_the_keyboard_reaches_everything(open_page: Open) -> None:
    """Tab alone leads through the page: tabs, prompt, button, examples, settings, and then the player."""
    focused = """() => {
        const here = document.activeElement;
        const label = here.labels?.[0]?.innerText ?? "";
        return [here.getAttribute("role") ?? here.tagName.toLowerCase(), here.getAttribute("aria-label") ?? "", label,
                here.innerText ?? ""].join(" ");
    }"""
    with open_page() as page:
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_role("button", name="Play", exact=True).wait_for()
        page.evaluate("document.activeElement.blur()")
        reached = []
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.append(" ".join(page.evaluate(focused).split()))
        for wanted in (r"^tab .*Draw", r"^textarea .*Prompt", r"^button .*\bDraw$", r"^button .*a smiling cat",
                       r"^button .*Seed, guidance and steps", r"^input The flow, from words", r"^button .*Play",
                       r"^a .*Save the picture"):  # fmt: skip
            assert any(re.search(wanted, one) for one in reached), f"{wanted} is not among {reached}"
