"""The text projector and its losses by their formulas; a loss off by a factor trains on for hours before it shows."""

from __future__ import annotations

import math

import pytest
import torch

from flowtok.nn.gaussian import Gaussian
from flowtok.text.projector import (
    AlignmentHead,
    AlignmentHeadConfig,
    TextProjector,
    TextProjectorConfig,
    UnbiasedNorm,
    average_pool_target,
    contrastive_loss,
    cosine_loss,
    paper_kl,
    release_kl,
)

TINY = TextProjectorConfig(text_width=16, num_tokens=5, token_channels=4, num_layers=2, num_heads=2, hidden=24)


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def projector() -> TextProjector:
    network = TextProjector(TINY)
    network.initialize(torch.Generator().manual_seed(0))
    return network


def test_features_become_a_gaussian_over_tokens() -> None:
    network = projector().eval()
    features = draws(3, 5, 16)
    tokens = network(features)
    assert tokens.mean_BLC.shape == tokens.logvar_BLC.shape == (3, 5, 4)
    torch.testing.assert_close(network(features[:1]).mean_BLC, tokens.mean_BLC[:1])
    with pytest.raises(ValueError, match=r"takes features \(B, 5, 16\), not \(3, 5, 4\)"):
        network(tokens.mean_BLC)


def test_tokens_follow_their_features_because_there_are_no_positions() -> None:
    network, features, order = projector().eval(), draws(2, 5, 16), torch.tensor([3, 1, 0, 4, 2])
    torch.testing.assert_close(network(features[:, order]).mean_BLC, network(features).mean_BLC[:, order])


def test_fresh_weights_are_fixed_by_the_seed() -> None:
    first, again = projector().state_dict(), projector().state_dict()
    assert all(first[name].equal(again[name]) for name in first)


def test_dropout_acts_in_training_only() -> None:
    network, features = projector(), draws(2, 5, 16)
    network.train()
    assert not network(features).mean_BLC.equal(network(features).mean_BLC)
    network.eval()
    assert network(features).mean_BLC.equal(network(features).mean_BLC)


def test_the_norm_divides_by_the_unbiased_deviation_plus_a_little() -> None:
    norm = UnbiasedNorm(3)
    expected = torch.tensor([-1.0, 0.0, 1.0]) / (1.0 + 1e-5)
    torch.testing.assert_close(norm(torch.tensor([[[1.0, 2.0, 3.0]]]))[0, 0], expected)
    assert norm(torch.ones(1, 1, 3)).abs().max() == 0  # no division by zero


def test_both_divergences() -> None:
    standard = Gaussian(mean_BLC=torch.zeros(2, 3, 4), logvar_BLC=torch.zeros(2, 3, 4))
    assert paper_kl(standard) == release_kl(standard) == 0
    moved = Gaussian(mean_BLC=torch.full((2, 3, 4), 2.0), logvar_BLC=torch.zeros(2, 3, 4))
    assert paper_kl(moved).item() == pytest.approx(24 * 2.0)
    assert release_kl(moved).item() == pytest.approx(24 * 0.5 * 0.6**6)
    wide = Gaussian(mean_BLC=torch.zeros(1, 1, 1), logvar_BLC=torch.ones(1, 1, 1))
    assert paper_kl(wide).item() == release_kl(wide).item() == pytest.approx(0.5 * (math.e - 2.0))


def test_contrastive_loss() -> None:
    tokens, zero = draws(4, 5, 4), torch.tensor(0.0)
    same = torch.ones(4, 5, 4)
    assert contrastive_loss(tokens, same, zero).item() > contrastive_loss(same, same, zero).item() - 1e-6
    assert contrastive_loss(same, same, zero).item() == pytest.approx(math.log(4))
    sharp = torch.tensor(math.log(1 / 0.07))
    assert contrastive_loss(tokens, 3.0 * tokens, sharp) < 0.1  # lengths do not matter
    assert contrastive_loss(tokens, tokens.roll(1, 0), sharp) > 5.0
    assert contrastive_loss(tokens, -tokens, sharp) > contrastive_loss(tokens, tokens, sharp)


def test_cosine_loss_with_a_margin() -> None:
    tokens = draws(2, 5, 4)
    assert cosine_loss(tokens, 2.0 * tokens).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_loss(tokens, -tokens).item() == pytest.approx(2.0, abs=1e-6)
    assert cosine_loss(tokens, -tokens, margin=0.5).item() == pytest.approx(1.5, abs=1e-6)


def test_average_pool_target_averages_neighbouring_channels() -> None:
    features = torch.arange(8.0).expand(1, 2, 8)
    assert average_pool_target(features, 4)[0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]


def test_alignment_head() -> None:
    head = AlignmentHead(AlignmentHeadConfig(text_width=16, token_channels=4, hidden=8))
    head.initialize(torch.Generator().manual_seed(0))
    assert head(draws(3, 5, 16)).shape == (3, 5, 4)
    assert head.log_temperature.item() == pytest.approx(2.65926, abs=1e-5)


def test_sizes_that_clash_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match="text_width 10 is not a multiple of num_heads 4"):
        TextProjectorConfig(text_width=10, num_heads=4)
    with pytest.raises(ValueError, match=r"\[0, 1\), not 1.0"):
        TextProjectorConfig(dropout=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        AlignmentHeadConfig(hidden=0)
