"""What a data set holds, before anyone trains on it: counts, sizes, captions, refusals and some pictures to look at.

Every picture is decoded, as training would. Knows no output; `flowtok data stats` prints what is found here.
"""

import hashlib
import heapq
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flowtok.data.admission import PICTURES, is_common, row_of, split_by_key
from flowtok.data.collect import CollectConfig
from flowtok.data.epochs import EpochConfig, Reader, Walk
from flowtok.data.filters import why_not
from flowtok.data.images import resize_and_crop
from flowtok.data.refusals import Refusal, Refused, Tally
from flowtok.data.samples import Sample, Source
from flowtok.errors import DataError

_THUMBNAIL = 96
_REPORT_EVERY = 64


@dataclass(kw_only=True)
class Survey:
    """What was found; two surveys of different samples add up.

    Attributes:
        tally: How many samples were used, left out and refused.
        sizes: How often each (width, height) comes.
        kinds: File formats.
        modes: PIL modes.
        animated: Pictures with more than one frame.
        captions_per_picture: How many captions pictures have.
        words: How many words captions have.
        recaptions: Pictures with a recaption.
        splits: How the split rule divides them, but for held-out captions.
        held_out: How often each held-out caption comes with pictures of each split that their keys alone give.
        captions: Digests of the different captions.
        thumbnails: Small pictures with their captions under the checksum of their key; the smallest are kept.
    """

    tally: Tally = field(default_factory=Tally)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    animated: int = 0
    captions_per_picture: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    recaptions: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    held_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    captions: set[bytes] = field(default_factory=set)
    thumbnails: dict[tuple[int, str], tuple[np.ndarray, str]] = field(default_factory=dict)

    def add(self, other: "Survey", num_thumbnails: int) -> None:
        """Takes over what another found."""
        self.tally.add(other.tally)
        self.sizes += other.sizes
        self.kinds += other.kinds
        self.modes += other.modes
        self.animated += other.animated
        self.captions_per_picture += other.captions_per_picture
        self.words += other.words
        self.recaptions += other.recaptions
        self.splits += other.splits
        self.held_out += other.held_out
        self.captions |= other.captions
        both = self.thumbnails | other.thumbnails
        self.thumbnails = {key: both[key] for key in heapq.nsmallest(num_thumbnails, both)}

    def summary(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data."""
        tally = self.tally
        return {
            "samples": tally.seen,
            "pictures": tally.used,
            "left_out": dict(tally.left_out.most_common()),
            "refused": dict(tally.refused.most_common()),
            "refused_share": round(tally.num_refused / tally.seen, 6) if tally.seen else 0.0,
            "refused_examples": {
                reason: [f"{one.key}: {one.detail}" if one.detail else one.key for one in examples]
                for reason, examples in tally.examples.items()
            },
            "width": _spread(Counter(width for width, _ in self.sizes.elements())),
            "height": _spread(Counter(height for _, height in self.sizes.elements())),
            "shorter_side": _spread(Counter(min(size) for size in self.sizes.elements())),
            "square": sum(count for (width, height), count in self.sizes.items() if width == height),
            "formats": dict(self.kinds.most_common()),
            "modes": dict(self.modes.most_common()),
            "animated": self.animated,
            "captions": sum(number * count for number, count in self.captions_per_picture.items()),
            "different_captions": len(self.captions),
            "captions_per_picture": _spread(self.captions_per_picture),
            "words_per_caption": _spread(self.words),
            "recaptions": self.recaptions,
            "splits": dict(self._all_splits().most_common()),
        }

    def _all_splits(self) -> Counter[str]:
        """How many pictures each split has: common captions are not held out (`with_common_captions`)."""
        counts = Counter[str]()
        for (concept, _), count in self.held_out.items():
            counts[concept] += count
        splits = self.splits.copy()
        for (concept, by_key), count in self.held_out.items():
            splits[by_key if is_common(counts[concept], self.tally.used) else "unseen_concept"] += count
        return splits

    def pictures(self) -> list[tuple[Image.Image, str]]:
        """The kept pictures with their captions, always the same ones of the same data."""
        return [(Image.fromarray(pixels_YX3), caption) for _, (pixels_YX3, caption) in sorted(self.thumbnails.items())]


def _spread(values: Counter[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": statistics.median(values.elements()), "max": max(values)}


def survey(
    source: Source,
    config: CollectConfig | None = None,
    *,
    num_workers: int = 0,
    num_thumbnails: int = 40,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Survey:
    """Looks at every sample of a source, or at the first ones.

    Args:
        source: The samples.
        config: Which of them would be taken.
        num_workers: Processes that read; 0 reads in this one. What is found does not depend on it.
        num_thumbnails: Pictures to keep.
        limit: Samples to look at, all if None; a limit needs num_workers to be 0 or 1.
        progress: Called with the number of samples seen, and of all if that is known.

    Raises:
        DataError: A limit was given with several workers.
    """
    if limit is not None and (num_workers > 1 or limit < 1):
        raise DataError(f"a limit must be at least 1 and needs one worker, not limit {limit} and {num_workers} workers")
    found = Survey()
    looking = _Looking(source, config or CollectConfig(), max(1, num_workers), num_thumbnails, limit)
    for part in DataLoader(looking, batch_size=None, num_workers=num_workers):
        if isinstance(part, str):
            raise DataError(part)
        found.add(part, num_thumbnails)
        if progress is not None:
            progress(found.tally.seen, limit or source.num_samples)
    return found


class _Looking(IterableDataset[Survey | str]):
    """What runs in the workers: surveys of some samples each, or an error in words."""

    def __init__(
        self, source: Source, config: CollectConfig, num_workers: int, num_thumbnails: int, limit: int | None
    ) -> None:
        super().__init__()
        self.source, self.config, self.num_workers = source, config, num_workers
        self.num_thumbnails, self.limit = num_thumbnails, limit

    def __iter__(self) -> Iterator[Survey | str]:
        info = get_worker_info()
        reader = Reader(worker=info.id if info else 0, num_workers=self.num_workers)
        try:
            part = Survey()
            walk = iter(Walk(self.source, EpochConfig(num_epochs=1, shuffle_buffer=0), reader))
            for _, item in islice(walk, self.limit):
                self._look(item, part)
                if part.tally.seen >= _REPORT_EVERY:
                    yield part
                    part = Survey()
            yield part
        except DataError as error:
            yield str(error)

    def _look(self, item: Sample | Refusal, part: Survey) -> None:
        if isinstance(item, Refusal):
            part.tally.refuse(item)
            return
        try:
            unwanted = why_not(item, self.config.filters)
            if unwanted is not None:
                part.tally.leave_out(unwanted)
                return
            facts, picture = item.look(), item.open(self.config.background)
        except Refused as refused:
            part.tally.refuse(Refusal(key=item.key, reason=refused.reason))
            return
        part.tally.use()
        part.sizes[facts.width, facts.height] += 1
        part.kinds[facts.kind] += 1
        part.modes[facts.mode] += 1
        part.animated += facts.num_frames > 1
        part.captions_per_picture[len(item.captions)] += 1
        part.recaptions += item.recaption is not None
        for caption in item.captions:
            part.words[len(caption.split())] += 1
            part.captions.add(hashlib.blake2b(caption.encode(), digest_size=8).digest())
        row = row_of(item, self.source.name, self.config.captions)
        if row.split == "unseen_concept" and row.group == PICTURES:
            part.held_out[row.concept, split_by_key(row.file_name)] += 1
        else:
            part.splits[row.split] += 1
        order = (zlib.crc32(item.key.encode()), item.key)
        if len(part.thumbnails) < self.num_thumbnails or order < max(part.thumbnails):
            part.thumbnails[order] = (np.asarray(resize_and_crop(picture, _THUMBNAIL)), row.text)
            if len(part.thumbnails) > self.num_thumbnails:
                del part.thumbnails[max(part.thumbnails)]
