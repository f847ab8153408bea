"""A folder of pictures, captioned by text files beside them, by a list of metadata, or by the files' names.

Knows no other layout; sources.py tells which one a path is.
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowtok.data.captions import slug_name
from flowtok.data.refusals import Refusal, Refused
from flowtok.data.samples import DRAWING_ENDING, PICTURE_ENDINGS, FieldsConfig, Item, Sample, sample_of, texts_of
from flowtok.data.svg import require_renderer
from flowtok.errors import DataError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
RECAPTION_ENDING = ".recap_txt"
_PART = 256


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture of a folder, named relative to it, with its line of metadata if it has one."""

    file_name: str
    record: Mapping[str, Any] | None = None


class FolderSource:
    """The pictures of a folder and its subfolders, in the order of their names."""

    def __init__(
        self, folder: Path, entries: Sequence[Entry | Refusal], captioned_by: str, fields: FieldsConfig
    ) -> None:
        self.folder, self.entries, self.fields = folder, tuple(entries), fields
        self.captioned_by = captioned_by
        self.name = folder.resolve().name or "pictures"
        self.kind = f"folder of pictures, captions in {captioned_by}"
        self.num_samples = len(self.entries)
        self.parts = tuple(
            f"{_key_of(self.entries[first])} ... {_key_of(self.entries[min(first + _PART, len(self.entries)) - 1])}"
            for first in range(0, len(self.entries), _PART)
        )

    def read(self, part: int) -> Iterator[Item]:
        for entry in self.entries[part * _PART : (part + 1) * _PART]:
            try:
                yield entry if isinstance(entry, Refusal) else self._sample(entry)
            except Refused as refused:
                yield Refusal(key=_key_of(entry), reason=refused.reason)

    def _sample(self, entry: Entry) -> Sample:
        path = self.folder / entry.file_name
        if entry.record is not None:
            return sample_of(entry.file_name, path, entry.record, self.fields)
        if self.captioned_by == "file names":
            return Sample(key=entry.file_name, encoded=path, captions=(_name_as_caption(path.stem),))
        captions = _lines_of(path.with_suffix(".txt"))
        if not captions:
            raise Refused(f"{entry.file_name} has no caption", "without a caption")
        recaption = path.with_suffix(RECAPTION_ENDING)
        written = " ".join(_lines_of(recaption)) if recaption.is_file() else ""
        return Sample(key=entry.file_name, encoded=path, captions=captions, recaption=written or None)


def _key_of(entry: Entry | Refusal) -> str:
    return entry.key if isinstance(entry, Refusal) else entry.file_name


def open_folder(folder: Path, fields: FieldsConfig | None = None) -> FolderSource:
    """Lists a folder; nothing but lists of metadata is read yet.

    Captions come from metadata.jsonl or metadata.csv (columns file_name and text) where there is one, else from .txt
    files of the pictures' names (each line a caption) where there are any, else from the names themselves.

    Raises:
        DataError: There is no picture in it, no caption, or a list of metadata that names no files.
    """
    fields = fields or FieldsConfig()
    files, closed = _files_below(folder)
    pictures = [name for name in files if is_picture(name)]
    if any(name.lower().endswith(DRAWING_ENDING) for name in pictures):
        require_renderer()
    lists = [name for name in files if name.rsplit("/", 1)[-1] in METADATA_NAMES]
    if lists:
        entries = [entry for name in lists for entry in _entries_of(folder, name)]
        named = {os.path.normpath(entry.file_name) for entry in entries if isinstance(entry, Entry)}
        unnamed = [name for name in pictures if os.path.normpath(name) not in named]
        entries += [Refusal(key=name, reason=f"not named in {lists[0].rsplit('/', 1)[-1]}") for name in unnamed]
        return FolderSource(folder, entries + closed, lists[0] + (", ..." if len(lists) > 1 else ""), fields)
    if not pictures:
        raise DataError(f"{folder} holds no pictures; give a folder with {', '.join(PICTURE_ENDINGS[:5])} ... files")
    texts = {name[: -len(".txt")] for name in files if name.endswith(".txt")}
    captioned = {name for name in pictures if name.rsplit(".", 1)[0] in texts}
    if captioned:
        return FolderSource(
            folder,
            [
                Entry(file_name=name) if name in captioned else Refusal(key=name, reason="without a .txt of its name")
                for name in pictures
            ]
            + closed,
            ".txt files",
            fields,
        )
    worded = {name for name in pictures if _name_as_caption(Path(name).stem)}
    if not worded:
        raise DataError(
            f"{folder} holds {len(pictures)} pictures and no captions; put a .txt file of the same name beside each "
            "picture, a metadata.jsonl with file_name and text, or words into the files' names"
        )
    return FolderSource(
        folder,
        [
            Entry(file_name=name) if name in worded else Refusal(key=name, reason="without words in its name")
            for name in pictures
        ]
        + closed,
        "file names",
        fields,
    )


def is_picture(name: str) -> bool:
    """Whether a file's name ends as those of pictures and drawings do."""
    return name.lower().endswith(DRAWING_ENDING) or name.rsplit(".", 1)[-1].lower() in PICTURE_ENDINGS


def _files_below(folder: Path) -> tuple[list[str], list[Refusal]]:
    """Names of all files relative to the folder, sorted, and the subfolders that cannot be read.

    Hidden files and those in hidden folders are left out.

    Raises:
        DataError: The folder itself cannot be read.
    """
    names, closed = [], []

    def refuse(error: OSError) -> None:
        inside = Path(error.filename).relative_to(folder).as_posix()
        if inside == ".":
            raise DataError(f"cannot read folder {folder}: {error.strerror}") from error
        closed.append(Refusal(key=f"{inside}/", reason="folder that cannot be read", detail=error.strerror or ""))

    for place, below, files in os.walk(folder, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(place).relative_to(folder)
        names += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names), closed


def _entries_of(folder: Path, name: str) -> list[Entry | Refusal]:
    """The lines of one list of metadata, which names files relative to itself."""
    path, place = folder / name, Path(name).parent
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(csv.DictReader(file)) if path.suffix == ".csv" else [_parsed(line) for line in file]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}; it must be UTF-8 text") from error
    entries: list[Entry | Refusal] = []
    for number, record in enumerate(records, start=1):
        if record is None:  # an empty line
            continue
        file_name = record.get("file_name")
        if isinstance(file_name, str) and file_name:
            entries.append(Entry(file_name=(place / file_name).as_posix(), record=record))
        else:
            line = number + (path.suffix == ".csv")
            entries.append(Refusal(key=f"{name} line {line}", reason="metadata that cannot be read"))
    if not any(isinstance(entry, Entry) for entry in entries):
        raise DataError(f"{path} names no files; each line needs file_name and text")
    return entries


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of JSON; nothing for an empty one, an empty record for one that is no JSON object."""
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _lines_of(path: Path) -> tuple[str, ...]:
    """The lines of a text file that say something."""
    try:
        return texts_of(path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text", "with a caption that is not UTF-8") from error
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", "with a caption that cannot be read") from error


def _name_as_caption(stem: str) -> str:
    """A file's name as words: "RedHeart-outline (2)" is "red heart outline"; empty if it has no letter.

    The number that a system gives a copy, and one that is filled with zeros, count files and say nothing.
    """
    stem = re.sub(r"\s*\(\d+\)$|[-_ ]0\d+$", "", stem)
    words = slug_name(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem))
    return words if any(character.isalpha() for character in words) else ""
