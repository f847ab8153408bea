"""Captions are what the model learns to read and write: a wrong name here is a wrong word for every user."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowtok.data.captions import (
    canonical_caption,
    caption_variants,
    clean_name,
    count_skin_tones,
    slug_name,
    with_article,
    without_skin_tone,
)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("flag: France", "flag of france"),
        ("flag: United States", "flag of the united states"),
        ("flag: Côte d’Ivoire", "flag of cote d'ivoire"),
        ("flag: St. Vincent & Grenadines", "flag of st. vincent and grenadines"),
        ("man: red hair", "man with red hair"),
        ("man: dark skin tone, red hair", "man with red hair, dark skin tone"),
        ("woman: light skin tone, bald", "bald woman with light skin tone"),
        ("waving hand: medium-light skin tone", "waving hand with medium-light skin tone"),
        ("person walking: facing right, medium skin tone", "person walking facing right with medium skin tone"),
        ("kiss: man, man", "kiss of man and man"),
        ("family: man, woman, girl, boy", "family of man, woman, girl and boy"),
        ("keycap: #", "keycap hash"),
        ("keycap: 7", "keycap 7"),
        ("Japanese “here” button", "japanese here button"),
        ("A button (blood type)", "a button blood type"),
        ("piñata", "pinata"),
    ],
)
def test_labels_become_plain_names(label: str, name: str) -> None:
    """CLDR punctuation and accents in a caption would never match what people type."""
    assert clean_name(label) == name


@given(st.text(max_size=60) | st.text("aB:,()& “”é#*", max_size=20))
def test_cleaning_any_text_twice_changes_nothing(text: str) -> None:
    """If it did, the same concept could have two names and a held-out one could be trained on."""
    once = clean_name(text)
    assert clean_name(once) == once


def test_slugs_become_words_with_their_skin_tone() -> None:
    assert slug_name("partly-cloudy_day") == "partly cloudy day"
    assert slug_name("thumb-sign-medium-dark-skin-tone") == "thumb sign with medium-dark skin tone"


@pytest.mark.parametrize(
    ("label", "concept", "tones"),
    [
        ("waving hand: dark skin tone", "waving hand", 1),
        ("man: dark skin tone, red hair", "man with red hair", 1),
        ("kiss: man, man, light skin tone, medium-dark skin tone", "kiss of man and man", 2),
        ("handshake: light skin tone, dark skin tone", "handshake", 2),
        ("red heart", "red heart", 0),
    ],
)
def test_a_skin_tone_is_not_a_new_concept(label: str, concept: str, tones: int) -> None:
    """Otherwise a held-out hand would be trained on in five other tones."""
    name = clean_name(label)
    assert without_skin_tone(name) == concept
    assert count_skin_tones(name) == tones


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"),
        ("apple", "an apple"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("euro banknote", "a euro banknote"),
        ("grapes", "grapes"),
        ("two hearts", "two hearts"),
        ("octopus", "an octopus"),
        ("wine glass", "a wine glass"),
        ("flag of the philippines", "a flag of the philippines"),
        ("1st place medal", "1st place medal"),
    ],
)
def test_articles(name: str, expected: str) -> None:
    assert with_article(name) == expected


def test_variants_begin_with_the_caption_of_record_and_repeat_nothing() -> None:
    """Evaluation prompts with the first caption; a repeated one would be drawn twice as often in training."""
    captions = caption_variants(
        "red heart", "noto", ["Love", "heart", "emotion", "like", "valentine"], random.Random(3)
    )
    assert captions[0] == canonical_caption("red heart", "noto") == "red heart, in noto style"
    assert "a red heart" in captions
    assert len(set(captions)) == len(captions)
    assert captions == caption_variants(
        "red heart", "noto", ["Love", "heart", "emotion", "like", "valentine"], random.Random(3)
    )
    keyworded = next(caption for caption in captions if caption.startswith("red heart: "))
    chosen = keyworded.removeprefix("red heart: ").split(", ")
    # "heart" is left out: the name says it already.
    others = {"love", "emotion", "like", "valentine"}
    assert len(chosen) == 3 and set(chosen) <= others
    # People may say what a thing is about and not what it is called.
    *words, style = [*captions[-2].split(), captions[-1]]
    assert len(words) == 2 and set(words) <= others
    assert style.endswith(", in noto style") and set(style.removesuffix(", in noto style").split()) < others


def test_one_keyword_alone_says_too_little_for_a_caption() -> None:
    captions = caption_variants("fox", "noto", ["animal"], random.Random(0))
    assert all("fox" in caption for caption in captions)


def test_variants_without_keywords() -> None:
    captions = caption_variants("gallery", "flat color", [], random.Random(0))
    assert captions[0] == "gallery, in flat color style"
    assert all("gallery" in caption and ":" not in caption for caption in captions)
