"""Drawing SVG documents as small square pictures, one or many.

Knows neither names nor captions; `flowtok.data.emoji` says what is drawn. Needs resvg-py, from the extra flowtok[data].
"""

import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from flowtok.errors import DataError
from flowtok.files import write_file_atomically

# Against a drawing at 8 times the size, 64 px drawn at once are at 31 to 41 dB, drawn at 4 times and averaged at 45 to
# 56 dB. It also keeps clear of a panic of the renderer on filters in small drawings.
SUPERSAMPLING = 4

Job = tuple[str, int, Path]


def require_renderer() -> None:
    """Checks that resvg-py is installed.

    Raises:
        DataError: it is not.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise DataError("drawing icons needs resvg-py, which is not installed; run: pip install 'flowtok[data]'")


def render(svg: str, size: int) -> bytes | None:
    """Draws an SVG on white, centred in a square of `size` pixels, and returns it as a PNG.

    None stands for an icon that the renderer cannot draw, and for one that is all white.
    """
    import resvg_py

    large = size * SUPERSAMPLING
    box = re.search(r'viewBox="([^"]*)"', svg)
    if box is None:
        return None
    width, height = (float(number) for number in box[1].split()[2:])
    wide = width >= height
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg, skip_system_fonts=True, width=large if wide else None, height=None if wide else large
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a panic in the renderer is no Exception, and kills a worker if let through
        return None
    picture = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    canvas = Image.new("RGBA", (large, large), "white")
    canvas.alpha_composite(picture, (max(0, large - picture.width) // 2, max(0, large - picture.height) // 2))
    small = canvas.convert("RGB").reduce(SUPERSAMPLING)
    if small.getextrema() == ((255, 255),) * 3:
        return None
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw(job: Job) -> bool:
    """Draws (svg, size, path) into a file; False if there is nothing to draw."""
    svg, size, path = job
    data = render(svg, size)
    if data is not None:
        write_file_atomically(path, data)
    return data is not None


def draw_all(jobs: Sequence[Job], workers: int) -> Iterator[bool]:
    """Draws many with some processes; yields in order, for each job, whether a file was written.

    Raises:
        DataError: a process died, as it does when memory runs out.
    """
    if workers == 1 or len(jobs) < 64:
        yield from map(draw, jobs)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield from pool.map(draw, jobs, chunksize=16)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that draws pictures died; run again with one worker, what is drawn is kept"
        ) from error
