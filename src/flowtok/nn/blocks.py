"""Transformer pieces that are steered by a modulation: norm, feed-forward layer and block.

Knows nothing of what the modulation stands for; see flow/transformer.py, which makes it from time and null flag.
"""

import torch
from torch import Tensor, nn

from flowtok.nn.attention import SelfAttention


def modulated_norm(x_BSD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm without weights (eps 1e-6), then times 1 + scale plus shift.

    Computed at least in float32 and returned in the type of `x_BSD`.
    """
    exact = torch.promote_types(x_BSD.dtype, torch.float32)
    normal = nn.functional.layer_norm(x_BSD.to(exact), x_BSD.shape[-1:], eps=1e-6)
    return torch.addcmul(shift_B1D.to(exact), normal, 1.0 + scale_B1D.to(exact)).to(x_BSD.dtype)


class FeedForward(nn.Module):
    """Two linear layers around a GELU (tanh form)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation: nn.Module = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_BSD)))


class ModulatedBlock(nn.Module):
    """Attention and a feed-forward layer of four times the width, each shifted, scaled and gated from outside.

    `modulation` is the layer that makes the six vectors; the caller runs it, so that it can run once for many calls.

    Source: DiT (Peebles & Xie 2023), adaLN-Zero.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.feed_forward = FeedForward(width, 4 * width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x_BSD: Tensor, modulation_B6D: Tensor) -> Tensor:
        """Mixes the tokens.

        Args:
            x_BSD: Tokens.
            modulation_B6D: Shift, scale, gate of the attention, then of the feed-forward layer; B or 1 rows.

        Returns:
            Tokens of the same shape.
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation_B6D.unsqueeze(-2).unbind(1)
        x_BSD = torch.addcmul(x_BSD, gate, self.attention(modulated_norm(x_BSD, shift, scale)))
        return torch.addcmul(x_BSD, gate_2, self.feed_forward(modulated_norm(x_BSD, shift_2, scale_2)))
