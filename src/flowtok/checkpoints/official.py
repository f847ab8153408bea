"""The authors' released checkpoints: modules from a plain state dict in their layout, and back.

Sizes are read from the shapes alone. The key names stand in official_keys.py, reading the files themselves in
released_files.py; our own model folders are in store.py.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flowtok.checkpoints.official_keys import (
    BEGINNINGS,
    HEAD_KEYS,
    POINTWISE,
    PROJECTOR_KEYS,
    VELOCITY_KEYS,
    Names,
    names,
    tokenizer_names,
)
from flowtok.errors import CheckpointError
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig
from flowtok.image.tokenizer import ImageTokenizer, ImageTokenizerConfig, VisionTransformerConfig
from flowtok.text.projector import AlignmentHead, AlignmentHeadConfig, TextProjector, TextProjectorConfig

Network = TypeVar("Network", bound=nn.Module)
# Attention heads cannot be seen in the shapes; the releases fix them by the width.
VELOCITY_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 20}
PROJECTOR_HEADS = {768: 8}
RELEASED_TOKENS = 77
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_velocity(
    state_dict: Mapping[str, Tensor], *, heads: int | None = None, dtype: torch.dtype = torch.float32
) -> VelocityTransformer:
    """Builds the velocity network, in evaluation mode, from a state dict in the released layout.

    Args:
        state_dict: Released keys, as read from the file; those of other components are left alone. Tensors of the right
            type are taken without a copy.
        heads: Attention heads, where the width is none of the released ones.
        dtype: Type of the module's weights. Rotary tables are never rounded below float32.

    Raises:
        CheckpointError: If keys are missing or unknown, shapes differ or numbers are not finite.
    """
    part = "velocity network"
    weights = component(state_dict, part)
    width, channels = _shape(weights, "x_embedder.weight", 2, part)
    depth = _count(weights, "blocks.", part)
    config = _config(
        part, VelocityTransformerConfig,
        depth=depth, width=width, num_heads=_heads(part, width, heads, VELOCITY_HEADS),
        num_tokens=_shape(weights, "pos_embed", 3, part)[1], token_channels=channels,
    )  # fmt: skip
    with torch.device("meta"):
        network = VelocityTransformer(config)
    return _fill(network, weights, names(VELOCITY_KEYS, depth), part, dtype)


def load_text_projector(
    state_dict: Mapping[str, Tensor], *, heads: int | None = None, dtype: torch.dtype = torch.float32
) -> TextProjector:
    """Builds the text projector from a state dict in the released layout; see `load_velocity`."""
    part = "text projector"
    everything = plain(state_dict)
    weights = component(everything, part)
    moments, width = _shape(weights, "context_encoder.linear.weight", 2, part)
    depth = _count(weights, "context_encoder.layers.", part)
    table = everything.get("pos_embed")
    config = _config(
        part, TextProjectorConfig,
        text_width=width, num_tokens=table.shape[1] if table is not None and table.ndim == 3 else RELEASED_TOKENS,
        token_channels=moments // 2, num_layers=depth, num_heads=_heads(part, width, heads, PROJECTOR_HEADS),
        hidden=_shape(weights, "context_encoder.layers.0.feed_forward.ffn_1.weight", 2, part)[0],
    )  # fmt: skip
    with torch.device("meta"):
        network = TextProjector(config)
    return _fill(network, weights, names(PROJECTOR_KEYS, depth), part, dtype)


def load_alignment_head(
    state_dict: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32
) -> AlignmentHead | None:
    """Builds the contrastive head, which only training needs; None if the file has none.

    A temperature that is missing starts at its initial value ln(1 / 0.07).
    """
    part = "alignment head"
    everything = plain(state_dict)
    if not any(name.startswith("context_projector.") for name in everything):
        return None
    weights = component(everything, part)
    hidden, width = _shape(weights, "context_projector.0.weight", 2, part)
    channels = _shape(weights, "context_projector.4.weight", 2, part)[0]
    config = _config(part, AlignmentHeadConfig, text_width=width, token_channels=channels, hidden=hidden)
    weights.setdefault("t2t_temperature", torch.log(torch.tensor(1 / 0.07)))
    with torch.device("meta"):
        network = AlignmentHead(config)
    return _fill(network, weights, names(HEAD_KEYS), part, dtype)


def load_tokenizer(state_dict: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32) -> ImageTokenizer:
    """Builds the image tokenizer from a state dict in the released layout; see `load_velocity`.

    Picture size, patch size and heads follow from the shapes of the rotary tables, which are used as stored.
    """
    part = "image tokenizer"
    weights = component(state_dict, part)
    patches, head_width = _shape(weights, "encoder.positional_embedding.freqs_cos", 2, part)
    grid = round(patches**0.5)
    if grid * grid != patches:
        raise CheckpointError(f"the image tokenizer's rotary table has {patches} rows, not a square number")
    patch = _shape(weights, "encoder.patch_embed.weight", 4, part)[-1]
    sizes = {}
    for side in ("encoder", "decoder"):
        width = _shape(weights, f"{side}.ln_pre.weight", 1, part)[0]
        sizes[side] = _config(
            part, VisionTransformerConfig,
            width=width, depth=_count(weights, f"{side}.transformer.", part),
            num_heads=max(1, width // max(1, head_width)),
        )  # fmt: skip
    config = _config(
        part, ImageTokenizerConfig,
        image_size=grid * patch, patch_size=patch, **sizes,
        num_tokens=_shape(weights, "latent_tokens", 2, part)[0],
        token_channels=_shape(weights, "encoder.conv_out.weight", 4, part)[0] // 2,
        text_width=_shape(weights, "decoder.text_guidance_proj.weight", 2, part)[1],
        num_text_tokens=_shape(weights, "decoder.text_guidance_positional_embedding", 2, part)[0],
    )  # fmt: skip
    with torch.device("meta"):
        network = ImageTokenizer(config)
    for name in POINTWISE:
        if name in weights and weights[name].shape[2:] == (1, 1):
            weights[name] = weights[name].flatten(1)
    return _fill(network, weights, tokenizer_names(config.encoder.depth, config.decoder.depth), part, dtype)


def released_velocity(
    velocity: VelocityTransformer, projector: TextProjector, head: AlignmentHead | None = None
) -> dict[str, Tensor]:
    """The state dict of FlowTok-*.pth, from our modules, bit for bit; the head's keys are left out without a head."""
    head_state = {} if head is None else _renamed(head, names(HEAD_KEYS))
    temperature = {name: head_state.pop(name) for name in ("t2t_temperature",) if name in head_state}
    return {
        **temperature,
        **_renamed(velocity, names(VELOCITY_KEYS, velocity.config.depth)),
        **_renamed(projector, names(PROJECTOR_KEYS, projector.config.num_layers)),
        **head_state,
    }


