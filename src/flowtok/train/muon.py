"""Muon with the type of numbers that the device multiplies fastest.

Knows matrices and their gradients. Which weights it gets: optim.py.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from flowtok.nn.precision import best_dtype


class Muon(torch.optim.Muon):
    """torch.optim.Muon, but its iteration runs in float32 where bfloat16 is slower (`best_dtype`).

    torch's always takes bfloat16. On a CPU without AMX, for the matrices of the recipe `emoji`, that takes twice as
    long as float32, and a third of the whole update. Options, rates and the saved state are torch's, so that a
    checkpoint of one goes on with the other. Weights that are spread over ranks are left to torch.

    Source: Jordan et al. 2024; the rate matched to AdamW's after Liu et al. 2025, "Muon is Scalable for LLM Training".
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if any(isinstance(weight, DTensor) or best_dtype(weight.device) is not torch.float32 for weight in weights):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight_NK: Tensor, group: dict[str, Any]) -> None:
        state, gradient_NK, momentum = self.state[weight_NK], weight_NK.grad, group["momentum"]
        assert gradient_NK is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient_NK)
        mean_NK = state["momentum_buffer"].lerp_(gradient_NK, 1.0 - momentum)
        ahead_NK = gradient_NK.lerp(mean_NK, momentum) if group["nesterov"] else mean_NK
        direction_NK = orthogonalized(ahead_NK, group["ns_coefficients"], group["ns_steps"], group["eps"])
        longer, rows, columns = max(weight_NK.shape), *weight_NK.shape
        matched = group["adjust_lr_fn"] == "match_rms_adamw"
        factor = 0.2 * math.sqrt(longer) if matched else math.sqrt(max(1.0, rows / columns))
        weight_NK.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight_NK.add_(direction_NK, alpha=-group["lr"] * factor)


def orthogonalized(
    matrix_NK: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float = 1e-7
) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, about: singular values end between 0.7 and 1.2.

    Args:
        matrix_NK: Any matrix.
        coefficients: Of the odd polynomial that is applied to the singular values in each step.
        num_steps: Newton-Schulz steps.
        eps: Least norm that the matrix is divided by.
    """
    first, third, fifth = coefficients
    tall = matrix_NK.shape[0] > matrix_NK.shape[1]
    result = matrix_NK.t() if tall else matrix_NK
    result = result / result.norm().clamp_min(eps)
    for _ in range(num_steps):
        gram = result @ result.t()
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), result, beta=first)
    return result.t() if tall else result
