"""For any tokens and any time the path starts at the text, ends at the image and is straight in between."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowtok.flow.path import point, rotate_null_targets

seeds = st.integers(0, 2**31)
times = st.floats(0.0, 1.0)


def ends(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    text, image = torch.randn(2, 3, 4, 5, generator=draws, dtype=torch.float64).unbind(0)
    return text, image


@given(seeds, st.floats(0.0, 0.5))
def test_end_points(seed: int, sigma_min: float) -> None:
    text, image = ends(seed)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(point(text, image, zero, sigma_min).z_BLC, text)
    torch.testing.assert_close(point(text, image, zero + 1.0, sigma_min).z_BLC, image + sigma_min * text)


@given(seeds, times, times)
def test_the_path_is_straight(seed: int, t: float, s: float) -> None:
    text, image = ends(seed)
    one = torch.ones(3, dtype=torch.float64)
    here, there = point(text, image, t * one), point(text, image, s * one)
    torch.testing.assert_close(here.z_BLC + (s - t) * here.velocity_BLC, there.z_BLC)


@given(seeds, st.lists(st.booleans(), min_size=3, max_size=3))
def test_rotation_only_moves_images_among_nulls(seed: int, nulls: list[bool]) -> None:
    _, image = ends(seed)
    null = torch.tensor(nulls)
    rotated = rotate_null_targets(image, null)
    assert rotated[~null].equal(image[~null])
    assert rotated[null].sum(0).allclose(image[null].sum(0))
    if null.sum() > 1:
        assert not any(new.equal(old) for new, old in zip(rotated[null], image[null], strict=True))
