"""A flow that learns to jump: a few evaluations of the network draw what its teacher draws with many.

Works on the text tokens of captions and, so that captions can still be read, on cached moments of pictures. The loop is
loop.py's; what is told to a network that jumps is in flow/grid.py.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowtok.flow.follow import Schedule, followed
from flowtok.flow.grid import middle_grid
from flowtok.flow.guidance import flagged, guided
from flowtok.flow.solver import CHOOSES_ITS_STEPS, SOLVERS, euler
from flowtok.flow.transformer import VelocityTransformer
from flowtok.train.flow import MomentPairs, Sketch
from flowtok.train.loop import LossTerms


@dataclass(frozen=True, kw_only=True)
class DistilStageConfig:
    """What the student learns of its teacher, which is the flow that it starts from.

    Attributes:
        jumps: Numbers of equal jumps from text to image that the student learns; best powers of two, so that the
            middles of all jumps differ and tell the network where it goes. The last is the number it is drawn with.
        guidance_scale: Of the teacher; the student is drawn without guidance.
        solver: Of the teacher.
        num_steps: Of the teacher, a multiple of every number of jumps.
        canonical_share: Share of the draws that take a picture's canonical caption.
        keep: Weight of the teacher's velocity at the image end, t = 1, from which captions are read in one step; 0
            looks at no picture.
    """

    jumps: tuple[int, ...] = (1, 2, 4)
    guidance_scale: float = 2.0
    solver: str = "ab2"
    num_steps: int = 8
    canonical_share: float = 0.6
    keep: float = 0.25

    def __post_init__(self) -> None:
        if not self.jumps or min(self.jumps) < 1 or list(self.jumps) != sorted(set(self.jumps)):
            raise ValueError(f"jumps must be different positive numbers in rising order, not {self.jumps}")
        if self.num_steps < 1 or any(self.num_steps % number for number in self.jumps):
            raise ValueError(f"num_steps {self.num_steps} must be a multiple of every number of jumps, {self.jumps}")
        known = sorted(set(SOLVERS) - {CHOOSES_ITS_STEPS})
        if self.solver not in known:
            raise ValueError(f"the teacher's solver must be one of {', '.join(known)}, not {self.solver!r}")
        if not 0.0 <= self.canonical_share <= 1.0 or min(self.guidance_scale, self.keep) < 0.0:
            raise ValueError(
                "canonical_share must lie in [0, 1], guidance_scale and keep must not be negative: "
                f"{(self.canonical_share, self.guidance_scale, self.keep)}"
            )


class DistilStage:
    """Mean velocities of a guided teacher over jumps of several lengths, learned by a copy of it.

    The teacher carries text tokens to the image, guided. A jump from a to b of its way gives one sample: at the tokens
    of a, told the middle of a and b, the student answers with the mean velocity (z_b - z_a) / (b - a). So neither
    guidance nor the bends of the way cost evaluations any more, and the network stays as it is.

    Source: progressive distillation (Salimans & Ho 2022), guidance included (Meng et al. 2023), in a single round for
    all numbers of steps; the mean velocity as in MeanFlow (Geng et al. 2025), its two times told by their middle.
    """

    name = "flow"

    def __init__(
        self,
        teacher: VelocityTransformer,
        config: DistilStageConfig,
        *,
        pairs: MomentPairs,
        sketch: Sketch,
        device: torch.device | str = "cpu",
    ) -> None:
        """Begins with a copy of the teacher.

        Args:
            teacher: A trained velocity network; it is frozen here.
            config: What is learned.
            pairs: What it learns from.
            sketch: Draws the previews.
            device: Where the stage is trained.
        """
        self.config, self.pairs, self.sketch = config, pairs, sketch
        self.num_samples = len(pairs.files)
        self.student = copy.deepcopy(teacher)
        self.modules: nn.Module = self.student
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        schedule = Schedule(num_steps=config.num_steps, solver=config.solver)
        with torch.no_grad():
            self.follow = followed(self.teacher, schedule, config.guidance_scale)

    def names(self, indices_B: Tensor) -> list[str]:
        return [self.pairs.files[index] for index in indices_B.tolist()]

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        chosen_B = self.pairs.table.choose(indices_B, self.config.canonical_share, generator)
        return {
            "z_text_BLC": self.pairs.text.sample(chosen_B, generator),
            "z_image_BLC": self.pairs.scale.to_flow(self.pairs.image.sample(indices_B, generator)),
        }

    @torch.no_grad()
    def way(self, z_text_BLC: Tensor) -> list[Tensor]:
        """The teacher's tokens at every stop of its way, the first and the last included."""
        stops: list[Tensor] = []
        end_BLC = self.follow(z_text_BLC, lambda z_BLC, t: stops.append(z_BLC))
        return [*stops, end_BLC]

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        stops = self.way(batch["z_text_BLC"])
        starts, targets, told = [], [], []
        for number in self.config.jumps:
            stride = self.config.num_steps // number
            for z_BLC, z_next_BLC, t in zip(stops[::stride], stops[stride::stride], middles(number), strict=False):
                starts.append(z_BLC)
                targets.append((z_next_BLC - z_BLC) * number)
                told.append(t)
        size = len(starts[0])
        if self.config.keep:
            starts.append(batch["z_image_BLC"])
            targets.append(self._teacher_at_the_image(batch["z_image_BLC"]))
            told.append(1.0)
        t_J = torch.tensor(told, device=starts[0].device).repeat_interleave(size)
        velocity_JLC = self.student(torch.cat(starts), t_J, torch.zeros_like(t_J, dtype=torch.bool)).float()
        error_J = (velocity_JLC - torch.cat(targets)).square().flatten(1).mean(1).split(size)
        terms: dict[str, Tensor] = {}
        parts = list(error_J)
        for number in self.config.jumps:
            own, parts = parts[:number], parts[number:]
            terms[f"jumps_{number}"] = torch.stack(own).mean()
        total = torch.stack(list(terms.values())).mean()
        if self.config.keep:
            terms["kept"] = parts[0].mean()
            total = total + self.config.keep * terms["kept"]
        return LossTerms(total=total, terms={name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
    def _teacher_at_the_image(self, z_image_BLC: Tensor) -> Tensor:
        ones_B = torch.ones(len(z_image_BLC), device=z_image_BLC.device)
        return self.teacher(z_image_BLC, ones_B, torch.zeros_like(ones_B, dtype=torch.bool)).float()

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        """Pictures of the preview captions with each number of jumps, and how far they end from the teacher's."""
        assert isinstance(modules, VelocityTransformer)
        assert self.sketch.captions_B is not None, "captions in memory have numbers"
        start_BLC = self.pairs.text.sample(self.sketch.captions_B, torch.Generator().manual_seed(0))
        start_BLC = start_BLC.to(modules.positions_1LD.device)
        end_BLC, figures = self.way(start_BLC)[-1], {}
        z_BLC = start_BLC
        for number in self.config.jumps:
            z_BLC = jumped(modules, start_BLC, number)
            figures[f"preview_error_{number}"] = (z_BLC - end_BLC).square().mean().sqrt().item()
        return figures | self.sketch.show(z_BLC, path)


def middles(number: int) -> tuple[float, ...]:
    """What a network is told of each of a number of equal jumps."""
    return middle_grid(number).told[:-1]


def jumped(network: VelocityTransformer, z_text_BLC: Tensor, number: int) -> Tensor:
    """Text tokens carried to the image in equal jumps, without guidance."""
    stops = middle_grid(number)
    return euler(stops.retold(guided(flagged(network), 1.0)), z_text_BLC, stops.times)
