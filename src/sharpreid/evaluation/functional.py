"""Average precision, CMC and the ranks of the matches, as pure functions.

torchmetrics' retrieval metrics handle one query at a time, break ties by the order of the files, and support
neither junk images nor the trapezoid rule.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def average_precision(hit_ranks: Tensor | Sequence[int]) -> Tensor:
    """Compute the average precision, which is the mean of the precisions at the hits.

    Args:
        hit_ranks: 1-based ranks of all matches, ascending, integer, (..., P); 0 pads at the end.

    Returns:
        (...), float64, in [0, 1]; 0 without a hit.

    >>> [round(average_precision(ranks).item(), 6) for ranks in ([2], [1, 3], [1, 10, 100])]
    [0.5, 0.833333, 0.41]
    """
    ranks, hits = _ranks_and_hits(hit_ranks)
    return _mean_over_hits(hits / ranks, ranks)


def average_precision_trapezoid(hit_ranks: Tensor | Sequence[int]) -> Tensor:
    """Compute the area under the precision-recall curve by the trapezoid rule.

    At each hit, the precision is averaged with the precision one rank earlier (1 before the first rank). The
    result is never above `average_precision`. Source: Market-1501's original Matlab code.

    Args:
        hit_ranks: see `average_precision`.

    Returns:
        (...), float64, in [0, 1]; 0 without a hit.

    >>> [round(average_precision_trapezoid(ranks).item(), 6) for ranks in ([2], [1, 3], [1, 10, 100])]
    [0.25, 0.791667, 0.393552]
    """
    ranks, hits = _ranks_and_hits(hit_ranks)
    before = torch.where(ranks > 1, (hits - 1) / (ranks - 1), 1.0)
    return _mean_over_hits((before + hits / ranks) / 2, ranks)


def _ranks_and_hits(hit_ranks: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    ranks = torch.as_tensor(hit_ranks).double()
    return ranks, torch.arange(1, ranks.shape[-1] + 1, dtype=torch.float64, device=ranks.device)


def _mean_over_hits(precision: Tensor, ranks: Tensor) -> Tensor:
    is_hit = ranks > 0
    return torch.where(is_hit, precision, 0.0).sum(-1) / is_hit.sum(-1).clamp(min=1)


def count_first_matches(hit_ranks: Tensor, max_rank: int) -> Tensor:
    """Count the queries whose first match is among the first 1, 2, ... ``max_rank`` items.

    Divided by a number of queries, this is the CMC.

    Args:
        hit_ranks: see `average_precision`, (Q, P), P >= 1.
        max_rank: at least 1.

    Returns:
        float64, (max_rank,), never decreasing.

    >>> count_first_matches(torch.tensor([[1, 3], [2, 0], [0, 0]]), 3).tolist()
    [1.0, 2.0, 2.0]
    """
    first = hit_ranks[:, 0]
    found = first[(first > 0) & (first <= max_rank)]
    return torch.bincount(found, minlength=max_rank + 1)[1:].cumsum(0).double()


def hit_ranks(distance_qg: Tensor, match_qp: Tensor) -> Tensor:
    """Compute each match's rank: its place among the matches plus the number of negatives at least as near.

    Args:
        distance_qg: any increasing function of the distance, float, (Q, G); +inf where the item is not part
            of the query's ranking.
        match_qp: columns of the items of the query's identity, int64, (Q, P); -1 pads.

    Returns:
        1-based ranks, ascending, int64, (Q, P); 0 pads at the end.

    The match in column 2 is tied with column 0, which is ranked before it; column 1 is excluded:

    >>> hit_ranks(torch.tensor([[1.0, torch.inf, 1.0, 3.0]]), torch.tensor([[1, 2]]))
    tensor([[2, 0]])
    """
    places, device = match_qp.shape[1], distance_qg.device
    matches = distance_qg.gather(1, match_qp.clamp(min=0)).masked_fill(match_qp < 0, torch.inf).sort(1).values
    if device.type == "cpu":  # numpy sorts rows with vector instructions, ten times faster than torch
        in_order = torch.empty_like(distance_qg)
        parts = zip(*(x.chunk(torch.get_num_threads()) for x in (distance_qg, in_order)), strict=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(_sort_rows, parts))
        at_least_as_near = torch.searchsorted(in_order, matches, right=True)
    else:
        at_least_as_near = _count_up_to(matches, distance_qg)
    negatives = at_least_as_near - torch.searchsorted(matches, matches, right=True)
    ranks = negatives + torch.arange(1, places + 1, device=device)
    return ranks.masked_fill(matches == torch.inf, 0)


def _sort_rows(pair: tuple[Tensor, Tensor]) -> None:
    """Write the sorted rows of the first tensor into the second."""
    given, result = (x.numpy() for x in pair)
    result[:] = given
    result.sort(axis=1)


def _count_up_to(matches_qp: Tensor, distance_qg: Tensor) -> Tensor:
    """Count the items at least as near as each match, int64, (Q, P); the matches are ascending."""
    queries, places = matches_qp.shape
    nearest_beaten = torch.searchsorted(matches_qp, distance_qg.contiguous(), out_int32=True)
    offset = torch.arange(queries, dtype=torch.int32, device=matches_qp.device)[:, None] * (places + 1)
    nearest_beaten += offset
    counts = torch.bincount(nearest_beaten.flatten(), minlength=queries * (places + 1))
    return counts.view(queries, places + 1)[:, :places].cumsum(1)