def released_tokenizer(tokenizer: ImageTokenizer) -> dict[str, Tensor]:
    """The state dict of FlowTiTok_*.bin, from our module, bit for bit."""
    config = tokenizer.config
    state = _renamed(tokenizer, tokenizer_names(config.encoder.depth, config.decoder.depth))
    return {name: weight[:, :, None, None] if name in POINTWISE else weight for name, weight in state.items()}


def plain(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """A flat state dict: one level named `state_dict` is entered and a `module.` before every name is dropped.

    Raises:
        CheckpointError: If it is not a mapping of names to tensors of floating numbers.
    """
    nested = state_dict.get("state_dict") if isinstance(state_dict, Mapping) else None
    state_dict = nested if isinstance(nested, Mapping) else state_dict
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"this is not a checkpoint: it holds {type(state_dict).__name__}, not named tensors")
    if not state_dict:
        raise CheckpointError("this is not a checkpoint: it is empty")
    flat: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if isinstance(value, Mapping):
            raise CheckpointError(
                f"this is not a checkpoint: {name!r} is a level of its own; only one named 'state_dict' is entered"
            )
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"this is not a checkpoint: {name!r} is {type(value).__name__}, not a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = "without numbers" if value.is_meta else "sparse or quantized"
            raise CheckpointError(f"this checkpoint cannot be used: {name} is {kind}, not a plain tensor")
        flat[name.removeprefix("module.")] = value
    if len(flat) != len(state_dict):
        raise CheckpointError("this checkpoint has the same names with and without the prefix module.")
    return flat


