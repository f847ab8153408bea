"""Drawing icons: one bad icon among twenty thousand must not stop or hang a build."""

import io
from pathlib import Path

import pytest
import resvg_py
from PIL import Image

from flowtok.data import svg
from flowtok.data.iconify import ICON_SETS, Package

WIDE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20" width="40" height="20">'
    '<rect width="40" height="20"/></svg>'
)


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


def test_a_wide_icon_is_centred_on_white() -> None:
    picture = opened(svg.render(WIDE, 16))
    rows = [picture.getpixel((8, y)) for y in range(16)]
    assert rows == [(255, 255, 255)] * 4 + [(0, 0, 0)] * 8 + [(255, 255, 255)] * 4


def test_a_tall_icon_is_centred_on_white() -> None:
    tall = WIDE.replace("0 0 40 20", "0 0 20 40").replace('width="40" height="20"', 'width="20" height="40"')
    picture = opened(svg.render(tall, 16))
    columns = [picture.getpixel((x, 8)) for x in range(16)]
    assert columns == [(255, 255, 255)] * 4 + [(0, 0, 0)] * 8 + [(255, 255, 255)] * 4


class Panic(BaseException):
    """What the renderer raises when it panics is no Exception."""


def test_a_panic_of_the_renderer_is_one_lost_icon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(**_: object) -> bytes:
        raise Panic

    monkeypatch.setattr(resvg_py, "svg_to_bytes", panics)
    assert list(svg.draw_all([(WIDE, 16, tmp_path / "a.png")], workers=1)) == [False]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(resvg_py, "svg_to_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        svg.render(WIDE, 16)


@pytest.mark.parametrize("broken", ["<svg", WIDE.replace("<rect", "<rect <"), WIDE.replace("viewBox", "box"), ""])
def test_broken_icons_are_lost_icons(broken: str) -> None:
    assert svg.render(broken, 16) is None


def test_all_white_icons_are_left_out() -> None:
    assert svg.render(WIDE.replace("<rect", '<rect fill="#fff"'), 16) is None


def test_several_processes_draw_the_same_in_order(tmp_path: Path) -> None:
    """Enough jobs that the pool is really used; every fifth cannot be drawn."""
    jobs = [(WIDE if n % 5 else "<svg", 16, tmp_path / f"{n}.png") for n in range(70)]
    assert list(svg.draw_all(jobs, workers=2)) == [bool(n % 5) for n in range(70)]
    assert {path.read_bytes() for path in tmp_path.glob("*.png")} == {svg.render(WIDE, 16)}


def test_what_an_animation_fades_in_is_drawn() -> None:
    """Otherwise rain, snow and hail would be captions of the same dry cloud."""
    body = '<rect width="20" height="20" opacity="0"><animate attributeName="opacity" values="0;1"/></rect>'
    package = Package(
        icon_set=ICON_SETS["meteocons"],
        icons={"rain-fill": {"body": body}, "still": {"body": '<rect width="20" height="20" opacity="0"/>'}},
        box=(20, 20),
        codes={},
        aliases={},
        licence="MIT",
        licence_url="",
        author="",
        source="",
    )
    assert opened(svg.render(package.svg("rain-fill"), 16)).getpixel((8, 8)) == (0, 0, 0)
    assert svg.render(package.svg("still"), 16) is None
