"""The exponential moving average of the weights: what is evaluated and shipped.

Built on torch.optim.swa_utils; knows nothing of stages.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

# Weights that are averaged at a time: few enough to need little memory, enough to keep a GPU busy.
_AT_A_TIME = 16


def averaged_copy(modules: nn.Module, decay: float, warmup: bool = False) -> AveragedModel:
    """A copy of `modules` that follows them, p <- decay * p + (1 - decay) * new, from the first update on.

    Buffers (position tables) are copied, not averaged.

    Args:
        modules: What is followed.
        decay: Decay of every update.
        warmup: Lets the decay of update n be at most (1 + n) / (10 + n), so that the first weights, which are noise,
            are soon forgotten. The authors' release does not.
    """

    def follow(averages: Any, news: Any, num_updates: Tensor | int) -> None:
        share = min(decay, (1 + int(num_updates)) / (10 + int(num_updates))) if warmup else decay
        # Weights that are spread over ranks and whole ones do not go together.
        for _, pairs in groupby(zip(averages, news, strict=True), key=lambda pair: type(pair[0])):
            _follow(list(pairs), share)

    averaged = AveragedModel(modules, multi_avg_fn=follow, use_buffers=False)
    averaged.n_averaged.fill_(1)
    return averaged.requires_grad_(False)


def _follow(pairs: list[tuple[Tensor, Tensor]], share: float) -> None:
    for first in range(0, len(pairs), _AT_A_TIME):
        averages, news = (list(tensors) for tensors in zip(*pairs[first : first + _AT_A_TIME], strict=True))
        torch._foreach_lerp_(averages, news, 1.0 - share)  # exact where both are equal, as weights that do not learn
