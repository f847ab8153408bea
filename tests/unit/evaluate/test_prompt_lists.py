"""The fixed lists hold what the measures say of them; a line that gives its answer away would measure nothing."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import groupby

from flowtok.evaluate.prompt_lists import GRID_KINDS, grid_prompts, list_sha256, paraphrases

KINDS = {"faces", "people", "animals", "food", "travel", "objects", "symbols", "flags"}


def says(name: str, prompt: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", prompt) is not None


def test_two_hundred_paraphrases_of_as_many_concepts_of_every_kind() -> None:
    listed = paraphrases()
    assert len(listed) == len({one.concept for one in listed}) == len({one.prompt for one in listed}) == 200
    kinds = Counter(one.kind for one in listed)
    assert kinds.keys() == KINDS and min(kinds.values()) >= 14


def test_no_paraphrase_names_what_it_means_nor_another_listed_concept() -> None:
    """The name itself is what a model was trained on; another one's name would make two answers right."""
    listed = paraphrases()
    told = [(one.prompt, other.concept) for one in listed for other in listed if says(other.concept, one.prompt)]
    assert not told


def test_no_paraphrase_means_a_concept_that_is_in_no_training() -> None:
    """It would measure something else: what a model makes of what it never saw. The rule is the emoji set's own."""
    assert not [one.concept for one in paraphrases() if zlib.crc32(one.concept.encode()) % 20 == 0]


def test_the_grid_is_a_hundred_prompts_of_five_kinds() -> None:
    listed = grid_prompts()
    assert len(listed) == len({one.prompt for one in listed}) == 100
    assert Counter(one.kind for one in listed) == {"name": 25, "style": 20, "free": 20, "combined": 20, "unseen": 15}
    assert [kind for kind, _ in groupby(one.kind for one in listed)] == list(GRID_KINDS), "a sheet is of one kind"
    styled = [one.prompt for one in listed if re.search(r", in .+ style$", one.prompt)]
    assert styled == [one.prompt for one in listed if one.kind == "style"]
    unseen = [one.prompt for one in listed if one.kind == "unseen"]
    assert all(zlib.crc32(prompt.encode()) % 20 == 0 for prompt in unseen)


def test_the_lists_stay_as_they_were_fixed() -> None:
    """A list that is changed after a training is chosen by what the model can do; a new list needs a new name."""
    assert list_sha256("paraphrases").startswith("e8288ce8d917e025")
    assert list_sha256("grid").startswith("053f668e60ccb33f")
