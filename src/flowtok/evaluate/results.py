"""The page of published figures: every one with its record, command, date and hardware.

Made of a folder of records and words beside them; measures nothing. Records are report.py's.
"""

from __future__ import annotations

import os
import platform
import posixpath
import re
from datetime import UTC, datetime
from pathlib import Path

import torch

from flowtok.errors import DataError
from flowtok.evaluate.report import Occasion, markdown, read_measurement
from flowtok.files import write_file_atomically

OPENING_FILE = "opening.txt"
_LOCAL_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")


def occasion_of(device: torch.device, num_ranks: int = 1) -> Occasion:
    """Now and here: the time, the processor with the cores that this process may use, memory, and the GPU if any."""
    hardware = [_processor(), f"{_cores()} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        hardware.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    if device.type == "cuda":
        hardware.append(torch.cuda.get_device_name(device))
    elif device.type != "cpu":
        hardware.append(device.type)
    if num_ranks > 1:
        hardware.append(f"{num_ranks} ranks")
    return Occasion(date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", hardware=", ".join(hardware))


def _processor() -> str:
    """The processor's name as Linux knows it, elsewhere as the platform says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2] for line in lines if line.lower().startswith("model name")]
    return " ".join((named[0] if named else platform.processor() or platform.machine() or "unknown processor").split())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_page(folder: Path) -> str:
    """The page, as Markdown, of a folder of records; it stands beside the folder.

    opening.txt, in Markdown, opens it. Each NAME.json is a section: the words of NAME.md if there is one, which begin
    with a heading, then the figures. NAME may also be a folder of such files, and a NAME.md without records is a
    section too. Links of a NAME.md lead from where it lies.

    Raises:
        DataError: The folder holds no records, or damaged ones.
    """
    if not list(folder.rglob("*.json")):
        raise DataError(f"there are no records in {folder}; put some there: cp SCORES/records.json {folder}/NAME.json")
    sections = [_words(folder / OPENING_FILE)] if (folder / OPENING_FILE).is_file() else ["# Results"]
    kinds = (".json", ".md")
    found = [path for path in folder.iterdir() if path.name != OPENING_FILE]
    names = {path.name if path.is_dir() else path.stem for path in found if path.is_dir() or path.suffix in kinds}
    for name in sorted(names):
        words = folder / f"{name}.md"
        sections.append(_from_beside(folder, _words(words)) if words.is_file() else f"## {name}")
        files = [folder / f"{name}.json", *sorted((folder / name).glob("*.json"))]
        sections += [_figures(path, folder) for path in files if path.is_file()]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def write_results(folder: Path) -> Path:
    """Writes the page beside the folder: docs/results.md for docs/results; errors as in `results_page`."""
    folder = Path(os.path.normpath(folder))
    return write_file_atomically(folder.with_name(f"{folder.name}.md"), results_page(folder))


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _from_beside(folder: Path, words: str) -> str:
    """Words that lie in the folder, with their local links as they lead from beside it."""
    return _LOCAL_LINK.sub(lambda link: f"]({posixpath.normpath(f'{folder.name}/{link[1]}')})", words)


def _figures(path: Path, folder: Path) -> str:
    records, occasion = read_measurement(path)
    if not records:
        raise DataError(f"{path} holds no records")
    models = dict.fromkeys((record.model, record.model_sha256) for record in records)
    said = "; ".join(f"{name or 'unnamed'}, `config.json` {(sha256 or 'unknown')[:12]}" for name, sha256 in models)
    own = path.relative_to(folder.parent).as_posix()
    facts = [
        f"- Model: {said}",
        f"- Date: {occasion.date or 'not kept'}",
        f"- Hardware: {occasion.hardware or 'not kept'}",
        f"- Records with their whole protocols: [{path.relative_to(folder).as_posix()}]({own})",
    ]
    return "\n".join(facts) + "\n\n" + markdown(records)
