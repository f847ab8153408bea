"""What the flow trains on: wrong ends of the path or a null branch that never trains would ruin every long run."""

from __future__ import annotations

import pytest
import torch

from flowtok.flow.path import TIME_SAMPLERS, draw_nulls, early_t, logit_normal_t, point, rotate_null_targets, uniform_t


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_times_repeat_with_their_seed_and_stay_inside() -> None:
    for sampler in TIME_SAMPLERS.values():
        t_B = sampler(1000, generator())
        assert torch.equal(t_B, sampler(1000, generator()))
        assert 0.0 <= t_B.min() and t_B.max() <= 1.0


def test_logit_normal_favours_the_middle() -> None:
    middle = [
        ((t_B > 0.25) & (t_B < 0.75)).float().mean()
        for t_B in (uniform_t(4000, generator()), logit_normal_t(4000, generator()))
    ]
    assert middle[0] == pytest.approx(0.5, abs=0.03)
    assert middle[1] == pytest.approx(0.728, abs=0.03)  # P(|normal| < ln 3)


def test_early_favours_the_text() -> None:
    t_B = early_t(4000, generator())
    assert (t_B < 0.01).float().mean() == pytest.approx(0.1, abs=0.02)  # P(u^2 < t) is the root of t
    assert (t_B < 0.25).float().mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("batch", [2, 3, 8, 19, 64])
def test_nulls_come_at_the_given_rate_in_any_batch_and_never_alone(batch: int) -> None:
    draws = generator()
    counts = [int(draw_nulls(batch, 0.1, draws).sum()) for _ in range(3000)]
    assert 1 not in counts
    assert sum(counts) / (3000 * batch) == pytest.approx(0.1, rel=0.15)


def test_every_place_in_the_batch_becomes_null() -> None:
    draws = generator()
    seen = torch.stack([draw_nulls(8, 0.5, draws) for _ in range(100)]).any(0)
    assert seen.all()


def test_nulls_at_the_ends_of_the_range() -> None:
    assert not draw_nulls(1, 0.0, generator()).any()
    assert draw_nulls(4, 1.0, generator()).all()
    with pytest.raises(ValueError, match="at least 2"):
        draw_nulls(1, 0.1, generator())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        draw_nulls(8, 1.5, generator())


def test_null_samples_exchange_their_images_and_the_others_keep_theirs() -> None:
    z = torch.arange(5.0)[:, None, None].expand(5, 2, 3)
    null = torch.tensor([True, False, True, False, True])
    assert rotate_null_targets(z, null)[:, 0, 0].tolist() == [2.0, 1.0, 4.0, 3.0, 0.0]
    assert rotate_null_targets(z, torch.zeros(5, dtype=torch.bool)).equal(z)


def test_the_velocity_is_the_slope_of_the_path() -> None:
    text, image = torch.randn(2, 3, 4, 5, generator=generator(), dtype=torch.float64).unbind(0)
    early = point(text, image, torch.full((3,), 0.25, dtype=torch.float64))
    late = point(text, image, torch.full((3,), 0.75, dtype=torch.float64))
    torch.testing.assert_close((late.z_BLC - early.z_BLC) / 0.5, early.velocity_BLC)
    torch.testing.assert_close(early.velocity_BLC, late.velocity_BLC)
