"""Lays pictures out in a grid, for previews, `--grid` and the docs.

Knows pixels only.
"""

import torch
from PIL import Image
from torch import Tensor


def contact_sheet(image_B3YX: Tensor, columns: int, gap: int = 2) -> Image.Image:
    """A white sheet with the pictures in rows of `columns`, `gap` pixels apart.

    Args:
        image_B3YX: Pictures, about [0, 1]; values outside are clamped.
        columns: Pictures in a row.
        gap: White pixels between two pictures and around the sheet.
    """
    if columns < 1 or image_B3YX.ndim != 4:
        raise ValueError(f"need columns >= 1 and pictures (B, 3, Y, X), not {columns} and {tuple(image_B3YX.shape)}")
    count, _, height, width = image_B3YX.shape
    rows = -(-count // columns)
    sheet_YX3 = torch.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=torch.uint8)
    bytes_BYX3 = (image_B3YX.float().clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).cpu()
    for number, picture_YX3 in enumerate(bytes_BYX3):
        top = gap + (number // columns) * (height + gap)
        left = gap + (number % columns) * (width + gap)
        sheet_YX3[top : top + height, left : left + width] = picture_YX3
    return Image.fromarray(sheet_YX3.numpy())
