"""How right written captions are: the exact name, its words, the style; and what the nearest known picture would say.

Functions of strings and vectors; knows no model. A caption of record reads "NAME, in STYLE style".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = re.compile(r"\w+|[^\w\s]")
_STYLE = re.compile(r"^(?P<name>.*?)\s*,\s*in\s+(?P<style>.+)\s+style$", re.DOTALL)


def words_of(text: str) -> list[str]:
    """Words and punctuation marks, lower-case: word-piece decoders put spaces where captions have none."""
    return _WORD.findall(text.lower())


def split_caption(caption: str) -> tuple[str, str | None]:
    """Name and style of a caption "NAME, in STYLE style"; style is None, and all of it the name, if it is not one."""
    found = _STYLE.match(caption.strip().lower())
    return (found["name"], found["style"]) if found else (caption.strip().lower(), None)


def word_f1(written: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it occurs; 0 to 1.

    Punctuation marks are no words here. Two texts without words agree.
    """
    ours, theirs = (
        Counter(w for w in words_of(text) if w[0].isalnum() or w[0] == "_") for text in (written, reference)
    )
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def caption_scores(written: Sequence[str], references: Sequence[str], *, known_style: bool = True) -> dict[str, float]:
    """Percentages over captions: exact name, word F1 of the name, and with `known_style` exact style and whole caption.

    Two texts are the same if their words and punctuation marks are, in order, whatever the spaces and capitals.

    Args:
        written: What the model wrote.
        references: Captions of record.
        known_style: Whether the references' styles are ones that a model can know.

    Raises:
        ValueError: If the two are not equally many, or there are none.
    """
    if len(written) != len(references) or not written:
        raise ValueError(f"need as many captions as references, at least one: {len(written)}, {len(references)}")
    pairs = [(split_caption(ours), split_caption(theirs)) for ours, theirs in zip(written, references, strict=True)]
    hits = {
        "exact_name": [words_of(ours[0]) == words_of(theirs[0]) for ours, theirs in pairs],
        "word_f1": [word_f1(ours[0], theirs[0]) for ours, theirs in pairs],
    }
    if known_style:
        hits["exact_style"] = [words_of(ours[1] or "") == words_of(theirs[1] or "") for ours, theirs in pairs]
        hits["exact_caption"] = [words_of(a) == words_of(b) for a, b in zip(written, references, strict=True)]
    return {name: 100.0 * sum(values) / len(values) for name, values in hits.items()}


def nearest(query_ND: Tensor, gallery_MD: Tensor, chunk: int = 256) -> Tensor:
    """The position (N,) of the gallery's vector with the largest cosine to each query; the first of equals."""
    gallery_DM = torch.nn.functional.normalize(gallery_MD.float(), dim=-1).T
    parts = torch.nn.functional.normalize(query_ND.float(), dim=-1).split(chunk)
    return torch.cat([(part_BD @ gallery_DM).argmax(1) for part_BD in parts])
