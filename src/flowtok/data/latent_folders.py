"""A folder of shards of cached moments: what it was made from, which shards are whole, and what was refused.

`latents.json` says it of the folder, NUMBER.json of each shard. Knows no network; train/encoding.py makes such folders.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from flowtok.data.latent_shards import RELEASE_SHAPE, LatentSource, Layout
from flowtok.data.refusals import Refusal, Tally
from flowtok.data.samples import Source
from flowtok.data.shards import ShardSource
from flowtok.data.sources import open_source
from flowtok.errors import DataError
from flowtok.files import write_file_atomically

MANIFEST = "latents.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LatentsMade:
    """What a folder of moments is made from; with anything else the folder is not gone on with.

    Attributes:
        source: Name and kind of the pictures.
        parts: A checksum of the names of the source's parts and of the number of its samples.
        num_shards: Shards that the folder has in the end.
        parts_per_shard: Parts of the source in a shard; the last one may have fewer.
        tokenizer: A checksum of the image tokenizer's weights.
        text_encoder: A checksum of the text encoder's weights and words and of how captions are padded, where text
            features are cached.
        image_size: Side of the pictures in pixels.
        crop: How they were brought to it.
        shape: Tokens and channels, (L, C).
        layout: Kind of the shards.
        dtype: Type of the moments.
        precision: Type that the networks computed in.
        settings: Filters, fields and background, where they are not the defaults.
    """

    source: str
    parts: str
    num_shards: int
    parts_per_shard: int
    tokenizer: str
    text_encoder: str | None
    image_size: int
    crop: str
    shape: tuple[int, int]
    layout: Layout
    dtype: str
    precision: str
    settings: Mapping[str, Any]

    def claim(self, folder: Path) -> None:
        """Writes what the folder is made from, or compares it with what stands there.

        Raises:
            DataError: The folder holds moments of something else, or other files of these names.
        """
        path = folder / MANIFEST
        now = json.loads(json.dumps({"format_version": FORMAT_VERSION, "made_from": asdict(self)}))
        shards = any(folder.glob("*.tar"))  # asked first: another rank may write manifest and shard in between
        if not path.exists():
            if shards:
                raise DataError(f"{folder} holds shards and no {MANIFEST}; take another folder")
            write_file_atomically(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
            return
        was = read_manifest(folder)["made_from"]
        differing = [name for name, value in now["made_from"].items() if was.get(name) != value]
        if differing:
            shown = ", ".join(f"{name} was {was.get(name)} and is {now['made_from'][name]}" for name in differing[:3])
            raise DataError(
                f"{folder} holds moments of something else ({shown}); take another folder or delete this one"
            )


def fingerprint_of_source(source: Source) -> str:
    """A checksum of the names of a source's parts and of the number of its samples; no picture is looked at."""
    digest = hashlib.sha256(repr(source.num_samples).encode())
    for part in source.parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:16]


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard.

    Attributes:
        samples: How many it holds.
        sha256: Its checksum.
        tally: What was used, left out and refused for it.
    """

    samples: int
    sha256: str
    tally: Tally = field(repr=False)

    @classmethod
    def write(cls, folder: Path, number: int, tally: Tally) -> "ShardRecord":
        """The record of a shard that was just written; it is written beside it."""
        sha256 = _sha256(folder / shard_name(number))
        record = cls(samples=tally.used, sha256=sha256, tally=tally)
        content = {"samples": record.samples, "sha256": sha256, **_plain(tally)}
        write_file_atomically(_record_path(folder, number), json.dumps(content, ensure_ascii=False) + "\n")
        return record

    @classmethod
    def read(cls, folder: Path, number: int) -> "ShardRecord | None":
        """The record of a shard, or None if it is not finished."""
        path = _record_path(folder, number)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(samples=content["samples"], sha256=content["sha256"], tally=_tally(content))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}); delete it and start again") from error

    @staticmethod
    def remove(folder: Path, number: int) -> None:
        """Takes the record of a shard away, so that the shard counts as not finished."""
        _record_path(folder, number).unlink(missing_ok=True)

    def is_whole(self, folder: Path, number: int) -> bool:
        """Whether the shard has its checksum, and every part of the source behind it could be read to its end."""
        path = folder / shard_name(number)
        return not self.tally.broken_parts and path.is_file() and _sha256(path) == self.sha256


def finish(folder: Path, made: LatentsMade, *, num_parts: int, max_refused: float) -> dict[str, Any] | None:
    """Completes the manifest when every shard is there; whoever comes last may do it, and twice does no harm.

    Returns:
        The manifest; None while a shard is missing.

    Raises:
        DataError: Too much was refused, or nothing is left.
    """
    tally, samples = Tally(), []
    for number in range(made.num_shards):
        record = ShardRecord.read(folder, number)
        if record is None:
            return None
        tally.add(record.tally)
        samples.append(record.samples)
    tally.check(max_refused, num_parts=num_parts, at_end=True)
    if not tally.used:
        reasons = [f"{count} {reason}" for reason, count in tally.left_out.items()] + tally.lines()
        raise DataError(f"no picture of {made.source} is left: {'; '.join(reasons) or 'it is empty'}")
    manifest = {
        "format_version": FORMAT_VERSION,
        "made_from": asdict(made),
        "complete": {"samples": tally.used, "samples_of_shards": samples, **_plain(tally)},
    }
    write_file_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    for left in folder.glob(".*.part*"):  # of processes that were killed while they wrote
        left.unlink(missing_ok=True)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says.

    Raises:
        DataError: It is missing, damaged or of a later version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made, version = manifest["made_from"], manifest["format_version"]
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no {MANIFEST}; write it with: flowtok data latents PATH -o {folder}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); write the folder anew") from error
    if version != FORMAT_VERSION or not isinstance(made, dict):
        raise DataError(f"{path} has format {version}, this flowtok reads {FORMAT_VERSION}")
    return manifest


def open_latents(
    place: str | Path,
    *,
    shape: tuple[int, int] | None = None,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
) -> LatentSource:
    """Opens cached moments: a folder that flowtok wrote, or any shards of either layout.

    Args:
        place: A folder, a shard, or a glob or brace list of shards; see `open_source`.
        shape: Tokens and channels (L, C) that are needed; those of the manifest, or else of the release, if None.
        tokenizer: Checksum of the image tokenizer that the moments must be of, where there is a manifest to ask.
        text_encoder: Checksum of the text encoder that text features must be of, where the manifest names some.

    Raises:
        DataError: Nothing there, a folder that is not finished, moments of another shape or tokenizer, or features of
            another text encoder.
    """
    folder, num_samples = Path(place), None
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        made, complete = manifest["made_from"], manifest.get("complete")
        if complete is None:
            raise DataError(
                f"{folder} is not finished: {_count(folder)} of {made['num_shards']} shards are there; run the "
                "command that makes it again"
            )
        has = cast(tuple[int, int], tuple(made["shape"]))
        if shape is not None and has != shape:
            raise DataError(f"{folder} holds moments of {has[0]} x {has[1]} tokens, not of {shape[0]} x {shape[1]}")
        if tokenizer is not None and made["tokenizer"] != tokenizer:
            raise DataError(
                f"{folder} holds moments of another image tokenizer ({made['tokenizer']}, not {tokenizer}); write them "
                "anew with this one"
            )
        words = made["text_encoder"]
        if text_encoder is not None and words is not None and words != text_encoder:
            raise DataError(
                f"{folder} holds text features of another text encoder, of another length or with something else "
                f"behind the words ({words}, not {text_encoder}); write them anew with this one, or without --text"
            )
        shape, num_samples = has, complete["samples"]
    source = open_source(place)
    if not isinstance(source, ShardSource):
        raise DataError(f"{place} is a {source.kind}; cached moments lie in shards (.tar)")
    return LatentSource(source.shards, shape=shape or RELEASE_SHAPE, num_samples=num_samples)


def _count(folder: Path) -> int:
    return sum(path.name.removesuffix(".json").isdecimal() for path in folder.glob("*.json"))


def _record_path(folder: Path, number: int) -> Path:
    return (folder / shard_name(number)).with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(tally: Tally) -> dict[str, Any]:
    """What was left out and refused, as plain data."""
    return {
        "seen": tally.seen,
        "left_out": dict(tally.left_out),
        "refused": dict(tally.refused),
        "refused_examples": {reason: [asdict(one) for one in some] for reason, some in tally.examples.items()},
        "broken_parts": sorted(tally.broken_parts),
    }


def _tally(content: Mapping[str, Any]) -> Tally:
    return Tally(
        seen=content["seen"],
        used=content["samples"],
        left_out=Counter(content["left_out"]),
        refused=Counter(content["refused"]),
        examples={reason: [Refusal(**one) for one in some] for reason, some in content["refused_examples"].items()},
        broken_parts=set(content["broken_parts"]),
    )
