"""Any picture a user has must open as it looks in a viewer, or be refused in one line."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowtok.data.images import MAX_PIXELS, look_at, open_picture, resize_and_crop, to_pil, to_tensor
from flowtok.data.refusals import Refused
from flowtok.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", size, RED)
    picture.paste(BLUE, (size[0] // 2, 0, *size))
    return picture.convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def near(picture: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    pixel = picture.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "GIF"), ("P", "PNG"), ("RGB", "WEBP")],
)
def test_colours_survive_every_kind_of_file(mode: str, kind: str) -> None:
    picture = open_picture(encoded(halves(mode), kind))
    assert picture.mode == "RGB" and picture.size == (40, 20)
    # Lossy kinds and CMYK are off by some levels away from the edge.
    assert near(picture, (5, 10), RED) and near(picture, (35, 10), BLUE)


def test_path_bytes_and_open_file_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(halves()))
    with path.open("rb") as handle:
        opened = [open_picture(path), open_picture(str(path)), open_picture(path.read_bytes()), open_picture(handle)]
    assert all(picture.tobytes() == halves().tobytes() for picture in opened)


def test_exif_rotation_is_applied() -> None:
    """A phone's photo would lie on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: to be turned clockwise by 90 degrees
    picture = open_picture(encoded(halves(), "JPEG", exif=exif, quality=95))
    assert picture.size == (20, 40)
    assert near(picture, (10, 5), RED) and near(picture, (10, 35), BLUE)


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparency_lies_on_the_background(background: tuple[int, int, int]) -> None:
    see_through = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    see_through.paste((0, 0, 255, 255), (4, 0, 8, 8))
    picture = open_picture(encoded(see_through), background=background)
    assert picture.getpixel((1, 1)) == background and picture.getpixel((6, 1)) == BLUE


def test_transparent_palette_and_grey_alpha() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert open_picture(encoded(palette, transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("LA", (4, 4), (0, 0)))).getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    """Clipped, every medical or depth picture would come out white."""
    levels = np.array([[0, 32768, 65535]], dtype=np.uint16)
    picture = open_picture(encoded(Image.fromarray(levels)))
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_dark_sixteen_bit_grey_stays_dark(kind: str) -> None:
    """The darkest parts of a depth picture must not come out as bright as a whole one."""
    levels = np.array([[0, 100, 255]], dtype=np.uint16)
    with Image.open(io.BytesIO(encoded(Image.fromarray(levels), kind))) as stored:
        assert stored.mode == "I;16"
    picture = open_picture(encoded(Image.fromarray(levels), kind))
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (0, 0, 0), (1, 1, 1)]


@pytest.mark.parametrize(("mode", "kind"), [(np.int32, "TIFF"), (np.float32, "TIFF")])
def test_grey_of_unknown_range_is_taken_as_eight_bit_where_it_fits(mode: type, kind: str) -> None:
    levels = np.array([[0, 100, 255]], dtype=mode)
    picture = open_picture(encoded(Image.fromarray(levels), kind))
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


@pytest.mark.parametrize("mode", [np.uint16, np.float32])
def test_deep_grey_is_scaled_without_many_copies(mode: type) -> None:
    """A server opens several at once; in float64 as a whole, one would take half a gigabyte."""
    levels = np.linspace(0, 65535, 1024 * 1024).astype(mode).reshape(1024, 1024)
    data = encoded(Image.fromarray(levels), "TIFF")
    tracemalloc.start()
    picture = open_picture(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # PIL's own memory is not counted; numpy's and Python's is: the levels as bytes, twice while joined, and the result.
    assert peak < (2 * levels.itemsize + 8) * levels.size
    expected = np.floor(levels.astype(np.float64) / 65535 * 255 + 0.5)
    assert (np.asarray(picture)[..., 0] == expected).all()


def test_grey_that_is_no_number_is_black_and_endless_is_white() -> None:
    levels = np.array([[np.nan, np.inf, -np.inf, 65535 / 2]], dtype=np.float32)
    picture = open_picture(encoded(Image.fromarray(levels), "TIFF"))
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 255, 0, 128]  # type: ignore[index]


