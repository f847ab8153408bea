"""Any prompt: a picture whose file tells the prompt, or one clear line. Never a crash, never a strange file name."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowtok.app import output
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok, parse_arithmetic

# Lone surrogates too: they stand for bytes of the command line that are not UTF-8.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@settings(max_examples=40)
@given(prompt=ANY_TEXT)
def test_any_prompt_is_drawn_or_refused(prompt: str, tiny: FlowTok, tmp_path: Path) -> None:
    try:
        (picture,) = tiny.generate(prompt, num_inference_steps=1, seed=0)
    except FlowTokError as error:
        assert "is blank" in str(error)
        assert not any(character.isascii() and character.isalnum() for character in prompt), "words are never blank"
        return
    path = output.save_png(tmp_path / "x.png", picture, picture.info)
    with Image.open(path) as again:
        assert again.info["prompt"] == output.readable(prompt)


@given(prompt=ANY_TEXT)
def test_any_prompt_gives_a_plain_file_name(prompt: str) -> None:
    """One part of a path, short enough for every file system, writable on this one."""
    name = output.slug(prompt)
    assert 0 < len(name) <= output.SLUG_LENGTH and len(name.encode()) <= 200
    assert not set(name) & set('/\\:*?"<>|. \0') and name[0] != "-" and Path(name).name == name


@given(stems=st.lists(st.sampled_from(["cat", "dog", "cat-1"]), min_size=1, max_size=6), there=st.integers(0, 3))
def test_planned_names_are_new_and_differ(stems: list[str], there: int) -> None:
    """Two pictures in one file, or one over an older file, is a picture lost."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(there):
            output.plan(str(folder), ["cat"])[0].touch()
        taken = set(folder.iterdir())
        paths = output.plan(str(folder), stems)
        assert len(set(paths)) == len(stems) == len(paths) and not taken & set(paths)


@given(text=ANY_TEXT | st.lists(st.sampled_from(["king", "+", "-", "a man", ""]), max_size=8).map(" ".join))
def test_arithmetic_reads_anything_or_says_why_not(text: str) -> None:
    try:
        terms = parse_arithmetic(text)
    except FlowTokError:
        return
    assert sum(sign for sign, _ in terms) >= 1
    assert len(terms) == 1 or all(prompt.strip() for _, prompt in terms)
