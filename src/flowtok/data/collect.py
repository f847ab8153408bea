"""Any source as one tensor of pictures with a row of words for each: data that fits into memory.

What does not is read by streams.py. The emoji set's folder is opened as it was built (captioned.py), with its splits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowtok.data.admission import admitted, row_of, with_common_captions
from flowtok.data.captioned import SPLITS, EmojiSet, load, read_rows
from flowtok.data.epochs import EpochConfig, Walk
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig
from flowtok.data.images import Background, look_at, resize_and_crop
from flowtok.data.refusals import Tally, check_share
from flowtok.data.samples import FieldsConfig, Source
from flowtok.data.sources import open_source
from flowtok.data.streams import as_bytes
from flowtok.errors import DataError

# More than this does not fit into the memory of an ordinary machine beside a training.
MAX_BYTES = 8_000_000_000


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Which pictures are taken and what they are made into.

    Attributes:
        fields: Names of columns, where they are not the usual ones.
        filters: Which samples are taken.
        captions: With a recaption_share of at least one half a picture's recaption is its caption of record, the
            first of its texts; below that it comes last.
        background: What shows through transparent pictures.
        max_refused: Share of refused samples, or of broken parts, beyond which reading stops.
    """

    fields: FieldsConfig = FieldsConfig()
    filters: FilterConfig = FilterConfig()
    captions: CaptionChoiceConfig = CaptionChoiceConfig()
    background: Background = (255, 255, 255)
    max_refused: float = 0.05

    def __post_init__(self) -> None:
        check_share(self.max_refused)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Pictures and rows, and what was used, left out and refused on the way."""

    pictures: EmojiSet
    tally: Tally

    def split(self, name: str) -> EmojiSet:
        """The pictures of one split."""
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}; choose from {', '.join(SPLITS)}")
        chosen = [number for number, row in enumerate(self.pictures.rows) if row.split == name]
        return EmojiSet(
            images_N3YX=self.pictures.images_N3YX[chosen], rows=tuple(self.pictures.rows[number] for number in chosen)
        )


def collect(
    place: str | Path | Source,
    size: int,
    config: CollectConfig | None = None,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> Collected:
    """Reads all of a source.

    Args:
        place: A source, or where one is; see `open_source`.
        size: Side of the pictures in pixels; the shorter side is resized to it and the centre cropped.
        config: Which pictures are taken.
        progress: Called with the number of samples seen, and of all if that is known.

    Returns:
        Pictures as uint8 in the order of the source, each with its row.

    Raises:
        DataError: Too much is refused, nothing is left, or it does not fit into memory.
    """
    config = config or CollectConfig()
    source = open_source(place, config.fields) if isinstance(place, str | Path) else place
    if size < 1:
        raise DataError(f"size must be at least 1 pixel, got {size}")
    tally, rows, pictures = Tally(), [], []
    for _, item in Walk(source, EpochConfig(num_epochs=1, shuffle_buffer=0)):
        used = admitted(item, config.filters, config.background, tally)
        if used is not None:
            rows.append(row_of(used[0], source.name, config.captions))
            pictures.append(as_bytes(resize_and_crop(used[1], size)).numpy())
        if len(rows) * 3 * size * size > MAX_BYTES:
            raise DataError(
                f"{source.name} holds more pictures of {size} px than fit into memory ({len(rows):,} are "
                f"{MAX_BYTES / 1e9:.0f} GB); take a smaller size or fewer pictures"
            )
        tally.check(config.max_refused, num_parts=len(source.parts), at_end=False)
        if progress is not None:
            progress(tally.seen, source.num_samples)
    tally.check(config.max_refused, num_parts=len(source.parts), at_end=True)
    if not rows:
        raise DataError(f"no picture of {source.name} is left: {'; '.join(tally.reasons()) or 'it is empty'}")
    images_N3YX = torch.from_numpy(np.stack(pictures))
    return Collected(pictures=EmojiSet(images_N3YX=images_N3YX, rows=with_common_captions(rows)), tally=tally)


def open_captioned(
    place: str | Path,
    size: int,
    config: CollectConfig | None = None,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> Collected:
    """Any captioned pictures as training takes them in: a built set as it is, anything else by `collect`.

    Arguments, result and errors are those of `collect`. A folder that `flowtok data emoji` built with pictures of this
    size is opened with its cache of decoded pictures, where nothing is asked for that would change them.
    """
    folder = Path(place)
    if (config is None or config == CollectConfig()) and _is_built(folder, size):
        pictures = load(folder)
        return Collected(pictures=pictures, tally=Tally(seen=len(pictures), used=len(pictures)))
    return collect(place, size, config, progress=progress)


def _is_built(folder: Path, size: int) -> bool:
    """Whether a folder is a set of the emoji set's builder, with pictures of this size."""
    if not (folder / "metadata.jsonl").is_file():
        return False
    try:
        first = read_rows(folder)[0]
        facts = look_at(folder / first.file_name)
    except DataError:  # other people's metadata.jsonl, or a damaged set, of which `collect` says what is wrong
        return False
    return (facts.width, facts.height) == (size, size)
