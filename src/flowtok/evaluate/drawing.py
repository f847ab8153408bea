"""Pictures drawn for a measurement and kept in a folder: what is there is verified and kept, the rest is drawn.

Several ranks share the work; a picture depends on its prompt and seed alone, so their number changes nothing. Knows
what draws only as a function; what is drawn for which task stands in the modules of the tasks.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowtok.errors import DataError, FlowTokError
from flowtok.files import write_file_atomically

STORY_FILE = "drawn.json"
_MARK = "flowtok-measured"
_END = b"IEND\xaeB`\x82"  # the last part of a PNG with its checksum

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Draws a picture for each prompt and seed."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is this process's.

    Attributes:
        rank: This process among all.
        num_ranks: How many there are.
        gather: Hands plain data of every rank to all, and so waits for all.
    """

    rank: int = 0
    num_ranks: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    @property
    def is_main(self) -> bool:
        """Whether this process measures what all have drawn."""
        return self.rank == 0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A picture that a measurement needs.

    Attributes:
        prompt: What it is drawn of.
        seed: What it is drawn with.
        name: Its file in the folder, ending in .png.
    """

    prompt: str
    seed: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a drawing took.

    Attributes:
        kept: Pictures that were there and are as they must be.
        made: Pictures that were drawn now.
        spoilt: Of these, how many lay there damaged or drawn under other conditions.
        seconds: From the first picture to the last one of the slowest rank.
        num_ranks: How many processes shared it.
    """

    kept: int
    made: int
    spoilt: int
    seconds: float
    num_ranks: int

    @property
    def images_per_second(self) -> float:
        """Pictures drawn in a second by all ranks together; 0 where none was."""
        return self.made / self.seconds if self.made else 0.0

    def __str__(self) -> str:
        said = [f"{self.kept:,} kept"] if self.kept else []
        if self.spoilt:
            said.append(f"{self.spoilt:,} damaged or drawn otherwise, drawn again")
        if self.made:
            ranks = f" on {self.num_ranks} ranks" if self.num_ranks > 1 else ""
            said.append(f"{self.made:,} drawn in {self.seconds:.1f} s{ranks}: {self.images_per_second:.2f} images/s")
        return "; ".join(said) or "nothing to draw"


def fingerprint(conditions: Mapping[str, Any]) -> str:
    """What pictures of the same model, drawn in the same way, have in common; SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(conditions, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def draw_into(
    folder: Path,
    wanted: Sequence[Wanted],
    draw: Draw,
    *,
    conditions: Mapping[str, Any],
    size: int,
    batch_size: int = 64,
    share: Share | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Drawn:
    """Makes sure that every wanted picture lies in a folder as it must be.

    A picture that is there is kept if it can be decoded, has the size, and was drawn of this prompt with this seed
    under these conditions, which stand in the file. Each rank looks at every num_ranks-th picture, and draws as many of
    the missing ones.

    Args:
        folder: Made if it is not there.
        wanted: All pictures of the measurement.
        draw: Draws some of them.
        conditions: All that a picture depends on besides its prompt and seed: the model's checksum, steps, guidance.
        size: Side in pixels.
        batch_size: Pictures that are drawn between two moments at which files are written.
        share: This process's part; all if None.
        progress: Called with the pictures that this rank has drawn, and all that it will.

    Raises:
        FlowTokError: A picture cannot be written, or another rank left some out.
    """
    share = share or Share()
    common = fingerprint(conditions)
    marks = [fingerprint({"all": common, "prompt": one.prompt, "seed": one.seed}) for one in wanted]
    _make(folder, {(folder / one.name).parent for one in wanted})
    looked = {
        number: _state_of(folder / wanted[number].name, marks[number], size)
        for number in range(share.rank, len(wanted), share.num_ranks)
    }
    # What is missing is shared out anew: after a rank that failed, all of them draw what it left.
    states = {number: state for found in share.gather(looked) for number, state in found.items()}
    missing = sorted(number for number, state in states.items() if state != "kept")
    own = missing[share.rank :: share.num_ranks]
    progress(0, len(own))
    start = time.perf_counter()
    for first in range(0, len(own), batch_size):
        part = own[first : first + batch_size]
        pictures = draw([wanted[k].prompt for k in part], [wanted[k].seed for k in part])
        for number, picture in zip(part, pictures, strict=True):
            assert picture.size == (size, size), (picture.size, size)
            _write(folder / wanted[number].name, picture, marks[number], wanted[number])
        progress(first + len(part), len(own))
    told = share.gather((len(own), time.perf_counter() - start))
    drawn = Drawn(
        kept=len(wanted) - len(missing),
        made=sum(made for made, _ in told),
        spoilt=sum(state == "spoilt" for state in states.values()),
        seconds=max(seconds for _, seconds in told),
        num_ranks=share.num_ranks,
    )
    if len(states) != len(wanted) or drawn.made != len(missing):
        raise FlowTokError(
            f"{folder}: of {len(missing)} pictures {drawn.made} were drawn; start the same command again"
        )
    if share.is_main and drawn.made:
        _tell(folder, conditions, wanted, drawn)
    return drawn


def open_drawn(path: Path) -> Image.Image:
    """A picture of such a folder, decoded.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); run the same command again to draw it") from error


def _state_of(path: Path, mark: str, size: int) -> str:
    """Whether a picture is kept, spoilt or missing."""
    if not path.exists():
        return "missing"
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()  # the checksum of every part: a file that was cut near its end may still be decoded
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            is_right = picture.info.get(_MARK) == mark and picture.size == (size, size) and content.endswith(_END)
            return "kept" if is_right else "spoilt"
    except (OSError, SyntaxError, ValueError):
        return "spoilt"


def _write(path: Path, picture: Image.Image, mark: str, one: Wanted) -> None:
    chunks = PngInfo()
    chunks.add_text(_MARK, mark)
    chunks.add_itxt("prompt", one.prompt)
    chunks.add_text("seed", str(one.seed))
    write_file_atomically(path, lambda file: picture.save(file, "PNG", pnginfo=chunks))


def _make(folder: Path, inside: set[Path]) -> None:
    try:
        for path in sorted({folder, *inside}):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowTokError(f"cannot make {folder}: {error.strerror or error}; choose another folder with -o") from error


def _tell(folder: Path, conditions: Mapping[str, Any], wanted: Sequence[Wanted], drawn: Drawn) -> None:
    """Leaves beside the pictures how they were drawn and how fast."""
    story = {
        "conditions": dict(conditions),
        "pictures": len(wanted),
        "drawn_at_last": drawn.made,
        "seconds": round(drawn.seconds, 3),
        "ranks": drawn.num_ranks,
        "images_per_second": round(drawn.images_per_second, 4),
    }
    write_file_atomically(folder / STORY_FILE, json.dumps(story, indent=2, ensure_ascii=False) + "\n")
