"""Guidance: a velocity that knows a null flag in, a velocity for the solvers out.

Solvers never hear of it and the network never hears of it; see solver.py and transformer.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtok.flow.solver import Velocity
from flowtok.flow.transformer import Modulation, VelocityTransformer

FlaggedVelocity = Callable[[Tensor, float, Tensor], Tensor]
"""A velocity of tokens (B, L, C), a time and a null flag (B,) bool for each sample."""


def flagged(network: VelocityTransformer) -> FlaggedVelocity:
    """The network as a function of one time for the whole batch."""

    def velocity(z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        t_B = torch.full((len(z_BLC),), t, dtype=torch.float32, device=z_BLC.device)
        return network(z_BLC, t_B, null_B)

    return velocity


@dataclass(frozen=True, kw_only=True)
class Tabled:
    """A FlaggedVelocity whose modulations are known beforehand; `tabled` makes it.

    Attributes:
        network: The velocity network.
        rows: Where each time stands in the table, with the null flag as many rows further down.
        table: The modulations.
    """

    network: VelocityTransformer
    rows: dict[float, int]
    table: Modulation

    def __call__(self, z_BLC: Tensor, t: float, null_B: Tensor) -> Tensor:
        if t not in self.rows:
            return flagged(self.network)(z_BLC, t, null_B)
        rows_B = self.rows[t] + len(self.rows) * null_B.long()
        return self.network.forward_modulated(z_BLC, self.table.select(rows_B))


def tabled(network: VelocityTransformer, times: Sequence[float], device: torch.device | str = "cpu") -> Tabled:
    """The network with the modulation of all the given times computed beforehand, in one batch.

    A time that is not among them is computed when it comes; `asked_times` in solver.py says where a solver will ask.
    Prompts and batches share one table, and the network may forget what made it (`VelocityTransformer.forget_time`).

    Args:
        network: The velocity network.
        times: Times at which the network will be asked.
        device: Where the network is.
    """
    rows = {t: row for row, t in enumerate(dict.fromkeys(float(t) for t in times))}
    t_T = torch.tensor([*rows, *rows], dtype=torch.float32, device=device)
    null_T = torch.arange(len(t_T), device=device) >= len(rows)
    return Tabled(network=network, rows=rows, table=network.modulation(t_T, null_T))


def guided(velocity: FlaggedVelocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Velocity:
    """Pushes the velocity away from the unconditional one: v_null + scale * (v - v_null).

    Both branches run in one batch of twice the size. Where they need not differ (scale 1, or a time outside the
    interval) the null branch is not run at all.

    Args:
        velocity: The velocity with a null flag.
        scale: Guidance scale; 1 is no guidance, 0 the unconditional velocity.
        interval: Times between which the guidance acts, both included.

    Returns:
        A velocity for the solvers.

    Raises:
        ValueError: If the interval does not run upwards.

    Source: section 3 of the paper (null indicator); Kynkaanniemi et al. 2024 for the interval.
    """
    low, high = interval
    if low > high:
        raise ValueError(f"the guidance interval must run upwards, not from {low} to {high}")

    def guided_velocity(z_BLC: Tensor, t: float) -> Tensor:
        batch = len(z_BLC)
        if scale == 1.0 or not low <= t <= high:
            return velocity(z_BLC, t, torch.zeros(batch, dtype=torch.bool, device=z_BLC.device))
        null_2B = torch.arange(2 * batch, device=z_BLC.device) >= batch
        conditional, null = velocity(torch.cat([z_BLC, z_BLC]), t, null_2B).chunk(2)
        return null + scale * (conditional - null)

    return guided_velocity
