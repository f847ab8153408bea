"""Distances between two sets of features: Fréchet (FID) and kernel (KID); statistics of a set, kept in a file.

Functions of features; knows neither the network that makes them (inception.py) nor any pictures. torchmetrics computes
FID of pictures that it sees itself and keeps no statistics, torch-fidelity needs torchvision; the tests hold both
distances against those libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowtok.errors import DataError
from flowtok.files import write_file_atomically

KID_SUBSETS, KID_SIZE, KID_SEED = 100, 1000, 2020


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of the features of a set of pictures, float64.

    Attributes:
        mean_D: Mean.
        covariance_DD: Covariance, divided by count - 1.
        about: What they are of, as plain data; it goes into protocols.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)


def statistics_of(features_ND: Tensor, about: Mapping[str, Any] | None = None) -> Statistics:
    """Statistics of at least two feature vectors.

    Raises:
        DataError: There are fewer.
    """
    if len(features_ND) < 2:
        raise DataError(f"FID needs at least 2 pictures on either side, not {len(features_ND)}")
    mean_D = features_ND.double().mean(0)
    products_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64)
    for part_BD in features_ND.split(4096):  # the whole set in float64 would be twice its size
        centred_BD = part_BD.double() - mean_D
        products_DD += centred_BD.T @ centred_BD
    return Statistics(mean_D=mean_D, covariance_DD=products_DD / (len(features_ND) - 1), about=dict(about or {}))


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is taken from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: they are real and
    not negative also where there are fewer pictures than features.

    Source: Heusel et al. 2017, equation 6.
    """
    values_D, vectors_DD = torch.linalg.eigh(first.covariance_DD)
    root_DD = (vectors_DD * values_D.clamp_min(0.0).sqrt()) @ vectors_DD.T
    mixed_D = torch.linalg.eigvalsh(root_DD @ second.covariance_DD @ root_DD)
    apart = (first.mean_D - second.mean_D).square().sum()
    spread = first.covariance_DD.trace() + second.covariance_DD.trace()
    return float(apart + spread - 2 * mixed_D.clamp_min(0.0).sqrt().sum())


def kernel_distance(first_ND: Tensor, second_MD: Tensor, subsets: int = KID_SUBSETS, size: int = KID_SIZE) -> float:
    """Squared maximum mean discrepancy with the cubic kernel (x y / D + 1)^3, unbiased, mean over random subsets.

    Subsets are drawn as torch-fidelity draws them, with its seed.

    Args:
        first_ND: Features of one set.
        second_MD: Features of the other one.
        subsets: How many pairs of subsets.
        size: Vectors in each; at most as many as there are in either set.

    Raises:
        ValueError: There are fewer vectors than that.

    Source: Bińkowski et al. 2018.
    """
    if size > min(len(first_ND), len(second_MD)) or size < 2:
        raise ValueError(f"subsets of {size} cannot be drawn of {len(first_ND)} and {len(second_MD)} vectors")
    draws, values = np.random.RandomState(KID_SEED), []
    for _ in range(subsets):
        first, second = (
            vectors[torch.from_numpy(draws.choice(len(vectors), size, replace=False))].double()
            for vectors in (first_ND, second_MD)
        )
        own = sum(float(_kernel(x, x).sum() - _kernel(x, x).diagonal().sum()) for x in (first, second))
        values.append(own / (size * (size - 1)) - 2 * float(_kernel(first, second).mean()))
    return float(np.mean(values))


def _kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1.0) ** 3


def save_statistics(statistics: Statistics, path: str | Path) -> Path:
    """Writes statistics as an .npz file with mu and sigma, as FID tools know it, and what they are of."""
    mu, sigma = statistics.mean_D.numpy(), statistics.covariance_DD.numpy()
    about = np.frombuffer(json.dumps(dict(statistics.about), sort_keys=True).encode(), dtype=np.uint8)
    return write_file_atomically(path, lambda file: np.savez(file, mu=mu, sigma=sigma, about=about))


def load_statistics(path: str | Path) -> Statistics:
    """Reads an .npz file with mu and sigma; what ours say of themselves, of others' the checksum.

    Raises:
        DataError: It is missing, damaged, or holds no statistics of one width.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            mean, covariance = data["mu"].astype(np.float64), data["sigma"].astype(np.float64)
            about = json.loads(data["about"].tobytes()) if "about" in data else None
    except FileNotFoundError as error:
        raise DataError(f"there is no file of statistics {path}") from error
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} holds no statistics for FID (mu and sigma): {error}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"{path} holds mu {mean.shape} and sigma {covariance.shape}, which do not belong together")
    if not isinstance(about, dict):
        digest = hashlib.sha256(mean.tobytes() + covariance.tobytes()).hexdigest()
        about = {"set": "statistics made elsewhere", "statistics_sha256": digest}
    return Statistics(mean_D=torch.from_numpy(mean), covariance_DD=torch.from_numpy(covariance), about=about)
