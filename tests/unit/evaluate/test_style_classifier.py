"""The judge of styles learns what can be seen, the same each time, and is kept with the set it learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowtok.errors import DataError
from flowtok.evaluate.style_classifier import StyleClassifierConfig, learn_styles, opened_or_learned

SMALL = StyleClassifierConfig(side=16, width=4, num_steps=60, batch_size=16, most_shift=1)


def striped(count: int, size: int = 16, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Pictures in a dark colour with upright or level stripes; level ones are three times as many."""
    colours = torch.randint(0, 128, (count, 3, 1, 1), generator=torch.Generator().manual_seed(seed))
    stripes = (torch.arange(size) // 2 % 2).bool()
    pictures, styles = [], []
    for number, colour in enumerate(colours):
        style = "level" if number % 4 else "upright"
        mask = stripes[:, None] if style == "level" else stripes[None, :]
        pictures.append(torch.where(mask, colour, 255).expand(3, size, size).to(torch.uint8))
        styles.append(style)
    return torch.stack(pictures), styles


def test_it_sees_the_style_of_pictures_it_never_saw() -> None:
    """Otherwise what it says of generated pictures means nothing."""
    judge = learn_styles(*striped(64), SMALL)
    image_N3YX, styles = striped(40, seed=1)
    assert judge.styles_of(image_N3YX) == styles
    larger = torch.nn.functional.interpolate(image_N3YX.float(), scale_factor=2).to(torch.uint8)
    assert judge.styles_of(larger) == styles, "a model of larger pictures is judged too"


def test_the_same_set_gives_the_same_judge_with_any_number_of_threads() -> None:
    """Its checksum stands in the protocol: two measurements of one set would otherwise not compare."""
    few = StyleClassifierConfig(side=16, width=4, num_steps=5, batch_size=16)
    before = torch.get_num_threads()
    first = learn_styles(*striped(32), few)
    try:
        torch.set_num_threads(3)
        second = learn_styles(*striped(32), few)
        assert torch.get_num_threads() == 3, "and leaves the threads as they were"
    finally:
        torch.set_num_threads(before)
    assert first.sha256 == second.sha256
    other = StyleClassifierConfig(side=16, width=4, num_steps=5, batch_size=16, seed=1)
    assert learn_styles(*striped(32), other).sha256 != first.sha256


def test_it_is_kept_for_its_set_and_training_and_found_damaged(tmp_path: Path) -> None:
    few = StyleClassifierConfig(side=16, width=4, num_steps=5, batch_size=16)
    first = opened_or_learned(tmp_path, "a", lambda: striped(32), few)

    def unasked() -> tuple[Tensor, list[str]]:
        raise AssertionError("the file is there")

    again = opened_or_learned(tmp_path, "a", unasked, few)
    assert (again.sha256, again.styles) == (first.sha256, ("level", "upright"))
    image_N3YX, _ = striped(8, seed=1)
    assert torch.equal(again(image_N3YX / 255), first(image_N3YX / 255)), "its running means are kept too"
    opened_or_learned(tmp_path, "b", lambda: striped(32, seed=2), few)
    assert len(list(tmp_path.glob("style-classifier-*.safetensors"))) == 2
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"is damaged .* delete it"):
        opened_or_learned(tmp_path, "a", unasked, few)


def test_one_style_cannot_be_told_from_another() -> None:
    image_N3YX, _ = striped(4)
    with pytest.raises(DataError, match="at least 2 styles"):
        learn_styles(image_N3YX, ["level"] * 4, SMALL)
    with pytest.raises(ValueError, match="side must be at least 8"):
        StyleClassifierConfig(side=4)
