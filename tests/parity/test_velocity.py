"""The velocity network gives the release's numbers at every size: otherwise the paper's weights would draw noise."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from filling import Golden, doubled_on_the_way

from flowtok.checkpoints.official import load_alignment_head, load_text_projector, load_velocity
from flowtok.flow.transformer import VelocityTransformer
from flowtok.nn.blocks import modulated_norm
from flowtok.nn.embeddings import position_table, time_features

COUNTS = {"flowtok_b": 153_925_185, "flowtok_xl": 698_083_905, "flowtok_h": 1_092_095_553}


@cache
def tiny() -> tuple[Golden, VelocityTransformer]:
    golden = Golden("flowtok_tiny")
    return golden, load_velocity(golden.weights(), heads=4).eval()


def test_inside_of_the_tiny_network() -> None:
    golden, network = tiny()
    z, t, null = golden.input("x"), golden.input("t"), golden.input("null_indicator").bool()
    golden.check("t_frequencies", time_features(t))
    tokens = network.tokens_in(z)
    golden.check("x_embedder (before the positions are added)", tokens)
    golden.check("t_embedder", network.time(t))
    golden.check("y_embedder", network.null(null.long()))
    modulation = network.modulation(t, null)
    name = "block0.modulation (shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp)"
    golden.check(name, modulation.blocks[0])
    golden.check("final.modulation (shift, scale)", modulation.head_B2D)
    x = tokens + network.positions_1LD
    zero = torch.zeros(2, 1, x.shape[-1])
    golden.check("block0.norm1", modulated_norm(x, zero, zero))
    block, (shift, scale, gate, shift_2, scale_2, _) = network.blocks[0], modulation.blocks[0].unsqueeze(-2).unbind(1)
    attended = block.attention(modulated_norm(x, shift, scale))
    golden.check("block0.attn", attended)
    golden.check("block0.mlp", block.feed_forward(modulated_norm(x + gate * attended, shift_2, scale_2)))
    x = block(x, modulation.blocks[0])
    golden.check("block0", x)
    golden.check("last_block", network.blocks[1](x, modulation.blocks[1]))


def test_tiny_velocity_in_both_precisions() -> None:
    golden, network = tiny()
    z, t, null = golden.input("x"), golden.input("t"), golden.input("null_indicator").bool()
    golden.check("velocity", network(z, t, null))
    double = load_velocity(golden.weights(), heads=4, dtype=torch.float64)
    golden.check("velocity.f64", double(z.double(), t, null))


def test_a_table_of_modulations_gives_the_same_velocity() -> None:
    golden, network = tiny()
    z, t, null = golden.input("x"), golden.input("t"), golden.input("null_indicator").bool()
    table = network.modulation(t.flip(0), null.flip(0))
    golden.check("velocity", network.forward_modulated(z, table.select(torch.tensor([1, 0]))))


def test_position_table_of_the_release() -> None:
    golden, _ = tiny()
    stored = golden.stored["buffer:pos_embed"]
    assert torch.equal(position_table(77, 64)[None], stored)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowtok_b", "flowtok_xl", "flowtok_h"])
def test_release_sizes(name: str) -> None:
    golden = Golden(name)
    width = next(shape[-1] for key, shape, _ in golden.spec["keys"] if key == "pos_embed")
    weights = golden.weights({"pos_embed": position_table(77, width)[None]})
    assert sum(tensor.numel() for tensor in weights.values()) == COUNTS[name]
    network, projector = load_velocity(weights).eval(), load_text_projector(weights).eval()
    head = load_alignment_head(weights)
    assert head is not None
    modules = (network, projector, head)
    assert sum(parameter.numel() for module in modules for parameter in module.parameters()) == COUNTS[name]
    del weights
    z, t, null = golden.input("x"), golden.input("t"), golden.input("null_indicator").bool()
    tokens = projector(golden.input("text"))
    golden.check("mu", tokens.mean_BLC)
    golden.check("logvar", tokens.logvar_BLC)
    golden.check("projected", head(golden.input("text")))
    golden.check("velocity", network(z, t, null))
    doubled_on_the_way(network, network.blocks)
    golden.check("velocity.f64", network(z.double(), t, null))
