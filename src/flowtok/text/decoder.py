"""Reads words back from tokens: the last step from a picture to its caption.

Knows nothing of pictures or of the flow; encoder.py turns its ids into strings, projector.py goes the other way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowtok.checkpoints.component import Component
from flowtok.nn.attention import SelfAttention, attend
from flowtok.nn.blocks import FeedForward
from flowtok.nn.embeddings import blank_embedding, position_table


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
        causal: Reads word by word, each with the words before it in view. The paper's decoder writes all words at
            once (False); then words that fit the tokens equally well come out mixed.
    """

    vocabulary_size: int
    num_tokens: int = 77
    token_channels: int = 16
    width: int = 768
    depth: int = 6
    num_heads: int = 8
    tied_width: int | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        sizes = (self.vocabulary_size, self.num_tokens, self.token_channels, self.width, self.depth, self.num_heads)
        if min(sizes) < 1:
            raise ValueError(f"every size of the text decoder must be positive, not {self}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


class DecoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.norm_2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x_BSD: Tensor, seen_SS: Tensor | None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.norm_1(x_BSD), seen_SS=seen_SS)
        return x_BSD + self.feed_forward(self.norm_2(x_BSD))

    def go_on(self, x_BTD: Tensor, memory: "Memory") -> Tensor:
        """The block for the next T positions, which see one another and all that the memory holds; they join it."""
        attention = self.attention
        qkv_BTD = attention.qkv(self.norm_1(x_BTD))
        query, key, value = qkv_BTD.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHTK = attend(query, *memory.joined(key, value))
        x_BTD = x_BTD + attention.proj(mixed_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.feed_forward(self.norm_2(x_BTD))


class Memory:
    """Keys and values of the positions that a block has been through, so that each is computed once."""

    def __init__(self, room: int) -> None:
        """Takes the number of positions that there will be at most."""
        self.room, self.held = room, 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def joined(self, key_BHTK: Tensor, value_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in the next T positions and returns keys and values of all."""
        if self.kept is None:
            batch, heads, _, width = key_BHTK.shape
            shape = (batch, heads, self.room, width)
            self.kept = key_BHTK.new_empty(shape), value_BHTK.new_empty(shape)
        start, self.held = self.held, self.held + key_BHTK.shape[2]
        for kept, new in zip(self.kept, (key_BHTK, value_BHTK), strict=True):
            kept[:, :, start : self.held] = new
        return self.kept[0][:, :, : self.held], self.kept[1][:, :, : self.held]


class EarlierWords(nn.Module):
    """What a causal decoder sees of the words before a position: a start mark, then the words."""

    def __init__(self, config: TextDecoderConfig) -> None:
        super().__init__()
        width, tied = config.width, config.tied_width
        self.start_1D = nn.Parameter(torch.zeros(1, width))
        self.positions_SD = nn.Parameter(torch.empty(config.num_tokens, width))
        self.embed = nn.Linear(tied, width) if tied else blank_embedding(config.vocabulary_size, width)

    def forward(self, ids_BT: Tensor, word_table_VE: Tensor | None) -> Tensor:
        """Embeds the start mark and all words but the last, (B, T, D)."""
        earlier_BT = ids_BT[:, :-1]
        words_BTD = self.embed(earlier_BT if word_table_VE is None else word_table_VE[earlier_BT])
        start_B1D = self.start_1D.expand(len(ids_BT), 1, -1).to(words_BTD.dtype)
        return torch.cat([start_B1D, words_BTD], dim=1) + self.positions_SD[: ids_BT.shape[1]]

    def at(self, place: int, ids_BS: Tensor, word_table_VE: Tensor | None) -> Tensor:
        """What `forward` gives for one position: the word before it, or the start mark; (B, 1, D)."""
        if place == 0:
            words_BD = self.start_1D.expand(len(ids_BS), -1)
        else:
            before_B = ids_BS[:, place - 1]
            words_BD = self.embed(before_B if word_table_VE is None else word_table_VE[before_B])
        return (words_BD + self.positions_SD[place])[:, None]


class TextDecoder(Component):
    """Tokens in, scores of all ids at every position out.

    In one pass, as in the paper, or word by word (`causal`): then the words stand behind the tokens in one sequence,
    tokens see tokens, and a word sees the tokens and the words before it.

    Source: section 5.1 of the paper: six transformer blocks that write the ids of the text encoder's tokenizer.
    """

    component_name = "text_decoder"
    config_class = TextDecoderConfig

    def __init__(self, config: TextDecoderConfig) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.token_channels, config.width)
        self.positions_LD = nn.Parameter(torch.empty(config.num_tokens, config.width))
        self.earlier = EarlierWords(config) if config.causal else None
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
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        table_LD = position_table(self.config.num_tokens, self.config.width)
        self.positions_LD.copy_(table_LD)
        if self.earlier is not None:
            self.earlier.positions_SD.copy_(table_LD)
            self.earlier.start_1D.zero_()

    def tie(self, word_table_VE: Tensor) -> None:
        """Takes the text encoder's word embeddings as the frozen last layer (and as the words that are read).

        Where the two compute in other types the decoder keeps a copy in its own: one a word would take longer than all
        else.

        Raises:
            ValueError: If the table is not (vocabulary_size, tied_width).
        """
        expected = (self.config.vocabulary_size, self.config.tied_width)
        if tuple(word_table_VE.shape) != expected:
            raise ValueError(
                f"the text decoder wants a word table {expected}, the text encoder has {tuple(word_table_VE.shape)}"
            )
        self.word_table_VE = word_table_VE.detach().to(next(self.parameters()).dtype)

    def states(self, z_BLC: Tensor, ids_BT: Tensor | None = None) -> Tensor:
        """What is known of every position before the words are scored.

        Args:
            z_BLC: Text tokens.
            ids_BT: For a causal decoder the words so far; what stands at a position is not seen there, only later.

        Returns:
            States (B, T, E), or scores (B, T, V) where the last layer is the decoder's own; T = L if not causal.

        Raises:
            ValueError: If a causal decoder is not given words, or another one is.
        """
        if (ids_BT is None) == self.config.causal:
            raise ValueError("a causal decoder reads with the words so far, any other one without them")
        x_BSD, seen_SS, length = self.embed(z_BLC) + self.positions_LD, None, z_BLC.shape[1]
        if self.earlier is not None and ids_BT is not None:
            x_BSD = torch.cat([x_BSD, self.earlier(ids_BT, self._words(x_BSD.dtype))], dim=1)
            seen_SS = torch.ones(x_BSD.shape[1], x_BSD.shape[1], dtype=torch.bool, device=x_BSD.device).tril()
            seen_SS[:, :length] = True
        for block in self.blocks:
            x_BSD = block(x_BSD, seen_SS)
        if self.config.causal:
            x_BSD = x_BSD[:, length:]
        return self.to_words(self.norm(x_BSD))

    def score(self, states: Tensor, among_K: Tensor | None = None) -> Tensor:
        """Scores of all V ids, or of the K ids given, for states (..., E) of any positions."""
        table_VE = self._words(states.dtype)
        if table_VE is None:
            return states if among_K is None else states[..., among_K]
        return states @ (table_VE if among_K is None else table_VE[among_K]).T

    def _words(self, dtype: torch.dtype) -> Tensor | None:
        if self.config.tied_width is None:
            return None
        assert self.word_table_VE is not None, "a tied decoder needs the encoder's word table: call tie first"
        return self.word_table_VE.to(dtype)

    def forward(self, z_BLC: Tensor, ids_BT: Tensor | None = None) -> Tensor:
        """Scores the words.

        Args:
            z_BLC: Text tokens, as the text projector gives them or as the flow brings them back from an image.
            ids_BT: For a causal decoder the words so far.

        Returns:
            Logits (B, T, V).
        """
        return self.score(self.states(z_BLC, ids_BT))

    @torch.no_grad()
    def read(self, z_BLC: Tensor, end_id: int | None = None) -> Tensor:
        """Reads the most likely words: at every position the best one (given the words before it, if causal).

        Args:
            z_BLC: Text tokens.
            end_id: Id of the end mark, behind which nothing counts; a causal decoder stops when all have ended.

        Returns:
            Ids (B, S). Behind the end mark a causal decoder repeats it.
        """
        if not self.config.causal:
            return self(z_BLC).argmax(-1)
        batch, length = z_BLC.shape[:2]
        ids_BS = torch.zeros(batch, length, dtype=torch.long, device=z_BLC.device)
        ended_B = torch.zeros(batch, dtype=torch.bool, device=z_BLC.device)
        for place, states_BE in enumerate(self._word_by_word(z_BLC, ids_BS)):
            word_B = self.score(states_BE).argmax(-1)
            if end_id is not None:
                word_B = word_B.masked_fill(ended_B, end_id)
                ended_B |= word_B == end_id
            ids_BS[:, place] = word_B
            if ended_B.all():
                ids_BS[:, place:] = end_id or 0
                break
        return ids_BS

    def _word_by_word(self, z_BLC: Tensor, ids_BS: Tensor) -> Iterator[Tensor]:
        """States (B, E) of one position after the other; the word of each must stand in `ids_BS` before the next.

        As `states` for all words so far, of which it would be the last, but nothing is computed twice.
        """
        assert self.earlier is not None, "only a causal decoder reads word by word"
        length = z_BLC.shape[1]
        memories = [Memory(2 * length) for _ in self.blocks]

        def through(x_BTD: Tensor) -> Tensor:
            for block, memory in zip(self.blocks, memories, strict=True):
                assert isinstance(block, DecoderBlock)
                x_BTD = block.go_on(x_BTD, memory)
            return x_BTD

        through(self.embed(z_BLC) + self.positions_LD)
        for place in range(length):
            seen_B1D = self.earlier.at(place, ids_BS, self._words(z_BLC.dtype))
            yield self.to_words(self.norm(through(seen_B1D)))[:, 0]


def reading_loss(
    decoder: TextDecoder, z_BLC: Tensor, ids_BS: Tensor, padding_id: int, among_K: Tensor | None = None
) -> Tensor:
    """Mean cross entropy of the words, end mark included; what stands after the end mark does not count.

    Args:
        decoder: The text decoder.
        z_BLC: Text tokens.
        ids_BS: The words' ids, padded.
        padding_id: Id of the padding.
        among_K: Ids to choose from, sorted, all words of `ids_BS` among them; the whole vocabulary if left out.
    """
    real_BS = ids_BS != padding_id
    longest = int(real_BS.sum(1).max())
    ids_BT, real_BT = ids_BS[:, :longest], real_BS[:, :longest]
    states_BTE = decoder.states(z_BLC, ids_BT if decoder.config.causal else None)[:, :longest]
    logits_MK = decoder.score(states_BTE[real_BT], among_K)
    words_M = ids_BT[real_BT]
    target_M = words_M if among_K is None else torch.searchsorted(among_K, words_M)
    return nn.functional.cross_entropy(logits_MK.float(), target_M)


def candidates(known_U: Tensor, vocabulary_size: int, count: int | None, generator: torch.Generator) -> Tensor | None:
    """Ids to choose from in training: all that captions use, and `count` drawn from the whole vocabulary.

    A softmax over these costs a fraction of the whole one, and every word is still pushed down where it is wrong.

    Args:
        known_U: Ids that occur in the captions.
        vocabulary_size: V.
        count: Draws from all V; None for the whole vocabulary.
        generator: Source of the draws.

    Returns:
        Sorted ids without repeats, or None for the whole vocabulary.
    """
    if count is None:
        return None
    drawn_R = torch.randint(vocabulary_size, (count,), generator=generator)
    return torch.cat([known_U, drawn_R]).unique()
