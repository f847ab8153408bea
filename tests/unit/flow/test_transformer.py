"""The velocity network: shapes, fresh weights, mixed precision and what it must refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig

TINY = VelocityTransformerConfig(depth=2, width=32, num_heads=4, num_tokens=6, token_channels=3)


def network(seed: int = 0, config: VelocityTransformerConfig = TINY) -> VelocityTransformer:
    model = VelocityTransformer(config)
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def awake(model: VelocityTransformer) -> VelocityTransformer:
    """Fresh networks give zero; these weights are random everywhere."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=draws)
    return model


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.randn(size, 6, 3, generator=torch.Generator().manual_seed(2))
    return z, torch.linspace(0, 1, size), torch.arange(size) % 2 == 1


def test_a_fresh_network_stands_still_and_is_fixed_by_its_seed() -> None:
    assert network()(*batch()).abs().max() == 0
    first, again, other = network(0).state_dict(), network(0).state_dict(), network(1).state_dict()
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["tokens_in.weight"].equal(other["tokens_in.weight"])


def test_time_and_null_flag_matter_and_samples_do_not_see_each_other() -> None:
    model, (z, t, null) = awake(network()), batch()
    velocity = model(z, t, null)
    assert not model(z, t, ~null).allclose(velocity)
    assert not model(z, t * 0.5 + 0.1, null).allclose(velocity)
    torch.testing.assert_close(model(z[:1], t[:1], null[:1]), velocity[:1])


def test_one_row_of_modulation_serves_a_whole_batch() -> None:
    model, (z, _, _) = awake(network()), batch()
    half = torch.full((3,), 0.5)
    nulls = torch.tensor([True, True, True])
    row = model.modulation(half[:1], nulls[:1])
    torch.testing.assert_close(model.forward_modulated(z, row), model(z, half, nulls))


@pytest.mark.parametrize("position_maps", [False, True])
def test_every_weight_but_the_position_table_trains(position_maps: bool) -> None:
    model = awake(network(config=replace(TINY, position_maps=position_maps)))
    model(*batch()).square().sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == ["positions_1LD"]


def test_position_maps_hear_the_same_number_differently_in_every_token() -> None:
    model, (_, t, null) = network(config=replace(TINY, position_maps=True)), batch()
    assert model.tokens_in.maps_LIO is not None
    heard: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    same = torch.ones(3, 6, 3)
    model(same, t, null)
    model(torch.zeros(3, 6, 3), t, null)
    by_numbers_LD = (heard[0] - heard[1])[0]
    expected_LD = (model.tokens_in.weight.T + model.tokens_in.maps_LIO).sum(1)
    torch.testing.assert_close(by_numbers_LD, expected_LD)
    assert not by_numbers_LD[0].allclose(by_numbers_LD[1])


@pytest.mark.parametrize("stored", [False, True])
def test_bfloat16_stays_near_float32(stored: bool) -> None:
    model, (z, t, null) = awake(network()), batch()
    exact = model(z, t, null)
    if stored:
        velocity = model.bfloat16()(z.bfloat16(), t, null)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(z, t, null)
    # bfloat16 has 8 bits; a few roundings in a row.
    assert (velocity.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_sizes_that_clash_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match="width 30 is not a multiple of num_heads 4"):
        VelocityTransformerConfig(depth=1, width=30, num_heads=4)
    with pytest.raises(ValueError, match="at least 1"):
        VelocityTransformerConfig(depth=0, width=32, num_heads=4)
    with pytest.raises(ValueError, match="odd"):
        VelocityTransformerConfig(depth=1, width=9, num_heads=3)
