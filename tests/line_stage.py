"""The smallest stage there is, for tests of the loop: it fits a line in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowtok.train.loop import LossTerms, TrainingConfig
from flowtok.train.optim import OptimizerConfig


class LineStage:
    """Fits y = 2 x from noisy x; the batches with a sample of `spoilt` have a loss that is infinite."""

    name = "line"

    def __init__(self, *, spoilt: int | None = None) -> None:
        self.modules: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.modules.weight)
        self.num_samples, self.spoilt = 10, spoilt

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        x_B1 = indices_B[:, None].float() / 10 + 0.1 * torch.rand(len(indices_B), 1, generator=generator)
        weight_B1 = torch.where(indices_B[:, None] == (-1 if self.spoilt is None else self.spoilt), torch.inf, 1.0)
        return {"x_B1": x_B1, "y_B1": 2.0 * x_B1, "weight_B1": weight_B1}

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        error = ((self.modules(batch["x_B1"]) - batch["y_B1"]).square() * batch["weight_B1"]).mean()
        return LossTerms(total=error, terms={"error": error.detach()})

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        Image.new("RGB", (4, 4), (200, 30, 30)).save(path)
        return {"preview_weight": modules.get_parameter("weight").item()}


class BlockStage:
    """A small network of repeated blocks with dropout, an unused weight and a single number: all that is awkward."""

    name = "blocks"

    def __init__(self, width: int = 16) -> None:
        torch.manual_seed(5)
        self.modules: nn.Module = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(
                    nn.Sequential(nn.Linear(width, width), nn.Dropout(0.1), nn.Linear(width, width)) for _ in range(3)
                ),
                "unused": nn.Linear(width, width),
            }
        )
        self.modules.register_parameter("temperature", nn.Parameter(torch.tensor(0.5)))
        self.num_samples = 24
        self.x_NW = torch.randn(self.num_samples, width, generator=torch.Generator().manual_seed(6))

    def batch(self, indices_B: Tensor, generator: torch.Generator) -> dict[str, Any]:
        x_BW = self.x_NW[indices_B]
        return {"x_BW": x_BW + 0.1 * torch.randn(x_BW.shape, generator=generator)}

    def loss(self, batch: dict[str, Any]) -> LossTerms:
        x_BW = batch["x_BW"]
        for block in self.modules.get_submodule("blocks").children():
            x_BW = x_BW + block(x_BW).tanh()
        error = (x_BW * self.modules.get_parameter("temperature").exp() - batch["x_BW"].flip(1)).square().mean()
        return LossTerms(total=error, terms={"error": error.detach()})

    def preview(self, modules: nn.Module, path: Path) -> dict[str, float]:
        return {"preview_norm": sum(weight.square().sum().item() for weight in modules.parameters())}


def config(**changes: Any) -> TrainingConfig:
    """A short training; `changes` are fields of TrainingConfig."""
    optimizer = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.0)
    values = {"num_steps": 60, "batch_size": 4, "optimizer": optimizer, "ema_decay": 0.5, "precision": "float32"}
    return TrainingConfig(**(values | changes))
