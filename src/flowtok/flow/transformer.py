"""The velocity network: tokens, time and null flag in, velocity out. There is no other condition.

Knows neither solvers nor guidance (solver.py, guidance.py) nor where tokens come from. The path is in path.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowtok.checkpoints.component import Component
from flowtok.errors import FlowTokError
from flowtok.nn.blocks import ModulatedBlock, modulated_norm
from flowtok.nn.embeddings import TimeEmbedding, blank_embedding, position_table


@dataclass(frozen=True, kw_only=True)
class VelocityTransformerConfig:
    """Size of the velocity network.

    Attributes:
        depth: Number of blocks.
        width: D, channels of a token inside the network.
        num_heads: H, attention heads.
        num_tokens: L, tokens of a sample.
        token_channels: C, numbers in a token.
        position_maps: Gives every position an input and an output layer of its own beside the shared ones, since a
            number means something else in every token. The paper has the shared ones alone.
    """

    depth: int
    width: int
    num_heads: int
    num_tokens: int = 77
    token_channels: int = 16
    position_maps: bool = False

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.num_heads, self.num_tokens, self.token_channels) < 1:
            raise ValueError(f"every size must be at least 1, not {self}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd; the position table needs an even one")


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """All that time and null flag tell the network: one row for each (t, null) pair.

    It depends on neither tokens nor prompt, so the rows for a whole schedule can be computed once.

    Attributes:
        blocks: For each block six vectors, (B, 6, D).
        head_B2D: Shift and scale before the last layer, (B, 2, D).
    """

    blocks: tuple[Tensor, ...]
    head_B2D: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the rows take."""
        return sum(block.nbytes for block in self.blocks) + self.head_B2D.nbytes

    def select(self, rows: Tensor) -> "Modulation":
        """The given rows, in that order; a single row serves a batch of any size."""
        return Modulation(blocks=tuple(block[rows] for block in self.blocks), head_B2D=self.head_B2D[rows])


class PositionLinear(nn.Linear):
    """A linear layer that every position shares, plus, where there are `positions`, a map of each one's own."""

    def __init__(self, inputs: int, outputs: int, positions: int | None) -> None:
        super().__init__(inputs, outputs)
        self.maps_LIO = None if positions is None else nn.Parameter(torch.zeros(positions, inputs, outputs))

    def forward(self, x_BLI: Tensor) -> Tensor:
        x_BLO = super().forward(x_BLI)
        return x_BLO if self.maps_LIO is None else x_BLO + (x_BLI.transpose(0, 1) @ self.maps_LIO).transpose(0, 1)


class VelocityHead(nn.Module):
    """The last layer: modulated norm, then a linear layer to the token's channels."""

    def __init__(self, width: int, token_channels: int, positions: int | None = None) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = PositionLinear(width, token_channels, positions)

    def forward(self, x_BLD: Tensor, modulation_B2D: Tensor) -> Tensor:
        shift_B1D, scale_B1D = modulation_B2D.unsqueeze(-2).unbind(1)
        return self.linear(modulated_norm(x_BLD, shift_B1D, scale_B1D))


