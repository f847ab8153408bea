"""Cached moments and text features: what the later stages learn from, computed once.

Knows no network: the functions that encode are given. Files are safetensors, written beside and renamed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from flowtok.files import write_file_atomically


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Posteriors of N samples.

    Attributes:
        mean_NLC: Means.
        logvar_NLC: Log-variances.
    """

    mean_NLC: Tensor
    logvar_NLC: Tensor

    def sample(self, indices_B: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh draw of the given samples, (B, L, C) in float32."""
        mean_BLC, logvar_BLC = self.mean_NLC[indices_B].float(), self.logvar_NLC[indices_B].float()
        noise_BLC = torch.randn(mean_BLC.shape, generator=generator)
        return mean_BLC + torch.exp(0.5 * logvar_BLC) * noise_BLC


@dataclass(frozen=True, kw_only=True)
class CaptionFeatures:
    """Text features of M different captions.

    Attributes:
        features_MSE: What the text encoder gives, in float16.
        ids_MS: The captions' ids.
    """

    features_MSE: Tensor
    ids_MS: Tensor


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """Which captions belong to which picture.

    Attributes:
        captions: The M different captions.
        choices_NK: For each picture the numbers of its captions, its canonical one first, then repeated to K.
        counts_N: How many of the K are different captions of the picture.
    """

    captions: tuple[str, ...]
    choices_NK: Tensor
    counts_N: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> "CaptionTable":
        """The table for pictures with these captions each, canonical first."""
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(text, len(numbers)) for text in dict.fromkeys(own)] for own in texts]
        longest = max(len(row) for row in rows)
        choices_NK = torch.tensor([row + [row[0]] * (longest - len(row)) for row in rows])
        return cls(captions=tuple(numbers), choices_NK=choices_NK, counts_N=torch.tensor([len(row) for row in rows]))

    def choose(self, indices_B: Tensor, canonical_share: float, generator: torch.Generator) -> Tensor:
        """A caption number for each picture: the canonical one at the given share, else one of all its captions."""
        batch = len(indices_B)
        counts_B = self.counts_N[indices_B]
        drawn_B = (torch.rand(batch, generator=generator) * counts_B).long().clamp_max(counts_B - 1)
        canonical_B = torch.rand(batch, generator=generator) < canonical_share
        return self.choices_NK[indices_B, drawn_B.masked_fill(canonical_B, 0)]


def cached(path: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file, computed and written first if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        write_file_atomically(path, save(tensors))
    return load_file(path)


@torch.no_grad()
def moments_of(encode: Callable[[Tensor], tuple[Tensor, Tensor]], inputs: Tensor, batch_size: int = 128) -> Moments:
    """Runs `encode` (inputs -> mean, log-variance) over all inputs in order."""
    parts = [encode(part) for part in inputs.split(batch_size)]
    return Moments(
        mean_NLC=torch.cat([mean for mean, _ in parts]), logvar_NLC=torch.cat([logvar for _, logvar in parts])
    )
