"""What draws, with random or shipped weights, and the plain way of drawing with it; sampling.py measures both."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowtok.acceleration import pack_tokenizer, pack_velocity, round_tokenizer, round_velocity
from flowtok.checkpoints import store
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.latents import LatentScale
from flowtok.image.tokenizer import ImageTokenizer
from flowtok.nn.packed import pack_linears
from flowtok.nn.precision import text_dtype
from flowtok.pipeline import FlowTok, load
from flowtok.recipes import TINY, TOKENIZER_256, VELOCITY_NETWORKS
from flowtok.text.projector import TextProjector, TextProjectorConfig


class Parts(NamedTuple):
    """What draws: a language encoder of transformers, the text projector, the flow's network and the tokenizer."""

    language: nn.Module
    projector: TextProjector
    velocity: VelocityTransformer
    tokenizer: ImageTokenizer
    scale: LatentScale

    def encode(self, ids_BS: Tensor) -> Tensor:
        """Ids to features."""
        return self.language(input_ids=ids_BS).last_hidden_state

    def decode(self, z_BLC: Tensor, features_BSE: Tensor) -> Tensor:
        """Tokens to pixels."""
        weight = self.tokenizer.latent_tokens
        guided = self.tokenizer.config.text_width is not None
        text_BSE = features_BSE.to(weight.dtype) if guided else None
        return self.tokenizer.decode_drawn(self.scale.from_flow(z_BLC).to(weight.dtype), text_BSE)

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Ids and noise."""
        draws = torch.Generator().manual_seed(1)
        shape = self.velocity.config.num_tokens, self.velocity.config.token_channels
        device = self.velocity.positions_1LD.device
        return (
            torch.randint(1, 1000, (batch, shape[0]), generator=draws).to(device),
            torch.randn(batch, *shape, generator=draws).to(device),
        )

    @torch.inference_mode()
    def start(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Where the flow starts."""
        return self.projector(self.encode(inputs[0])).sample(inputs[1]).float()


def make_parts(
    size: str, *, velocity: VelocityTransformerConfig | None = None, only_velocity: bool = False, on_meta: bool = False,
    device: str = "cpu", blocks: int | None = None,
) -> Parts:  # fmt: skip
    """The parts of a size: "small" with the shipped weights, "tiny" and the paper's with random ones.

    Args:
        size: Its name.
        velocity: Another velocity network in place of the size's.
        only_velocity: Leaves the other parts out.
        on_meta: The velocity network without weights.
        device: Where they compute.
        blocks: Only the first of the velocity network's blocks.
    """
    parts = _made_parts(size, velocity, only_velocity, on_meta)
    if blocks is not None:
        parts.velocity.blocks = parts.velocity.blocks[:blocks]
    for part in parts if device != "cpu" and not on_meta else ():
        part.to(device)
    return parts


def _made_parts(size: str, velocity: VelocityTransformerConfig | None, only_velocity: bool, on_meta: bool) -> Parts:
    if size == "small" and not only_velocity:
        model: FlowTok = load("emoji")
        network: Any = model.text_encoder.network
        return Parts(network, model.text_projector, model.velocity, model.image_tokenizer, model.latent_scale)
    if velocity is None:
        own = {"tiny": TINY.velocity, **VELOCITY_NETWORKS}
        velocity = load("emoji").velocity.config if size == "small" else own[size]
    chosen, draws = velocity, torch.Generator().manual_seed(0)
    if on_meta:
        flow = store.build(lambda: VelocityTransformer(chosen))
    else:
        flow = VelocityTransformer(chosen)
        flow.initialize(draws)
        # Fresh modulations and last layers are zero: blocks would pass everything on unchanged.
        for layer in (*(block.modulation for block in flow.typed_blocks()), flow.head.modulation, flow.head.linear):
            nn.init.normal_(layer.weight, std=0.02, generator=draws)
    flow.eval().requires_grad_(False)
    nothing: Any = nn.Identity()
    if only_velocity:
        return Parts(nothing, nothing, flow, nothing, nothing)
    language: nn.Module
    if size == "tiny":
        tokenizer, projector = ImageTokenizer(TINY.image_tokenizer), TextProjector(TINY.text_projector)
        language = load("emoji").text_encoder.network
    else:
        from transformers import CLIPTextConfig, CLIPTextModel

        language = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        tokenizer, projector = ImageTokenizer(TOKENIZER_256), TextProjector(TextProjectorConfig())
    for part in (tokenizer, projector):
        part.initialize(draws)
        part.eval().requires_grad_(False)
    shape = chosen.num_tokens, chosen.token_channels
    return Parts(language.eval().requires_grad_(False), projector, flow, tokenizer, LatentScale(*shape))


