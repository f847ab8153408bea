"""How close rebuilt pictures are to their originals: PSNR, and SSIM where torchmetrics is installed.

Functions of two batches of pixels; knows no model and no data. Which pictures are taken stands in tasks.py.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from flowtok.errors import FlowTokError
from flowtok.image.losses import psnr_B

WORST_SHARE = 0.05


def has_ssim() -> bool:
    """Whether SSIM can be measured: torchmetrics comes with the extra `eval`."""
    return find_spec("torchmetrics") is not None


def ssim_B(image_B3YX: Tensor, rebuilt_B3YX: Tensor) -> Tensor:
    """Structural similarity of each picture for pixels in [0, 1]: Gaussian window of 11 pixels, sigma 1.5.

    Raises:
        FlowTokError: torchmetrics is not installed.

    Source: Wang et al. 2004, as torchmetrics computes it.
    """
    if not has_ssim():
        raise FlowTokError("SSIM needs torchmetrics; install the extra: pip install 'flowtok[eval]'")
    from torchmetrics.functional.image import structural_similarity_index_measure  # pyright: ignore

    value = structural_similarity_index_measure(
        rebuilt_B3YX.float().clamp(0.0, 1.0), image_B3YX.float(), data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value.view(len(image_B3YX))


def reconstruction_scores(psnr_N: Tensor, ssim_N: Tensor | None = None) -> dict[str, float]:
    """Means over the pictures, and the PSNR that all but the worst twentieth reach.

    Args:
        psnr_N: Decibels of each picture.
        ssim_N: Structural similarity of each picture, where it was measured.
    """
    scores = {"psnr": psnr_N.mean().item(), "psnr_worst": torch.quantile(psnr_N, WORST_SHARE).item()}
    if ssim_N is not None:
        scores["ssim"] = ssim_N.mean().item()
    return scores


__all__ = ["WORST_SHARE", "has_ssim", "psnr_B", "reconstruction_scores", "ssim_B"]
