"""The fixed lists of prompts that ship with flowtok: free paraphrases, and a grid that nobody picked.

They stand in lists/ beside this file, each line's meaning in its head. What is measured with them: words_tasks.py; what
is drawn of them: sheets.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "lists"
GRID_KINDS = {
    "name": "names of training captions",
    "style": "names with a style",
    "free": "known things in other words",
    "unseen": "concepts that no training picture shows",
    "combined": "things never seen together",
}
"""The kinds of prompts of the grid, in the order of the list, and what they are."""


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """What a person may type, and what is meant.

    Attributes:
        kind: Such as "animals".
        concept: As the emoji set names it.
        prompt: Free words without that name.
    """

    kind: str
    concept: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class GridPrompt:
    """A prompt of the grid.

    Attributes:
        kind: One of GRID_KINDS.
        prompt: What is drawn.
    """

    kind: str
    prompt: str


@cache
def paraphrases() -> tuple[Paraphrase, ...]:
    """200 paraphrases of as many concepts of the emoji set's training split, in the list's order."""
    return tuple(
        Paraphrase(kind=kind, concept=concept, prompt=prompt) for kind, concept, prompt in _lines("paraphrases")
    )


@cache
def grid_prompts() -> tuple[GridPrompt, ...]:
    """100 prompts, those of a kind together; number k of all, from 0, is drawn with seed 0 + k."""
    return tuple(GridPrompt(kind=kind, prompt=prompt) for kind, prompt in _lines("grid"))


def list_sha256(name: str) -> str:
    """SHA-256 of the lines of a list ("paraphrases" or "grid"), wherever they were checked out."""
    return hashlib.sha256("".join("\t".join(line) + "\n" for line in _lines(name)).encode()).hexdigest()


def _lines(name: str) -> list[list[str]]:
    text = (FOLDER / f"{name}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
