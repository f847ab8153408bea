"""Random views of pictures for training."""

from functools import partial

import torch

from flowtok.data.views import random_views

# Every change switched off.
unchanged = partial(random_views, zoom=0.0, shift=0.0, turn=0.0, tint=0.0, tone=0.0, fade=0.0, hide=0.0)


def test_views_stay_pictures_and_come_back_with_the_seed() -> None:
    image_B3YX = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first = random_views(image_B3YX, torch.Generator().manual_seed(1))
    assert first.shape == image_B3YX.shape
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, random_views(image_B3YX, torch.Generator().manual_seed(1)))
    assert not torch.allclose(first, random_views(image_B3YX, torch.Generator().manual_seed(2)))


def test_nothing_drawn_is_nothing_changed() -> None:
    # A mistake in the geometry, such as rows and columns swapped, shows here.
    image_B3YX = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same = unchanged(image_B3YX, torch.Generator().manual_seed(1))
    assert torch.allclose(same, image_B3YX, atol=1e-5)


def test_what_moves_in_is_white() -> None:
    black = torch.zeros(8, 3, 16, 16)
    moved = unchanged(black, torch.Generator().manual_seed(1), shift=0.3)
    assert moved.max() == 1.0
    white = random_views(torch.ones(8, 3, 16, 16), torch.Generator().manual_seed(1))
    assert torch.equal(white, torch.ones(8, 3, 16, 16))


def test_hidden_is_one_white_rectangle() -> None:
    hidden = unchanged(torch.zeros(8, 3, 16, 16), torch.Generator().manual_seed(1), hide=0.5)
    white_BYX = (hidden > 0.5).all(1)
    assert 0 < white_BYX.sum((1, 2)).max() <= 8 * 8
    for white_YX in white_BYX:
        rows, columns = white_YX.any(1), white_YX.any(0)
        assert torch.equal(white_YX, rows[:, None] & columns[None, :])


def test_tones_and_colours_change_what_is_not_white() -> None:
    image_B3YX = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image_B3YX[:, :, :8] = 1.0
    for change in ({"tone": 0.3}, {"fade": 0.4}, {"tint": 0.1}):
        seen = unchanged(image_B3YX, torch.Generator().manual_seed(1), **change)
        assert torch.allclose(seen[:, :, :7], image_B3YX[:, :, :7], atol=1e-5), change
        assert (seen - image_B3YX)[:, :, 9:].abs().mean() > 0.01, change
