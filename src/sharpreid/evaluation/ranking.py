"""Scores of a person re-identification ranking: CMC and mean average precision (Sec. IV-A).

Only the ranks of a query's matches are needed, so nothing is sorted by distance: per chunk of queries
one matrix product gives the distances, and counting the items at least as near as each match gives its
rank.

Rules, the same for every protocol:

* Ties count against the query. Items at exactly the same distance are ranked negatives first, then the
  matches, one after the other. So the order of the files never matters, and a collapsed model, for which
  every item is tied, gets the worst score there is.
* An item that leaves the ranking (junk) costs no rank.
* Identity 0, the distractor, is nobody's match: it is a negative of every query. Identity -1 is junk.
* Distances come from exact arithmetic (`round_for_exact_products`). So a score has the same bits for any
  chunk size, number of threads, device or order of the files, also under autocast. (Only the random draws
  of a single-shot gallery depend on the order of its rows.)
"""

import importlib.util
import math
import typing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharpreid.evaluation.exact import (
    CHUNK_BYTES,
    Array,
    Distances,
    as_tensor,
    euclidean_order,
    exact_embeddings,
)
from sharpreid.evaluation.protocol import Exclusion, Protocol
from sharpreid.evaluation.scores import QueryScores, RankingScores

COMPILED_FROM = 20_000_000
"""Pairs of a query and a gallery item from which on Numba ranks on a CPU, if it is installed."""


class ReRanking(typing.Protocol):
    """A way to rank by more than the distance of a pair; `sharpreid.evaluation.re_ranking` has them.

    It is given no identity, so it cannot make use of one.
    """

    def describe(self) -> str:
        """The method with its parameters, as it is printed with a score."""
        ...

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> Distances:
        """Re-ranked distances.

        Args:
            query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
            query_camids, gallery_camids: cameras, int64, (Q,) and (G,).
            chunk_size: rows of a distance matrix at a time, None for as many as `CHUNK_BYTES` hold.
        """
        ...


def average_precision(hit_ranks: Tensor | Sequence[int]) -> Tensor:
    """Mean of the precisions at the hits, float64.

    Args:
        hit_ranks: 1-based ranks of all matches, ascending, integer, (..., P); 0 pads at the end.
    Returns:
        (...), in [0, 1]; 0 without a hit.

    >>> [round(average_precision(ranks).item(), 6) for ranks in ([2], [1, 3], [1, 10, 100])]
    [0.5, 0.833333, 0.41]
    """
    ranks, hits = _ranks_and_hits(hit_ranks)
    return _mean_over_hits(hits / ranks, ranks)


