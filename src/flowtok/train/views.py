"""Tokens of pictures that look a little different each time, for reading captions.

Which changes are made to the pixels is in data/views.py; what is read of them, in flow.py.
"""

import torch
from torch import Tensor

from flowtok.data.views import random_views
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.train.runtime import ON_CPU


class RandomViews:
    """Pictures that are moved, scaled, turned and tinted anew, then encoded, each time they are asked for."""

    def __init__(self, images_N3YX: Tensor, tokenizer: ImageTokenizer) -> None:
        """Takes pictures (uint8) and a tokenizer on the CPU, where batches are made ahead of time."""
        self.images_N3YX, self.tokenizer = images_N3YX, tokenizer.eval()

    @torch.no_grad()
    def sample(self, indices_B: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of the tokens of new views of these pictures, (B, L, C); the generator fixes both."""
        image_B3YX = random_views(self.images_N3YX[indices_B].float() / 255.0, generator)
        with ON_CPU.autocast("auto"):  # this runs in a thread of its own, outside of what the loop chose
            posterior = self.tokenizer.encode(image_B3YX)
        return posterior.sample(torch.randn(posterior.mean_BLC.shape, generator=generator))
