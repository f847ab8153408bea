"""Other words for what the emoji set shows."""

import re
import zlib

import pytest

from flowtok.data.descriptions import descriptions, descriptions_of
from flowtok.evaluate.prompt_lists import grid_prompts, paraphrases


def test_nothing_is_described_by_its_name_or_twice() -> None:
    """A description with the name in it teaches nothing that the name does not."""
    assert len(descriptions()) > 1000
    for concept, others in descriptions().items():
        assert others and len(set(others)) == len(others), concept
        for words in others:
            assert re.fullmatch(r"[a-z0-9 ,'-]+", words), words
            assert not re.search(rf"\b{re.escape(concept)}\b", words), (concept, words)


def test_what_is_measured_with_is_not_trained_on() -> None:
    """Else the score for free paraphrases would measure memory: no description is one of them, or nearly one."""
    asked = [_words(one.prompt) for one in (*paraphrases(), *grid_prompts())]
    asked = [words for words in asked if len(words) > 1]
    own = {one.concept: _words(one.prompt) for one in paraphrases()}
    for concept, others in descriptions().items():
        for words in map(_words, others):
            assert all(_shared(words, theirs) < 0.6 for theirs in asked), words
            assert _shared(words, own.get(concept, frozenset("?"))) < 0.4, (concept, words)


def test_concepts_that_are_held_out_are_not_described() -> None:
    assert not [concept for concept in descriptions() if zlib.crc32(concept.encode()) % 20 == 0]


@pytest.mark.parametrize(("tone", "ending"), [("", ""), (" with dark skin tone", ", dark skin tone")])
def test_a_skin_tone_is_said_where_the_name_says_it(tone: str, ending: str) -> None:
    plain = descriptions()["waving hand"]
    assert descriptions_of(f"waving hand{tone}", "waving hand") == tuple(words + ending for words in plain)


def test_what_is_not_described_has_no_descriptions() -> None:
    assert descriptions_of("no such thing", "no such thing") == ()


def _shared(some: frozenset[str], others: frozenset[str]) -> float:
    """The share of the words of two descriptions that both have."""
    return len(some & others) / len(some | others)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))