def component(state_dict: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The keys of one component; those of the others are left out.

    Raises:
        CheckpointError: If the component has no keys at all, or there are keys of no component.
    """
    everything = plain(state_dict)
    known = tuple(beginning for beginnings in BEGINNINGS.values() for beginning in beginnings)
    if unknown := [name for name in everything if not name.startswith(known)]:
        raise CheckpointError(f"the checkpoint has {_listed(unknown, 'key')} that no released component has")
    found = {name: weight for name, weight in everything.items() if name.startswith(BEGINNINGS[part])}
    if not found:
        there = [other for other, begin in BEGINNINGS.items() if any(name.startswith(begin) for name in everything)]
        raise CheckpointError(f"the checkpoint holds no {part}, only: {', '.join(there)}")
    return found


def _fill(network: Network, weights: dict[str, Tensor], table: Names, part: str, dtype: torch.dtype) -> Network:
    """Checks everything, then gives the module (built without memory) the tensors.

    Buffers are tables of positions: rounded, they would shift every patch.
    """
    _check(network, weights, table, part)
    tables, exact = {name for name, _ in network.named_buffers()}, torch.promote_types(dtype, torch.float32)
    state = {ours: weights[theirs].detach().to(exact if ours in tables else dtype) for theirs, ours in table.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _check(network: nn.Module, weights: Mapping[str, Tensor], table: Names, part: str) -> None:
    """Raises CheckpointError where keys, shapes, types or numbers are not the module's."""
    if missing := [name for name in table if name not in weights]:
        raise CheckpointError(f"the {part} lacks {_listed(missing, 'key')}")
    if extra := [name for name in weights if name not in table]:
        raise CheckpointError(f"the {part} has {_listed(extra, 'unknown key')}")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if wrong := [name for name, ours in table.items() if tuple(weights[name].shape) != expected[ours]]:
        shapes = [f"{name} is {tuple(weights[name].shape)}, not {expected[table[name]]}" for name in wrong[:3]]
        raise CheckpointError(f"the {part} has {len(wrong)} of another size: {'; '.join(shapes)}")
    if unreal := [name for name in table if not weights[name].is_floating_point()]:
        raise CheckpointError(f"the {part} has {_listed(unreal, 'key')} that hold no floating numbers")
    if unusual := [name for name in table if weights[name].dtype not in FLOATS]:
        kind = str(weights[unusual[0]].dtype).removeprefix("torch.")
        known = ", ".join(str(one).removeprefix("torch.") for one in FLOATS)
        raise CheckpointError(f"the {part} has {_listed(unusual, 'key')} of type {kind}; what can be read is {known}")
    if broken := [name for name in table if not bool(torch.isfinite(weights[name]).all())]:
        raise CheckpointError(f"the {part} has NaN or infinite numbers in {_listed(broken, 'key')}")


def _renamed(network: nn.Module, table: Names) -> dict[str, Tensor]:
    state = network.state_dict()
    assert set(state) == set(table.values()), "the key table does not cover the module"
    return {theirs: state[ours] for theirs, ours in table.items()}


def _config(part: str, cls: type, **sizes: object) -> Any:
    try:
        return cls(**sizes)
    except ValueError as error:
        raise CheckpointError(f"the {part}'s shapes fit no network: {error}") from error


def _heads(part: str, width: int, given: int | None, released: Mapping[int, int]) -> int:
    if given is not None:
        return given
    if width not in released:
        sizes = ", ".join(str(known) for known in released)
        raise CheckpointError(f"a {part} of width {width} is none of the released ones ({sizes}): give its heads")
    return released[width]


def _shape(weights: Mapping[str, Tensor], name: str, axes: int, part: str) -> tuple[int, ...]:
    if name not in weights:
        raise CheckpointError(f"the {part} lacks the key {name}")
    shape = tuple(weights[name].shape)
    if len(shape) != axes:
        raise CheckpointError(f"the {part}'s {name} has shape {shape}, it should have {axes} axes")
    return shape


def _count(weights: Mapping[str, Tensor], beginning: str, part: str) -> int:
    """Number of blocks, one more than the highest number after the beginning."""
    numbers = [name[len(beginning) :].split(".")[0] for name in weights if name.startswith(beginning)]
    depth = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
    if depth > len(numbers):
        raise CheckpointError(f"the {part} lacks most of {depth} blocks: it has only {len(numbers)} keys of blocks")
    if not depth:
        raise CheckpointError(f"the {part} lacks all keys that begin with {beginning}")
    return depth


def _listed(items: list[str], noun: str) -> str:
    shown = ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
    return f"{len(items)} {noun}{'s' if len(items) != 1 else ''} ({shown})"
