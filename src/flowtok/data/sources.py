"""What a path means: a folder of pictures, shards, tables; one function opens any of them.

Knows how each is recognised and nothing of what is inside; that is in folders.py, shards.py and tables.py.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from flowtok.data.folders import METADATA_NAMES, is_picture, open_folder
from flowtok.data.samples import FieldsConfig, Source
from flowtok.data.shards import SHARD_ENDINGS, is_remote, open_shards
from flowtok.data.tables import open_tables
from flowtok.errors import DataError

TABLE_ENDINGS = (".parquet",)
_GIVE = (
    "give a folder of pictures, shards ('DATA/*.tar', 'DATA/{00000..00099}.tar', 'pipe:COMMAND'), or a Parquet file or "
    "folder"
)


def open_source(place: str | Path, fields: FieldsConfig | None = None) -> Source:
    """Opens captioned pictures wherever they are.

    Args:
        place: A folder of pictures, of shards or of tables; a shard or table file; a glob or brace list of them
            ("::" joins several); a URL of a shard, or `pipe:` and a command that writes one.
        fields: Names of columns, where they are not the usual ones.

    Raises:
        DataError: There is nothing, it cannot be told what it is, or it holds no pictures.
    """
    name = os.fspath(place)
    path = Path(name)
    try:
        if path.is_dir():
            return _open_folder(path, fields)
        found = [name] if path.exists() else _expanded(name)
    except OSError as error:
        raise DataError(f"cannot open {name[:80]}: {error.strerror}") from error
    if not found:
        raise DataError(f"there is no {name}; {_GIVE}")
    if found == [name] and path.name in METADATA_NAMES:
        return open_folder(path.parent, fields)
    kinds = {_kind_of(one) for one in found}
    if kinds == {"shard"}:
        return open_shards(found, fields)
    if kinds == {"table"} and any(is_remote(one) for one in found):
        raise DataError(f"tables are read from files: fetch {found[0]} first and give its path")
    if kinds == {"table"}:
        return open_tables([Path(one) for one in found], fields)
    if kinds == {"folder"} and len(found) == 1:
        return _open_folder(Path(found[0]), fields)
    if len(kinds) > 1:
        raise DataError(f"{name} names files of several kinds ({', '.join(sorted(kinds))}); {_GIVE}")
    raise DataError(f"cannot tell what {found[0]} is; {_GIVE}")


def _open_folder(folder: Path, fields: FieldsConfig | None) -> Source:
    """A folder is what lies in it: shards, else a list of metadata or pictures, else tables."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except PermissionError as error:
        raise DataError(f"folder {folder} may not be read; check its permissions") from error
    shards = [str(path) for path in inside if path.name.endswith(SHARD_ENDINGS)]
    pictures = [path for path in inside if is_picture(path.name) or path.name in METADATA_NAMES]
    if shards and pictures:
        raise DataError(
            f"{folder} holds both shards and pictures ({Path(shards[0]).name}, {pictures[0].name}); "
            f"give '{folder}/*.tar' or a folder of the pictures alone"
        )
    if shards:
        return open_shards(shards, fields)
    tables = [] if pictures else sorted(folder.rglob("*.parquet"))
    if tables and not any(is_picture(path.name) for path in folder.rglob("*.*")):
        return open_tables(tables, fields)
    return open_folder(folder, fields)


def _expanded(name: str) -> list[str]:
    """What a brace list or a glob names, sorted as it says; commands and URLs stay as they are."""
    names = _braces(name) if is_remote(name) or "{" in name or "::" in name else [name]
    found: list[str] = []
    for one in names:
        if is_remote(one) or not glob.has_magic(one):
            found.append(one)
        else:
            found += sorted(glob.glob(one, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    # A single plain name that does not exist is nothing; of a list, the missing ones are counted when they are read.
    if len(found) == 1 and not is_remote(found[0]) and not Path(found[0]).exists():
        return []
    return found


def _braces(name: str) -> Sequence[str]:
    """Brace lists, "::" and variables as webdataset knows them."""
    try:
        from webdataset.shardlists import expand_urls
    except ModuleNotFoundError as error:
        raise DataError(f"{name} needs webdataset, which is not installed; run: pip install 'flowtok[data]'") from error
    try:
        return expand_urls(name)
    except (AssertionError, ValueError) as error:
        raise DataError(f"cannot expand {name}: {error}") from error


def _kind_of(name: str) -> str:
    if is_remote(name):
        return "table" if name.endswith(TABLE_ENDINGS) and not name.startswith("pipe:") else "shard"
    if Path(name).is_dir():
        return "folder"
    if name.endswith(SHARD_ENDINGS):
        return "shard"
    return "table" if name.endswith(TABLE_ENDINGS) else "unknown"