def average_precision_trapezoid(hit_ranks: Tensor | Sequence[int]) -> Tensor:
    """Area under the precision-recall line as in Market-1501's original Matlab code, float64.

    At each hit, the mean of the precision there and one rank before it (1 before the first rank). Same
    arguments and result as `average_precision`, and never above it.

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


def hit_ranks(distance_qg: Tensor, match_qp: Tensor) -> Tensor:
    """Rank of every match: its place among the matches plus the negatives at least as near.

    Args:
        distance_qg: any increasing function of the distance, float, (Q, G); +inf where the item leaves the
            query's ranking.
        match_qp: columns of the items of the query's identity, int64, (Q, P); -1 pads.
    Returns:
        1-based ranks, ascending, int64, (Q, P); 0 pads at the end.

    The match in column 2 is tied with column 0, which comes before it; column 1 has left:

    >>> hit_ranks(torch.tensor([[1.0, torch.inf, 1.0, 3.0]]), torch.tensor([[1, 2]]))
    tensor([[2, 0]])
    """
    places, device = match_qp.shape[1], distance_qg.device
    matches = distance_qg.gather(1, match_qp.clamp(min=0)).masked_fill(match_qp < 0, torch.inf).sort(1).values
    if device.type == "cpu":  # numpy sorts a row in vector instructions, ten times faster than torch
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
    """Sort the rows of a tensor into another."""
    given, result = (x.numpy() for x in pair)
    result[:] = given
    result.sort(axis=1)


def _count_up_to(matches_qp: Tensor, distance_qg: Tensor) -> Tensor:
    """How many items are at least as near as each match, int64, (Q, P); matches ascending."""
    queries, places = matches_qp.shape
    nearest_beaten = torch.searchsorted(matches_qp, distance_qg.contiguous(), out_int32=True)
    nearest_beaten += torch.arange(queries, dtype=torch.int32, device=matches_qp.device)[:, None] * (
        places + 1
    )
    counts = torch.bincount(nearest_beaten.flatten(), minlength=queries * (places + 1))
    return counts.view(queries, places + 1)[:, :places].cumsum(1)


def evaluate_ranking(
    query_embeddings: Array,
    query_pids: Array,
    query_camids: Array,
    gallery_embeddings: Array,
    gallery_pids: Array,
    gallery_camids: Array,
    *,
    protocol: Protocol,
    chunk_size: int | None = None,
    re_ranking: ReRanking | None = None,
) -> RankingScores:
    """Rank the gallery by Euclidean distance for every query, and score the rankings.

    Runs on the device of `query_embeddings`. Holds the distances of `chunk_size` queries at a time (32 MiB
    by default) and the ranks of all matches, never a Q x G matrix.

    With `re_ranking` the scores are those of the re-ranked gallery, `plain` has those without. What the
    gallery leaves out for everyone (junk identities) takes no part in it; a drawn gallery is re-ranked for
    itself, with the queries of one camera.

    Args:
        query_embeddings: finite, any float type, (Q, D), tensor or array; read as float32.
        query_pids: identities, integer, (Q,); data without cameras can give all queries one camera and
            the gallery another.
        query_camids: cameras, integer, (Q,).
        gallery_embeddings, gallery_pids, gallery_camids: the same for the gallery, (G, D), (G,), (G,).
        protocol: the rules, such as `Protocol.market1501()`.
        chunk_size: queries at a time; changes no bit of the result.
        re_ranking: such as `KReciprocal(...)`; None ranks by distance alone.
    Raises:
        ValueError: shapes or types do not fit, an embedding is NaN or infinite, a query is junk or a
            distractor, or no query has a valid match.

    >>> scores = evaluate_ranking(
    ...     torch.tensor([[0.0]]), torch.tensor([1]), torch.tensor([1]),
    ...     torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([1, 2, 1]), torch.tensor([1, 1, 2]),
    ...     protocol=Protocol.market1501(),
    ... )
    >>> scores.mAP, scores.mAP_trapezoid, scores.rank(1), scores.rank(2)
    (0.5, 0.25, 0.0, 1.0)
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
    query = _Items.read("query", query_embeddings, query_pids, query_camids)
    gallery = _Items.read("gallery", gallery_embeddings, gallery_pids, gallery_camids, query.pids.device)
    if query.embeddings.shape[1] != gallery.embeddings.shape[1]:
        raise ValueError(
            "query and gallery embeddings must have the same length, got "
            f"{query.embeddings.shape[1]} and {gallery.embeddings.shape[1]}"
        )
    _check_queries_are_people(query, protocol)
    if protocol.junk_identity is not None and (junk := gallery.pids == protocol.junk_identity).any():
        gallery = gallery.select(~junk)

    plain = _scores(query, gallery, protocol, chunk_size, None)
    if re_ranking is None:
        return plain
    re_ranked = _scores(query, gallery, protocol, chunk_size, re_ranking)
    return replace(re_ranked, re_ranking=re_ranking.describe(), plain=plain)


def _scores(
    query: "_Items",
    gallery: "_Items",
    protocol: Protocol,
    chunk_size: int | None,
    re_ranking: ReRanking | None,
) -> RankingScores:
    full = _ranks_of_matches(query, gallery, protocol.exclusion, chunk_size, re_ranking)
    valid = int((full[:, 0] > 0).sum())
    if valid == 0:
        raise ValueError(_why_no_match(query, gallery, protocol))
    drawn = [full]
    if protocol.gallery_per_identity is not None:
        draws = range(protocol.repeats)
        drawn = [_ranks_in_draw(query, gallery, protocol, n, chunk_size, re_ranking) for n in draws]
    for_map = torch.cat(drawn if protocol.map_on == "drawn_gallery" else [full])

    divisor = valid if protocol.denominator == "valid_queries" else len(full)
    cmc = torch.stack([_matches_within(ranks, protocol.max_rank) for ranks in drawn]) / divisor
    rankings = divisor * len(for_map) // len(full)
    return RankingScores(
        protocol=protocol,
        mAP=math.fsum(average_precision(for_map).tolist()) / rankings,
        mAP_trapezoid=math.fsum(average_precision_trapezoid(for_map).tolist()) / rankings,
        cmc=tuple(cmc.mean(0).tolist()),
        cmc_std=tuple(cmc.std(0, correction=0).tolist()),
        num_valid_queries=valid,
        num_invalid_queries=len(full) - valid,
        queries=QueryScores(
            ap=_per_query(average_precision(for_map), full),
            rank1=_per_query(torch.cat(drawn)[:, 0] == 1, full),
        ),
    )


