"""Follows the velocity network from one end to the other: time grid, guidance and solver put together.

Knows tokens and times, not what they stand for. Its parts: grid.py, guidance.py, solver.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.flow.grid import GRIDS, TimeGrid
from flowtok.flow.guidance import FlaggedVelocity, Tabled, guided, tabled
from flowtok.flow.solver import CHOOSES_ITS_STEPS, SOLVERS, Solver, Velocity, asked_times
from flowtok.flow.transformer import VelocityTransformer

See = Callable[[Tensor, float], None]
"""Shown the tokens (B, L, C) at a stop of the way, and the time there."""
Follow = Callable[..., Tensor]
"""Carries tokens (B, L, C) from one end to the other; a second argument, a See or None, sees them on the way."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the network is asked, from one end to the other.

    Attributes:
        num_steps: Steps of the solver.
        solver: Name in solver.py.
        grid: Name in grid.py.
        backwards: From image to text, t = 1 to 0.
    """

    num_steps: int
    solver: str = "euler"
    grid: str = "uniform"
    backwards: bool = False

    @property
    def stops(self) -> TimeGrid:
        """Where the solver stops, in the order of its way."""
        stops = GRIDS[self.grid](self.num_steps)
        return stops.reversed() if self.backwards else stops


def table_for(network: VelocityTransformer, schedule: Schedule) -> Tabled:
    """The network with all that time tells it computed once, for every prompt, batch and guidance."""
    stops = schedule.stops
    between = [stops.tell(t) for t in asked_times(schedule.solver, stops.times)]  # midpoint asks there
    return tabled(network, [*stops.told, *between], device=next(network.parameters()).device)


def followed(
    network: VelocityTransformer,
    schedule: Schedule,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    *,
    table: FlaggedVelocity | None = None,
) -> Follow:
    """The flow as a function of tokens.

    Args:
        network: The velocity network.
        schedule: When it is asked.
        guidance_scale: 1 is no guidance.
        guidance_interval: Times, as the network is told them, between which the guidance acts.
        table: What `table_for` gave for the same schedule; made here if None.

    Returns:
        The flow. It raises FlowTokError if it is to be seen on the way with a solver that chooses its own steps.
    """
    stops = schedule.stops
    dtype = next(network.parameters()).dtype
    ask = table or table_for(network, schedule)

    def exact(z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        # Tokens and guidance stay in float32 whatever the network computes in.
        return ask(z_BLC.to(dtype), t, null_B).float()

    velocity = stops.retold(guided(exact, guidance_scale, guidance_interval))
    solver = schedule.solver

    def follow(z_BLC: Tensor, see: See | None = None) -> Tensor:
        if see is not None and solver == CHOOSES_ITS_STEPS:
            raise FlowTokError(f"{solver} chooses its own steps and stops nowhere on the way; choose another solver")
        solve = SOLVERS[solver] if see is None else watched(SOLVERS[solver], see)
        return solve(velocity, z_BLC.float(), stops.times)

    return follow


def watched(solver: Solver, see: See) -> Solver:
    """A solver with fixed steps that shows its tokens at every stop but the last, in their order.

    A solver asks for the velocity at a stop with the tokens that it has arrived with; heun asks there once before, with
    a guess. So tokens are shown when the solver moves on: those that it asked with last.
    """

    def solve(velocity: Velocity, z_BLC: Tensor, times: Sequence[float]) -> Tensor:
        stops = frozenset(times[:-1])
        held: list[tuple[Tensor, float]] = []

        def asked(z_BLC: Tensor, t: float) -> Tensor:
            if held and held[0][1] != t:
                see(*held.pop())
            if t in stops:
                held[:] = [(z_BLC, t)]
            return velocity(z_BLC, t)

        end_BLC = solver(asked, z_BLC, times)
        if held:
            see(*held.pop())
        return end_BLC

    return solve


def spread(num_steps: int, num_frames: int) -> set[int]:
    """Which of a flow's num_steps + 1 stops to show: the first, the last, and others evenly between them.

    Raises:
        FlowTokError: Fewer than 2, or more than there are stops.
    """
    if not 2 <= num_frames <= num_steps + 1:
        raise FlowTokError(f"{num_steps} steps have {num_steps + 1} stops: show 2 or more of them, not {num_frames}")
    return {round(i * num_steps / (num_frames - 1)) for i in range(num_frames)}
