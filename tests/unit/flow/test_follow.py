"""The flow can be seen on its way, and looking changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.flow.follow import spread, watched
from flowtok.flow.grid import GRIDS
from flowtok.flow.solver import SOLVERS

FIXED = [name for name in SOLVERS if name != "dopri5"]


def bent(z_BLC: Tensor, t: float) -> Tensor:
    """A velocity whose path is no straight line, so that guesses and states differ."""
    return torch.cos(3.0 * z_BLC) + t


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("grid", GRIDS)
def test_each_stop_is_shown_once_with_the_state_that_a_shorter_walk_ends_in(solver: str, grid: str) -> None:
    """A partial picture must be the flow itself, not heun's guess of it, and the end must not change by looking."""
    times = GRIDS[grid](6).times
    start = torch.linspace(-1.0, 1.0, 12).reshape(1, 3, 4)
    seen: list[tuple[Tensor, float]] = []
    end = watched(SOLVERS[solver], lambda z_BLC, t: seen.append((z_BLC, t)))(bent, start, times)
    assert end.equal(SOLVERS[solver](bent, start, times))
    assert [t for _, t in seen] == list(times[:-1])
    for number, (z_BLC, _) in enumerate(seen):
        alone = SOLVERS[solver](bent, start, times[: number + 1]) if number else start
        assert z_BLC.equal(alone), (solver, number)


def test_frames_are_spread_over_all_of_the_flow() -> None:
    assert spread(20, 2) == {0, 20} and spread(4, 5) == {0, 1, 2, 3, 4}
    gaps = {b - a for a, b in pairwise(sorted(spread(20, 8)))}
    assert len(spread(20, 8)) == 8 and gaps <= {2, 3}
    for wrong in (1, 22):
        with pytest.raises(FlowTokError, match=f"20 steps have 21 stops: .* not {wrong}"):
            spread(20, wrong)
