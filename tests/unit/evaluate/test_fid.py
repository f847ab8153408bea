"""FID and KID are the numbers that the libraries give, and right where the answer is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowtok.errors import DataError
from flowtok.evaluate.fid import (
    Statistics,
    frechet_distance,
    kernel_distance,
    load_statistics,
    save_statistics,
    statistics_of,
)


def features(seed: int, count: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Normal numbers of numpy's old generator, whose stream is the same in every release."""
    draws = np.random.RandomState(seed).standard_normal((count, 16)) * scale + shift
    return torch.from_numpy(draws.astype(np.float32))


FIRST, SECOND = features(2, 300), features(3, 250, 1.2, 0.3)


def gaussian(mean: list[float], covariance: Tensor) -> Statistics:
    return Statistics(mean_D=torch.tensor(mean, dtype=torch.float64), covariance_DD=covariance.double())


def test_two_gaussians_of_known_distance() -> None:
    """With covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2; here 9 + 16 + (2 - 3)^2 + (1 - 5)^2 = 42."""
    first = gaussian([0.0, 0.0], torch.diag(torch.tensor([4.0, 1.0])))
    second = gaussian([3.0, 4.0], torch.diag(torch.tensor([9.0, 25.0])))
    assert frechet_distance(first, second) == pytest.approx(42.0, abs=1e-12)


def test_two_gaussians_that_do_not_commute() -> None:
    """In two dimensions tr (C1 C2)^(1/2) = sqrt(tr C1 C2 + 2 sqrt(det C1 C2)): a transposed product would differ."""
    first, second = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[5.0, -2.0], [-2.0, 1.0]])
    product = first @ second
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(first.trace() + second.trace() - 2 * root)
    assert frechet_distance(gaussian([1, 1], first), gaussian([1, 1], second)) == pytest.approx(expected, abs=1e-6)


def test_the_same_set_has_no_distance_also_with_fewer_pictures_than_features() -> None:
    """Singular covariances must not give complex or negative numbers: 1e-6 of a trace of 16 is rounding."""
    few = statistics_of(FIRST[:5])
    assert abs(frechet_distance(few, few)) < 1e-6


def test_frechet_distance_is_torch_fidelitys() -> None:
    """2.733769903785202 is what its fid_statistics_to_metric (0.4.0) gives for these features.

    It averages float32 features in float32, so the seventh digit may differ.
    """
    assert frechet_distance(statistics_of(FIRST), statistics_of(SECOND)) == pytest.approx(2.733769903785202, rel=1e-6)


def test_kernel_distance_is_torch_fidelitys() -> None:
    """0.34251060485839846: kid_features_to_metric (0.4.0), 10 subsets of 100, computed in float32 there."""
    assert kernel_distance(FIRST, SECOND, 10, 100) == pytest.approx(0.34251060485839846, rel=1e-5)


def test_frechet_distance_is_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Given(torch.nn.Module):
        num_features = 16

        def forward(self, pixels: Tensor) -> Tensor:
            return pixels[:, 0, 0]

    metric = fid.FrechetInceptionDistance(feature=Given(), input_img_size=(3, 4, 16)).set_dtype(torch.float64)
    for vectors, real in ((FIRST, True), (SECOND, False)):
        metric.update(vectors.double()[:, None, None].expand(-1, 3, 4, -1), real=real)
    ours = frechet_distance(statistics_of(FIRST), statistics_of(SECOND))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


def test_kernel_distance_is_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    expected = kid.poly_mmd(FIRST[:250].double(), SECOND.double()).item()
    assert kernel_distance(FIRST[:250], SECOND, subsets=1, size=250) == pytest.approx(expected, rel=1e-9)


def test_covariance_is_numpys_in_any_number_of_parts() -> None:
    many = features(4, 5000)
    torch.testing.assert_close(
        statistics_of(many).covariance_DD, torch.from_numpy(np.cov(many.double().numpy(), rowvar=False)), rtol=1e-10,
        atol=1e-12,
    )  # fmt: skip


def test_statistics_come_back_and_others_files_are_read(tmp_path: Path) -> None:
    """Reference statistics are published as .npz with mu and sigma; which ones they were must stand in the record."""
    ours = statistics_of(FIRST, {"set": "val2014", "count": 300})
    back = load_statistics(save_statistics(ours, tmp_path / "ours.npz"))
    assert back.about == ours.about and frechet_distance(ours, back) < 1e-9
    np.savez(tmp_path / "theirs.npz", mu=FIRST.mean(0).numpy(), sigma=np.cov(FIRST.numpy(), rowvar=False))
    theirs = load_statistics(tmp_path / "theirs.npz")
    assert frechet_distance(ours, theirs) < 1e-5 and len(theirs.about["statistics_sha256"]) == 64
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    for name, message in (("wrong", "do not belong together"), ("damaged", "no statistics"), ("none", "no file")):
        with pytest.raises(DataError, match=message):
            load_statistics(tmp_path / f"{name}.npz")


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 pictures"):
        statistics_of(FIRST[:1])
    with pytest.raises(ValueError, match="subsets of 1000"):
        kernel_distance(FIRST, SECOND)
