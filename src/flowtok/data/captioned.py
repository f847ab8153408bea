"""A captioned set on disk, opened as rows and one tensor of pictures.

Knows the layout (metadata.jsonl beside images/) and nothing of how a set is made; that is `flowtok.data.emoji`.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flowtok.errors import DataError
from flowtok.files import write_file_atomically

SPLITS = ("train", "validation", "unseen_concept", "unseen_style")
_WORTH_KEEPING = 1000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture of the set.

    file_name: relative to the folder. text: the canonical caption. texts: all captions, `text` first. concept: the name
    without skin tone, which decides what is held out. variant: "" or "skin-tone". weight: relative share of draws.
    """

    file_name: str
    text: str
    texts: tuple[str, ...]
    name: str
    concept: str
    style: str
    set: str
    group: str
    split: str
    variant: str
    weight: float
    license: str


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """Pictures and their rows: images_N3YX is uint8 in [0, 255], row i describes picture i."""

    images_N3YX: torch.Tensor
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Reads metadata.jsonl.

    Raises:
        DataError: it is missing, empty or damaged.
    """
    path = Path(folder) / "metadata.jsonl"
    try:
        rows = tuple(
            Row(**{**(data := json.loads(line)), "texts": tuple(data["texts"])})
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no metadata.jsonl; build the set first: flowtok data emoji -o {folder}"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); build the set again: flowtok data emoji -o {folder}") from error
    if not rows:
        raise DataError(f"{path} is empty; build the set again: flowtok data emoji -o {folder}")
    return rows


def is_built(folder: str | Path) -> bool:
    """Whether a folder is a set as flowtok builds it: its metadata.jsonl begins with a whole row."""
    try:
        with (Path(folder) / "metadata.jsonl").open(encoding="utf-8") as file:
            record = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.keys() >= {one.name for one in fields(Row)}


def load(folder: Path, split: str | None = None) -> EmojiSet:
    """Opens a captioned set, whole or one split, with its pictures as one tensor.

    The decoded pictures of a large set are kept beside it in one file named after the metadata's checksum: the next
    opening takes a moment, and a rebuilt set is never confused with an old one.

    Raises:
        DataError: the folder is no such set, a picture is missing or has another size, or the split is unknown.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    folder = Path(folder)
    rows = read_rows(folder)
    chosen = [index for index, row in enumerate(rows) if split is None or row.split == split]
    images = _decode(folder, rows) if len(rows) < _WORTH_KEEPING else np.load(_kept(folder, rows), mmap_mode="r")
    return EmojiSet(
        images_N3YX=torch.from_numpy(np.ascontiguousarray(images[chosen])), rows=tuple(rows[i] for i in chosen)
    )


def _kept(folder: Path, rows: Sequence[Row]) -> Path:
    """The file with the decoded pictures of a set, made if it is not there."""
    path = folder / f"pictures-{zlib.crc32((folder / 'metadata.jsonl').read_bytes()):08x}.npy"
    if not path.exists():
        images = _decode(folder, rows)
        write_file_atomically(path, lambda file: np.save(file, images))
        # Never its own name: a process beside this one may have written the same file and be about to open it.
        for old in folder.glob("pictures-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    return path


def _decode(folder: Path, rows: Sequence[Row]) -> np.ndarray:
    pictures = []
    for row in rows:
        path = folder / row.file_name
        try:
            with Image.open(path) as picture:
                pictures.append(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is missing or damaged; delete it and build the set again") from error
        if pictures[-1].shape != pictures[0].shape:
            height, width = pictures[-1].shape[1:]
            raise DataError(f"{path} is {width} x {height} pixels, unlike the first picture; build the set again")
    return np.stack(pictures)
