"""What people may say who want an emoji and do not name it: a few descriptions of each, written for flowtok.

They lie in descriptions.tsv; `flowtok.data.captions` makes captions of them, so that free words are understood.
"""

from functools import cache
from pathlib import Path

from flowtok.data.captions import SKIN_TONE


@cache
def descriptions() -> dict[str, tuple[str, ...]]:
    """The descriptions by concept; none names its concept."""
    lines = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return {concept: tuple(others) for concept, *others in rows}


def descriptions_of(name: str, concept: str) -> tuple[str, ...]:
    """The descriptions of a picture's concept; with the skin tone that its name says, where it says one."""
    tone = SKIN_TONE.search(name)
    words = descriptions().get(concept, ())
    return words if tone is None else tuple(f"{one}, {tone[0]}" for one in words)
