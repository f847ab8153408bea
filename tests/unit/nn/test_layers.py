"""The shared layers against plain formulas, so that a faster way of writing one cannot change a number unseen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flowtok.nn.attention import LONGEST_WRITTEN_OUT, SelfAttention, attend
from flowtok.nn.blocks import ModulatedBlock, modulated_norm
from flowtok.nn.embeddings import TIME_FREQUENCIES, position_table, time_features
from flowtok.nn.gaussian import Gaussian, normal_like
from flowtok.nn.rope import RotaryTable


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", [5, LONGEST_WRITTEN_OUT + 1])
def test_both_ways_of_attention_agree_with_the_formula(length: int) -> None:
    query, key, value = draws(3, 2, 2, length, 4).unbind(0)
    weights = torch.softmax(query @ key.transpose(-2, -1) / 2.0, dim=-1)
    torch.testing.assert_close(attend(query, key, value), weights @ value)


def test_self_attention_splits_queries_keys_and_values_in_that_order() -> None:
    layer = SelfAttention(4, 1).double()
    x = draws(1, 3, 4)
    query, key, value = (x @ layer.qkv.weight.T + layer.qkv.bias).split(4, dim=-1)
    mixed = torch.softmax(query @ key.transpose(-2, -1) / 2.0, dim=-1) @ value
    torch.testing.assert_close(layer(x), mixed @ layer.proj.weight.T + layer.proj.bias)
    with pytest.raises(ValueError, match="width 5 is not a multiple of num_heads 2"):
        SelfAttention(5, 2)


def test_rotation_depends_on_the_distance_only_and_leaves_other_tokens() -> None:
    table = RotaryTable(4, 8)
    query, key = draws(1, 1, 1, 8, seed=1).expand(1, 1, 20, 8), draws(1, 1, 1, 8, seed=2).expand(1, 1, 20, 8)
    turned_query, turned_key = table.rotate(query), table.rotate(key)
    assert turned_query[:, :, 16:].equal(query[:, :, 16:])
    scores = (turned_query[0, 0, :16] @ turned_key[0, 0, :16].T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3], rtol=1e-6, atol=1e-6)
    assert not scores[0, 0, 1, 2].isclose(scores[0, 0, 2, 1])
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="not 6"):
        RotaryTable(4, 6)


def test_modulated_norm_has_the_small_eps() -> None:
    x, shift, scale = draws(2, 3, 8) * 1e-3, draws(2, 1, 8), draws(2, 1, 8)
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    expected = (x - mean) / (var + 1e-6).sqrt() * (1 + scale) + shift
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected)


def test_gates_of_zero_leave_the_tokens_alone() -> None:
    block = ModulatedBlock(8, 2).double()
    x, modulation = draws(2, 3, 8), draws(2, 6, 8)
    modulation[:, [2, 5]] = 0.0
    assert block(x, modulation).equal(x)


def test_time_features_are_cosines_then_sines_of_the_raw_time() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = t.double()[:, None] * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
    torch.testing.assert_close(time_features(t), expected, rtol=0, atol=5e-7)
    assert time_features(t.double()).dtype == torch.float32
    assert len(TIME_FREQUENCIES) == 128 and TIME_FREQUENCIES[0] == 1.0


def test_position_table_is_sines_then_cosines() -> None:
    table = position_table(5, 8)
    assert table[0].tolist() == [0.0] * 4 + [1.0] * 4
    assert table[3, 1].item() == pytest.approx(math.sin(3 * 10000 ** (-1 / 4)))
    with pytest.raises(ValueError, match="even, not 7"):
        position_table(5, 7)


def test_gaussian_draws_and_divergence() -> None:
    tokens = Gaussian(mean_BLC=torch.full((2, 3, 4), 2.0), logvar_BLC=torch.full((2, 3, 4), math.log(9.0)))
    torch.testing.assert_close(tokens.sample(torch.ones(2, 3, 4)), torch.full((2, 3, 4), 5.0))
    assert tokens.kl_B().tolist() == pytest.approx([12 * 0.5 * (4.0 + 9.0 - 1.0 - math.log(9.0))] * 2)


def test_noise_is_fixed_by_its_generator_and_is_float32_noise_in_every_type() -> None:
    first = normal_like(torch.zeros(3, 4), torch.Generator().manual_seed(5))
    again = normal_like(torch.zeros(3, 4, dtype=torch.bfloat16), torch.Generator().manual_seed(5))
    assert again.dtype == torch.bfloat16
    assert first.bfloat16().equal(again)


def test_shared_layers_run_on_any_batch() -> None:
    block = ModulatedBlock(8, 2)
    nn.init.normal_(block.modulation.weight)
    assert block(torch.zeros(0, 3, 8), torch.zeros(1, 6, 8)).shape == (0, 3, 8)
