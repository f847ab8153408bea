"""Reads words back from tokens: the last step from a picture to its caption.

Knows nothing of pictures or of the flow; encoder.py turns its ids into strings, projector.py goes the other way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowtok.checkpoints.component import Component
from flowtok.nn.attention import SelfAttention
from flowtok.nn.blocks import FeedForward
from flowtok.nn.embeddings import position_table


@dataclass(frozen=True, kw_only=True)
class TextDecoderConfig:
    """Size of the text decoder.

    Attributes:
        vocabulary_size: V, ids that the text encoder's tokenizer knows.
        num_tokens: L = S, tokens in and ids out.
        token_channels: C, numbers in a token.
        width: D, channels of a token inside the network.
        depth: Number of blocks; six in the paper.
        num_heads: Attention heads.
        tied_width: E, width of the text encoder's word embeddings when they serve as the last layer; None for a last
            layer of its own.
    """

    vocabulary_size: int
    num_tokens: int = 77
    token_channels: int = 16
    width: int = 768
    depth: int = 6
    num_heads: int = 8
    tied_width: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.vocabulary_size, self.num_tokens, self.token_channels, self.width, self.depth, self.num_heads)
        if min(sizes) < 1:
            raise ValueError(f"every size of the text decoder must be positive, not {self}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


class DecoderBlock(nn.Module):
    """Pre-norm transformer block without a mask: every position sees all tokens."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.norm_1(x_BLD))
        return x_BLD + self.feed_forward(self.norm_2(x_BLD))


class TextDecoder(Component):
    """Tokens in, scores of all ids at every position out, in one pass (nothing is read word by word).

    Source: section 5.1 of the paper: six transformer blocks that write the ids of the text encoder's tokenizer.
    """

    component_name = "text_decoder"
    config_class = TextDecoderConfig

    def __init__(self, config: TextDecoderConfig) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.token_channels, config.width)
        self.positions_LD = nn.Parameter(torch.empty(config.num_tokens, config.width))
        self.blocks = nn.ModuleList(DecoderBlock(config.width, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.to_words = nn.Linear(config.width, config.tied_width or config.vocabulary_size)
        # The words of a tied decoder belong to the text encoder and are not stored twice.
        self.word_table_VE: Tensor | None
        self.register_buffer("word_table_VE", None, persistent=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights: matrices Xavier uniform, biases 0, norms 1 and 0, positions by sines and cosines."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        self.positions_LD.copy_(position_table(self.config.num_tokens, self.config.width))

    def tie(self, word_table_VE: Tensor) -> None:
        """Takes the text encoder's word embeddings as the frozen last layer.

        Raises:
            ValueError: If the table is not (vocabulary_size, tied_width).
        """
        expected = (self.config.vocabulary_size, self.config.tied_width)
        if tuple(word_table_VE.shape) != expected:
            raise ValueError(
                f"the text decoder wants a word table {expected}, the text encoder has {tuple(word_table_VE.shape)}"
            )
        self.word_table_VE = word_table_VE.detach()

    def states(self, z_BLC: Tensor) -> Tensor:
        """What is known of every position before the words are scored.

        Returns:
            States (B, L, E), or (B, L, V) scores where the last layer is the decoder's own.
        """
        x_BLD = self.embed(z_BLC) + self.positions_LD
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.to_words(self.norm(x_BLD))

    def score(self, states: Tensor) -> Tensor:
        """Scores of all V ids for states (..., E) of any positions."""
        if self.config.tied_width is None:
            return states
        assert self.word_table_VE is not None, "a tied decoder needs the encoder's word table: call tie first"
        return states @ self.word_table_VE.to(states.dtype).T

    def forward(self, z_BLC: Tensor) -> Tensor:
        """Scores the words.

        Args:
            z_BLC: Text tokens, as the text projector gives them or as the flow brings them back from an image.

        Returns:
            Logits (B, S, V).
        """
        return self.score(self.states(z_BLC))


def reading_loss(decoder: TextDecoder, z_BLC: Tensor, ids_BS: Tensor, padding_id: int) -> Tensor:
    """Mean cross entropy of the words, end mark included; what stands after the end mark does not count.

    Args:
        decoder: The text decoder.
        z_BLC: Text tokens.
        ids_BS: The words' ids, padded.
        padding_id: Id of the padding.
    """
    real_BS = ids_BS != padding_id
    logits_MV = decoder.score(decoder.states(z_BLC)[real_BS])
    return nn.functional.cross_entropy(logits_MV.float(), ids_BS[real_BS])
