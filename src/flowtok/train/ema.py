"""The exponential moving average of the weights: what is evaluated and shipped.

Built on torch.optim.swa_utils; knows nothing of stages.
"""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_copy(modules: nn.Module, decay: float, warmup: bool = False) -> AveragedModel:
    """A copy of `modules` that follows them, p <- decay * p + (1 - decay) * new, from the first update on.

    Buffers (position tables) are copied, not averaged.

    Args:
        modules: What is followed.
        decay: Decay of every update.
        warmup: Lets the decay of update n be at most (1 + n) / (10 + n), so that the first weights, which are noise,
            are soon forgotten. The authors' release does not.
    """

    def follow(average: Tensor, new: Tensor, num_updates: Tensor | int) -> Tensor:
        share = min(decay, (1 + int(num_updates)) / (10 + int(num_updates))) if warmup else decay
        return average * share + (1.0 - share) * new

    averaged = AveragedModel(modules, avg_fn=follow, use_buffers=False)
    averaged.n_averaged.fill_(1)
    return averaged.requires_grad_(False)
