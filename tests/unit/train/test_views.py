"""Tokens of pictures that look a little different each time."""

from __future__ import annotations

import torch

from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.train.views import RandomViews


def test_a_picture_is_seen_anew_each_time_and_again_with_the_seed() -> None:
    """A few kept views are learnt by heart; and a training that is started again must draw the same ones."""
    small = VisionTransformerConfig(width=16, depth=1, num_heads=2)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=16, patch_size=8, num_tokens=4, token_channels=2, encoder=small, decoder=small, text_width=None
        )
    )
    tokenizer.initialize(torch.Generator().manual_seed(0))
    images_N3YX = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = RandomViews(images_N3YX, tokenizer)
    numbers_B = torch.tensor([2, 0])

    def drawn(seed: int) -> torch.Tensor:
        return views.sample(numbers_B, torch.Generator().manual_seed(seed))

    assert drawn(0).shape == (2, 4, 2) and not drawn(0).requires_grad
    assert torch.equal(drawn(0), drawn(0))
    assert (drawn(0) - drawn(1)).abs().mean() > 0
    assert (drawn(0) - views.sample(numbers_B.flip(0), torch.Generator().manual_seed(0))).abs().mean() > 0
