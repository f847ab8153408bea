"""Embeddings of a time and of token positions by sines and cosines.

Knows nothing of what is embedded for; flow/transformer.py is the main user.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

NUM_TIME_FREQUENCIES = 128


def _time_frequencies() -> tuple[float, ...]:
    """exp(-ln(10000) k / 128) for k = 0 .. 127, as float32 numbers that are the same on every machine.

    The exponents are rounded to float32 first, as in the authors' release. The last bit of a float32 exponential
    depends on the processor's mathematical library, and in float64 the whole network shows it; here all are rounded
    correctly but two, which lie next to a tie and are kept as the golden data have them.
    """
    step = np.float32(-math.log(10000.0))
    exponents = [float(step * np.float32(k) / np.float32(NUM_TIME_FREQUENCIES)) for k in range(NUM_TIME_FREQUENCIES)]
    rounded = np.array([math.exp(exponent) for exponent in exponents], dtype=np.float32)
    for k in (12, 106):
        rounded[k] = np.nextafter(rounded[k], np.float32(1.0))
    return tuple(rounded.tolist())


TIME_FREQUENCIES = _time_frequencies()


def time_features(t_B: Tensor) -> Tensor:
    """Cosines, then sines of each time at 128 frequencies, (B, 256), always in float32.

    Args:
        t_B: Times in [0, 1]; they are used as they are, not multiplied by 1000.

    Source: the authors' release (cosines first; the position table below has sines first).
    """
    angles = t_B.float()[:, None] * torch.tensor(TIME_FREQUENCIES, dtype=torch.float32, device=t_B.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(num_tokens: int, width: int) -> Tensor:
    """Sines, then cosines of the token numbers 0 .. num_tokens - 1, (L, D), computed in float64 and rounded to float32.

    Source: the authors' release.

    Raises:
        ValueError: If the width is odd.
    """
    if width % 2:
        raise ValueError(f"sines and cosines share the width equally, so it must be even, not {width}")
    with torch.device("cpu"):
        frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
        angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(torch.get_default_device())


def blank_embedding(count: int, width: int) -> nn.Embedding:
    """Vectors of zeros for `count` ids, yet to be drawn or loaded.

    torch's own are drawn at once. On the meta device, where a network waits for its weights, drawing (like counting up)
    imports the compiler, which takes longer than a picture.
    """
    return nn.Embedding.from_pretrained(torch.zeros(count, width), freeze=False)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as a vector of width D: 256 sines and cosines through two linear layers.

    The sines and cosines are float32 whatever the type of the weights; under autocast the layers stay float32 too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * NUM_TIME_FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t_B: Tensor) -> Tensor:
        with torch.autocast(t_B.device.type, enabled=False):
            features = time_features(t_B).to(self.fc1.weight.dtype)
            return self.fc2(nn.functional.silu(self.fc1(features)))
