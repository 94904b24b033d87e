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

import dataclasses
import importlib.util
import math
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sharpreid.evaluation.hard_pairs import HardPairScores

Array = Tensor | npt.NDArray[Any]
Exclusion = Literal["same_identity_and_camera", "same_camera"]
MapOn = Literal["full_gallery", "drawn_gallery"]
Denominator = Literal["valid_queries", "all_queries"]

Distances = Callable[[slice], Tensor]
"""Distances of some queries (a slice of their rows) to the whole gallery, float64, (rows, G).

Any increasing function of the distance that a ranking goes by; free to be changed, valid until the next call.
"""

CHUNK_BYTES = 32 * 2**20  # distances held at a time; larger chunks are no faster on a CPU
ROWS_IN_CACHE = 1024  # embeddings that are worked on at a time

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


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a score means; printed with every score.

    Args:
        name: how the protocol is called in a table.
        exclusion: gallery items that leave a query's ranking. "same_identity_and_camera" (Market-1501):
            only those of its identity and camera, other people in its camera stay. "same_camera"
            (CUHK03): everything in its camera.
        gallery_per_identity: images drawn per identity for the CMC (1 is single-shot), from other cameras
            than the query's; None takes the whole gallery. Distractors all stay: they are different people.
        repeats: number of draws; the CMC is their mean. A draw depends on (seed, split, draw) and on the
            order of the gallery's rows, so give those in the data set's own order. Queries of one camera
            share a drawn gallery.
        map_on: "full_gallery" computes mAP on the whole gallery even where the CMC is drawn (multi-shot
            mAP beside a single-shot CMC), "drawn_gallery" on the draws.
        max_rank: length of the CMC.
        denominator: mAP and CMC are divided by the queries with a match, or by all queries (a query
            without a match then scores 0).
        junk_identity: gallery items that leave every ranking; None if there are none.
        distractor_identity: gallery items that match no query; None if it is an identity like others.
        seed, split: with the number of the draw, the seed of the draw.
    Raises:
        ValueError: an option is unknown, a number is out of range, or a drawn gallery is asked for without
            `exclusion="same_camera"`.
    """

    name: str
    exclusion: Exclusion = "same_identity_and_camera"
    gallery_per_identity: int | None = None
    repeats: int = 1
    map_on: MapOn = "full_gallery"
    max_rank: int = 50
    denominator: Denominator = "valid_queries"
    junk_identity: int | None = -1
    distractor_identity: int | None = 0
    seed: int = 0
    split: int = 0

    def __post_init__(self) -> None:
        for field, options in (("exclusion", Exclusion), ("map_on", MapOn), ("denominator", Denominator)):
            if getattr(self, field) not in get_args(options):
                raise ValueError(f"{field} must be one of {get_args(options)}, got {getattr(self, field)!r}")
        for field, least in (("repeats", 1), ("max_rank", 1), ("seed", 0), ("split", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.gallery_per_identity is None:
            if self.repeats != 1 or self.map_on != "full_gallery":
                raise ValueError(
                    "repeats and map_on='drawn_gallery' need gallery_per_identity: else nothing is drawn"
                )
        elif self.gallery_per_identity < 1 or self.exclusion != "same_camera":
            raise ValueError(
                "gallery_per_identity must be at least 1 and needs exclusion='same_camera', got "
                f"{self.gallery_per_identity} with {self.exclusion!r}"
            )

    @classmethod
    def market1501(cls) -> "Protocol":
        """Market-1501: junk is the query's identity in its own camera; the whole gallery."""
        return cls(name="market1501")

    @classmethod
    def duke(cls) -> "Protocol":
        """DukeMTMC-reID: the rule of Market-1501."""
        return cls(name="duke")

    @classmethod
    def cuhk03_new(cls) -> "Protocol":
        """CUHK03 with 767 training and 700 test identities: the rule of Market-1501."""
        return cls(name="cuhk03_new")

    @classmethod
    def cuhk03_single_shot(cls, seed: int = 0, split: int = 0, repeats: int = 20) -> "Protocol":
        """CUHK03 with 100 test identities: single-shot CMC over `repeats` draws, multi-shot mAP."""
        return cls(
            name="cuhk03_single_shot",
            exclusion="same_camera",
            gallery_per_identity=1,
            repeats=repeats,
            map_on="full_gallery",
            seed=seed,
            split=split,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


class QueryScores(NamedTuple):
    """What each query contributes to the scores, in the order of the queries; NaN without a match."""

    ap: npt.NDArray[np.float64]
    """Average precision (mean over the draws where mAP is drawn), (Q,), in [0, 1]."""
    rank1: npt.NDArray[np.float64]
    """Share of the protocol's draws in which a match comes first, (Q,), in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class RankingScores:
    """Scores in [0, 1] with the protocol they were computed under.

    `cmc[k - 1]` is rank-k: the fraction of queries with a match among the first k. It never decreases, and
    past the end of a short gallery it stays at its last value. `cmc_std` is the standard deviation (of the
    population) over the protocol's draws, 0 without draws. `mAP` averages the precision at the matches,
    `mAP_trapezoid` is the formula of Market-1501's original Matlab code. `re_ranking` names what the ranking
    was changed by; `plain` then holds the scores without it, else it is None.
    `queries` has what each query contributes; it takes no part in comparisons.
    """

    protocol: Protocol
    mAP: float
    mAP_trapezoid: float
    cmc: tuple[float, ...]
    cmc_std: tuple[float, ...]
    num_valid_queries: int
    num_invalid_queries: int
    re_ranking: str = "none"
    plain: "RankingScores | None" = None
    hard_pairs: "HardPairScores | None" = None
    """Rank-1 on pairs of people who differ in one detail; None for data that names none. Never re-ranked."""
    queries: QueryScores | None = dataclasses.field(default=None, compare=False, repr=False)

    def rank(self, k: int) -> float:
        """Rank-k; raises ValueError for a k outside the computed curve."""
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"k must be 1 to {len(self.cmc)} (the protocol's max_rank), got {k}")
        return self.cmc[k - 1]

    def as_dict(self) -> dict[str, float | int]:
        """The usual numbers, ready for JSON; ranks past the protocol's `max_rank` are left out.

        With draws, also the standard deviation over them of each rank.
        """
        places = [k for k in (1, 5, 10, 20) if k <= len(self.cmc)]
        ranks = {f"rank{k}": self.rank(k) for k in places}
        if self.protocol.gallery_per_identity is not None:
            ranks |= {f"rank{k}_std": self.cmc_std[k - 1] for k in places}
        return {
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            **ranks,
            "num_valid_queries": self.num_valid_queries,
            "num_invalid_queries": self.num_invalid_queries,
        }


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


def round_for_exact_products(x_nd: Tensor) -> Tensor:
    """Rows in float64, rounded so that their dot products involve no rounding at all.

    Each row keeps b binary digits below its largest coordinate, with D * 2^(2b) <= 2^53: then every partial
    sum of a dot product fits float64 exactly, and a matrix product has the same bits in whatever order the
    library adds, so equal items are tied exactly. b is 23 for D = 128 (float32 holds 24) and 21 for 2048.

    Args:
        x_nd: finite float32, (N, D), D >= 1.
    Returns:
        float64, (N, D).

    >>> round_for_exact_products(torch.tensor([[1.0, 2.0**-30], [2.0**-30, 0.0]])).tolist()
    [[1.0, 0.0], [9.313225746154785e-10, 0.0]]
    """
    bits = (53 - (x_nd.shape[1] - 1).bit_length()) // 2
    rounded = torch.empty(x_nd.shape, dtype=torch.float64, device=x_nd.device)
    for given, result in zip(*(torch.split(x, ROWS_IN_CACHE) for x in (x_nd, rounded)), strict=True):
        x = given.double()
        largest = x.abs().amax(dim=1, keepdim=True)
        mantissa, _ = torch.frexp(largest)
        power_of_two = torch.where(largest > 0, largest / mantissa, 1.0)
        step = power_of_two * 2.0**-bits
        torch.mul(x.div_(step).round_(), step, out=result)
    return rounded


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
        for field, values in ((f"{name}_pids", _tensor(pids)), (f"{name}_camids", _tensor(camids))):
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


def exact_embeddings(name: str, embeddings: Array, device: torch.device | None = None) -> Tensor:
    """Embeddings read as float32 and rounded by `round_for_exact_products`: float64, (N, D).

    Args:
        name: what an error calls them.
        embeddings: finite, any float type, (N, D), tensor or array.
        device: where to; None leaves them where they are, unless that lacks float64.
    Raises:
        ValueError: not a float matrix, empty, NaN or infinite.
    """
    x = _tensor(embeddings)
    if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(f"{name} must be float (N, D), not empty, got {x.dtype} {tuple(x.shape)}")
    if device is None:
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # mps has no float64
    x = x.detach().to(device, torch.float32)
    bad = (~x.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(x)} rows are NaN or infinite in float32, the first is row "
            f"{bad[0].item()}; a ranking of them means nothing, look at the training"
        )
    return round_for_exact_products(x)


def _tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.array(values))  # a copy: torch warns about read-only arrays


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


def euclidean_order(query: Tensor, gallery: Tensor) -> Distances:
    """|q - g|^2 without |q|^2, which changes no ranking: one rounding, the same for the same pair.

    Args:
        query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
    """
    squared_norm, buffer = gallery.square().sum(1), gallery.new_empty(0)

    def of_chunk(rows: slice) -> Tensor:
        nonlocal buffer
        chunk = query[rows]
        if len(buffer) < len(chunk):
            buffer = gallery.new_empty(len(chunk), len(gallery))
        return torch.matmul(-2 * chunk, gallery.T, out=buffer[: len(chunk)]).add_(squared_norm)

    return of_chunk


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
