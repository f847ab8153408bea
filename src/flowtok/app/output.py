"""Where results go: names of files, PNG files with their story, previews in a terminal, progress on stderr.

Knows PIL pictures and no model. The commands that write are in pictures.py.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowtok.checkpoints.catalogue import is_folder
from flowtok.errors import FlowTokError
from flowtok.files import write_file_atomically

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image


class PartReport(Protocol):
    """Told how far a part of the work is."""

    def __call__(self, what: str, done: int, total: int | None, remark: str = "") -> None: ...


SLUG_LENGTH = 48
PREVIEW_COLUMNS = 96


def slug(text: str) -> str:
    """A prompt as a file name: words of any language joined by hyphens, at most 48 characters."""
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in unicodedata.normalize("NFKC", text))
    words = "".join(kept).lower().split()
    name = ""
    for word in words:
        joined = f"{name}-{word}" if name else word[:SLUG_LENGTH]
        if len(joined) > SLUG_LENGTH:
            break
        name = joined
    return name or "picture"


def plan(output: str | None, stems: Sequence[str]) -> list[Path]:
    """Decides what the files are called, one for each stem, before anything is computed.

    A file that the user names is replaced. A name that is made up here is never one that exists: several pictures for
    one name, and all pictures in a folder, are numbered on after those that are there.

    Args:
        output: A .png file; a folder (it exists, or the name ends in / or has no ending: it is made later); or None
            for the current folder.
        stems: Names without ending, for a folder.

    Raises:
        FlowTokError: Another ending, a missing folder, or one that may not be written to.
    """
    if output is None:
        return _free_names(Path(), stems)
    path = Path(output).expanduser()
    if is_folder(path) or output.endswith(("/", os.sep)) or not path.suffix:
        if path.exists() and not path.is_dir():
            raise FlowTokError(f"cannot write into {path}: it is a file, not a folder")
        _check_folder(path if path.is_dir() else path.parent, path)
        return _free_names(path, stems)
    if path.suffix.lower() != ".png":
        raise FlowTokError(f"cannot write {path}: pictures are PNG files; end the name in .png, or name a folder")
    _check_folder(path.parent, path)
    return [path] if len(stems) == 1 else _free_names(path.parent, [path.stem] * len(stems))


def _check_folder(folder: Path, wanted: Path) -> None:
    """Raises FlowTokError where `folder` is missing or closed."""
    if not folder.is_dir():
        raise FlowTokError(f"cannot write {wanted}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FlowTokError(f"cannot write {wanted}: folder {folder} is not writable")


def _free_names(folder: Path, stems: Sequence[str]) -> list[Path]:
    """A name for each stem that no file has yet: NAME.png for a single one, else NAME-1.png, NAME-2.png ..."""
    _check_folder(folder if folder.is_dir() else folder.parent, folder)
    taken = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    counts, following, names = Counter(stems), dict[str, int](), []
    for stem in stems:
        name = f"{stem}.png"
        if counts[stem] > 1 or name in taken:
            if stem not in following:
                numbered = re.compile(re.escape(stem) + r"-(\d+)\.png")
                numbers = [int(found[1]) for there in taken if (found := numbered.fullmatch(there))]
                following[stem] = 1 + max(numbers, default=1 if counts[stem] == 1 else 0)
            while (name := f"{stem}-{following[stem]}.png") in taken:
                following[stem] += 1
        taken.add(name)
        names.append(folder / name)
    return names


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Makes an output folder now, and tries it: what takes minutes or hours must not fail at its end.

    Args:
        folder: May be there already.
        parents: Also makes the folders above it.

    Raises:
        FlowTokError: It cannot be made, or not be written to.
    """
    try:
        folder.mkdir(exist_ok=True, parents=parents)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError as error:
        raise FlowTokError(f"cannot make {folder}: there is no folder {folder.parent}; make it first") from error
    except OSError as error:
        raise FlowTokError(f"cannot write into folder {folder}: {error.strerror or error}; choose another") from error


