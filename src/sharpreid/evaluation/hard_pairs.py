"""Rank-1 on hard pairs: does the network find the one detail in which two people differ?

The gallery of a query is reduced to the images of its own identity and of its twin, from other cameras than
the query's. So the score does not depend on how many other people there are, and a network that tells people
apart by everything but the detail scores at chance, about one half.
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
"""Two identities and the detail in which they differ."""


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

    Distances and ties are those of `evaluate_ranking`: an image of the twin at the same distance comes first.

    Args:
        query_embeddings, query_pids, query_camids: as in `evaluate_ranking`.
        gallery_embeddings, gallery_pids, gallery_camids: as there.
        pairs: identities that differ in one detail, and that detail; at least one.

    Raises:
        ValueError: no query belongs to a pair and has images of both people in other cameras.

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


_Items = tuple[Tensor, Tensor, Tensor]  # embeddings, identities, cameras


def _score_pair(query: _Items, gallery: _Items, pids: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Rank-1 of each query of two identities in the gallery of these two, and its chance."""
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
        raise RuntimeError("the ranking left no score of each query")
    chance = own_count / (own_count + twin_count)
    return scores.queries.rank1.tolist(), chance[usable].tolist()


def _select(items: _Items, rows: Tensor) -> _Items:
    return items[0][rows], items[1][rows], items[2][rows]
