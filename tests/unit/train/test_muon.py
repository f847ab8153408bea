"""Muon on a CPU is torch's Muon, in float32 more exactly."""

from collections.abc import Callable

import pytest
import torch

from flowtok.train import muon
from flowtok.train.muon import Muon, orthogonalized, orthogonalized_in_bfloat16


@pytest.mark.parametrize("best", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False}])
def test_updates_are_torchs_up_to_its_bfloat16(
    options: dict, best: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise rates and recipes that were tuned for torch's Muon would train something else here."""
    monkeypatch.setattr(muon, "best_dtype", lambda device: best)
    start = [torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((24, 8), (8, 24), (16, 16))]
    ours, torchs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    optimizers = Muon(ours, lr=0.1, **options), torch.optim.Muon(torchs, lr=0.1, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradients = [torch.randn(weight.shape, generator=generator) for weight in start]
        for weights, optimizer in zip((ours, torchs), optimizers, strict=True):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
    for mine, theirs, before in zip(ours, torchs, start, strict=True):
        moved = (theirs - before).norm()
        assert (mine - theirs).norm() < 0.03 * moved
    kept, known = (optimizer.state_dict() for optimizer in optimizers)
    assert kept["param_groups"] == known["param_groups"]  # a checkpoint of one goes on with the other
    for mine, theirs in zip(kept["state"].values(), known["state"].values(), strict=True):
        torch.testing.assert_close(mine["momentum_buffer"], theirs["momentum_buffer"])


@pytest.mark.parametrize("made", [orthogonalized, orthogonalized_in_bfloat16])
def test_directions_have_like_singular_values(made: Callable[..., torch.Tensor]) -> None:
    """Muon's point: no direction of a weight is left behind, however small its gradient."""
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1.5, 12)[:, None]
    coefficients = torch.optim.Muon([matrix]).param_groups[0]["ns_coefficients"]
    before, after = (torch.linalg.svdvals(m) for m in (matrix, made(matrix, coefficients, 5)))
    assert before.max() / before.min() > 20
    assert 0.6 < after.min() and after.max() < 1.3
