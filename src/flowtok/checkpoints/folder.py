"""What a model folder says of itself: config.json with every network's config and the size and SHA-256 of each file.

Reads no weights and needs no torch. The weights are in store.py, finding folders in catalogue.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import flowtok
from flowtok.checkpoints.catalogue import CONFIG_FILE
from flowtok.config import from_dict, parse_json, to_dict
from flowtok.errors import CheckpointError, FlowTokError
from flowtok.files import write_file_atomically

FORMAT_VERSION = 1
CARD_FILE = "README.md"
TEXT_ENCODER_FOLDER = "text_encoder"

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file of a model folder."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The content of a model folder's config.json.

    Attributes:
        format_version: version of this layout; newer ones are refused.
        name: the model's name, such as "emoji".
        flowtok_version: the flowtok that wrote the folder.
        image_tokenizer, text_encoder, text_projector, velocity, text_decoder, sampling: the config of each part as
            plain data, None for a part that the model does not have. `part` reads one as its dataclass.
        provenance: where the weights come from: run, data, licences; free text for people.
        files: every file of the folder but config.json and the model card, by its path inside the folder.
    """

    format_version: int
    name: str
    flowtok_version: str = ""
    image_tokenizer: dict[str, Any] | None = None
    text_encoder: dict[str, Any] | None = None
    text_projector: dict[str, Any] | None = None
    velocity: dict[str, Any] | None = None
    text_decoder: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)

    def part(self, name: str, cls: type[Config]) -> Config:
        """The config of one part as its dataclass, checked strictly.

        Raises:
            CheckpointError: the model has no such part, or its config does not fit this version of flowtok.
        """
        data = getattr(self, name)
        if data is None:
            have = ", ".join(part for part in PARTS if getattr(self, part) is not None) or "nothing"
            raise CheckpointError(f"model {self.name!r} has no {name}; its {CONFIG_FILE} describes {have}")
        try:
            return from_dict(cls, data, where=f"{self.name}/{CONFIG_FILE}: {name}")
        except FlowTokError as error:
            raise CheckpointError(str(error)) from error


PARTS = ("image_tokenizer", "text_encoder", "text_projector", "velocity", "text_decoder", "sampling")


def read_config(folder: str | Path) -> ModelRecord:
    """Reads a model folder's config.json.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format or not flowtok's.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        data = parse_json(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(data, dict) or "format_version" not in data:
            raise CheckpointError(f"{path} is not a flowtok model's: it has no format_version")
        version = data["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}, this flowtok reads up to {FORMAT_VERSION}; update flowtok"
            )
        return from_dict(ModelRecord, data, where=str(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"folder {folder} holds no flowtok model: it has no {CONFIG_FILE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except CheckpointError:
        raise
    except FlowTokError as error:
        raise CheckpointError(str(error)) from error


def write_config(
    folder: str | Path, *, name: str, parts: Mapping[str, Any], provenance: Mapping[str, Any] | None = None
) -> ModelRecord:
    """Writes config.json with a checksum of every file that stands in the folder; call it last.

    Args:
        folder: the model folder, with its weights already in it.
        name: the model's name.
        parts: the config of each part, by the names in `PARTS`: a dataclass or plain data.
        provenance: where the weights come from, as plain data.

    Returns:
        What was written.
    """
    folder = Path(folder)
    unknown = set(parts) - set(PARTS)
    assert not unknown, f"no such part: {sorted(unknown)}"
    plain = {part: to_dict(value) if dataclasses.is_dataclass(value) else value for part, value in parts.items()}
    config = ModelRecord(
        format_version=FORMAT_VERSION,
        name=name,
        flowtok_version=flowtok.__version__,
        provenance=dict(provenance or {}),
        files={file: _record(folder / file) for file in _files(folder)},
        **plain,
    )
    text = json.dumps(to_dict(config), indent=2, ensure_ascii=False, allow_nan=False)
    write_file_atomically(folder / CONFIG_FILE, text + "\n")
    return config


def write_card(folder: str | Path, text: str) -> Path:
    """Writes the model card, README.md; it may be edited later without breaking a checksum."""
    return write_file_atomically(Path(folder) / CARD_FILE, text)


def verify_checksums(folder: str | Path, files: Iterable[str] | None = None) -> None:
    """Checks that the files of a model folder are those that config.json describes.

    Args:
        folder: the model folder.
        files: paths inside the folder; all of them where not given.

    Raises:
        CheckpointError: a file is missing, has another size or another content; the message names it.
    """
    folder = Path(folder)
    config = read_config(folder)
    wanted = config.files if files is None else dict.fromkeys(files)
    for name in wanted:
        record = config.files.get(name)
        if record is None:
            raise CheckpointError(f"{folder / CONFIG_FILE} has no checksum of {name}; save or import the model again")
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"model folder {folder} has no {name}; {how_to_get(config.name)}")
        size = path.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{path} is damaged: {size} bytes, not {record.bytes}; {how_to_get(config.name)}")
        if _sha256(path) != record.sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded one; {how_to_get(config.name)}")


def how_to_get(name: str) -> str:
    """Ends a message about a missing or damaged file: what the user can do."""
    return f"get {name!r} again (git checkout, download, `flowtok import`) or train it with `flowtok train`"


def _files(folder: Path) -> list[str]:
    """The files a config records: all but itself, the model card and hidden ones."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
    return [name for name in names if name not in (CONFIG_FILE, CARD_FILE, *hidden)]


def _record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
