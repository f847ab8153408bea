"""Webdataset shards as img2dataset writes them: tar files with KEY.jpg, KEY.txt and KEY.json side by side.

Opening and grouping are webdataset's; a shard may be a file, a URL or a command (`pipe:`). Knows no other layout.
"""

import importlib.util
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowtok.data.refusals import Refusal, Refused
from flowtok.data.samples import PICTURE_ENDINGS, RECAPTION_FIELDS, FieldsConfig, Item, labels_of, sample_of, texts_of
from flowtok.errors import DataError

SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")
# What a shard that is missing, damaged, cut short or compressed badly raises.
TROUBLE = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError)


class ShardSource:
    """Samples of many tar files, in the order in which they lie there."""

    num_samples = None  # a tar file does not say

    def __init__(self, shards: Sequence[str], fields: FieldsConfig) -> None:
        self.shards, self.fields = tuple(shards), fields
        self.parts = labels_of(self.shards)
        self.name = self.parts[0]
        self.kind = f"{len(self.parts)} webdataset shard{'s' * (len(self.parts) != 1)}"

    def read(self, part: int) -> Iterator[Item]:
        label = self.parts[part]
        return items_of_shard(self.shards[part], label, lambda group: _item_of(label, group, self.fields))


def open_shards(shards: Sequence[str], fields: FieldsConfig | None = None) -> ShardSource:
    """Takes note of shards; they are opened when they are read.

    Raises:
        DataError: webdataset is not installed, there is no shard, or all are local files and none exists.
    """
    if importlib.util.find_spec("webdataset") is None:
        raise DataError("reading shards needs webdataset, which is not installed; run: pip install 'flowtok[data]'")
    if not shards:
        raise DataError("no shards were found; give a path, a glob such as 'shards/*.tar', or a brace list")
    local = [Path(shard) for shard in shards if not is_remote(shard)]
    if len(local) == len(shards) and not any(path.exists() for path in local):
        raise DataError(f"none of the {len(shards)} shards exists; the first is {shards[0]}")
    return ShardSource(shards, fields or FieldsConfig())


def is_remote(name: str) -> bool:
    """Whether webdataset opens this by a command or over the network."""
    return name.startswith("pipe:") or re.match(r"[a-z][a-z0-9+.-]*://", name) is not None


class _Header(tarfile.TarInfo):
    """A member of an archive that must end as archives end.

    tarfile takes a damaged or missing header for the end of the archive, and all samples behind it would be lost in
    silence; archives that were joined end to end are read on, as webdataset's own writers allow.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.seen_end = True
            raise
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EmptyHeaderError) and getattr(archive, "seen_end", False):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"damaged or cut short at byte {archive.offset:,}") from error
        archive.seen_end = False
        return header


def items_of_shard(shard: str, label: str, item_of: Callable[[Mapping[str, Any]], Item]) -> Iterator[Item]:
    """What the groups of files of a shard make, with a refusal in the place of what cannot be used.

    Args:
        shard: A file, URL or command.
        label: What it is called.
        item_of: Makes a sample, or a refusal, of the files of one key.
    """
    twice: list[Refusal] = []
    try:
        for group in groups_of_files(shard, twice):
            yield item_of(group)
            yield from twice
            twice.clear()
        yield from twice
    except TROUBLE as error:
        # webdataset lengthens the arguments of errors on their way; the first is the error's own.
        reason = "missing shard" if isinstance(error, FileNotFoundError) else "shard that cannot be read to its end"
        yield Refusal(key=label, reason=reason, detail=f"{shard}: {one_line(error)}", whole_part=True)


def groups_of_files(shard: str, twice: list[Refusal]) -> Iterator[dict[str, Any]]:
    """The files of a shard, grouped by key; files whose name comes twice in a group go to `twice`."""
    from webdataset.gopen import gopen, set_options
    from webdataset.tariterators import group_by_keys

    def note(error: Exception) -> bool:
        if not isinstance(error, ValueError):
            raise error
        twice.append(Refusal(key=shard, reason="file whose name comes twice", detail=one_line(error)))
        return True

    stream = gopen(shard)
    # Whether a command has failed is asked at the end: else it depends on its haste which samples are read before.
    set_options(stream, ignore_errors=True)
    try:
        stopped: list[Exception] = []
        yield from group_by_keys(_files(stream, shard, stopped), handler=note)
        while stream.read(1 << 20):  # a command that is not read to its end dies of it and seems to have failed
            pass
        set_options(stream, ignore_errors=False)
        stream.close()
        if stopped:
            raise stopped[0]
    finally:
        stream.close()


def _files(stream: Any, shard: str, stopped: list[Exception]) -> Iterator[dict[str, Any]]:
    """The plain files of an archive. An error ends them and goes to `stopped`: what came before can still be used."""
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header, ignore_zeros=True) as archive:
            passed: Any = archive
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None, "a plain file can be read"
                    yield {"fname": member.name, "data": file.read(), "__url__": shard}
                passed.members = []  # else the archive remembers every member
    except TROUBLE as error:
        stopped.append(error)


def _item_of(shard: str, group: Mapping[str, Any], fields: FieldsConfig) -> Item:
    """The sample that the files of one key make."""
    key = f"{shard}/{group['__key__']}"
    picture = next((group[ending] for ending in PICTURE_ENDINGS if ending in group), None)
    if picture is None:
        return Refusal(key=key, reason="without a picture")
    try:
        record = json.loads(group["json"]) if "json" in group else {}
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
        texts = [group[name].decode() for name in sorted(group) if re.fullmatch(r"(\d+\.)?txt", name)]
        recaption = next((group[name].decode() for name in RECAPTION_FIELDS if group.get(name, b"").strip()), None)
    except ValueError:
        return Refusal(key=key, reason="with text that cannot be read")
    try:
        return sample_of(key, picture, record, fields, captions=texts_of(texts), recaption=recaption)
    except Refused as refused:
        return Refusal(key=key, reason=refused.reason)


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__
