"""Pictures moved, scaled, turned, tinted and partly hidden: more examples of what one caption may look like.

Knows pixels only; train/views.py encodes the views.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    image_B3YX: Tensor,
    generator: torch.Generator,
    *,
    zoom: float = 0.3,
    shift: float = 0.1,
    turn: float = 12.0,
    tint: float = 0.12,
    tone: float = 0.3,
    fade: float = 0.4,
    hide: float = 0.4,
) -> Tensor:
    """One random view of each picture; what moves in from outside is white, and white stays white.

    Args:
        image_B3YX: Pixels in [0, 1].
        generator: Source of the draws.
        zoom: The factor of size is drawn evenly from 1 - zoom to 1 + zoom / 2.
        shift: Largest shift along each axis, as a share of the side.
        turn: Largest turn, in degrees.
        tint: Largest change of each colour's strength, as a share.
        tone: Pixels are taken to a power drawn between e**-tone and e**tone: lighter or darker.
        fade: Largest change of the distance from grey, as a share.
        hide: Longest side of the white rectangle that hides a part, as a share of the side.

    Returns:
        Pixels of the same shape in [0, 1].
    """
    batch = len(image_B3YX)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    grey_B1YX = image_B3YX.mean(1, keepdim=True)
    colour_B3YX = (grey_B1YX + draw(1.0 - fade, 1.0 + fade, 1, 1, 1) * (image_B3YX - grey_B1YX)).clamp(0.0, 1.0)
    ink_B3YX = (1.0 - colour_B3YX ** draw(-tone, tone, 1, 1, 1).exp()) * draw(1.0 - tint, 1.0 + tint, 3, 1, 1)

    size_B, angle_B = draw(1.0 - zoom, 1.0 + zoom / 2), draw(-turn, turn) * math.pi / 180.0
    cos_B, sin_B = angle_B.cos() / size_B, angle_B.sin() / size_B
    shift_B2 = draw(-2.0 * shift, 2.0 * shift, 2)
    rows = [torch.stack([cos_B, -sin_B, shift_B2[:, 0]], 1), torch.stack([sin_B, cos_B, shift_B2[:, 1]], 1)]
    grid_BYX2 = F.affine_grid(torch.stack(rows, 1), list(image_B3YX.shape), align_corners=False)
    seen_B3YX = F.grid_sample(ink_B3YX, grid_BYX2, align_corners=False) * ~_rectangles(
        image_B3YX.shape[-2:], draw(0.0, 1.0, 2), draw(0.0, hide, 2)
    )
    return (1.0 - seen_B3YX).clamp(0.0, 1.0)


def _rectangles(size: torch.Size, middle_B2: Tensor, sides_B2: Tensor) -> Tensor:
    """Which pixels lie in each rectangle, (B, 1, Y, X); places and sides are shares of the picture's."""
    inside = []
    for axis, length in enumerate(size):
        pixels = (torch.arange(length) + 0.5) / length
        inside.append((pixels - middle_B2[:, axis, None]).abs() < sides_B2[:, axis, None] / 2)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
