"""What every source gives: a picture that is not decoded yet, its captions, its key and its metadata.

Knows no file layout; what gives samples is a Source: folders.py, shards.py or tables.py, recognised by sources.py.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from PIL import Image

from flowtok.data.images import Background, PictureFacts, look_at, open_picture
from flowtok.data.refusals import Refusal, Refused

PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "tga", "ico")
DRAWING_ENDING = ".svg"
TEXT_FIELDS = ("text", "caption", "captions", "txt", "texts")
RECAPTION_FIELDS = ("recaption", "recap_txt", "recap")

# Longer side of a drawing in pixels: more than pictures of icons are trained at.
_DRAWN = 512


@dataclass(frozen=True, kw_only=True)
class FieldsConfig:
    """Which columns or metadata fields hold what, where the usual names do not say it.

    Attributes:
        text: The field of the captions, a text or a list of texts; the first of TEXT_FIELDS if None.
        recaption: The field of the caption a model wrote; the first of RECAPTION_FIELDS if None.
        image: The column of the pictures, in tables; the first column that holds pictures if None.
    """

    text: str | None = None
    recaption: str | None = None
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One captioned picture.

    Attributes:
        key: Its name, which no other sample of the source has.
        encoded: The picture's file, or the bytes of one.
        captions: What people wrote; at least one, the first the one of record.
        recaption: What a model wrote about the picture.
        metadata: Whatever else the source says.
    """

    key: str
    encoded: Path | bytes
    captions: tuple[str, ...]
    recaption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def open(self, background: Background = (255, 255, 255)) -> Image.Image:
        """The picture, decoded, upright, RGB.

        Raises:
            Refused: It cannot be decoded.
        """
        return open_picture(self._file(), background=background)

    def look(self) -> PictureFacts:
        """What the head of the picture's file says.

        Raises:
            Refused: It is no picture.
        """
        return look_at(self._file())

    def _file(self) -> Path | BinaryIO:
        encoded = self.encoded
        if isinstance(encoded, Path) and encoded.suffix.lower() == DRAWING_ENDING:
            encoded = _drawn(encoded)
        if isinstance(encoded, Path):
            return encoded
        handle = io.BytesIO(encoded)
        handle.name = self.key  # for the error that names the picture
        return handle


Item = Sample | Refusal


class Source(Protocol):
    """Captioned pictures in parts, each read from its start in an order that never changes.

    Attributes:
        name: A short name.
        kind: What it is, in words.
        parts: Names of the parts: shards, row groups, stretches of a folder.
        num_samples: How many samples and refusals it gives in all, where that is known before reading.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def parts(self) -> Sequence[str]: ...
    @property
    def num_samples(self) -> int | None: ...

    def read(self, part: int) -> Iterator[Item]:
        """The samples of one part, and refusals in the place of those that cannot be used."""
        ...


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """Short names of files, all different, that do not change when all move elsewhere together."""
    endings = r"\.(?:tar|tgz|parquet)(?:\.gz)?"
    stems = [re.sub(rf"{endings}$", "", (re.findall(rf"[^/\s'\"]+{endings}", name) or [name])[-1]) for name in names]
    if len(set(stems)) == len(stems):
        return tuple(stems)
    # Character by character, for a name may be a URL or a command; cut back to a whole folder.
    shared = os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071
    return tuple(name[shared:] for name in names)


def _drawn(path: Path) -> bytes:
    """An SVG file as a PNG, its background transparent.

    Raises:
        Refused: It cannot be drawn.
    """
    import resvg_py  # `open_folder` has made sure that it is there

    try:
        svg = path.read_text(encoding="utf-8-sig")
        box = re.search(r'viewBox\s*=\s*["\']([^"\']*)', svg)
        width, height = [float(number) for number in re.split(r"[\s,]+", box[1].strip())[2:]] if box else (1.0, 1.0)
        wide = width >= height
        return bytes(
            resvg_py.svg_to_bytes(
                svg_string=svg, skip_system_fonts=True, width=_DRAWN if wide else None, height=None if wide else _DRAWN
            )
        )
    except FileNotFoundError as error:
        raise Refused(f"{path} does not exist", "missing") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the renderer is no Exception
        raise Refused(f"{path} cannot be drawn", "drawing that cannot be drawn") from error


def field_of(record: Mapping[str, Any], chosen: str | None, usual: Sequence[str]) -> Any:
    """The value of the chosen field, or of the first usual one that there is, in any case of letters; None if none."""
    if chosen is not None:
        return record.get(chosen)
    lower = {str(name).lower(): value for name, value in record.items()}
    return next((lower[name] for name in usual if lower.get(name) not in (None, "", [])), None)


def texts_of(value: Any) -> tuple[str, ...]:
    """A text or a list of texts as captions: white space tidied, empty ones and repeats gone."""
    values = value if isinstance(value, list | tuple) else [value]
    tidy = [" ".join(text.split()) for text in values if isinstance(text, str)]
    return tuple(dict.fromkeys(text for text in tidy if text))


def sample_of(
    key: str,
    encoded: Path | bytes,
    record: Mapping[str, Any],
    fields: FieldsConfig,
    *,
    captions: tuple[str, ...] = (),
    recaption: str | None = None,
) -> Sample:
    """A sample whose captions stand in a record: a line of metadata, a row of a table.

    Args:
        key: Its name.
        encoded: The picture's file, or the bytes of one.
        record: What the source says of it.
        fields: Where the captions stand in the record.
        captions: Captions found elsewhere; they count unless a field is chosen.
        recaption: Recaption found elsewhere; it counts unless a field is chosen.

    Raises:
        Refused: There is no caption.
    """
    if fields.text is not None or not captions:
        captions = texts_of(field_of(record, fields.text, TEXT_FIELDS))
        if fields.text is None and captions:  # the emoji set names the caption of record and lists all
            captions = tuple(dict.fromkeys((*captions, *texts_of(record.get("texts")))))
    if fields.recaption is not None or recaption is None:
        recaption = field_of(record, fields.recaption, RECAPTION_FIELDS)
    written = texts_of(recaption)[:1]
    captions = captions or written
    if not captions:
        raise Refused(f"{key} has no caption", "without a caption")
    return Sample(key=key, encoded=encoded, captions=captions, recaption="".join(written) or None, metadata=record)
