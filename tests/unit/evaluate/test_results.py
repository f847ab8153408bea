"""No figure is published without its record, and the page in the repository is the one that the records give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from flowtok.app.evaluation import evaluate
from flowtok.errors import DataError
from flowtok.evaluate.report import Occasion, Record, write_records
from flowtok.evaluate.results import occasion_of, results_page, write_results

RECORD = Record(
    task="reconstruction",
    split="train",
    scores={"psnr": 26.123},
    num_samples=5,
    protocol={"size": 64},
    model="emoji",
    model_sha256="ab" * 32,
    command="flowtok eval emoji --data FOLDER",
)


def test_the_page_has_every_figure_with_command_date_hardware_and_record(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "opening.txt").write_text("# Figures\n\nHow to read them.\n")
    write_records([RECORD], folder / "b.json", Occasion(date="2026-11-23 09:00 UTC", hardware="an abacus"))
    (folder / "a.md").write_text("## Of another kind\n\nNo record.\n")
    (folder / "c").mkdir()
    write_records([RECORD], folder / "c" / "first.json")
    (folder / "b.md").write_text("## Reconstruction\n\nWhat it means.\n")
    page = write_results(folder)
    text = page.read_text()
    assert page == tmp_path / "results.md"
    places = [
        text.index(words) for words in ("# Figures", "## Of another kind", "## Reconstruction", "| train | 5 | 26.12")
    ]
    assert places == sorted(places)
    for words in (
        "2026-11-23 09:00 UTC",
        "an abacus",
        "flowtok eval emoji --data FOLDER",
        "(results/b.json)",
        "(results/c/first.json)",
        "abababababab",
    ):
        assert words in text


def test_a_folder_without_records_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no records"):
        results_page(tmp_path)
    write_records([], tmp_path / "empty.json")
    with pytest.raises(DataError, match=r"empty\.json holds no records"):
        results_page(tmp_path)


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    write_records([RECORD], tmp_path / "results" / "b.json")
    app = typer.Typer()
    app.command("eval")(evaluate)
    result = CliRunner().invoke(app, ["--publish", str(tmp_path / "results")])
    assert result.exit_code == 0 and "26.12" in (tmp_path / "results.md").read_text()


def test_the_published_page_is_what_its_records_give(repository: Path) -> None:
    """A figure that was written by hand, or left from an older record, would pass for a measured one."""
    folder = repository / "docs" / "results"
    assert (repository / "docs" / "results.md").read_text() == results_page(folder), (
        "make it again: flowtok eval --publish docs/results"
    )


def test_an_occasion_names_the_machine() -> None:
    occasion = occasion_of(torch.device("cpu"), 2)
    assert occasion.date.endswith(" UTC") and "cores" in occasion.hardware and "2 ranks" in occasion.hardware
