"""The straight path between text tokens (t = 0) and image tokens (t = 1), and what is drawn to train on it.

Knows no network and no solver; see transformer.py and solver.py. train/flow.py puts the pieces together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtok.errors import FlowTokError

SIGMA_MIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class PathPoint:
    """Where a sample is on its path and how it moves there.

    Attributes:
        z_BLC: Tokens at the time.
        velocity_BLC: Their velocity, the network's target.
        t_B: The time in [0, 1].
    """

    z_BLC: Tensor
    velocity_BLC: Tensor
    t_B: Tensor


def point(z_text_BLC: Tensor, z_image_BLC: Tensor, t_B: Tensor, sigma_min: float = SIGMA_MIN) -> PathPoint:
    """The point at time t of the straight path: z_t = (1 - (1 - sigma_min) t) z_text + t z_image.

    Args:
        z_text_BLC: Tokens at t = 0.
        z_image_BLC: Tokens at t = 1.
        t_B: Times in [0, 1].
        sigma_min: Share of the text tokens that is left at t = 1.

    Returns:
        The point; its velocity is (sigma_min - 1) z_text + z_image at every time.

    Source: equation 1 of the paper, with the sigma_min of the authors' release.
    """
    t_B11 = t_B[:, None, None]
    return PathPoint(
        z_BLC=(t_B11 * (sigma_min - 1.0) + 1.0) * z_text_BLC + t_B11 * z_image_BLC,
        velocity_BLC=(sigma_min - 1.0) * z_text_BLC + z_image_BLC,
        t_B=t_B,
    )


def uniform_t(batch: int, generator: torch.Generator) -> Tensor:
    """Times (B,) drawn evenly from [0, 1), where the generator lives."""
    return torch.rand(batch, generator=generator, device=generator.device)


def logit_normal_t(batch: int, generator: torch.Generator) -> Tensor:
    """Times (B,) drawn as the sigmoid of a standard normal, which favours the middle of the path.

    Source: the authors' release; Esser et al. 2024.
    """
    return torch.randn(batch, generator=generator, device=generator.device).sigmoid()


def early_t(batch: int, generator: torch.Generator) -> Tensor:
    """Times (B,) drawn as the square of an even draw: a third of them below 0.11, where the text must be read.

    Further on a picture that was trained on can be told from the state itself, and nothing is learned of its text
    (docs/lab-notes.md, "why the direct flow learned slowly").
    """
    return uniform_t(batch, generator).square()


TIME_SAMPLERS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": uniform_t,
    "logit_normal": logit_normal_t,
    "early": early_t,
}


def draw_nulls(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """Chooses the samples that train the unconditional branch, (B,) bool.

    A null sample takes another null sample's image (`rotate_null_targets`), so nulls come at least two at a time: the
    count is probability * batch, rounded up or down at random so that its mean is exact; where that is less than two,
    it is two now and then and otherwise none. So every batch of two or more trains the branch at the given rate. (The
    authors' release draws each sample alone and drops a lone null: at a batch of 8 it skips four steps of five.)

    Args:
        batch: B.
        probability: Mean share of nulls, in [0, 1].
        generator: Source of the draws.

    Raises:
        FlowTokError: If the probability is outside [0, 1], or is above 0 for a batch of one.
    """
    if not 0.0 <= probability <= 1.0:
        raise FlowTokError(f"the share of null samples must be in [0, 1], not {probability}")
    null_B = torch.zeros(batch, dtype=torch.bool, device=generator.device)
    if probability == 0.0:
        return null_B
    if batch < 2:
        raise FlowTokError(
            f"a null sample takes another sample's image: a part of a batch must hold at least 2 of them, not {batch}; "
            "take larger parts, or a null_probability of 0"
        )
    step = 2.0 if probability * batch < 2.0 else 1.0
    expected_steps = probability * batch / step
    draw = torch.rand((), generator=generator, device=generator.device).item()
    count = int(step) * (math.floor(expected_steps) + (draw < expected_steps % 1.0))
    null_B[torch.randperm(batch, generator=generator, device=generator.device)[:count]] = True
    return null_B


def rotate_null_targets(z_image_BLC: Tensor, null_B: Tensor) -> Tensor:
    """Gives each null sample the image tokens of the next null sample, and the last those of the first.

    Args:
        z_image_BLC: Image tokens; they stay as they are.
        null_B: True for null samples; a lone one keeps its own image.

    Returns:
        The image tokens to train on.
    """
    places = null_B.to(z_image_BLC.device).nonzero().squeeze(1)
    return z_image_BLC.index_copy(0, places, z_image_BLC[places.roll(-1)])
