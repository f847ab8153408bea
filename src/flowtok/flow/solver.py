"""Solvers: plain functions that carry tokens along a velocity from the first of some times to the last.

They know neither networks nor guidance; a velocity is any function of tokens and time. Times may run up or down.
Grids of times are in grid.py, the way from a network to a velocity in guidance.py.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from flowtok.errors import FlowTokError

Velocity = Callable[[Tensor, float], Tensor]
Solver = Callable[[Velocity, Tensor, Sequence[float]], Tensor]


def euler(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
    """First order, one call a step: z + h v(z, t)."""
    for start, end in pairwise(times):
        z_BLC = z_BLC + (end - start) * velocity(z_BLC, start)
    return z_BLC


def midpoint(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
    """Second order, two calls a step: the velocity half a step ahead carries the whole step."""
    for start, end in pairwise(times):
        half = 0.5 * (end - start)
        z_half_BLC = z_BLC + half * velocity(z_BLC, start)
        z_BLC = z_BLC + (end - start) * velocity(z_half_BLC, start + half)
    return z_BLC


def heun(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
    """Second order, two calls a step: the mean of the velocities at both ends of an Euler step."""
    for start, end in pairwise(times):
        step = end - start
        here = velocity(z_BLC, start)
        there = velocity(z_BLC + step * here, end)
        z_BLC = z_BLC + 0.5 * step * (here + there)
    return z_BLC


def ab2(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
    """Second order, one call a step: Adams-Bashforth, the velocity extrapolated from this call and the one before.

    Steps may be uneven. The first step is an Euler step.
    """
    before: Tensor | None = None
    step_before = 0.0
    for start, end in pairwise(times):
        step = end - start
        here = velocity(z_BLC, start)
        slope = here if before is None else here + 0.5 * (step / step_before) * (here - before)
        z_BLC = z_BLC + step * slope
        before, step_before = here, step
    return z_BLC


# Dormand & Prince 1980: nodes, stage weights, and the difference of the fifth and the fourth order result.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dopri5(velocity: Velocity, z_BLC: Tensor, times: Sequence[float], rtol: float = 1e-4, atol: float = 1e-4) -> Tensor:
    """Fifth order with steps of its own choice: six calls a step, from the first time to the last.

    The first step tried is the first of `times`; those between are not stops. All samples share the steps that the
    worst of them needs, so a sample comes out a little different (within the tolerance) in another batch; wrap it in
    `each_alone` where that matters.

    Args:
        velocity: The velocity.
        z_BLC: Tokens at the first time.
        times: At least two times.
        rtol: Allowed error of a step relative to the tokens.
        atol: Allowed error of a step on top.

    Raises:
        FlowTokError: If the step shrinks to nothing, which happens when the velocity is not finite.

    Source: Dormand & Prince 1980 with PI step control (Hairer & Wanner, Solving ODEs II, section IV.2).
    """
    time, end = times[0], times[-1]
    step = times[1] - times[0]
    error_before = 1.0
    first = velocity(z_BLC, time)
    while time != end:
        if abs(step) < 1e-9 * abs(end - times[0]):
            raise FlowTokError(f"dopri5 cannot go on at t = {time:g}: its step shrank to nothing (is it finite there?)")
        reaches_end = abs(step) >= abs(end - time) * (1.0 - 1e-12)
        step = end - time if reaches_end else step
        slopes, z_next = [first], z_BLC
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            z_next = z_BLC + step * _weighted(weights, slopes)
            slopes.append(velocity(z_next, time + node * step))
        scale = atol + rtol * torch.maximum(z_BLC.abs(), z_next.abs())
        error = (step * _weighted(_ERROR, slopes) / scale).square().flatten(1).mean(1).max().sqrt().item()
        if math.isfinite(error) and error <= 1.0:
            time = end if reaches_end else time + step
            z_BLC, first = z_next, slopes[-1]
            error = max(error, 1e-10)
            step *= min(10.0, max(0.2, 0.9 * error**-0.14 * error_before**0.08))
            error_before = error
        else:
            step *= max(0.1, 0.9 * error**-0.2) if math.isfinite(error) else 0.1
    return z_BLC


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total + weight * slope
    return total


def each_alone(solver: Solver) -> Solver:
    """A solver that carries each sample of a batch alone, so that it comes out the same in every batch.

    For solvers that choose their steps; the velocity must not depend on a sample's place in the batch.
    """

    def solve(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
        return torch.cat([solver(velocity, z_1LC, times) for z_1LC in z_BLC.split(1)])

    return solve


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "ab2": ab2,
    "dopri5": each_alone(dopri5),
}

CHOOSES_ITS_STEPS = "dopri5"


def asked_times(solver: str, times: Sequence[float]) -> tuple[float, ...]:
    """The times at which a solver will ask for the velocity, in its order; none for one that chooses its steps.

    Args:
        solver: Name of a solver.
        times: The grid that it is given.
    """
    asked: list[float] = []
    if solver != CHOOSES_ITS_STEPS:
        nothing_111 = torch.zeros(1, 1, 1)
        SOLVERS[solver](lambda z_BLC, t: asked.append(t) or nothing_111, nothing_111, times)
    return tuple(asked)