def _per_query(values: Tensor, full: Tensor) -> npt.NDArray[np.float64]:
    """Mean of each query's values over the draws, which follow one another; NaN without a match."""
    mean = values.double().view(-1, len(full)).mean(0)
    return mean.masked_fill(full[:, 0] == 0, torch.nan).cpu().numpy()


@dataclass(frozen=True, eq=False)
class _Items:
    """Checked rows of the query or the gallery, embeddings rounded for exact products."""

    embeddings: Tensor
    pids: Tensor
    camids: Tensor

    @classmethod
    def read(
        cls, name: str, embeddings: Array, pids: Array, camids: Array, device: torch.device | None = None
    ) -> "_Items":
        x = exact_embeddings(f"{name}_embeddings", embeddings, device)
        labels = []
        for field, values in ((f"{name}_pids", as_tensor(pids)), (f"{name}_camids", as_tensor(camids))):
            if values.is_floating_point() or values.dtype in (torch.bool, torch.complex64, torch.complex128):
                raise ValueError(f"{field} must be integers, got {values.dtype}")
            if values.shape != (len(x),):
                raise ValueError(
                    f"{field} must have one value per row of {name}_embeddings, shape ({len(x)},), "
                    f"got {tuple(values.shape)}"
                )
            labels.append(values.to(x.device, torch.int64))
        return cls(x, *labels)

    def select(self, rows: Tensor | slice) -> "_Items":
        return _Items(self.embeddings[rows], self.pids[rows], self.camids[rows])

    def __len__(self) -> int:
        return len(self.pids)


def _check_queries_are_people(query: _Items, protocol: Protocol) -> None:
    for field in ("junk_identity", "distractor_identity"):
        identity = getattr(protocol, field)
        if identity is None:
            continue
        rows = (query.pids == identity).nonzero()
        if len(rows):
            raise ValueError(
                f"query_pids: {len(rows)} queries, the first in row {rows[0].item()}, have identity "
                f"{identity}, which is the protocol's {field} and matches nothing; leave them out, or give "
                f"Protocol(..., {field}=None) if it is a person like others"
            )


def _distances(
    query: _Items, gallery: _Items, order: Tensor, chunk_size: int | None, re_ranking: ReRanking | None
) -> Distances:
    """Distances to the gallery in another order of its rows."""
    if re_ranking is None:
        return euclidean_order(query.embeddings, gallery.embeddings[order])
    in_given_order = re_ranking.distances(
        query.embeddings, gallery.embeddings, query.camids, gallery.camids, chunk_size
    )
    return lambda rows: in_given_order(rows)[:, order]


