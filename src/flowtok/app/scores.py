"""What `flowtok eval` shows and writes of its records: tables, JSON, files, and two measurements side by side.

Measures nothing and knows no option; evaluation.py has the command. What a record is stands in evaluate/report.py.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flowtok.app import output
from flowtok.files import write_file_atomically

if TYPE_CHECKING:
    from flowtok.evaluate.page import Exhibit
    from flowtok.evaluate.report import Occasion, Record

TABLE_FILE = "table.md"
REPORT_FILE = "report.html"


def write(
    records: "Sequence[Record]", folder: Path, exhibits: "Sequence[Exhibit]", title: str, occasion: "Occasion"
) -> list[Path]:
    """Writes records and their table, where there are any, and the report; returns the files."""
    from flowtok.evaluate.page import write_report
    from flowtok.evaluate.report import RECORDS_FILE, markdown, write_records

    paths = []
    if records:
        paths = [
            write_records(records, folder / RECORDS_FILE, occasion),
            write_file_atomically(folder / TABLE_FILE, markdown(records)),
        ]
    return [*paths, write_report(folder / REPORT_FILE, records, exhibits, title, occasion)]


def say(records: "Sequence[Record]", paths: Sequence[Path], *, json: bool) -> None:
    """Prints tables and the names of files, or all as JSON."""
    from flowtok.evaluate.report import tables

    if json:
        output.say_json({"records": [asdict(record) for record in records], "files": [str(path) for path in paths]})
        return
    from rich.console import Console

    for table in tables(records):
        Console().print(table)
    for path in paths:
        output.say(str(path))


def compare(first: str, second: str, *, force: bool, json: bool) -> None:
    """Prints the measurements in two folders side by side.

    Raises:
        FlowTokError: Their records are missing or damaged, have nothing in common, or were measured under other
            protocols and `force` is not set.
    """
    from flowtok.evaluate.compare import alone, comparison, open_records, pair_up

    records = open_records(first), open_records(second)
    pairs = pair_up(*records, force=force)
    for line in alone(*records, pairs):
        output.note(line)
    if json:
        output.say_json({"pairs": [asdict(pair) for pair in pairs]})
        return
    from rich.console import Console

    for part in comparison(pairs):
        Console().print(part, markup=False, highlight=False)
