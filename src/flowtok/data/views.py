"""Pictures moved, scaled, turned and tinted a little: more examples of what one caption may look like.

Knows pixels only; train/inputs.py encodes the views once and keeps them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    image_B3YX: Tensor,
    generator: torch.Generator,
    *,
    zoom: float = 0.2,
    shift: float = 0.08,
    turn: float = 8.0,
    tint: float = 0.08,
) -> Tensor:
    """One random view of each picture; what moves in from outside is white.

    Args:
        image_B3YX: Pixels in [0, 1].
        generator: Source of the draws.
        zoom: The factor of size is drawn evenly from 1 - zoom to 1 + zoom / 2.
        shift: Largest shift along each axis, as a share of the side.
        turn: Largest turn, in degrees.
        tint: Largest change of each colour's strength, as a share; white stays white.

    Returns:
        Pixels of the same shape in [0, 1].
    """
    batch = len(image_B3YX)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    size_B, angle_B = draw(1.0 - zoom, 1.0 + zoom / 2), draw(-turn, turn) * math.pi / 180.0
    cos_B, sin_B = angle_B.cos() / size_B, angle_B.sin() / size_B
    shift_B2 = draw(-2.0 * shift, 2.0 * shift, 2)
    rows = [torch.stack([cos_B, -sin_B, shift_B2[:, 0]], 1), torch.stack([sin_B, cos_B, shift_B2[:, 1]], 1)]
    grid_BYX2 = F.affine_grid(torch.stack(rows, 1), list(image_B3YX.shape), align_corners=False)
    ink_B3YX = (1.0 - image_B3YX) * draw(1.0 - tint, 1.0 + tint, 3, 1, 1)
    return (1.0 - F.grid_sample(ink_B3YX, grid_BYX2, align_corners=False)).clamp(0.0, 1.0)
