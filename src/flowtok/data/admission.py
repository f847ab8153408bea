"""Which samples are taken and what is known of them in words: refusals, filters, splits, rows.

Knows samples and no file layout. What is made of the pictures is in collect.py and streams.py.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from PIL import Image

from flowtok.data.captioned import SPLITS, Row
from flowtok.data.filters import CaptionChoiceConfig, FilterConfig, tidy_recaption, why_not
from flowtok.data.images import Background
from flowtok.data.refusals import Refusal, Refused, Tally
from flowtok.data.samples import Sample


def admitted(
    item: Sample | Refusal, filters: FilterConfig, background: Background, tally: Tally, *, left_out: str | None = None
) -> tuple[Sample, Image.Image] | None:
    """A sample with its picture, opened; None if it is not used, and the tally knows why.

    Args:
        item: What a source gives.
        filters: Which samples are taken.
        background: What shows through transparent pictures.
        tally: Counts it.
        left_out: Why the caller does not want a sample that the filters would take; None if it does.
    """
    if isinstance(item, Refusal):
        tally.refuse(item)
        return None
    try:
        unwanted = why_not(item, filters) or left_out
        if unwanted is not None:
            tally.leave_out(unwanted)
            return None
        picture = item.open(background)
    except Refused as refused:
        tally.refuse(Refusal(key=item.key, reason=refused.reason))
        return None
    tally.use()
    return item, picture


# A caption that more than this share of the pictures have is no rare thing to hold out.
COMMON_CAPTION = 0.05
PICTURES = "pictures"  # the group of all that no builder has put into one
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
        group=PICTURES,
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
    return "unseen_concept" if zlib.crc32(concept.encode()) % 20 == 0 else split_by_key(key)


def split_by_key(key: str) -> str:
    """The split of a picture whose caption is not held out."""
    return "validation" if zlib.crc32(key.encode()) % 20 == 0 else "train"


def is_common(count: int, num_pictures: int) -> bool:
    """Whether so many of all pictures share a caption that it is not held out: little might be left to learn."""
    return count > COMMON_CAPTION * num_pictures


def with_common_captions(rows: Sequence[Row]) -> tuple[Row, ...]:
    """All rows of a data set, of which those of common captions are split by their keys; a built set's stay."""
    counts = Counter(row.concept for row in rows)
    return tuple(
        replace(row, split=split_by_key(row.file_name))
        if row.group == PICTURES and is_common(counts[row.concept], len(rows))
        else row
        for row in rows
    )


def _licence(record: Mapping[str, Any]) -> str:
    value = record.get("license") or record.get("licence") or ""
    return value if isinstance(value, str) else str(value)
