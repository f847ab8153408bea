"""Time grids: a solver that ends off its end or a network told a wrong time would give worse pictures in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flowtok.flow.grid import GRIDS, TimeGrid, release_grid, uniform_grid
from flowtok.flow.solver import euler


def test_the_uniform_grid_goes_all_the_way_and_tells_the_truth() -> None:
    grid = uniform_grid(8)
    assert grid.times[0] == 0.0 and grid.times[-1] == 1.0
    assert grid.told == grid.times
    assert grid.tell(0.3) == pytest.approx(0.3)


def test_the_release_grid_tells_other_times_than_those_of_the_state() -> None:
    grid = release_grid(5)
    assert grid.told[:2] == (0.0, pytest.approx(0.25, abs=1e-5))
    assert grid.times[1] == pytest.approx(0.2, abs=1e-5)
    asked = []
    euler(grid.retold(lambda z, t: asked.append(t) or z), torch.zeros(1), grid.times)
    assert asked == list(grid.told[:-1])


def test_steps_of_different_length_are_told_different_times() -> None:
    """A network that jumps sees by the time alone whether to go a quarter, a half or all of the way."""
    told = [t for number in (1, 2, 4, 8) for t in GRIDS["middle"](number).told[:-1]]
    assert len(set(told)) == len(told) == 15
    assert GRIDS["middle"](2).told[:2] == (0.25, 0.75) and GRIDS["middle"](2).times == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("make", GRIDS.values())
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_backwards_a_grid_tells_the_same_at_the_same_stop(make: Callable[[int], TimeGrid], num_steps: int) -> None:
    grid = make(num_steps)
    for stop, told in zip(grid.times, grid.told, strict=True):
        assert grid.tell(stop) == told
        assert grid.reversed().tell(stop) == told
    assert grid.reversed().times[0] == grid.times[-1]
    middles = [0.5 * (a + b) for a, b in zip(grid.times, grid.times[1:], strict=False)]
    told = [grid.tell(t) for t in middles]
    assert told == sorted(told)
    assert [grid.reversed().tell(t) for t in middles] == told
    assert grid.tell(-1.0) == grid.told[0] and grid.tell(2.0) == grid.told[-1]


def test_no_steps_are_refused() -> None:
    for make in GRIDS.values():
        with pytest.raises(ValueError, match="at least 1 step, not 0"):
            make(0)
    with pytest.raises(ValueError, match="told time"):
        TimeGrid(times=(0.0, 1.0), told=(0.0,))