class Forgotten(nn.Module):
    """Stands where a layer's weights were dropped, and says so to whoever needs them."""

    def forward(self, *inputs: Tensor) -> Tensor:
        raise FlowTokError(
            "this model's schedule is fixed: the weights that tell the network another time were dropped to save "
            "memory; open the model again to draw with other steps, another solver, grid or device"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise FlowTokError("this model's schedule is fixed and some weights were dropped; save the model before that")


class VelocityTransformer(Component):
    """Predicts the velocity of every token from all tokens, the time and the null flag.

    The position table is a frozen parameter: it belongs to a checkpoint and is used as it was stored.

    Source: section 4.2 of the paper; DiT blocks with adaLN-Zero and a two-row null indicator.
    """

    component_name = "velocity"
    config_class = VelocityTransformerConfig

    def __init__(self, config: VelocityTransformerConfig) -> None:
        super().__init__(config)
        positions_LD = position_table(config.num_tokens, config.width)
        self.positions_1LD = nn.Parameter(positions_LD[None], requires_grad=False)
        positions = config.num_tokens if config.position_maps else None
        self.tokens_in = PositionLinear(config.token_channels, config.width, positions)
        self.time = TimeEmbedding(config.width)
        self.null = blank_embedding(2, config.width)
        self.blocks = nn.ModuleList(ModulatedBlock(config.width, config.num_heads) for _ in range(config.depth))
        self.head = VelocityHead(config.width, config.token_channels, positions)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draws fresh weights, so that the network starts as the zero velocity.

        Linear layers Xavier uniform with bias 0, as is each position's own input layer; time layers and null table
        N(0, 0.02); every modulation and the last layer 0; the position table by its formula.

        Source: the authors' release.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        for weight in (self.null.weight, self.time.fc1.weight, self.time.fc2.weight):
            nn.init.normal_(weight, std=0.02, generator=generator)
        for layer in (*(block.modulation for block in self.typed_blocks()), self.head.modulation, self.head.linear):
            nn.init.zeros_(layer.weight)
        if self.tokens_in.maps_LIO is not None and self.head.linear.maps_LIO is not None:
            for map_IO in self.tokens_in.maps_LIO:
                nn.init.xavier_uniform_(map_IO, generator=generator)
            nn.init.zeros_(self.head.linear.maps_LIO)
        self.positions_1LD.copy_(position_table(self.config.num_tokens, self.config.width)[None])

    def typed_blocks(self) -> tuple[ModulatedBlock, ...]:
        """The blocks, first to last."""
        return tuple(block for block in self.blocks if isinstance(block, ModulatedBlock))

    def modulation(self, t_B: Tensor, null_B: Tensor) -> Modulation:
        """Computes what time and null flag tell every layer.

        Args:
            t_B: Times in [0, 1].
            null_B: True where the sample is unconditional (bool).

        Returns:
            The modulation, one row a sample.
        """
        condition_BD = nn.functional.silu(self.time(t_B) + self.null(null_B.long()))
        return Modulation(
            blocks=tuple(block.modulation(condition_BD).unflatten(-1, (6, -1)) for block in self.typed_blocks()),
            head_B2D=self.head.modulation(condition_BD).unflatten(-1, (2, -1)),
        )

    def time_layers(self) -> tuple[nn.Module, ...]:
        """The layers that make the modulation, and that nothing else needs once it is made."""
        return (self.time, self.null, *(block.modulation for block in self.typed_blocks()), self.head.modulation)

    def forget_time(self) -> int:
        """Drops the weights that make the modulation, a third of all; tables of it that were made before stay good.

        Returns:
            Bytes of weights that were dropped.
        """
        dropped = sum(weight.nbytes for layer in self.time_layers() for weight in layer.parameters())
        for owner in (*self.typed_blocks(), self.head):
            owner.add_module("modulation", Forgotten())
        self.add_module("time", Forgotten())
        self.add_module("null", Forgotten())
        return dropped

    def forward_modulated(self, z_BLC: Tensor, modulation: Modulation) -> Tensor:
        """The velocity for a modulation that is known already; see `forward`."""
        x_BLD = self.tokens_in(z_BLC) + self.positions_1LD
        for block, modulation_B6D in zip(self.blocks, modulation.blocks, strict=True):
            x_BLD = block(x_BLD, modulation_B6D)
        return self.head(x_BLD, modulation.head_B2D)

    def forward(self, z_BLC: Tensor, t_B: Tensor, null_B: Tensor) -> Tensor:
        """Predicts the velocity.

        Args:
            z_BLC: Tokens on the path.
            t_B: Their times in [0, 1]; 0 is text, 1 is the image.
            null_B: True where the sample is unconditional (bool).

        Returns:
            The velocity, (B, L, C).
        """
        return self.forward_modulated(z_BLC, self.modulation(t_B, null_B))
