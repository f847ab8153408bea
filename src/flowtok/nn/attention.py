"""Self-attention over tokens, written once for every network.

Knows nothing of images, text or time. Rotary positions come from rope.py; the blocks that use it from blocks.py.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from flowtok.nn.rope import RotaryTable

# On a CPU the fused kernel loses to the written-out softmax at some lengths and is no better up to this one.
LONGEST_WRITTEN_OUT = 128


def attend(
    query_BHSK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, dropout: float = 0.0, seen_SS: Tensor | None = None
) -> Tensor:
    """Mixes values by scaled dot-product attention, softmax(q k^T / sqrt(K)) v.

    Args:
        query_BHSK: Queries, H heads of width K.
        key_BHSK: Keys.
        value_BHSK: Values.
        dropout: Share of the attention weights that is dropped, 0 outside training.
        seen_SS: True where the query of a row sees the key of a column; None where all see all.

    Returns:
        The mixed values, (B, H, S, K).
    """
    if query_BHSK.device.type == "cpu" and query_BHSK.shape[-2] <= LONGEST_WRITTEN_OUT:
        scores_BHSS = (query_BHSK * query_BHSK.shape[-1] ** -0.5) @ key_BHSK.transpose(-2, -1)
        if seen_SS is not None:
            scores_BHSS = scores_BHSS.masked_fill(~seen_SS, float("-inf"))
        weights_BHSS = scores_BHSS.softmax(dim=-1).to(value_BHSK.dtype)
        if dropout > 0.0:
            weights_BHSS = F.dropout(weights_BHSS, dropout)
        return weights_BHSS @ value_BHSK
    return F.scaled_dot_product_attention(query_BHSK, key_BHSK, value_BHSK, seen_SS, dropout_p=dropout)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    The output of `qkv` is split as (3, H, K): all queries, then all keys, then all values.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, rotary: RotaryTable | None = None, seen_SS: Tensor | None = None) -> Tensor:
        """Mixes the tokens; `rotary`, where given, turns the queries and keys of the first P tokens.

        Args:
            x_BSD: Tokens of width D.
            rotary: Table for the first P tokens, or None for attention without positions.
            seen_SS: True where the token of a row sees the token of a column; None where all see all.

        Returns:
            Tokens of the same shape.
        """
        batch, length, width = x_BSD.shape
        qkv = self.qkv(x_BSD).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query_BHSK, key_BHSK, value_BHSK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            query_BHSK, key_BHSK = rotary.rotate(query_BHSK), rotary.rotate(key_BHSK)
        mixed_BHSK = attend(query_BHSK, key_BHSK, value_BHSK, seen_SS=seen_SS)
        return self.proj(mixed_BHSK.transpose(1, 2).reshape(batch, length, width))