def check_outside(place: str, *folders: Path) -> None:
    """Raises FlowTokError where a folder that will be written lies inside the folder of the data.

    Previews, sheets and shards in it would count as data the next time.
    """
    if not os.path.isdir(place):  # noqa: PTH112 - who opens it says what is wrong with a name
        return
    for folder in folders:
        if folder.resolve().is_relative_to(Path(place).resolve()):
            raise FlowTokError(
                f"cannot write {folder}: it lies in the data folder {place}, and what it holds would count as data the "
                "next time; name a folder outside with -o"
            )


def save_png(path: Path, picture: "Picture", story: dict[str, Any]) -> Path:
    """Writes a picture whole or not at all; what it was made from stands in its PNG text chunks."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in story.items():
        if value is not None:
            chunks.add_itxt(key, readable(str(value)))
    if not path.parent.is_dir():
        try:
            path.parent.mkdir()
        except OSError as error:
            raise FlowTokError(f"cannot make folder {path.parent}: {error.strerror or error}") from error
    return write_file_atomically(path, lambda file: picture.save(file, "PNG", pnginfo=chunks))


def readable(text: str) -> str:
    """The text without lone surrogates, which stand for bytes of the command line that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def sheet(pictures: Sequence["Picture"], columns: int, gap: int = 2) -> "Picture":
    """A white sheet with the pictures in rows."""
    import torch

    from flowtok.data.images import to_tensor
    from flowtok.data.sheets import contact_sheet

    return contact_sheet(torch.stack([to_tensor(picture) for picture in pictures]), columns, gap)


def enlarged(picture: "Picture", size: int) -> "Picture":
    """The picture at a multiple of its size."""
    from PIL import Image

    return picture if picture.width == size else picture.resize((size, size), Image.Resampling.LANCZOS)


def say_json(value: Any) -> None:
    """Prints a value as JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201


def say(line: str) -> None:
    """Prints a line on stdout."""
    print(line)  # noqa: T201


def note(message: str) -> None:
    """Prints a remark on stderr."""
    print(f"flowtok: {message}", file=sys.stderr)  # noqa: T201


def wants_preview(preview: bool | None, json_wanted: bool) -> bool:
    """Whether pictures are shown in the terminal: as asked, else where stdout is a terminal that has colours.

    Raises:
        FlowTokError: Asked for together with --json.
    """
    if json_wanted:
        if preview:
            raise FlowTokError("--preview and --json exclude each other: both write to standard output")
        return False
    if preview is not None or not sys.stdout.isatty():
        return bool(preview)
    from rich.console import Console

    return Console().color_system in ("256", "truecolor", "windows")


def show(picture: "Picture") -> None:
    """Draws a picture in the terminal, two pixels in each character."""
    import numpy as np
    from PIL import Image
    from rich.console import Console
    from rich.text import Text

    if sys.stdout.isatty():
        console = Console(highlight=False)
    else:
        console = Console(color_system="truecolor", force_terminal=True, width=PREVIEW_COLUMNS, highlight=False)
    columns = min(picture.width, console.width, PREVIEW_COLUMNS)
    rows = max(2, round(picture.height * columns / picture.width / 2) * 2)
    small = picture.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    pairs = np.asarray(small).reshape(rows // 2, 2, columns, 3).transpose(0, 2, 1, 3)
    for pair_X23 in pairs.tolist():
        line = Text()
        for upper, lower in pair_X23:
            line.append("▀", style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
        console.print(line)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows what is being done on stderr while it lasts, where that is a terminal; yields a (done, total) report."""
    with progress_of_parts() as report:
        report(what, 0, None)
        yield lambda done, total: report(what, done, total)


def duration(seconds: float) -> str:
    """A length of time for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress_of_parts() -> Iterator["PartReport"]:
    """A bar for each part of the work, on stderr where that is a terminal; yields a (what, done, total) report.

    The report takes a remark too, such as the time that is left, which stands at the end of the part's line and is cut
    off where the terminal ends.
    """
    if not sys.stderr.isatty():
        yield lambda what, done, total, remark="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[remark]}"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known = {}

        def report(what: str, done: int, total: int | None, remark: str = "") -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=None, remark="")
            bars.update(known[what], completed=done, total=total, remark=remark)

        yield report
