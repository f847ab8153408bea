"""What the loop is told of an adversary: a network that is trained against a stage's modules, beside them.

Knows no particular network; the tokenizer's adversary is made in tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from flowtok.train.optim import OptimizerConfig

if TYPE_CHECKING:
    from flowtok.train.loop import LossTerms


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """A second player with weights, optimiser and gradient norm of its own; it is neither averaged nor handed on.

    Both players are updated in the same step, from one backward pass through one total: the stage sees to it that each
    part of the total reaches the weights of one player only.

    Attributes:
        modules: What is trained.
        optimizer: How. Its schedule begins at start_step.
        start_step: The first step, counted from 0, in which it takes part.
        loss: Takes the place of the stage's `loss` from then on; its total holds what both players pay.
        after_update: Called after each update in which it took part, with the terms of the losses: means over the
            whole batch, the same on all ranks.
    """

    modules: nn.Module
    optimizer: OptimizerConfig
    start_step: int
    loss: Callable[[dict[str, Any]], LossTerms]
    after_update: Callable[[dict[str, float]], None]