def test_grey_and_bilevel() -> None:
    assert open_picture(encoded(Image.new("L", (3, 3), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert open_picture(encoded(Image.new("1", (3, 3), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in (GREEN, RED, BLUE)]
    picture = open_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert picture.getpixel((3, 3)) == GREEN


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (7, 7), (3000, 2)])
def test_size_crops_the_centre(shape: tuple[int, int]) -> None:
    """Colours at the far ends are cropped away, the middle stays, whatever the shape."""
    picture = Image.new("RGB", shape, GREEN)
    side = min(shape)
    left, top = (shape[0] - side) // 2, (shape[1] - side) // 2
    if shape[0] > shape[1]:
        picture.paste(RED, (0, 0, left, shape[1]))
    elif shape[1] > shape[0]:
        picture.paste(RED, (0, 0, shape[0], top))
    cropped = open_picture(encoded(picture), size=16)
    assert cropped.size == (16, 16)
    assert near(cropped, (8, 8), GREEN) and near(cropped, (15, 15), GREEN)


@pytest.mark.parametrize("size", [0, -3])
def test_size_must_be_positive(size: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        open_picture(encoded(halves()), size=size)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    """A few hundred bytes must not take gigabytes of memory."""
    assert side * side > MAX_PIXELS
    with pytest.raises(DataError, match="scale it down"):
        open_picture(png_that_claims(side, side))


def test_whoever_opens_what_strangers_send_can_bound_it() -> None:
    """A server names the formats and the pixels that it bears; nothing else is even tried."""
    picture = halves()
    assert open_picture(encoded(picture), kinds=("PNG",), max_pixels=800).size == (40, 20)
    with pytest.raises(Refused) as other:
        open_picture(encoded(picture, "GIF"), kinds=("PNG",))
    assert other.value.reason == "not a picture"
    with pytest.raises(Refused, match="40 x 20 pixels, more than the 799 that are opened") as large:
        open_picture(encoded(picture), max_pixels=799)
    assert large.value.reason == "too large"


@pytest.mark.filterwarnings("error")
def test_odd_metadata_is_no_news() -> None:
    """PIL warns of each such file; in a log of millions of pictures, or of requests, that hides the rest."""
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    data = encoded(halves(), "JPEG", exif=exif)
    at = data.index(b"Exif\0\0") + 14
    assert open_picture(data[:at] + b"\xff" + data[at + 1 :]).size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(DataError) as caught:
        open_picture(data[: int(len(data) * share)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"this is a text", b"<svg></svg>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_files_that_are_no_picture_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "holiday.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"holiday\.png is (not a picture|damaged)") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="is a folder"):
        open_picture(tmp_path)


def test_tensor_and_back_is_exact_for_every_level() -> None:
    """A picture that goes in and comes out unchanged must not be brighter or darker by a level."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=-1))
    image_3YX = to_tensor(picture)
    assert image_3YX.dtype == torch.float32 and image_3YX.shape == (3, 16, 16)
    assert image_3YX.min() == 0 and image_3YX.max() == 1
    assert to_pil(image_3YX[None])[0].tobytes() == picture.tobytes()


def test_values_outside_the_range_are_clamped_and_halves_rounded_up() -> None:
    values = torch.tensor([-5.0, 0.0, 0.5 / 255, 0.49 / 255, 1.0, 7.0, float("nan"), float("inf")])
    picture = to_pil(values.expand(1, 3, 1, 8))[0]
    red = [picture.getpixel((x, 0))[0] for x in range(8)]  # type: ignore[index]
    assert red == [0, 0, 1, 0, 255, 255, 0, 255]


def test_lab_pictures_come_out_in_their_colours() -> None:
    """PIL has no direct way from LAB to RGB and would refuse a print designer's file."""
    lab = Image.new("LAB", (4, 4), (136, 208, 195))  # lightness 53, a 80, b 67: red
    assert near(open_picture(encoded(lab, "TIFF")), (1, 1), RED)


def test_sixteen_bit_colour_and_palettes_of_every_depth() -> None:
    """Two, four or sixteen colours, and 16 bits a channel, as scanners and pixel artists write them."""
    for colours in (2, 4, 16, 256):
        palette = halves().quantize(colours)
        assert near(open_picture(encoded(palette)), (5, 10), RED) and near(
            open_picture(encoded(palette)), (35, 10), BLUE
        )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    wide = b"\0" + struct.pack(">6H", 65535, 0, 32768, 0, 65535, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(wide)) + chunk(b"IEND", b"")
    picture = open_picture(data)
    assert picture.getpixel((0, 0)) == (255, 0, 128) and picture.getpixel((1, 0)) == (0, 255, 0)


def test_the_head_of_a_file_says_how_the_picture_is_looked_at() -> None:
    """Filters by size and shape see a phone's upright photo as upright, and decode nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = look_at(encoded(halves(), "JPEG", exif=exif))
    assert (facts.width, facts.height, facts.kind, facts.mode, facts.num_frames) == (20, 40, "JPEG", "RGB", 1)
    frames = [Image.new("RGB", (6, 6), colour) for colour in (GREEN, RED, BLUE)]
    assert look_at(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).num_frames == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a picture"),
        (b"plain text", "not a picture"),
        (encoded(halves())[:60], "damaged"),
        (png_that_claims(60_000, 60_000), "too large"),
        (Path("nowhere.png"), "missing"),
    ],
)
def test_refusals_have_a_short_reason(data: bytes | Path, reason: str) -> None:
    """Thousands of broken files are counted by it."""
    with pytest.raises(Refused) as caught:
        open_picture(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("across", "colour"), [(0.0, RED), (1.0, BLUE)])
def test_crops_lie_where_they_are_asked_for(across: float, colour: tuple[int, int, int]) -> None:
    # The last column sees a little of what lies behind the cut, as in a picture that is cropped after resizing.
    picture = resize_and_crop(halves(), 8, (across, 0.5))
    assert all(near(picture, (x, 4), colour, tolerance=20) for x in range(8))
    upright = resize_and_crop(halves().transpose(Image.Transpose.ROTATE_270), 8, (0.5, across))
    assert all(near(upright, (4, y), colour, tolerance=20) for y in range(8))


def test_making_a_picture_smaller_averages_it() -> None:
    """Without antialiasing a fine pattern would turn into another one, and training would learn that."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_and_crop(Image.fromarray(stripes), 8))
    # At the border the filter sees less of one kind of stripe.
    assert abs(small.astype(int) - 127).max() <= 6
