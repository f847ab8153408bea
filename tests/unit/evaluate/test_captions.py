"""Captions are scored as a reader would: the name, its words, the style; spaces and capitals do not matter."""

from __future__ import annotations

import pytest
import torch

from flowtok.evaluate import captions


@pytest.mark.parametrize(
    ("caption", "name", "style"),
    [
        ("smiling cat, in twemoji style", "smiling cat", "twemoji"),
        ("flag of france , in round flag style", "flag of france", "round flag"),
        ("man in suit levitating, in flat color style", "man in suit levitating", "flat color"),
        ("family, father and mother, in noto style", "family, father and mother", "noto"),
        ("Smiling Cat", "smiling cat", None),
        ("cat in the style", "cat in the style", None),
        ("", "", None),
    ],
)
def test_caption_falls_apart_into_name_and_style(caption: str, name: str, style: str | None) -> None:
    assert captions.split_caption(caption) == (name, style)


@pytest.mark.parametrize(
    ("written", "reference", "expected"),
    [
        ("smiling cat", "smiling cat", 1.0),
        ("cat smiling", "smiling cat", 1.0),  # a bag: order does not count
        ("smiling dog", "smiling cat", 0.5),
        ("cat", "smiling cat", 2 / 3),  # precision 1, recall 1/2
        ("cat cat cat", "cat", 0.5),  # precision 1/3, recall 1: repeating words is no way to score
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("heart - eyes !", "heart-eyes", 1.0),
        ("", "", 1.0),
    ],
)
def test_word_f1_by_hand(written: str, reference: str, expected: float) -> None:
    assert captions.word_f1(written, reference) == pytest.approx(expected)


def test_scores_of_four_captions_counted_by_hand() -> None:
    written = ["Smiling cat , in twemoji style", "red heart, in noto style", "blue heart, in noto style", "cat"]
    references = [
        "smiling cat, in twemoji style",
        "red heart, in twemoji style",
        "red heart, in noto style",
        "dog, in noto style",
    ]
    scores = captions.caption_scores(written, references)
    assert scores == {
        "exact_name": 50.0,
        "word_f1": pytest.approx(100 * (1 + 1 + 0.5 + 0) / 4),
        "exact_style": 50.0,
        "exact_caption": 25.0,
    }


def test_an_unknown_style_is_not_asked_for() -> None:
    """No model can name a style that it never saw; 0 % there would look like a failure."""
    scores = captions.caption_scores(["cat, in noto style"], ["cat, in noto v1 style"], known_style=False)
    assert scores == {"exact_name": 100.0, "word_f1": 100.0}


def test_unequal_or_no_captions_are_refused() -> None:
    """zip would cut the longer list and give a score for the rest."""
    for written, references in ((["a"], ["a", "b"]), ([], [])):
        with pytest.raises(ValueError, match="as many captions"):
            captions.caption_scores(written, references)


def test_nearest_is_by_angle_and_for_every_chunk() -> None:
    gallery_MD = torch.eye(4)
    query_ND = torch.tensor([[0.0, 9.0, 1.0, 0.0], [0.0, 0.0, 0.1, 0.0], [1.0, 0.5, 0.5, 0.9], [0.0, 0.0, 0.0, 2.0]])
    assert captions.nearest(query_ND, gallery_MD, chunk=3).tolist() == [1, 2, 0, 3]
