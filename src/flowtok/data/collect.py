"""Any source as one tensor of pictures with a row of words for each: data that fits into memory.

What does not is read by streams.py. The emoji set's folder is opened as it was built (captioned.py), with its splits.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowtok.data.captioned import SPLITS, EmojiSet, Row, load, read_rows
from flowtok.data.epochs import EpochConfig, Walk
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig, tidy_recaption, why_not
from flowtok.data.images import Background, look_at, resize_and_crop
from flowtok.data.refusals import Refusal, Refused, Tally
from flowtok.data.samples import FieldsConfig, Sample, Source
from flowtok.data.sources import open_source
from flowtok.data.streams import as_bytes, reasons
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
        if not 0.0 <= self.max_refused <= 1.0:
            raise ValueError(f"max_refused must lie in [0, 1], not {self.max_refused}")


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
        used = _used(item, size, config, tally)
        if used is not None:
            rows.append(row_of(used[0], source.name, config.captions))
            pictures.append(used[1])
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
        raise DataError(f"no picture of {source.name} is left: {'; '.join(reasons(tally)) or 'it is empty'}")
    return Collected(pictures=EmojiSet(images_N3YX=torch.from_numpy(np.stack(pictures)), rows=tuple(rows)), tally=tally)


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


def _used(item: Sample | Refusal, size: int, config: CollectConfig, tally: Tally) -> tuple[Sample, np.ndarray] | None:
    """A sample and its picture, (3, size, size); None if it is not used, and the tally knows why."""
    if isinstance(item, Refusal):
        tally.refuse(item)
        return None
    try:
        unwanted = why_not(item, config.filters)
        if unwanted is not None:
            tally.leave_out(unwanted)
            return None
        picture = resize_and_crop(item.open(config.background), size)
    except Refused as refused:
        tally.refuse(Refusal(key=item.key, reason=refused.reason))
        return None
    tally.use()
    return item, as_bytes(picture).numpy()


_ROW_FIELDS = {one.name for one in fields(Row)}


def row_of(sample: Sample, set_name: str, captions: CaptionChoiceConfig) -> Row:
    """What is known of a sample in words; a line that the emoji set's builder wrote is taken as it is."""
    record = sample.metadata
    if record.keys() >= _ROW_FIELDS and record["split"] in SPLITS:
        own = {name: record[name] for name in _ROW_FIELDS}
        return Row(**{**own, "texts": tuple(own["texts"])})
    texts = sample.captions
    if sample.recaption is not None:
        written = (tidy_recaption(sample.recaption),)
        others = tuple(text for text in texts if text != sample.recaption)
        texts = (*written, *others) if captions.recaption_share >= 0.5 else (*others, *written)
    concept = texts[0].lower()
    return Row(
        file_name=sample.key,
        text=texts[0],
        texts=texts,
        name=texts[0],
        concept=concept,
        style="",
        set=set_name,
        group="pictures",
        split=split_of_sample(sample.key, concept),
        variant="",
        weight=1.0,
        license=_licence(record),
    )


def split_of_sample(key: str, concept: str) -> str:
    """The split of any source's sample, by the rule of the emoji set with the key in the place of the set and name.

    A caption with crc32(caption) % 20 == 0 is in no training; of the other samples, crc32(key) % 20 == 0 is for
    validation, so that two pictures of the same caption may stand on both sides.
    """
    if zlib.crc32(concept.encode()) % 20 == 0:
        return "unseen_concept"
    return "validation" if zlib.crc32(key.encode()) % 20 == 0 else "train"


def _licence(record: Mapping[str, Any]) -> str:
    value = record.get("license") or record.get("licence") or ""
    return value if isinstance(value, str) else str(value)
