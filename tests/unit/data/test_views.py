"""Random views of pictures for training."""

import torch

from flowtok.data.views import random_views


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
    same = random_views(image_B3YX, torch.Generator().manual_seed(1), zoom=0.0, shift=0.0, turn=0.0, tint=0.0)
    assert torch.allclose(same, image_B3YX, atol=1e-5)


def test_what_moves_in_is_white() -> None:
    black = torch.zeros(8, 3, 16, 16)
    moved = random_views(black, torch.Generator().manual_seed(1), zoom=0.0, shift=0.3, turn=0.0, tint=0.0)
    assert moved.max() == 1.0
    white = random_views(torch.ones(8, 3, 16, 16), torch.Generator().manual_seed(1))
    assert torch.equal(white, torch.ones(8, 3, 16, 16))
