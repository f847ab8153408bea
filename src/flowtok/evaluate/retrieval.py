"""Does a generated picture find the one that its prompt describes among others? By the cosine of vectors.

Functions of tensors; knows neither how pictures become vectors nor a model. Both stand in tasks.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def fixed_order(keys: Sequence[str]) -> list[int]:
    """Positions of the keys in an order that is fixed and without meaning: by crc32 of the key, then by the key.

    The first n of it are the same sample for everybody, and a part of every larger one.
    """
    return sorted(range(len(keys)), key=lambda i: (zlib.crc32(keys[i].encode()), keys[i]))


def draw_candidates(keys: Sequence[str], own_N: Sequence[int], ways: int) -> Tensor:
    """For each query its own picture and ways - 1 others, drawn by the crc32 of its own key.

    Args:
        keys: Names of all M pictures.
        own_N: For each query the position of its own picture.
        ways: Pictures to choose from, the own one included; at most M.

    Returns:
        Positions (N, ways), the own one first.

    Raises:
        ValueError: If there are not that many pictures, or ways is below 2.
    """
    if not 2 <= ways <= len(keys):
        raise ValueError(f"ways must be between 2 and the {len(keys)} pictures there are, not {ways}")
    rows = []
    for own in own_N:
        generator = torch.Generator().manual_seed(zlib.crc32(keys[own].encode()))
        others = torch.randperm(len(keys) - 1, generator=generator)[: ways - 1]
        rows.append(torch.cat([torch.tensor([own]), others + (others >= own)]))
    return torch.stack(rows)


def own_ranks(query_ND: Tensor, gallery_MD: Tensor, candidates_NK: Tensor) -> Tensor:
    """The rank of each query's own picture among its candidates by cosine; 1 is best.

    A candidate that is exactly as near counts as nearer, so a model that always draws the same scores nothing.

    Args:
        query_ND: A vector for each query.
        gallery_MD: A vector for each picture.
        candidates_NK: Positions in the gallery, each query's own one first.

    Returns:
        Ranks (N,) from 1 to K.
    """
    return _ranks_of_first(_cosines(query_ND, gallery_MD).gather(1, candidates_NK))


def concept_ranks(query_ND: Tensor, gallery_MD: Tensor, concept_M: Tensor, candidates_NK: Tensor) -> Tensor:
    """The rank of each query's own concept among its candidates, a concept being as near as its nearest picture.

    Args:
        query_ND: A vector for each query.
        gallery_MD: A vector for each picture.
        concept_M: Which concept each picture shows; every candidate has one picture at least.
        candidates_NK: Concepts, each query's own one first.

    Returns:
        Ranks (N,) from 1 to K; equally near counts as nearer, as in `own_ranks`.
    """
    similarity_NM = _cosines(query_ND, gallery_MD)
    nearest_NC = similarity_NM.new_full((len(query_ND), int(concept_M.max()) + 1), -torch.inf)
    nearest_NC.scatter_reduce_(1, concept_M.expand(len(query_ND), -1), similarity_NM, "amax")
    return _ranks_of_first(nearest_NC.gather(1, candidates_NK))


def _cosines(query_ND: Tensor, gallery_MD: Tensor) -> Tensor:
    query_ND, gallery_MD = (torch.nn.functional.normalize(one.double(), dim=-1) for one in (query_ND, gallery_MD))
    # Some processors sum the columns of a product in several orders, by which equal vectors would differ.
    return (query_ND @ gallery_MD.T).round(decimals=12)


def _ranks_of_first(similarity_NK: Tensor) -> Tensor:
    return 1 + (similarity_NK[:, 1:] >= similarity_NK[:, :1]).sum(1)


def ranks_among_all(query_ND: Tensor, gallery_MD: Tensor, own_N: Sequence[int], chunk: int = 256) -> Tensor:
    """The rank of each query's own picture among the whole gallery; as `own_ranks` in everything else.

    Args:
        query_ND: A vector for each query.
        gallery_MD: A vector for each picture.
        own_N: For each query the position of its own picture.
        chunk: Queries that are compared at a time.

    Returns:
        Ranks (N,) from 1 to M.
    """
    ranks = []
    for part_BD, own_B in zip(query_ND.split(chunk), torch.tensor(list(own_N)).split(chunk), strict=True):
        similarity_BM = _cosines(part_BD, gallery_MD)
        # The own picture is as near as itself and counts once: its rank is the number of those at least as near.
        ranks.append((similarity_BM >= similarity_BM.gather(1, own_B[:, None])).sum(1))
    return torch.cat(ranks)


def scores_among_all(ranks_N: Tensor) -> dict[str, float]:
    """Shares in percent of own pictures found among the first 1, 5 and 10 of all, and the median rank."""
    shares = {f"all_r_at_{k}": 100.0 * (ranks_N <= k).double().mean().item() for k in (1, 5, 10)}
    return shares | {"all_median_rank": ranks_N.double().quantile(0.5).item()}


def retrieval_scores(ranks_N: Tensor, ways: int) -> dict[str, float]:
    """Shares in percent of own pictures found among the first 1, 5 and 10, the mean rank, and what chance gives."""
    share = 100.0 / ways
    return {
        "r_at_1": 100.0 * (ranks_N <= 1).double().mean().item(),
        "r_at_5": 100.0 * (ranks_N <= 5).double().mean().item(),
        "r_at_10": 100.0 * (ranks_N <= 10).double().mean().item(),
        "mean_rank": ranks_N.double().mean().item(),
        "chance_r_at_1": share,
        "chance_r_at_5": min(5, ways) * share,
        "chance_r_at_10": min(10, ways) * share,
        "chance_mean_rank": (ways + 1) / 2,
    }
