"""Retrieval finds what is the same, finds nothing by chance, and asks the same questions every time."""

from __future__ import annotations

import math

import pytest
import torch

from flowtok.evaluate import retrieval

KEYS = [f"images/set/{number}.png" for number in range(1000)]


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def test_identical_vectors_are_all_found() -> None:
    gallery_MD = vectors(len(KEYS), seed=0)
    own_N = list(range(0, 1000, 2))
    candidates_NK = retrieval.draw_candidates(KEYS, own_N, ways=128)
    ranks_N = retrieval.own_ranks(3.0 * gallery_MD[own_N], gallery_MD, candidates_NK)
    scores = retrieval.retrieval_scores(ranks_N, ways=128)
    assert (scores["r_at_1"], scores["r_at_5"], scores["mean_rank"]) == (100.0, 100.0, 1.0)


def test_vectors_that_know_nothing_score_chance() -> None:
    """R@1 of 1000 unrelated queries stays within five standard deviations of the binomial with p = 1/128."""
    candidates_NK = retrieval.draw_candidates(KEYS, range(1000), ways=128)
    ranks_N = retrieval.own_ranks(vectors(1000, seed=1), vectors(1000, seed=2), candidates_NK)
    scores = retrieval.retrieval_scores(ranks_N, ways=128)
    for name, p in (("r_at_1", 1 / 128), ("r_at_5", 5 / 128)):
        assert scores[f"chance_{name}"] == pytest.approx(100 * p)
        assert abs(scores[name] - 100 * p) < 5 * 100 * math.sqrt(p * (1 - p) / 1000)
    # The mean of 1000 ranks that are even on 1..128 has the standard deviation 128 / sqrt(12 * 1000).
    assert scores["chance_mean_rank"] == 64.5
    assert abs(scores["mean_rank"] - 64.5) < 5 * 128 / math.sqrt(12 * 1000)


def test_ranks_by_hand() -> None:
    gallery_MD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    query_ND = torch.tensor([[2.0, 0.1], [1.0, 0.2], [0.1, 5.0]])
    candidates_NK = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 2]])
    assert retrieval.own_ranks(query_ND, gallery_MD, candidates_NK).tolist() == [1, 2, 3]


def test_always_drawing_the_same_scores_nothing() -> None:
    """Ties must not count as found: with them a gallery of equal vectors would give 100 %."""
    same_MD = torch.ones(1000, 8)
    ranks_N = retrieval.own_ranks(same_MD[:10], same_MD, retrieval.draw_candidates(KEYS, range(10), ways=128))
    assert ranks_N.tolist() == [128] * 10


def test_ranks_among_all_are_those_among_candidates_that_are_all() -> None:
    """Two ways to the same question must agree, in parts of any size."""
    draws = torch.Generator().manual_seed(0)
    query_ND, gallery_MD = torch.randn(9, 3, generator=draws), torch.randn(50, 3, generator=draws)
    own = [7, 0, 49, 3, 3, 20, 21, 22, 1]
    expected_N = retrieval.own_ranks(query_ND, gallery_MD, retrieval.draw_candidates(KEYS[:50], own, ways=50))
    assert len(expected_N.unique()) > 3
    assert torch.equal(retrieval.ranks_among_all(query_ND, gallery_MD, own, chunk=4), expected_N)
    same_MD = torch.ones(50, 3)
    assert retrieval.ranks_among_all(same_MD[:2], same_MD, [0, 5]).tolist() == [50, 50]


def test_shares_among_all_by_hand() -> None:
    scores = retrieval.scores_among_all(torch.tensor([1, 2, 7, 400]))
    assert scores == {"all_r_at_1": 25.0, "all_r_at_5": 50.0, "all_r_at_10": 75.0, "all_median_rank": 4.5}


def test_candidates_are_fixed_different_and_start_with_the_own() -> None:
    """Two people who measure must ask the same questions, and a smaller sample must be a part of a larger one."""
    candidates_NK = retrieval.draw_candidates(KEYS, [3, 999, 0], ways=128)
    assert candidates_NK[:, 0].tolist() == [3, 999, 0]
    assert all(len(set(row)) == 128 and 0 <= min(row) and max(row) < 1000 for row in candidates_NK.tolist())
    assert torch.equal(retrieval.draw_candidates(KEYS, [999], ways=128)[0], candidates_NK[1])
    assert set(candidates_NK[0].tolist()) != set(candidates_NK[1].tolist())


def test_all_pictures_can_be_candidates_and_more_cannot() -> None:
    assert sorted(retrieval.draw_candidates(KEYS[:5], [2], ways=5)[0].tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="between 2 and the 5 pictures"):
        retrieval.draw_candidates(KEYS[:5], [2], ways=6)


def test_fixed_order_is_by_checksum_and_not_by_position() -> None:
    """crc32 of "b" is 0x71beeff9, of "a" 0xe8b7be43, of "c" 0x06b9df6f: the published values."""
    assert retrieval.fixed_order(["a", "b", "c"]) == [2, 1, 0]
    shuffled = KEYS[::-1]
    assert [shuffled[i] for i in retrieval.fixed_order(shuffled)] == [KEYS[i] for i in retrieval.fixed_order(KEYS)]
