"""The report is whole in one file, shows what was measured, and draws a curve only of what differs in one thing."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from flowtok.evaluate.page import LARGEST_SIDE, Exhibit, Shown, write_report
from flowtok.evaluate.plots import draw_plot, trade_offs
from flowtok.evaluate.report import MEASURES, Occasion, Record

BASE = Record(
    task="coco30k",
    split="val2014",
    scores={"fid": 12.5, "chance_r_at_1": 1.0},
    num_samples=30_000,
    protocol={
        "prompts": {"count": 30_000},
        "image_size": 256,
        "reference": {"set": "val2014", "count": 40_504},
        "sampling": {"num_inference_steps": 20, "guidance_scale": 2.0, "solver": "euler"},
    },
    model="one",
    command="flowtok eval one --data FOLDER",
)


def at(steps: int, guidance: float, fid: float) -> Record:
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance, "solver": "euler"}
    return replace(
        BASE, protocol={**BASE.protocol, "sampling": sampling}, protocol_sha256="", scores={"fid": fid, "r_at_1": 5.0}
    )


class Page(HTMLParser):
    """The tags of a page, checked for balance, and what it asks of the network."""

    VOID = ("meta", "img", "path", "polyline", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_is_whole_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    exhibits = [
        Exhibit(
            section="captions, <train>",
            title='what "it" writes',
            cells=(
                Shown(pictures=(Image.new("RGB", (600, 300), "red"),), words=("a <b> & c", "(right)"), is_right=False),
                Shown(pictures=(Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16))), words=("twice",)),
            ),
        )
    ]
    occasion = Occasion(date="2026-11-23 09:00 UTC", hardware="an abacus")
    records = [replace(BASE, model_sha256="ab" * 32)]
    text = write_report(tmp_path / "report.html", records, exhibits, "one: coco30k", occasion).read_text(
        encoding="utf-8"
    )
    page = Page(text)
    assert len(page.sources) == 3 and all(one.startswith("data:image/png;base64,") for one in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert {"captions, <train>", "a <b> & c", "12.50", "FlowTok-XL (He et al. 2025, 20 sampling steps)"} <= set(
        page.words
    )
    with Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(",")[2]))) as picture:
        assert picture.size == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert "2026-11-23 09:00 UTC · an abacus · config.json abababababab" in page.words
    assert BASE.protocol_sha256[:12] in text and "flowtok eval one --data FOLDER" in text


def test_many_scores_stand_below_each_other(tmp_path: Path) -> None:
    """Twenty columns end outside the window, where nobody looks."""
    scores = {name: number + 0.5 for number, name in enumerate(MEASURES)}
    many = [replace(BASE, task="retrieval", split=split, scores=scores) for split in ("train", "validation")]
    text = write_report(tmp_path / "report.html", many, [], "x").read_text(encoding="utf-8")
    assert "<tr><th>split</th><th>train</th><th>validation</th></tr>" in text
    assert "<tr><td>R@5 (%)</td>" in text and text.count("<th>") == 3


def test_a_report_without_scores_says_so(tmp_path: Path) -> None:
    """GenEval's pictures are drawn before they can be scored."""
    assert "Nothing was scored." in Page(write_report(tmp_path / "r.html", [], [], "x").read_text()).words


def test_curves_are_of_records_that_differ_in_guidance_or_steps_alone(tmp_path: Path) -> None:
    records = [at(10, 1.0, 30.0), at(10, 2.0, 20.0), at(20, 1.0, 25.0), at(20, 2.0, 15.0)]
    plots = {(plot.axis, plot.measure.title): plot for plot in trade_offs(records)}
    assert set(plots) == {(axis, title) for axis in ("guidance", "steps") for title in ("FID", "R@1 (%)")}
    first, second = plots["guidance", "FID"].curves
    assert (first.label, first.points) == ("steps 10", ((1.0, 30.0), (2.0, 20.0)))
    assert (second.label, second.points) == ("steps 20", ((1.0, 25.0), (2.0, 15.0)))
    assert [one.label for one in plots["steps", "FID"].curves] == ["guidance 1", "guidance 2"]
    page = Page(write_report(tmp_path / "report.html", records, [], "sweep").read_text())
    assert "guidance 2, steps 20: FID 15.00".replace("FID ", "") in page.words


def test_a_score_that_nothing_changes_has_a_flat_curve_and_readable_ends() -> None:
    """Zero throughout stands on the axis from 0 to 1, and not between a billionth and its negative."""
    for score, ends in ((0.0, ("1", "0")), (20.0, ("22", "18"))):
        page = Page(draw_plot(trade_offs([at(10, 3.0, score), at(10, 4.0, score)])[0]))
        assert [word for word in page.words if word in ends] == list(ends), page.words


def test_records_that_differ_in_more_share_no_curve() -> None:
    """Another seed or set on the same line would show a trade-off that nobody measured."""
    other = at(10, 2.0, 20.0)
    other = replace(other, protocol={**other.protocol, "image_size": 512}, protocol_sha256="")
    assert trade_offs([at(10, 1.0, 30.0), other]) == []
    assert trade_offs([at(10, 1.0, 30.0), at(20, 2.0, 20.0)]) == []
