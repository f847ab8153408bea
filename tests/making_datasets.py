"""Small real data sets in every layout: folders, shards as img2dataset writes them, Parquet tables."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import webdataset
from PIL import Image

from flowtok.data.samples import Item, Sample, Source


def colour(number: int) -> tuple[int, int, int]:
    """A colour that no other number below 4096 has, apart by more than a lossy file blurs."""
    return (number % 16 * 16, number // 16 % 16 * 16, number // 256 * 16)


def picture(number: int = 0, size: tuple[int, int] = (12, 12), kind: str = "PNG") -> bytes:
    """The file of a picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(buffer, kind)
    return buffer.getvalue()


def folder_with_texts(folder: Path, count: int) -> Path:
    """Pictures with a .txt each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.png").write_bytes(picture(number))
        (folder / f"{number:04d}.txt").write_text(f"thing {number}\n")
    return folder


def shard(path: Path, numbers: Sequence[int], **record: Any) -> Path:
    """A shard in img2dataset's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for number in numbers:
            described = {"key": f"{number:09d}", "caption": f"thing {number}", "width": 12, "height": 12, **record}
            writer.write(
                {
                    "__key__": f"{number:09d}",
                    "jpg": picture(number, kind="JPEG"),
                    "txt": f"thing {number}",
                    "json": json.dumps(described),
                }
            )
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with these members."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def table(path: Path, columns: dict[str, list[Any]], row_group_size: int = 4) -> Path:
    """A Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def everything(source: Source) -> list[Item]:
    """All items of a source, part by part."""
    return [item for part in range(len(source.parts)) for item in source.read(part)]


def samples(source: Source) -> list[Sample]:
    """All samples of a source in which nothing is refused."""
    items = everything(source)
    assert all(isinstance(item, Sample) for item in items), items
    return [item for item in items if isinstance(item, Sample)]
