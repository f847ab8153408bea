"""The page that a run leaves: whole in itself, and made of whatever a run folder holds."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from line_stage import LineStage, config

from flowtok.train.loop import train
from flowtok.train.page import Curve, draw, read_curves, write_page
from flowtok.train.runtime import Runtime


class Parsed(HTMLParser):
    """The tags of a page, checked for balance."""

    VOID = ("meta", "img", "path", "polyline")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run_ends_with_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    # It is mailed and put on the web without the run's folder.
    folder = tmp_path / "a <b> & c"
    train(LineStage(), config(preview_every=20), folder, Runtime.start(device="cpu"))
    page = (folder / "report.html").read_text()
    parsed = Parsed(page)
    assert not parsed.open
    pictures = [base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in parsed.links]
    assert len(pictures) == 3 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert page.count("<polyline") == len(read_curves(folder / "metrics.jsonl"))
    assert "a &lt;b&gt; &amp; c" in page and "<b> & c" not in page
    assert "&quot;num_steps&quot;: 60" in page


def test_several_stages_make_one_page_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    for name in ("tokenizer", "flow"):
        train(LineStage(), config(num_steps=20), tmp_path / name, Runtime.start(device="cpu"))
    runs = [tmp_path / name for name in ("tokenizer", "text", "flow")]
    page = write_page(tmp_path / "all.html", runs, title="model").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["tokenizer", "flow"]


def test_curves_leave_out_what_is_not_finite_and_lines_cut_short(tmp_path: Path) -> None:
    lines = [{"stage": "s", "step": step, "time": 0.0, "loss": loss} for step, loss in ((1, 2.0), (2, float("nan")))]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "s", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_curves(tmp_path / "metrics.jsonl") == [Curve(name="loss", points=((1, 2.0),))]


def test_a_curve_stays_inside_its_frame_on_any_scale() -> None:
    for values in ((1.0, 1.0), (0.0, 0.0), (1e-6, 5.0, 1e3), (-2.0, 3.0), tuple(float(i) for i in range(3000))):
        shape = draw(Curve(name="x", points=tuple(enumerate(values, start=1))))
        points = re.search('points="([^"]*)"', shape)
        assert points is not None
        places = [tuple(map(float, pair.split(","))) for pair in points.group(1).split()]
        assert all(0 <= across <= 340 and 0 <= down <= 190 for across, down in places)
        assert 1 < len(places) < 500
    assert "logarithmic" in draw(Curve(name="x", points=((0, 1.0), (1, 1000.0))))
