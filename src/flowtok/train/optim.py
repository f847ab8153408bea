"""Optimisers and their learning-rate schedule.

Knows parameters and step numbers, nothing of stages or devices.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from flowtok.train.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are updated.

    Attributes:
        name: `adamw`, or `muon` (Muon for the matrices of the blocks, AdamW for everything else).
        learning_rate: Highest rate, after the warm-up. Muon's is scaled to the same root mean square as AdamW's.
        betas: AdamW's decay rates.
        weight_decay: Decoupled weight decay, for matrices only unless `decay_all`.
        decay_all: Decays gains and biases too, as the authors' release does for the flow.
        warmup_steps: Steps over which the rate rises in a straight line from 0.
        schedule: `constant`, or `cosine` down to `final_share` of the rate at the last step.
        final_share: Share of the rate that is left at the end of the cosine.
        clip_norm: Gradients are scaled down to this norm; None leaves them.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.03
    decay_all: bool = False
    warmup_steps: int = 1000
    schedule: Literal["constant", "cosine"] = "constant"
    final_share: float = 0.05
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.warmup_steps < 0 or self.weight_decay < 0 or not 0 <= self.final_share <= 1:
            raise ValueError(f"warmup_steps and weight_decay must be at least 0, final_share in [0, 1]: {self}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 or null, not {self.clip_norm}")

    def rate_at(self, step: int, num_steps: float) -> float:
        """Learning rate of step `step` (counted from 0) of `num_steps`, which may be no more than expected."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_share + (1.0 - self.final_share) * share)


def build_optimizers(modules: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of all trainable weights; each weight belongs to exactly one.

    Muon takes the matrices of repeated blocks (names with a number in them); embeddings, input and output layers,
    gains and biases are AdamW's. Source: Muon, Jordan et al. 2024, with the rate matched to AdamW's as in torch.optim.
    """
    named = [(name, parameter) for name, parameter in modules.named_parameters() if parameter.requires_grad]
    matrices, decayed, plain = [], [], []
    for name, parameter in named:
        in_block = any(part.isdigit() for part in name.split("."))
        if config.name == "muon" and in_block and parameter.ndim == 2 and min(parameter.shape) > 1:
            matrices.append(parameter)
        elif parameter.ndim >= 2 or config.decay_all:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = []
    for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0)):
        # Weights that are spread over ranks and whole ones are not updated together.
        for kind in dict.fromkeys(type(parameter.data) for parameter in parameters):
            alike = [parameter for parameter in parameters if type(parameter.data) is kind]
            groups.append({"params": alike, "weight_decay": decay})
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        optimizers.append(adamw)
    if matrices:
        muon = Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    return optimizers


class Updater:
    """Weights with the rule that updates them.

    Attributes:
        modules: Where the weights are.
        config: The rule.
        first_step: The step in which the updates, and with them the schedule, begin.
        clip_norm: To which norm the gradients are to be scaled down before an update.
    """

    def __init__(self, modules: nn.Module, config: OptimizerConfig, first_step: int = 0) -> None:
        self.modules, self.config, self.first_step = modules, config, first_step
        self.clip_norm = config.clip_norm
        self.optimizers = build_optimizers(modules, config)
        self.parameters = [weight for weight in modules.parameters() if weight.requires_grad]

    def update(self, step: int, num_steps: float) -> None:
        """Takes the gradients of step `step` (counted from 0) of `num_steps` into the weights."""
        rate = self.config.rate_at(step - self.first_step, num_steps - self.first_step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
