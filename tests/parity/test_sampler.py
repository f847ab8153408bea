"""Sampling on the release's grid gives its trajectories: a step off and the paper's pictures would not come out."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from filling import Golden
from torch import Tensor

from flowtok.checkpoints.official import load_velocity
from flowtok.flow.grid import TimeGrid, release_grid
from flowtok.flow.guidance import FlaggedVelocity, flagged, guided, tabled
from flowtok.flow.solver import euler
from flowtok.flow.transformer import VelocityTransformer


@cache
def golden() -> Golden:
    return Golden("sampler")


@cache
def network(dtype: torch.dtype = torch.float32) -> VelocityTransformer:
    return load_velocity(golden().weights(), heads=4, dtype=dtype).eval()


def sample(velocity: FlaggedVelocity, z_BLC: Tensor, grid: TimeGrid, num_steps: int | None = None) -> Tensor:
    times = grid.times if num_steps is None else grid.times[: num_steps + 1]
    return euler(grid.retold(guided(velocity, 2.0)), z_BLC, times)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 20, 25, 50])
def test_grids_are_the_release_s_bit_for_bit(num_steps: int) -> None:
    prefix = "" if num_steps == 20 else f"grid{num_steps}."
    grid = release_grid(num_steps)
    told, times = torch.tensor(grid.told, dtype=torch.float32), torch.tensor(grid.times, dtype=torch.float64)
    assert torch.equal(told[:-1], golden().stored[f"{prefix}t_eval"])
    assert torch.equal(times.diff().float(), golden().stored[f"{prefix}step_sizes"])
    if num_steps == 20:
        golden().check("sigma_steps", times + 1e-5)
    if num_steps != 20:
        z = golden().input("x_T")[:1]
        golden().check(f"{prefix}final_first_sample", sample(flagged(network()), z, grid))


def test_both_branches_of_the_first_step() -> None:
    z = golden().input("x_T")
    velocity = flagged(network())
    golden().check("v_cond_step0", velocity(z, 0.0, torch.tensor([False, False])))
    golden().check("v_uncond_step0", velocity(z, 0.0, torch.tensor([True, True])))


@pytest.mark.parametrize("with_table", [False, True])
def test_trajectory(with_table: bool) -> None:
    grid = release_grid(20)
    velocity = tabled(network(), grid.told) if with_table else flagged(network())
    for num_steps in (1, 2, 10, 19, 20):
        z = sample(velocity, golden().input("x_T"), grid, num_steps)
        golden().check(f"x_after_step_{num_steps}", z)
    golden().check("latents_for_decoder", (z / 1.0143).transpose(1, 2).unsqueeze(2))


def test_another_step_rule_is_another_grid() -> None:
    """A grid says alone how long the steps are; the release's solver knows this second rule too and never uses it."""
    ends, told = torch.linspace(0, 1 - 1e-5, 21), release_grid(20).told
    grid = TimeGrid(times=(0.0, *ends.diff().double().cumsum(0).tolist()), told=told)
    golden().check("final_with_step_in_dt", sample(flagged(network()), golden().input("x_T"), grid))


def test_trajectory_in_double_precision() -> None:
    velocity = flagged(network(torch.float64))
    golden().check("x_after_step_20.f64", sample(velocity, golden().input("x_T").double(), release_grid(20)))
