"""Linear layers whose weights lie in memory as oneDNN's products read them, a GELU joined to the product: for CPUs.

Knows no network but the feed-forward layer; acceleration.py says whose layers are replaced. What it gains:
docs/speed.md.
"""

import platform
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowtok.errors import FlowTokError
from flowtok.nn.blocks import FeedForward

_MACHINES = ("x86_64", "AMD64")


def can_pack(dtype: torch.dtype) -> bool:
    """True where this torch has the product and this processor computes the type with it.

    Elsewhere than on x86 nobody has looked at what oneDNN does, so it is False there.
    """
    product: Any = torch.ops.mkldnn
    has_product = torch.backends.mkldnn.is_available() and all(
        hasattr(product, name) for name in ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    )
    if not has_product or platform.machine() not in _MACHINES:
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and product._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """A linear layer with its weight packed for oneDNN, and after it a GELU (tanh form) where it is told so.

    Sums run in another order than in torch's own layer, so float32 differs in its last digits; in bfloat16 the joined
    GELU is computed before its input is rounded. The layer is for the CPU and the type in which it was packed; its
    state is that of the layer that was packed.

    Attributes:
        with_gelu: Whether GELU follows.
    """

    def __init__(self, linear: nn.Linear, *, with_gelu: bool = False) -> None:
        super().__init__()
        self.with_gelu = with_gelu
        # Neither parameter nor buffer: a tensor in oneDNN's own layout has no storage that a module could move.
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x_BSK: Tensor) -> Tensor:
        joined, form = ("gelu", "tanh") if self.with_gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x_BSK, self._weight, self.bias, joined, [], form)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self._weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        wanted = fn(torch.empty(0, dtype=self._weight.dtype))
        if wanted.dtype != self._weight.dtype or wanted.device.type != "cpu":
            raise FlowTokError(
                f"the layers are packed for the CPU in {self._weight.dtype}; open the model again for another device "
                "or type"
            )
        return super()._apply(fn, recurse)


def pack_linears(network: nn.Module, least_width: int = 64) -> int:
    """Replaces the linear layers of a network by PackedLinear, in place; returns how many.

    Each plain weight goes as soon as it is packed. Layers narrower than `least_width` on a side stay: they cost
    nothing.

    Args:
        network: Whose layers are replaced; a feed-forward layer has its GELU joined to its first product.
        least_width: Narrowest side that is packed.
    """
    packed = 0
    for name, child in list(network.named_children()):
        if type(child) is nn.Linear:
            if min(child.in_features, child.out_features) >= least_width:
                setattr(network, name, PackedLinear(child))
                packed += 1
        else:
            packed += pack_linears(child, least_width)
    if isinstance(network, FeedForward) and isinstance(network.fc1, PackedLinear):
        network.fc1.with_gelu = True
        network.activation = nn.Identity()
    return packed
