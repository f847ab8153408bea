"""How a model is sampled unless the caller says otherwise: steps, guidance, solver and grid, both ways.

Knows no network; flow/follow.py walks as this says.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from flowtok.config import did_you_mean
from flowtok.errors import FlowTokError
from flowtok.flow.follow import Schedule
from flowtok.flow.grid import GRIDS
from flowtok.flow.solver import SOLVERS

MOST_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a model is sampled unless the caller says otherwise; part of the model's config.json.

    Attributes:
        num_inference_steps: Steps from text to image.
        guidance_scale: Push away from the unconditional velocity; 1 is none, 0 is unconditional.
        guidance_interval: Times of the way from text (0) to image (1) between which it acts, both included.
        solver: Name in flow/solver.py.
        grid: Name in flow/grid.py: "uniform", or "release" for the authors' released models. It is for the way from
            text to image; captions always take the uniform grid.
        caption_steps: Steps from image to text.
        caption_guidance_scale: Guidance from image to text.
        caption_solver: Solver from image to text.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    solver: str = "euler"
    grid: str = "uniform"
    caption_steps: int = 8
    caption_guidance_scale: float = 1.0
    caption_solver: str = "euler"

    def __post_init__(self) -> None:
        for steps in (self.num_inference_steps, self.caption_steps):
            if not 1 <= steps <= MOST_STEPS:
                raise FlowTokError(f"the number of steps must be 1 to {MOST_STEPS}, not {steps}")
        for scale in (self.guidance_scale, self.caption_guidance_scale):
            if not 0.0 <= scale < math.inf:
                raise FlowTokError(f"the guidance scale must be 0 or more (1 is no guidance), not {scale}")
        low, high = self.guidance_interval
        if not low <= high:
            raise FlowTokError(
                f"the guidance interval must run upwards, such as 0 to 0.7, not from {low:g} to {high:g}"
            )
        for kind, name, known in (
            ("solver", self.solver, SOLVERS),
            ("solver", self.caption_solver, SOLVERS),
            ("grid", self.grid, GRIDS),
        ):
            if name not in known:
                raise FlowTokError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")

    def but(self, **given: Any) -> Self:
        """The same with what is given in its place; None is not given."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def to_image(self) -> Schedule:
        """How the flow goes from text to image."""
        return Schedule(num_steps=self.num_inference_steps, solver=self.solver, grid=self.grid)

    @property
    def to_text(self) -> Schedule:
        """How the flow goes from image to text."""
        return Schedule(num_steps=self.caption_steps, solver=self.caption_solver, backwards=True)
