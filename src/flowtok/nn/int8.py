"""Linear layers that multiply in int8: four times fewer bytes, and up to four times the rate of float32 on a CPU.

Knows no network; pipeline.py says whose layers are replaced. What it costs in exactness: docs/speed.md.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowtok.errors import CheckpointError

_MOST = 127.0


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale a row, and inputs rounded to int8 as they come, one scale a token.

    A token is rounded by its own largest number, so that a result does not depend on the others of its batch. Products
    are summed exactly, in int32; scales, bias and result are in the type of the input.

    Source: symmetric dynamic quantisation as in torchao's Int8DynamicActivationInt8Weight, which without torch.compile
    reaches two thirds of the speed of this on a CPU (benchmarks/results).
    """

    weight_KN: Tensor
    scale_N: Tensor
    bias_N: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        scale_N = weight_NK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _MOST
        rounded_NK = (weight_NK / scale_N[:, None]).round().to(torch.int8)
        # Kept as rows of the layer and handed over transposed: the product takes it as it lies.
        self.register_buffer("weight_KN", rounded_NK.t())
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("bias_N", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x_BSK: Tensor) -> Tensor:
        x_MK = x_BSK.flatten(0, -2).float()
        largest_M1 = torch.maximum(x_MK.amax(-1, keepdim=True), -x_MK.amin(-1, keepdim=True))  # abs() would copy all
        scale_M1 = largest_M1.clamp_min(torch.finfo(torch.float32).tiny) / _MOST
        rounded_MK = (x_MK / scale_M1).round_().to(torch.int8)
        sums_MN = torch._int_mm(rounded_MK, self.weight_KN).to(torch.float32).mul_(scale_M1)
        if self.bias_N is None:
            result_MN = sums_MN.mul_(self.scale_N)
        else:
            result_MN = torch.addcmul(self.bias_N, sums_MN, self.scale_N, out=sums_MN)
        return result_MN.to(x_BSK.dtype).unflatten(0, x_BSK.shape[:-1])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise CheckpointError("weights that were rounded to int8 are not saved; save the model before it is rounded")


def round_linears(network: nn.Module, least_width: int = 64) -> int:
    """Replaces the linear layers of a network by Int8Linear, in place; returns how many.

    Layers narrower than `least_width` on a side stay: they cost nothing, and they are where numbers enter and leave the
    network. On a GPU those with a side that 8 does not divide stay too, as its product takes no others.

    Args:
        network: Whose layers are replaced; the caller leaves out what must stay exact.
        least_width: Narrowest side that is rounded.
    """
    replaced = 0
    for name, child in list(network.named_children()):
        if type(child) is nn.Linear:
            sides = child.in_features, child.out_features
            fits = child.weight.device.type != "cuda" or not any(side % 8 for side in sides)
            if min(sides) >= least_width and fits:
                setattr(network, name, Int8Linear(child))
                replaced += 1
        else:
            replaced += round_linears(child, least_width)
    return replaced
