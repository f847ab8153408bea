"""For any grid, every solver is exact on a constant velocity and comes back: captions start where pictures end."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowtok.flow.grid import GRIDS
from flowtok.flow.path import SIGMA_MIN, point
from flowtok.flow.solver import SOLVERS

seeds = st.integers(0, 2**31)
solvers = st.sampled_from(sorted(SOLVERS))


def tokens(seed: int, count: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 3, 4, generator=draws, dtype=torch.float64).unbind(0)


@given(seeds, solvers, st.sampled_from(sorted(GRIDS)), st.integers(1, 40))
def test_a_constant_velocity_carries_text_to_image_exactly(seed: int, name: str, grid: str, num_steps: int) -> None:
    text, image = (ends[:1] for ends in tokens(seed, 2))
    velocity_BLC = point(text, image, torch.zeros(1, dtype=torch.float64)).velocity_BLC
    times = GRIDS[grid](num_steps).times
    z = SOLVERS[name](lambda z, t: velocity_BLC, text, times)
    expected = text + (times[-1] - times[0]) * velocity_BLC
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)
    # The end of the path is the image plus sigma_min of the text; the release's grid stops 1e-5 short.
    torch.testing.assert_close(z, image, rtol=0, atol=20 * SIGMA_MIN)


@given(seeds, solvers, st.integers(8, 40))
def test_forth_and_back_returns(seed: int, name: str, num_steps: int) -> None:
    (start,) = tokens(seed, 1)
    grid = GRIDS["uniform"](num_steps)

    def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
        return torch.sin(z) * (1.0 - t)

    there = SOLVERS[name](velocity, start, grid.times)
    back = SOLVERS[name](velocity, there, grid.reversed().times)
    # The errors of the two ways do not cancel: first order leaves about 1 / steps.
    bound = 2.0 / num_steps if name == "euler" else 4.0 / num_steps**2
    assert (back - start).abs().max() < max(bound, 1e-3)
