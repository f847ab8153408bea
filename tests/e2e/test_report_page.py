"""The report of a measurement in a real browser, without a network: every picture and curve is there, at any width.

Needs playwright and a Chromium, as test_demo_page.py does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from making_datasets import folder_with_texts

pytestmark = pytest.mark.slow

SIZES = ((1200, 900), (375, 740))
PATIENCE = 300_000  # milliseconds; a busy machine is no failure
LOST = "() => [...document.images].filter(one => !one.complete || !one.naturalWidth).length"
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_the_report_opens_offline_with_all_it_shows(browser: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """It is sent to others and looked at on a train: what it fetches or pushes out of the window is lost there."""
    data = folder_with_texts(tmp_path / "set", 24)
    command = [sys.executable, "-m", "flowtok.app.cli", "eval", str(tiny_folder), "--data", str(data)]
    options = ["--limit", "4", "--steps", "1,2", "--guidance", "1,2", "--device", "cpu", "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for size in SIZES:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
        context.set_default_timeout(PATIENCE)
        asked: list[str] = []
        context.on("request", lambda made, asked=asked: asked.append(made.url))
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda line, said=said: said.append(line.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / "out" / "report.html").as_uri())
        assert page.title() == "tiny: reconstruction, retrieval, captions"
        assert said == [] and all(url.startswith(("file:", "data:")) for url in asked), (said, asked)
        assert page.locator("img").count() > 10 and page.evaluate(LOST) == 0
        assert page.evaluate(TOO_WIDE) <= 0, f"at {size[0]} px the page is wider than the window"
        curves = page.locator("svg polyline")
        assert curves.count() >= 4 and all(box is not None for box in (one.bounding_box() for one in curves.all()))
        protocol = page.locator("details").first
        assert not protocol.locator("pre").is_visible()
        protocol.locator("summary").click()
        assert "num_inference_steps" in page.locator("details").nth(page.locator("details").count() - 1).inner_html()
        assert protocol.locator("pre").is_visible()
        context.close()