def in_type(parts: Parts, kind: str, *, packed: bool = False) -> Parts:
    """The parts computing in a type: networks of their own, with the same weights where these need not differ.

    Args:
        parts: Those in float32.
        kind: float32, bfloat16, which leaves the text side as the package does, or int8.
        packed: With packed layers.
    """
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    for_text = text_dtype(dtype, parts.velocity.positions_1LD.device)
    types = (for_text, for_text, dtype, dtype, dtype)
    own = Parts(*(_copied(part, None if own is torch.float32 else own) for part, own in zip(parts, types, strict=True)))
    if kind == "int8":
        round_velocity(own.velocity)
        round_tokenizer(own.tokenizer)
    if packed:
        pack_velocity(own.velocity)
        pack_tokenizer(own.tokenizer)
        pack_linears(own.language)
        pack_linears(own.projector)
    return own


def _copied(network: Any, dtype: torch.dtype | None) -> Any:
    """A network with the same weights, or with rounded ones; rotary tables stay exact, as in the package."""
    kept: dict[int, Any] = {id(table): table for table in network.buffers()}
    for weight in network.parameters():
        kept[id(weight)] = weight if dtype is None else nn.Parameter(weight.data.to(dtype), requires_grad=False)
    return copy.deepcopy(network, kept)


# The plain way


def plain_attention(layer: Any, x_BSD: Tensor, turn: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Fused attention, whatever the length."""
    batch, length, width = x_BSD.shape
    qkv = layer.qkv(x_BSD).view(batch, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(turn(qkv[0]), turn(qkv[1]), qkv[2])
    return layer.proj(mixed.transpose(1, 2).reshape(batch, length, width))


def plain_velocity(network: VelocityTransformer, z_BLC: Tensor, t: float, null: bool) -> Tensor:
    """One branch, with every modulation computed where it is used."""
    t_B = torch.full((len(z_BLC),), t, device=z_BLC.device)
    condition_BD = F.silu(network.time(t_B) + network.null(torch.full_like(t_B, int(null), dtype=torch.long)))
    x_BLD = network.tokens_in(z_BLC) + network.positions_1LD
    for block in network.typed_blocks():
        shift, scale, gate, shift_2, scale_2, gate_2 = block.modulation(condition_BD)[:, None].chunk(6, dim=-1)
        normal = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)
        x_BLD = x_BLD + gate * plain_attention(block.attention, normal * (1 + scale) + shift)
        normal = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6)
        x_BLD = x_BLD + gate_2 * block.feed_forward(normal * (1 + scale_2) + shift_2)
    shift, scale = network.head.modulation(condition_BD)[:, None].chunk(2, dim=-1)
    return network.head.linear(F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def plain_flow(network: VelocityTransformer, z_BLC: Tensor, times: list[float], scale: float) -> Tensor:
    """Euler steps with two forwards each."""
    for start, end in pairwise(times):
        conditional = plain_velocity(network, z_BLC, start, False)
        null = plain_velocity(network, z_BLC, start, True)
        z_BLC = z_BLC + (end - start) * (null + scale * (conditional - null))
    return z_BLC


# What differs


def error_of_tokens(z_BLC: Tensor, exact_BLC: Tensor, start_BLC: Tensor) -> float:
    """Root mean square of the difference, relative to that of the way from the start."""
    return ((z_BLC - exact_BLC).square().mean() / (exact_BLC - start_BLC).square().mean()).sqrt().item()


def picture_error(image_B3YX: Tensor, exact_B3YX: Tensor) -> float:
    """PSNR in dB; random weights draw pictures of any range, so the peak is that of the exact picture."""
    peak = (exact_B3YX.max() - exact_B3YX.min()).square()
    return (10 * torch.log10(peak / (image_B3YX - exact_B3YX).square().mean())).item()
