"""Which samples are trained on, by size, shape and scores, and which of their captions is read.

Knows samples and no file layout; a sample that a filter leaves out is counted apart from what is refused.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flowtok.data.samples import Sample, field_of

_WIDTHS = ("original_width", "width", "image_width")
_HEIGHTS = ("original_height", "height", "image_height")
_OPENING = re.compile(r"The image (?:depicts|displays|showcases|features|shows)\s+")


# The fields of FilterConfig that leave pictures out; None in all of them takes every picture.
RULES = ("min_longer_side", "max_aspect", "aesthetic_above", "watermark_at_most")


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What a picture must be to be used; None leaves a rule out.

    Sizes are those of the original as the metadata gives them, else of the file. Scores come from the metadata.

    Attributes:
        min_longer_side: Fewest pixels of the longer side.
        max_aspect: Largest ratio of the longer side to the shorter.
        aesthetic_above: The aesthetic score must be greater than this.
        watermark_at_most: Largest probability of a watermark.
        without_score: What becomes of pictures without a score that a rule asks for: they are `left_out` or `taken`.
        aesthetic_fields: Names of the score, the first that is there counts; any case of letters.
        watermark_fields: Names of the probability.
    """

    min_longer_side: int | None = None
    max_aspect: float | None = None
    aesthetic_above: float | None = None
    watermark_at_most: float | None = None
    without_score: Literal["left_out", "taken"] = "left_out"
    aesthetic_fields: tuple[str, ...] = ("aesthetic_score", "aesthetic")
    watermark_fields: tuple[str, ...] = ("pwatermark", "watermark", "watermark_score")

    def __post_init__(self) -> None:
        if self.min_longer_side is not None and self.min_longer_side < 1:
            raise ValueError(f"min_longer_side must be at least 1, not {self.min_longer_side}")
        if self.max_aspect is not None and not self.max_aspect >= 1.0:
            raise ValueError(f"max_aspect is the longer side over the shorter, at least 1, not {self.max_aspect}")
        if self.watermark_at_most is not None and not 0.0 <= self.watermark_at_most <= 1.0:
            raise ValueError(f"watermark_at_most is a probability from 0 to 1, not {self.watermark_at_most}")
        if self.aesthetic_above is not None and not math.isfinite(self.aesthetic_above):
            raise ValueError(f"aesthetic_above must be a finite number, not {self.aesthetic_above}")


# The paper's: for the first stage, and for the later ones that train on finer pictures. To these it adds synthetic
# pictures that it does not filter; they have no scores.
PAPER_FILTERS = FilterConfig(min_longer_side=256, max_aspect=2.0, aesthetic_above=5.0, watermark_at_most=0.5)
PAPER_FINE_FILTERS = replace(PAPER_FILTERS, aesthetic_above=6.0, without_score="taken")


def why_not(sample: Sample, config: FilterConfig) -> str | None:
    """Why a sample is left out, or None if it is wanted. Nothing is decoded, at most the head of the file is read.

    Raises:
        Refused: The size is needed and stands neither in the metadata nor in a readable file.
    """
    if config.min_longer_side is not None or config.max_aspect is not None:
        width, height = _size_of(sample)
        longer, shorter = max(width, height), min(width, height)
        if config.min_longer_side is not None and longer < config.min_longer_side:
            return f"longer side below {config.min_longer_side} px"
        if config.max_aspect is not None and longer > config.max_aspect * shorter:
            return f"more than {config.max_aspect:g} times as long as wide"
    if config.aesthetic_above is not None:
        score = _number(sample.metadata, config.aesthetic_fields)
        if score is None and config.without_score == "left_out":
            return "no aesthetic score"
        if score is not None and not score > config.aesthetic_above:
            return f"aesthetic score not above {config.aesthetic_above:g}"
    if config.watermark_at_most is not None:
        probability = _number(sample.metadata, config.watermark_fields)
        if probability is None and config.without_score == "left_out":
            return "no watermark probability"
        if probability is not None and probability > config.watermark_at_most:
            return f"watermark probability above {config.watermark_at_most:g}"
    return None


def _size_of(sample: Sample) -> tuple[float, float]:
    width, height = _number(sample.metadata, _WIDTHS), _number(sample.metadata, _HEIGHTS)
    if width and height and min(width, height) > 0:
        return width, height
    facts = sample.look()
    return facts.width, facts.height


def _number(metadata: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The first of the named fields that holds a finite number."""
    for name in names:
        try:
            number = float(field_of(metadata, None, (name,)))
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            return number
    return None


@dataclass(frozen=True, kw_only=True)
class CaptionChoiceConfig:
    """Which caption is read where there are several.

    Attributes:
        recaption_share: How often the recaption is read, where there is one; otherwise one of the captions, any.
    """

    recaption_share: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 <= self.recaption_share <= 1.0:
            raise ValueError(f"recaption_share must lie in [0, 1], not {self.recaption_share}")


def tidy_recaption(text: str) -> str:
    """A model's caption without its opening words "The image depicts ..." and the like, starting with a capital.

    Source: the authors' release.
    """
    text = " ".join(text.split())
    rest = _OPENING.sub("", text, count=1) if _OPENING.match(text) else ""
    return rest[0].upper() + rest[1:] if rest else text


def choose_caption(sample: Sample, config: CaptionChoiceConfig, generator: random.Random) -> str:
    """One caption of the sample; the same state of the generator gives the same one."""
    draw = generator.random()
    if sample.recaption is not None and draw < config.recaption_share:
        return tidy_recaption(sample.recaption)
    return generator.choice(sample.captions)
