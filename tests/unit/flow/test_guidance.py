"""Guidance: the null branch runs only where it is needed, and a table of modulations changes nothing but the cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowtok.flow.guidance import flagged, guided, tabled
from flowtok.flow.transformer import VelocityTransformer, VelocityTransformerConfig


class Recorder:
    """Velocity 1 where conditional and 3 where null; remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[bool]]] = []

    def __call__(self, z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        self.calls.append((t, null_B.tolist()))
        return torch.where(null_B, 3.0, 1.0)[:, None, None].expand_as(z_BLC)


Z = torch.zeros(2, 3, 4)


def test_both_branches_run_in_one_batch() -> None:
    recorder = Recorder()
    velocity = guided(recorder, 2.0)(Z, 0.5)
    assert recorder.calls == [(0.5, [False, False, True, True])]
    assert velocity.unique().tolist() == [3.0 + 2.0 * (1.0 - 3.0)]


def test_without_guidance_the_null_branch_does_not_run() -> None:
    recorder = Recorder()
    assert guided(recorder, 1.0)(Z, 0.5).unique().tolist() == [1.0]
    assert recorder.calls == [(0.5, [False, False])]
    assert guided(recorder, 0.0)(Z, 0.5).unique().tolist() == [3.0]


def test_the_interval_limits_guidance() -> None:
    recorder = Recorder()
    velocity = guided(recorder, 2.0, (0.2, 0.8))
    assert [velocity(Z, t).unique().item() for t in (0.1, 0.2, 0.8, 0.9)] == [1.0, -1.0, -1.0, 1.0]
    with pytest.raises(ValueError, match="upwards"):
        guided(recorder, 2.0, (0.8, 0.2))


def test_a_table_gives_what_the_network_gives() -> None:
    model = VelocityTransformer(
        VelocityTransformerConfig(depth=2, width=32, num_heads=4, num_tokens=3, token_channels=4)
    )
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(4, 3, 4, generator=draws)
    null = torch.tensor([True, False, False, True])
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3, generator=draws)
        table, direct = tabled(model, [0.0, 0.25, 0.25, 0.5]), flagged(model)
        for t in (0.0, 0.25, 0.5, 0.3):  # the last is not in the table
            torch.testing.assert_close(table(z, t, null), direct(z, t, null))
        assert not direct(z, 0.0, null).allclose(direct(z, 0.5, null))
