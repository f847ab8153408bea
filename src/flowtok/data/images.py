"""Opening any picture safely, and the way between PIL pictures and tensors.

Knows no data set and no network; captioned sets are `flowtok.data.emoji`.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from flowtok.errors import DataError

MAX_PIXELS = 100_000_000
Background = tuple[int, int, int]


def open_picture(
    source: Path | str | bytes | BinaryIO, *, size: int | None = None, background: Background = (255, 255, 255)
) -> Image.Image:
    """Opens a picture of any kind PIL reads as upright RGB.

    EXIF rotation is applied, transparency laid on `background`, 16-bit grey scaled to 8, and of an animation the first
    frame taken. With `size`, the shorter side is resized (bicubic, antialiased) and the centre cropped to size x size.

    Args:
        source: a path, a file's bytes, or an open binary file. size: side in pixels, or None to keep the picture's own.

    Raises:
        DataError: the file is missing, no picture, truncated, or larger than MAX_PIXELS when decoded.
    """
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel, got {size}")
    name = str(source) if isinstance(source, str | Path) else getattr(source, "name", "the given picture")
    handle = io.BytesIO(source) if isinstance(source, bytes) else Path(source) if isinstance(source, str) else source
    try:
        with warnings.catch_warnings():
            # PIL warns at its own limit before it refuses at twice that; ours is checked below, before decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(handle) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(_too_large(name, f"{picture.width} x {picture.height} pixels"))
                picture.seek(0)
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                flat = to_rgb(upright, background)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist; give the path of a picture") from error
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; give the path of a picture") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read; check its permissions") from error
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, "too many pixels")) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture that can be read; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
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
    ) as error:
        # PIL's decoders report damage in each of these ways.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} is damaged or cut short ({reason}); give a whole picture") from error
    return flat if size is None else resize_and_crop(flat, size)


def _too_large(name: str, got: str) -> str:
    return f"{name} has {got}, more than the {MAX_PIXELS:,} that are opened; scale it down first"


def to_rgb(picture: Image.Image, background: Background) -> Image.Image:
    """Any PIL mode as RGB, transparency laid on the background."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        # PIL would clip 16-bit grey to 8 bits instead of scaling it.
        levels = np.nan_to_num(np.asarray(picture).astype(np.float64))
        # "I" and "F" say nothing of their range; I;16 does, however dark the picture is.
        wide = picture.mode.startswith("I;16") or levels.max(initial=0.0) > 255.0
        top = 65535.0 if wide else 255.0
        grey = Image.fromarray(np.clip(np.floor(levels / top * 255.0 + 0.5), 0, 255).astype(np.uint8))
        return grey.convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        canvas = Image.new("RGBA", with_alpha.size, (*background, 255))
        canvas.alpha_composite(with_alpha)
        return canvas.convert("RGB")
    return picture.convert("RGB")


def resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` pixels (bicubic, antialiased) and crops the centre size x size."""
    # The crop is taken before resizing: the same picture, and an extremely long one stays small in memory.
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
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
