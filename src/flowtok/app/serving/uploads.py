"""Pictures in and out: what a client uploads, opened without trust, and what is drawn, as bytes.

Knows no route and no model. A picture's size is read from its head; what is too large is never decoded.
"""

import base64
import binascii
import io

from PIL import Image

from flowtok.app.serving.errors import ApiError
from flowtok.data.images import PLAIN_KINDS, open_picture
from flowtok.data.refusals import Refused

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def open_upload(content: bytes, *, size: int, max_pixels: int) -> Image.Image:
    """Opens an uploaded picture as the model sees it: upright RGB, the middle square at the model's size.

    Args:
        content: The file.
        size: Side in pixels of the result.
        max_pixels: Pixels that a picture may have when it is decoded; checked before that.

    Raises:
        ApiError: 413 for too many pixels, 422 for what is no whole picture of one of PLAIN_KINDS.
    """
    try:
        return open_picture(content, size=size, kinds=PLAIN_KINDS, max_pixels=max_pixels)
    except Refused as error:
        raise (_too_large(max_pixels) if error.reason == "too large" else _unreadable()) from error


def _too_large(max_pixels: int) -> ApiError:
    return ApiError(
        413, f"the image has more than the {max_pixels:,} pixels that are opened; scale it down first",
        code="image_too_large", param="image",
    )  # fmt: skip


def _unreadable() -> ApiError:
    *most, last = PLAIN_KINDS
    return ApiError(
        422, f"the image is not a whole {', '.join(most)} or {last} picture", code="invalid_image", param="image"
    )


def from_base64(text: str) -> bytes:
    """The file in a base64 string or a data URL.

    Raises:
        ApiError: It is neither.
    """
    head, comma, body = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        body = text
    try:
        return base64.b64decode(body if comma else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, "image: neither base64 nor a data URL with base64", code="invalid_value", param="image"
        ) from error


def encode(picture: Image.Image, *, side: int, kind: str, compression: int) -> str:
    """A picture as base64 of a file.

    Args:
        picture: What was drawn.
        side: In pixels; larger ones are resampled.
        kind: A key of MEDIA_TYPES.
        compression: Quality of a JPEG or WebP, 0 to 100.
    """
    if picture.width != side:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    options = {} if kind == "png" else {"quality": compression}
    plain = picture.copy()
    plain.info = {}
    plain.save(file, kind.upper(), **options)
    return base64.b64encode(file.getvalue()).decode("ascii")
