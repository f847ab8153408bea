"""The repeated blocks of any network: what is computed twice to save memory, and what is spread over ranks piece-wise.

Knows networks only as modules: a block is whatever stands in an nn.ModuleList. Ranks are in runtime.py.
"""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(modules: nn.Module) -> list[nn.Module]:
    """The repeated blocks, inner ones before those that hold them."""
    lists = [module for module in modules.modules() if isinstance(module, nn.ModuleList)]
    return [block for blocks in reversed(lists) for block in blocks]


def layers_of(modules: nn.Module) -> list[nn.Module]:
    """The layers inside the repeated blocks that hold matrices; each is run by calling it, whoever calls it.

    Not the blocks themselves: a network may run a part of a block on its own, as the velocity network does with the
    layers that tell its blocks the time.
    """
    layers = []
    for block in blocks_of(modules):
        for layer in list(block.children()) or [block]:
            if not isinstance(layer, nn.ModuleList) and any(weight.ndim > 1 for weight in layer.parameters()):
                layers.append(layer)
    return layers


def recompute_blocks(modules: nn.Module) -> None:
    """Lets every block forget what it computed on the way and compute it again for its gradients.

    Training then holds the activations of one block at a time, for about a third more computing. The numbers stay the
    same, dropout included. Only what is trained should be given, and after it was copied.
    """
    for block in blocks_of(modules):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
