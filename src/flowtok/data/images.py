"""Opening any picture safely, and the way between PIL pictures and tensors.

Knows no data set and no network; captioned sets are `flowtok.data.emoji`.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from flowtok.data.refusals import Refused
from flowtok.errors import DataError

MAX_PIXELS = 100_000_000
# For what strangers send: their readers are in PIL itself. Others start programs (EPS), or are seldom and old.
PLAIN_KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Background = tuple[int, int, int]
PictureFile = Path | str | bytes | BinaryIO
_ORIENTATION = 0x0112
_LEVELS_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What the head of a picture's file says, before anything is decoded; width and height as it is looked at."""

    width: int
    height: int
    kind: str
    mode: str
    num_frames: int


def open_picture(
    source: PictureFile,
    *,
    size: int | None = None,
    background: Background = (255, 255, 255),
    kinds: tuple[str, ...] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Opens a picture of any kind PIL reads as upright RGB.

    EXIF rotation is applied, transparency laid on `background`, 16-bit grey scaled to 8, and of an animation the first
    frame taken. With `size`, the shorter side is resized (bicubic, antialiased) and the centre cropped to size x size.

    Args:
        source: a path, a file's bytes, or an open binary file.
        size: side in pixels, or None to keep the picture's own.
        background: what shows through transparency.
        kinds: PIL's names of the file formats that are tried, all if left out.
        max_pixels: a picture with more is refused by its head, before it is decoded.

    Raises:
        Refused: the file is missing, no picture of these kinds, truncated, or larger than max_pixels when decoded.
    """
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel, got {size}")
    with _opened(source, kinds, max_pixels) as picture:
        picture.seek(0)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # a copy would need the memory once more
        flat = to_rgb(picture, background)
    return flat if size is None else resize_and_crop(flat, size)


def look_at(source: PictureFile) -> PictureFacts:
    """Reads the head of a picture's file and decodes nothing.

    Raises:
        Refused: the file is missing, no picture, or larger than MAX_PIXELS when decoded.
    """
    with _opened(source) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION, 1) >= 5:  # stored lying on its side
            width, height = height, width
        return PictureFacts(
            width=width,
            height=height,
            kind=picture.format or "unknown",
            mode=picture.mode,
            num_frames=getattr(picture, "n_frames", 1),
        )


@contextlib.contextmanager
def _opened(
    source: PictureFile, kinds: tuple[str, ...] | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """An opened, not yet decoded picture of a bearable size; whatever PIL raises meanwhile becomes Refused."""
    name = str(source) if isinstance(source, str | Path) else getattr(source, "name", "the given picture")
    handle = io.BytesIO(source) if isinstance(source, bytes) else Path(source) if isinstance(source, str) else source
    try:
        with warnings.catch_warnings():
            # PIL warns of odd metadata, which nobody reads here, and at its own limit of pixels before it refuses at
            # twice that; ours is checked below, before decoding.
            warnings.simplefilter("ignore")
            with Image.open(handle, formats=kinds) as picture:
                if picture.width * picture.height > max_pixels:
                    got = f"{picture.width} x {picture.height} pixels"
                    raise Refused(_too_large(name, got, max_pixels), "too large")
                yield picture
    except DataError:
        raise
    except FileNotFoundError as error:
        raise Refused(f"{name} does not exist; give the path of a picture", "missing") from error
    except IsADirectoryError as error:
        raise Refused(f"{name} is a folder; give the path of a picture", "not a picture") from error
    except PermissionError as error:
        raise Refused(f"{name} may not be read; check its permissions", "may not be read") from error
    except Image.DecompressionBombError as error:
        raise Refused(_too_large(name, "too many pixels", max_pixels), "too large") from error
    except UnidentifiedImageError as error:
        raise Refused(
            f"{name} is not a picture that can be read; give a PNG, JPEG, WebP, GIF, BMP or TIFF file", "not a picture"
        ) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        MemoryError,
        ImageCms.PyCMSError,
        struct.error,
    ) as error:
        # PIL's decoders report damage in each of these ways.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(f"{name} is damaged or cut short ({reason}); give a whole picture", "damaged") from error


def _too_large(name: str, got: str, max_pixels: int) -> str:
    return f"{name} has {got}, more than the {max_pixels:,} that are opened; scale it down first"


def to_rgb(picture: Image.Image, background: Background) -> Image.Image:
    """Any PIL mode as RGB, transparency laid on the background."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _grey(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        canvas = Image.new("RGBA", with_alpha.size, (*background, 255))
        canvas.alpha_composite(with_alpha)
        return canvas.convert("RGB")
    if picture.mode == "LAB":  # the one mode that PIL turns into RGB by way of colour profiles only
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        assert converted is not None, "profileToProfile gives a new picture unless it is asked to work in place"
        return converted
    return picture.convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled to 8: PIL would clip it. A part at a time, since it is computed in float64."""
    levels = np.asarray(picture)
    flat, grey = levels.reshape(-1), np.empty(levels.shape, np.uint8)
    parts = [slice(i, i + _LEVELS_AT_ONCE) for i in range(0, flat.size, _LEVELS_AT_ONCE)]
    # "I" and "F" say nothing of their range; I;16 does, however dark the picture is.
    wide = picture.mode.startswith("I;16") or any((flat[part] > 255).any() for part in parts)
    top = 65535.0 if wide else 255.0
    for part in parts:
        scaled = np.nan_to_num(flat[part].astype(np.float64)) / top * 255.0
        grey.reshape(-1)[part] = np.clip(np.floor(scaled + 0.5), 0, 255)
    return Image.fromarray(grey)


def resize_and_crop(picture: Image.Image, size: int, at: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Resizes the shorter side to `size` pixels (bicubic, antialiased) and crops size x size.

    Args:
        picture: An RGB picture.
        size: Side in pixels.
        at: Where the crop lies, across and down: 0 at the left or top end, 1 at the other; the centre if left out.
    """
    # The crop is taken before resizing: the same picture, and an extremely long one stays small in memory.
    side = min(picture.size)
    left, top = (picture.width - side) * at[0], (picture.height - side) * at[1]
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """A PIL picture as image_3YX, float32 in [0, 1]."""
    pixels_YX3 = np.array(picture.convert("RGB"), dtype=np.uint8)
    return torch.from_numpy(pixels_YX3).permute(2, 0, 1).contiguous().to(torch.float32) / 255


def to_pil(image_B3YX: torch.Tensor) -> list[Image.Image]:
    """A batch of images in [0, 1] as PIL pictures; each byte is floor(clamp(255 y + 0.5, 0, 255))."""
    assert image_B3YX.ndim == 4 and image_B3YX.shape[1] == 3, tuple(image_B3YX.shape)
    bytes_B3YX = (
        (image_B3YX.detach().to("cpu", torch.float32) * 255 + 0.5).nan_to_num(0.0).clamp(0, 255).floor().to(torch.uint8)
    )
    return [Image.fromarray(picture_YX3.numpy()) for picture_YX3 in bytes_B3YX.permute(0, 2, 3, 1).contiguous()]
