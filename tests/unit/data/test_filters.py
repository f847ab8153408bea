"""The paper's filters take what the paper takes, and the recaption is read as often as asked."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_datasets import picture

from flowtok.config import apply_overrides
from flowtok.data.filters import (
    PAPER_FILTERS,
    PAPER_FINE_FILTERS,
    CaptionChoiceConfig,
    FilterConfig,
    choose_caption,
    tidy_recaption,
    why_not,
)
from flowtok.data.refusals import Refused
from flowtok.data.samples import Sample


def sample(encoded: Path | bytes = b"", **metadata: Any) -> Sample:
    return Sample(key="k", encoded=encoded, captions=("plain", "other"), recaption="long", metadata=metadata)


GOOD = {"original_width": 512, "original_height": 256, "aesthetic": 5.5, "pwatermark": 0.5}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"original_width": 256, "original_height": 128}, None),
        ({"original_width": 255, "original_height": 255}, "longer side below 256 px"),
        ({"original_width": 513}, "more than 2 times as long as wide"),
        ({"original_width": 100, "original_height": 400}, "more than 2 times as long as wide"),
        ({"aesthetic": 5.0}, "aesthetic score not above 5"),
        ({"aesthetic": None}, "no aesthetic score"),
        ({"aesthetic": float("nan")}, "no aesthetic score"),
        ({"aesthetic": "6.2"}, None),
        ({"pwatermark": 0.51}, "watermark probability above 0.5"),
        ({"pwatermark": None}, "no watermark probability"),
    ],
)
def test_the_papers_filters_at_their_edges(changes: dict[str, Any], reason: str | None) -> None:
    assert why_not(sample(**{**GOOD, **changes}), PAPER_FILTERS) == reason


def test_later_stages_want_finer_pictures() -> None:
    assert why_not(sample(**GOOD), PAPER_FINE_FILTERS) == "aesthetic score not above 6"
    assert why_not(sample(**{**GOOD, "aesthetic": 6.1}), PAPER_FINE_FILTERS) is None


def test_names_of_scores_as_data_sets_have_them() -> None:
    """LAION writes them in capitals; others call them as they like."""
    metadata = {"WIDTH": 300, "HEIGHT": 300, "AESTHETIC_SCORE": 7, "watermark_score": 0.1}
    assert why_not(sample(**metadata), PAPER_FILTERS) is None
    mine = replace(PAPER_FILTERS, aesthetic_fields=("beauty",))
    assert why_not(sample(**metadata), mine) == "no aesthetic score"
    assert why_not(sample(**metadata, beauty=5.1), mine) is None


def test_the_original_size_counts_and_the_file_is_looked_at_without_one() -> None:
    """img2dataset makes pictures smaller: what it keeps says nothing about what they were."""
    rule = FilterConfig(min_longer_side=256)
    assert why_not(sample(original_width=1000, original_height=900, width=64, height=64), rule) is None
    assert why_not(sample(picture(size=(300, 20))), rule) is None
    assert why_not(sample(picture(size=(30, 20))), rule) == "longer side below 256 px"
    with pytest.raises(Refused):
        why_not(sample(b"no picture"), rule)


def test_without_rules_nothing_is_looked_at() -> None:
    assert why_not(sample(b"no picture"), FilterConfig()) is None


@pytest.mark.parametrize(
    "wrong",
    [{"max_aspect": 0.5}, {"min_longer_side": 0}, {"watermark_at_most": 2.0}, {"aesthetic_above": float("nan")}],
)
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not"):
        FilterConfig(**wrong)


def test_filters_are_set_from_the_command_line() -> None:
    assert apply_overrides(FilterConfig(), ["aesthetic_above=6.0", "min_longer_side=256"]) == FilterConfig(
        aesthetic_above=6.0, min_longer_side=256
    )


@pytest.mark.parametrize("share", [0.0, 0.95, 1.0])
def test_the_recaption_is_read_as_often_as_asked(share: float) -> None:
    generator, config = random.Random(0), CaptionChoiceConfig(recaption_share=share)
    came = Counter(choose_caption(sample(), config, generator) for _ in range(4000))
    # Four standard deviations of 4000 draws are at most 0.032.
    assert abs(came["Long" if "Long" in came else "long"] / 4000 - share) < 0.032
    if share < 1:
        assert abs(came["plain"] - came["other"]) < 0.3 * (came["plain"] + came["other"]) + 20
    only = replace(sample(), recaption=None)
    assert {choose_caption(only, config, generator) for _ in range(50)} == {"plain", "other"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (" The image depicts a red\n house. ", "A red house."),
        ("The image showcases Ökologie", "Ökologie"),
        ("The image shows", "The image shows"),
        ("The image is red", "The image is red"),
        ("the image shows a cat", "the image shows a cat"),
        ("A cat. The image shows it.", "A cat. The image shows it."),
    ],
)
def test_the_recaptions_opening_words_go(written: str, read: str) -> None:
    assert tidy_recaption(written) == read
