"""Rank-1 on hard pairs. A hard pair is two people, called twins, who differ in one detail.

The gallery of a query is reduced to the images of its identity and its twin from other cameras. The score
therefore does not depend on the number of other people, and a network that ignores the detail scores at
chance, about one half.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.exact import Array
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.evaluation.scores import HardPairScores

Pair = tuple[tuple[int, int], str]
"""Two identities, and the name of the detail in which they differ."""


def score_hard_pairs(
    query_embeddings: Array,
    query_pids: Array,
    query_camids: Array,
    gallery_embeddings: Array,
    gallery_pids: Array,
    gallery_camids: Array,
    *,
    pairs: Sequence[Pair],
) -> HardPairScores:
    """Score how often a query is nearer to its own identity than to its twin.

    Distances and ties are those of `evaluate_ranking`, so an image of the twin at the same distance is ranked
    first.

    Args:
        query_embeddings, query_pids, query_camids: see `evaluate_ranking`.
        gallery_embeddings, gallery_pids, gallery_camids: see `evaluate_ranking`.
        pairs: at least one pair.

    Raises:
        ValueError: no query of a pair has images of both people in other cameras.

    The query at 0 is nearer to its own image at 1 than to its twin's at 3:

    >>> scores = score_hard_pairs(
    ...     torch.tensor([[0.0]]), torch.tensor([1]), torch.tensor([1]),
    ...     torch.tensor([[1.0], [3.0]]), torch.tensor([1, 2]), torch.tensor([2, 2]),
    ...     pairs=[((1, 2), "hat")],
    ... )
    >>> scores.rank1, scores.chance, scores.by_detail
    (1.0, 0.5, {'hat': (1.0, 1)})
    """
    query, gallery = (
        (torch.as_tensor(x), torch.as_tensor(pids), torch.as_tensor(camids))
        for x, pids, camids in (
            (query_embeddings, query_pids, query_camids),
            (gallery_embeddings, gallery_pids, gallery_camids),
        )
    )
    correct: list[float] = []
    chances: list[float] = []
    of_detail: dict[str, list[float]] = {}
    for pids, detail in pairs:
        found, chance = _score_pair(query, gallery, pids)
        correct += found
        chances += chance
        of_detail.setdefault(detail, []).extend(found)
    if not correct:
        raise ValueError(
            f"no query of the {len(pairs)} hard pairs has images of both people in other cameras; check that "
            "the pairs are test identities of this data set"
        )
    return HardPairScores(
        rank1=float(np.mean(correct)),
        chance=float(np.mean(chances)),
        num_queries=len(correct),
        by_detail={name: (float(np.mean(found)), len(found)) for name, found in of_detail.items() if found},
    )


_Samples = tuple[Tensor, Tensor, Tensor]  # embeddings, identities, cameras


def _score_pair(query: _Samples, gallery: _Samples, pids: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Return rank-1 and its chance for each query of two identities, in the gallery of these two."""
    query, gallery = (_select(items, torch.isin(items[1], torch.tensor(pids))) for items in (query, gallery))
    elsewhere = query[2][:, None] != gallery[2]
    own = query[1][:, None] == gallery[1]
    own_count, twin_count = (elsewhere & own).sum(1), (elsewhere & ~own).sum(1)
    usable = (own_count > 0) & (twin_count > 0)
    if not usable.any():
        return [], []
    protocol = replace(Protocol.market1501(), name="hard_pairs", exclusion="same_camera")
    scores = evaluate_ranking(*_select(query, usable), *gallery, protocol=protocol)
    if scores.queries is None:
        raise RuntimeError("evaluate_ranking returned no scores of single queries")
    chance = own_count / (own_count + twin_count)
    return scores.queries.rank1.tolist(), chance[usable].tolist()


def _select(items: _Samples, rows: Tensor) -> _Samples:
    return items[0][rows], items[1][rows], items[2][rows]
