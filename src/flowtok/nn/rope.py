"""Rotary position embedding of the patches of an image (two axes, pairs interleaved).

Knows a grid of rows and columns, nothing of pixels. Used by attention.py.
"""

import torch
from torch import Tensor, nn


def axis_frequencies(axis_width: int, theta: float = 10000.0) -> Tensor:
    """Frequencies of one axis: theta^(-2k/axis_width) for k = 0 .. axis_width/2 - 1, in float32."""
    return 1.0 / theta ** (torch.arange(0, axis_width, 2, device="cpu").float() / axis_width)


class RotaryTable(nn.Module):
    """Cosines and sines for a grid of `grid` x `grid` patches, row-major, for heads of width K.

    The first half of a head's channels turns with the row, the second with the column; neighbours (2j, 2j + 1) form a
    pair. Positions are the integers 0 .. grid - 1 at every resolution. Angles, cosines and sines are float32, and the
    tables are part of a checkpoint: one that was stored is used as it is.

    Source: RoPE (Su et al. 2021) in its two-axis form, as in the authors' release.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: int, head_width: int) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f"rotary positions on two axes need a head width that 4 divides, not {head_width}")
        # Counted on the CPU: on the meta device that would import the compiler (see embeddings.py).
        angles = torch.arange(grid, dtype=torch.float32, device="cpu")[:, None] * axis_frequencies(head_width // 2)
        angles = angles.repeat_interleave(2, dim=-1)
        rows = angles[:, None, :].expand(grid, grid, -1)
        columns = angles[None, :, :].expand(grid, grid, -1)
        angles_PK = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_width)
        device = torch.get_default_device()
        self.register_buffer("freqs_cos", angles_PK.cos().to(device))
        self.register_buffer("freqs_sin", angles_PK.sin().to(device))

    def rotate(self, x_BHSK: Tensor) -> Tensor:
        """Turns the first P of S tokens by their position; the others pass unchanged.

        Args:
            x_BHSK: Queries or keys; the P = grid * grid patches come first.

        Returns:
            The turned queries or keys, in the same type (the turn itself is at least float32).
        """
        patches = self.freqs_cos.shape[0]
        head_BHPK = x_BHSK[:, :, :patches].to(torch.promote_types(x_BHSK.dtype, torch.float32))
        even, odd = head_BHPK.unflatten(-1, (-1, 2)).unbind(-1)
        turned_BHPK = torch.stack([-odd, even], dim=-1).flatten(-2)
        head_BHPK = head_BHPK * self.freqs_cos + turned_BHPK * self.freqs_sin
        return torch.cat([head_BHPK.to(x_BHSK.dtype), x_BHSK[:, :, patches:]], dim=2)
