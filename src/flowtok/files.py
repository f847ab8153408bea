"""Writing files so that a crash leaves the old file or the new one, never half of either.

Knows nothing of what is written. Model folders are in `checkpoints/`, configs in `config.py`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from flowtok.errors import FlowTokError


def write_file_atomically(path: str | Path, content: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Writes `content` to a temporary file beside `path`, syncs it and renames it over `path`.

    Args:
        path: where the file shall stand; its folder must exist.
        content: the bytes, the text (stored as UTF-8), or a function that writes into the open binary file.

    Returns:
        `path` as a Path.

    Raises:
        FlowTokError: the folder is missing or cannot be written to, or the disk is full.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Lends a temporary file name beside `path`; what was written there takes the place of `path` at the end.

    If the block raises, `path` stays as it was and the temporary file is removed.

    Raises:
        FlowTokError: the folder is missing or cannot be written to, or the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FlowTokError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise FlowTokError(f"cannot write {path}: it is a folder; give a file name")
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=".", suffix=f".part{path.suffix}", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_mode_of(path))
        temporary.replace(path)
    except OSError as error:
        raise FlowTokError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _mode_of(path: Path) -> int:
    """The permissions the file had, or those that the user's umask gives a new one (mkstemp gives 0600)."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
