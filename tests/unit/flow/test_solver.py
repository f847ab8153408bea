"""Solvers meet closed forms at their order; a lost half step would only show as slightly worse pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.flow.grid import uniform_grid
from flowtok.flow.solver import SOLVERS, ab2, dopri5

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 2}
START = torch.tensor([[[1.0]], [[-2.0]]], dtype=torch.float64)


def decay(z_BLC: Tensor, t: float) -> Tensor:
    """dz/dt = cos(t) z, so z(1) = z(0) exp(sin(1))."""
    return math.cos(t) * z_BLC


EXACT = START * math.exp(math.sin(1.0))


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str) -> None:
    errors = [(SOLVERS[name](decay, START, uniform_grid(n).times) - EXACT).abs().max().item() for n in (80, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.25)


def test_calls_of_each_solver() -> None:
    for name, calls in {"euler": 4, "ab2": 4, "midpoint": 8, "heun": 8}.items():
        asked: list[float] = []
        SOLVERS[name](lambda z, t, asked=asked: asked.append(t) or z, START, uniform_grid(4).times)
        assert len(asked) == calls, name
        assert 0.0 <= min(asked) and max(asked) <= 1.0


def test_ab2_keeps_its_order_on_uneven_steps() -> None:
    errors = []
    for n in (40, 80):
        times = [(i / n) ** 2 for i in range(n + 1)]
        errors.append((ab2(decay, START, times) - EXACT).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
def test_dopri5_keeps_its_tolerance(tolerance: float) -> None:
    z = dopri5(decay, START, (0.0, 0.1, 1.0), rtol=tolerance, atol=tolerance)
    assert (z - EXACT).abs().max() < 20 * tolerance


def test_dopri5_refines_where_it_is_stiff_and_rejects_steps() -> None:
    asked: list[float] = []

    def bump(z_BLC: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.full_like(z_BLC, math.exp(-(((t - 0.5) / 0.1) ** 2)))

    z = dopri5(bump, torch.zeros(1, 1, 1, dtype=torch.float64), (0.0, 0.4, 1.0), rtol=1e-8, atol=1e-8)
    assert z.item() == pytest.approx(0.1 * math.sqrt(math.pi), abs=1e-6)
    assert sum(0.25 < t < 0.75 for t in asked) > 0.6 * len(asked)


def test_the_named_dopri5_gives_a_sample_the_same_result_alone_and_in_a_batch() -> None:
    stiff = torch.tensor([[[0.1]], [[30.0]]], dtype=torch.float64)

    def velocity(z_BLC: Tensor, t: float) -> Tensor:
        return torch.sin(z_BLC * (1.0 + t))

    together = SOLVERS["dopri5"](velocity, stiff, (0.0, 0.2, 1.0))
    alone = torch.cat([dopri5(velocity, stiff[i : i + 1], (0.0, 0.2, 1.0)) for i in range(2)])
    assert torch.equal(together, alone)


def test_dopri5_stops_on_numbers_that_are_not_finite() -> None:
    with pytest.raises(FlowTokError, match="shrank to nothing"):
        dopri5(lambda z, t: z * math.nan, START, (0.0, 0.1, 1.0))