def _ranks_of_matches(
    query: _Items,
    gallery: _Items,
    exclusion: Exclusion,
    chunk_size: int | None,
    re_ranking: ReRanking | None,
) -> Tensor:
    """Ranks of each query's matches, int64, (Q, P), P >= 1, on the CPU; 0 pads."""
    if len(gallery) == 0:
        return torch.zeros(len(query), 1, dtype=torch.int64)
    order = gallery.pids.argsort(stable=True)
    in_given_order, gallery = gallery, gallery.select(order)
    first = torch.searchsorted(gallery.pids, query.pids)
    end = torch.searchsorted(gallery.pids, query.pids, right=True)
    if re_ranking is None and is_worth_compiling(len(query), len(gallery), query.pids.device):
        from sharpreid.evaluation.numba_kernels import ranking as compiled

        return compiled.ranks_of_matches(
            compiled.Queries(query.embeddings, query.camids, first, end),
            compiled.Gallery(gallery.embeddings, gallery.camids),
            same_camera_leaves=exclusion == "same_camera",
            chunk_size=chunk_size,
        )
    distances = _distances(query, in_given_order, order, chunk_size, re_ranking)
    places = torch.arange(max(1, int((end - first).max())), device=first.device)
    rows = chunk_size or max(1, _chunk_bytes(first.device) // (8 * len(gallery)))
    ranks = []
    for start in range(0, len(query), rows):
        chunk = slice(start, start + rows)
        part = query.select(chunk)
        same_qp = first[chunk, None] + places
        same_qp = same_qp.masked_fill(same_qp >= end[chunk, None], -1)
        distance_qg = distances(chunk)
        if exclusion == "same_camera":
            distance_qg.masked_fill_(part.camids[:, None] == gallery.camids, torch.inf)
        else:
            same_camera = gallery.camids[same_qp] == part.camids[:, None]
            junk, place = ((same_qp >= 0) & same_camera).nonzero(as_tuple=True)
            distance_qg[junk, same_qp[junk, place]] = torch.inf
        ranks.append(hit_ranks(distance_qg, same_qp).cpu())
    return torch.cat(ranks)


def is_worth_compiling(queries: int, gallery: int, device: torch.device) -> bool:
    """Whether Numba is there, and the matrix large enough that starting it (half a second) pays off."""
    large = queries * gallery >= COMPILED_FROM
    return large and device.type == "cpu" and importlib.util.find_spec("numba") is not None


def _chunk_bytes(device: torch.device) -> int:
    """Bytes of distances to hold at a time: on a GPU an eighth of what is free: they are copied."""
    if device.type != "cuda":
        return CHUNK_BYTES
    return max(CHUNK_BYTES, torch.cuda.mem_get_info(device)[0] // 8)


def _ranks_in_draw(
    query: _Items,
    gallery: _Items,
    protocol: Protocol,
    draw: int,
    chunk_size: int | None,
    re_ranking: ReRanking | None,
) -> Tensor:
    """As `_ranks_of_matches`, in one drawn gallery per camera of the queries."""
    generator = np.random.default_rng([protocol.seed, protocol.split, draw])
    shuffled = torch.from_numpy(generator.random(len(gallery)).argsort()).to(gallery.pids.device)
    ranks = torch.zeros(len(query), protocol.gallery_per_identity or 1, dtype=torch.int64)
    for camera in torch.unique(query.camids):
        other = shuffled[gallery.camids[shuffled] != camera]
        other = other[gallery.pids[other].argsort(stable=True)]
        pids = gallery.pids[other]
        place = torch.arange(len(pids), device=pids.device) - torch.searchsorted(pids, pids)
        taken = place < (protocol.gallery_per_identity or 1)
        if protocol.distractor_identity is not None:
            taken |= pids == protocol.distractor_identity
        rows = query.camids == camera
        drawn = gallery.select(other[taken].sort().values)  # not by identity, which re-ranking must not see
        found = _ranks_of_matches(query.select(rows), drawn, protocol.exclusion, chunk_size, re_ranking)
        ranks[rows.cpu(), : found.shape[1]] = found
    return ranks


def _matches_within(ranks: Tensor, max_rank: int) -> Tensor:
    """Number of queries whose first match has rank 1, 2, ... max_rank or better, float64."""
    first = ranks[:, 0]
    found = first[(first > 0) & (first <= max_rank)]
    return torch.bincount(found, minlength=max_rank + 1)[1:].cumsum(0).double()


def _why_no_match(query: _Items, gallery: _Items, protocol: Protocol) -> str:
    known = int(torch.isin(query.pids, gallery.pids).sum())
    return (
        f"no query has a valid match under {protocol.name}: {len(query)} queries, {len(gallery)} gallery "
        f"items that are not junk; {len(query) - known} queries have an identity that the gallery lacks, "
        f"{known} have theirs only in their own camera, which leaves the ranking. Check that query and "
        "gallery come from the same split and that their camera ids are right; for data without cameras "
        "give all queries camera 0 and the gallery camera 1"
    )
