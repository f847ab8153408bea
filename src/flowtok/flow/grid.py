"""Grids of times for the solvers by name: uniform, denser towards the text, for flows that jump, and the release's.

A grid says where the state stops and, apart from that, which time the network is told there; in the release the two
differ. Knows no network; see solver.py for what walks along a grid.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowtok.flow.solver import Velocity


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """Where a solver stops, and the time that the network is told at each stop.

    Attributes:
        times: Times of the state, N + 1 of them for N steps, running up or down.
        told: For each stop the time that the network is told.
    """

    times: tuple[float, ...]
    told: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.told) or len(self.times) < 2:
            raise ValueError(
                f"a grid needs a told time for each of 2 or more times: {len(self.times)}, {len(self.told)}"
            )

    def reversed(self) -> "TimeGrid":
        """The same stops in the other direction, from the image to the text."""
        return TimeGrid(times=self.times[::-1], told=self.told[::-1])

    def tell(self, t: float) -> float:
        """The told time for any time of the state; between two stops it runs straight, outside it stays."""
        times, told = (self.times, self.told) if self.times[0] < self.times[-1] else (self.times[::-1], self.told[::-1])
        if t >= times[-1]:
            return told[-1]
        after = max(1, bisect_right(times, t))
        share = max(0.0, (t - times[after - 1]) / (times[after] - times[after - 1]))
        return told[after - 1] + share * (told[after] - told[after - 1])

    def retold(self, velocity: Velocity) -> Velocity:
        """The velocity as the solver must see it: called with the state's time, it is asked with the told one."""
        return lambda z_BLC, t: velocity(z_BLC, self.tell(t))


def uniform_grid(num_steps: int) -> TimeGrid:
    """Equal steps from 0 to 1; the network is told the time of the state.

    Raises:
        ValueError: If there is not at least one step.
    """
    _check_num_steps(num_steps)
    times = tuple(i / num_steps for i in range(num_steps + 1))
    return TimeGrid(times=times, told=times)


def early_grid(num_steps: int) -> TimeGrid:
    """Steps from 0 to 1 that grow on the way, (i / N)^1.25: where the text becomes an image, velocities change most.

    Good for few steps of a solver of second order; the exponent was found by measurement (benchmarks/solvers.py).

    Raises:
        ValueError: If there is not at least one step.
    """
    _check_num_steps(num_steps)
    times = tuple((i / num_steps) ** 1.25 for i in range(num_steps + 1))
    return TimeGrid(times=times, told=times)


def middle_grid(num_steps: int) -> TimeGrid:
    """Equal steps from 0 to 1; at the start of each the network is told the step's middle.

    For flows that were trained to jump (train/distil.py): the middle says where the step leads, since that of a half,
    a quarter and so on of the way are all different. The last stop, where euler never asks, is told the last middle.

    Raises:
        ValueError: If there is not at least one step.
    """
    _check_num_steps(num_steps)
    middles = tuple((i + 0.5) / num_steps for i in range(num_steps))
    return TimeGrid(times=uniform_grid(num_steps).times, told=(*middles, middles[-1]))


def release_grid(num_steps: int) -> TimeGrid:
    """The grid that the authors' released models are sampled on, with euler.

    The state steps along linspace(1e-5, 1, N + 1) while the network is told linspace(0, 0.99999, N), both in float32.
    The stops are kept as running sums of the float32 step sizes, so that their differences are exactly those. The last
    stop, where euler never asks, is told the last time again.

    Raises:
        ValueError: If there is not at least one step.
    """
    _check_num_steps(num_steps)
    steps = np.diff(_linspace32(1e-5, 1.0, num_steps + 1)).astype(np.float64)
    times = (0.0, *np.cumsum(steps).tolist())
    told = _linspace32(0.0, float(np.float32(1.0) * np.float32(1.0 - 1e-5)), num_steps).tolist()
    return TimeGrid(times=times, told=(*told, told[-1]))


def _linspace32(start: float, end: float, count: int) -> np.ndarray:
    """`count` numbers from start to end in float32: a rounded step, and each half counted from its own end."""
    if count == 1:
        return np.array([start], dtype=np.float32)
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    numbers = np.arange(count, dtype=np.float64)
    values = np.where(numbers < count // 2, first + step * numbers, last - step * (count - 1 - numbers))
    return values.astype(np.float32)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"sampling needs at least 1 step, not {num_steps}")


GRIDS: dict[str, Callable[[int], TimeGrid]] = {
    "uniform": uniform_grid,
    "early": early_grid,
    "middle": middle_grid,
    "release": release_grid,
}
