"""Re-ranking of a test set: k-reciprocal encoding and average query expansion.

Both look at the whole gallery before they rank it, so their scores stand apart: a score names them, and no
model is selected by them. Neither is given an identity.

k-reciprocal encoding (Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR
2017) describes each image by the images that have it among their nearest and are among its nearest, and
compares two images by the overlap of these sets. Where the paper and its authors' program differ, this
follows the program (the float32 one, which takes distances): an image is one of its own neighbours, so lists
hold k + 1; k1/2 is rounded half to even; squared distances are divided by the largest in their row.

An image's set has at most (k1 + 1)(k1/2 + 2) members, so the sets are kept as rows of a sparse matrix and
memory grows with the number of images, not with its square: distances exist for a chunk of rows at a time.

Equal distances within a list of neighbours go by row, queries before the gallery; only where equal distances
straddle the end of a list can the order of the files change a result. Weights are multiples of 2^-32, so that
their sums are exact and no chunk size, number of threads or order of addition changes a bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sharpreid.evaluation.exact import (
    CHUNK_BYTES,
    Array,
    Distances,
    euclidean_order,
    exact_embeddings,
    round_for_exact_products,
)
from sharpreid.evaluation.ranking import is_worth_compiling

_WEIGHT_STEP = 2.0**-32


@dataclass(frozen=True, kw_only=True)
class KReciprocal:
    """k-reciprocal re-ranking, for `evaluate_ranking(..., re_ranking=...)`.

    All queries and the whole gallery take part, whatever their cameras, as in the published program. It
    uses the other queries too: a query's ranking depends on which others it is scored with.

    Args:
        k1: neighbours that may be reciprocal, at least 1.
        k2: neighbours, the image itself among them, whose sets are averaged (Eq. 11); 1 for none.
        lambda_value: weight of the original distance, in [0, 1] (Eq. 12); 1 is the ranking by it alone.
    Raises:
        ValueError: an argument is out of range.

    >>> KReciprocal(k1=20, k2=6, lambda_value=0.3).describe()
    'k_reciprocal k1=20 k2=6 lambda=0.3'
    """

    k1: int
    k2: int
    lambda_value: float

    def __post_init__(self) -> None:
        for field in ("k1", "k2"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 0 <= self.lambda_value <= 1:
            raise ValueError(f"lambda_value must be in [0, 1], got {self.lambda_value}")

    def describe(self) -> str:
        """Method and parameters, as printed with a score."""
        return f"k_reciprocal k1={self.k1} k2={self.k2} lambda={self.lambda_value:g}"

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> Distances:
        """Final distances (Eq. 12), see `k_reciprocal_distances`; embeddings from `exact_embeddings`."""
        encoding = _encode(torch.cat([query, gallery]), self.k1, self.k2, chunk_size)
        in_gallery = _by_column(encoding.weights, first_row=len(query))
        euclidean, squared_norm = euclidean_order(query, gallery), query.square().sum(1)
        farthest = encoding.farthest[: len(query)]

        def of_chunk(rows: slice) -> Tensor:
            original = euclidean(rows).add_(squared_norm[rows, None]).clamp_(min=0)
            original.div_(farthest[rows, None])
            queries = range(len(query))[rows]
            return _combine(original, encoding.weights, in_gallery, queries, self.lambda_value)

        return of_chunk


@dataclass(frozen=True, kw_only=True)
class QueryExpansion:
    """Average query expansion, for `evaluate_ranking(..., re_ranking=...)`; see `average_query_expansion`.

    A query is averaged with images of other cameras only. Those of its own camera include the ones that
    the protocol takes out of its ranking because they show the same person; they are near duplicates of
    the query, and to leave out just these would need the identity that is to be found.

    Args:
        k: gallery images per query, at least 1.
    Raises:
        ValueError: k is out of range.

    >>> QueryExpansion(k=5).describe()
    'query_expansion k=5'
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def describe(self) -> str:
        """Method and parameters, as printed with a score."""
        return f"query_expansion k={self.k}"

    def distances(
        self,
        query: Tensor,
        gallery: Tensor,
        query_camids: Tensor,
        gallery_camids: Tensor,
        chunk_size: int | None,
    ) -> Distances:
        """Distances of the expanded queries; embeddings from `exact_embeddings`."""
        expanded = _expand(query, gallery, query_camids, gallery_camids, self.k, chunk_size)
        return euclidean_order(round_for_exact_products(expanded.float()), gallery)


def k_reciprocal_distances(
    query: Array, gallery: Array, *, k1: int, k2: int, lambda_value: float, chunk_size: int | None = None
) -> Tensor:
    """Re-ranked distances of every query to every gallery item.

    Args:
        query: embeddings, finite, any float type, (Q, D), tensor or array; read as float32.
        gallery: the same, (G, D).
        k1, k2, lambda_value: see `KReciprocal`; the authors use 20, 6 and 0.3.
        chunk_size: rows of distances at a time; changes no bit of the result.
    Returns:
        lambda d + (1 - lambda) J, float64, (Q, G), in [0, 1], on the device of the queries: d is the squared
        Euclidean distance divided by the largest one from that query (0 if all are 0), J the Jaccard
        distance. The result is the only Q x G matrix that is made.
    Raises:
        ValueError: an argument is out of range, or embeddings are not finite or do not fit.
    Source: Zhong et al. 2017, Eq. 12.

    Two items are equally far from the query; the second has a nearer neighbour elsewhere and falls back:

    >>> gallery = torch.tensor([[-1.0], [1.0], [1.5], [9.0]])
    >>> k_reciprocal_distances(torch.tensor([[0.0]]), gallery, k1=1, k2=1, lambda_value=0.3)[0, :2]
    tensor([0.0115, 0.7037], dtype=torch.float64)
    """
    query, gallery = _read(query, gallery, chunk_size)
    no_cameras = torch.empty(0, dtype=torch.int64, device=query.device)
    method = KReciprocal(k1=k1, k2=k2, lambda_value=lambda_value)
    distances = method.distances(query, gallery, no_cameras, no_cameras, chunk_size)
    result = query.new_empty(len(query), len(gallery))
    step = chunk_size or max(1, CHUNK_BYTES // (8 * len(gallery)))
    for start in range(0, len(query), step):
        result[start : start + step] = distances(slice(start, start + step))
    return result


def average_query_expansion(
    query: Array,
    gallery: Array,
    k: int,
    *,
    query_camids: Tensor | None = None,
    gallery_camids: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Each query replaced by the mean of itself and its k nearest valid gallery items.

    Args:
        query: embeddings, finite, any float type, (Q, D), tensor or array; read as float32.
        gallery: the same, (G, D).
        k: at least 1; a query with fewer valid items takes those it has. Equal distances go by row.
        query_camids, gallery_camids: cameras, integer, (Q,) and (G,). A gallery item is valid if its camera
            is another than the query's; without cameras all are.
        chunk_size: queries at a time.
    Returns:
        float32, (Q, D), on the device of the queries.
    Raises:
        ValueError: an argument is out of range, embeddings are not finite or do not fit, or cameras came for
            one side only.
    Source: Chum et al., Total Recall, ICCV 2007, Sec. 4.2, on embeddings.

    >>> average_query_expansion(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [-2.0]]), k=2)
    tensor([[-0.3333]])
    """
    method = QueryExpansion(k=k)
    query, gallery = _read(query, gallery, chunk_size)
    if (query_camids is None) != (gallery_camids is None):
        raise ValueError("query_camids and gallery_camids must be given both or neither")
    if query_camids is None or gallery_camids is None:
        query_camids = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        gallery_camids = torch.ones(len(gallery), dtype=torch.int64, device=query.device)
    for name, camids, x in (("query", query_camids, query), ("gallery", gallery_camids, gallery)):
        if camids.shape != x.shape[:1]:
            raise ValueError(f"{name}_camids must have shape ({len(x)},), got {tuple(camids.shape)}")
    cameras = query_camids.to(query.device), gallery_camids.to(query.device)
    return _expand(query, gallery, *cameras, method.k, chunk_size).float()


def _read(query: Array, gallery: Array, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")
    q = exact_embeddings("query", query)
    g = exact_embeddings("gallery", gallery, q.device)
    if q.shape[1] != g.shape[1]:
        raise ValueError(
            f"query and gallery embeddings must have the same length, got {q.shape[1]} and {g.shape[1]}"
        )
    return q, g


def _expand(
    query: Tensor,
    gallery: Tensor,
    query_camids: Tensor,
    gallery_camids: Tensor,
    k: int,
    chunk_size: int | None,
) -> Tensor:
    """Means of `average_query_expansion`, float64, (Q, D), of rounded embeddings."""
    distances, k = euclidean_order(query, gallery), min(k, len(gallery))
    step = chunk_size or max(1, CHUNK_BYTES // (8 * max(len(gallery), k * query.shape[1])))
    means = []
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        distance_qg = distances(rows).masked_fill_(query_camids[rows, None] == gallery_camids, torch.inf)
        column = nearest_columns(distance_qg, k)
        valid = distance_qg.gather(1, column) < torch.inf
        total = query[rows] + (gallery[column] * valid[:, :, None]).sum(1)
        means.append(total / (1 + valid.sum(1, keepdim=True)))
    return torch.cat(means)


def nearest_columns(distance_rn: Tensor, k: int) -> Tensor:
    """Columns of the k smallest values of each row, nearest first; equal ones in the order of the columns.

    Args:
        distance_rn: float, without NaN, (R, N).
        k: 1 to N.
    Returns:
        int64, (R, k): the head of a stable sort, without the sort.

    >>> nearest_columns(torch.tensor([[2.0, 1.0, 2.0, 0.0, 2.0]]), 3)
    tensor([[3, 1, 0]])
    """
    n = distance_rn.shape[1]
    value, column = distance_rn.topk(min(k + 1, n), dim=1, largest=False)
    column = column[:, :k]
    if k < n:
        tied = (value[:, k - 1] == value[:, k]).nonzero().flatten()
        part, last = distance_rn[tied], value[tied, k - 1, None]
        place = torch.arange(n, device=part.device) + n * ((part >= last).long() + (part > last))
        column[tied] = place.topk(k, dim=1, largest=False).indices
    column = column.sort(1).values
    return column.gather(1, distance_rn.gather(1, column).argsort(dim=1, stable=True))


def nearest_neighbours(x: Tensor, k: int, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest items of each item, itself among them, and the squared distance of the farthest.

    Args:
        x: embeddings from `exact_embeddings`, float64, (N, D).
        k: at least 1; all N if there are fewer.
        chunk_size: rows of distances at a time.
    Returns:
        rows of x, nearest first, equal distances by row, int64, (N, min(k, N)); and the largest squared
        distance from each item, float64, (N,), 1 where all are 0.
    """
    squared_norm, k = x.square().sum(1), min(k, len(x))
    if is_worth_compiling(len(x), len(x), x.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        nearest, farthest = compiled.nearest_neighbours(x, k, chunk_size)
    else:
        nearest, farthest = _nearest_neighbours(x, k, chunk_size)
    farthest += squared_norm
    return nearest, torch.where(farthest > 0, farthest, 1.0)


def _nearest_neighbours(x: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """The k nearest of each item, and the largest distance less its squared norm."""
    distances = euclidean_order(x, x)
    step = chunk_size or max(1, CHUNK_BYTES // (8 * len(x)))
    nearest = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    farthest = x.new_empty(len(x))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distance_rn = distances(rows)
        nearest[rows] = nearest_columns(distance_rn, k)
        farthest[rows] = distance_rn.amax(1)
    return nearest, farthest


def k_reciprocal_sets(neighbours: Tensor, k1: int) -> tuple[Tensor, Tensor]:
    """The sets R* (Eq. 2-3, 5): k1-reciprocal neighbours, and those of them that agree.

    Args:
        neighbours: the k1 + 1 nearest of each item, itself among them, nearest first, int64,
            (N, min(k1 + 1, N)).
        k1: at least 1.
    Returns:
        (item, member) of every membership, int64, sorted: two vectors of equal length.

    A member's own set for k1/2 is taken in if more than two thirds of it are k1-reciprocal neighbours of
    the item. Where many items are equal, an item may be outside of its own list, and its set be empty.
    """
    n, width = neighbours.shape
    half = neighbours[:, : round(k1 / 2) + 1]  # to even, as numpy rounds
    if is_worth_compiling(n, n, neighbours.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.k_reciprocal_sets(neighbours, half.shape[1])
    nobody = n  # pads, and sorts last
    reciprocal = _where_reciprocal(neighbours, nobody)
    half_reciprocal = _where_reciprocal(half, nobody)
    step = max(1, CHUNK_BYTES // (64 * width * (half.shape[1] + 1)))
    items, members = [], []
    for start in range(0, n, step):
        own = reciprocal[start : start + step].sort(1).values
        offered = half_reciprocal[own.clamp(max=n - 1)].flatten(1)
        place = torch.searchsorted(own, offered).clamp_(max=width - 1)
        known = (own.gather(1, place) == offered) & (offered != nobody)
        sizes = (offered != nobody).view(*own.shape, -1).sum(2)
        agrees = (3 * known.view(*own.shape, -1).sum(2) > 2 * sizes) & (own != nobody)
        taken = offered.view(*own.shape, -1).masked_fill(~agrees[:, :, None], nobody).flatten(1)
        union = torch.cat([own, taken], dim=1).sort(1).values
        first = union != nobody
        first[:, 1:] &= union[:, 1:] != union[:, :-1]
        row, column = first.nonzero(as_tuple=True)
        items.append(row + start)
        members.append(union[row, column])
    return torch.cat(items), torch.cat(members)


def _where_reciprocal(neighbours: Tensor, nobody: int) -> Tensor:
    """The neighbours that have the item among theirs, the others replaced by `nobody`."""
    n, width = neighbours.shape
    step = max(1, CHUNK_BYTES // (16 * width * width))
    kept = []
    for start in range(0, n, step):
        part = neighbours[start : start + step]
        item = torch.arange(start, start + len(part), device=part.device)
        known = (neighbours[part] == item[:, None, None]).any(2)
        kept.append(part.masked_fill(~known, nobody))
    return torch.cat(kept)


class _SparseRows(NamedTuple):
    """A sparse matrix: row i has weight[start[i] : start[i + 1]] in column[start[i] : start[i + 1]]."""

    start: Tensor  # int64, (N + 1,)
    column: Tensor  # int64, (entries,)
    weight: Tensor  # float64, (entries,)

    @classmethod
    def build(cls, row: Tensor, column: Tensor, weight: Tensor, rows: int) -> "_SparseRows":
        """Of entries sorted by row."""
        return cls.of_sizes(torch.bincount(row, minlength=rows), column, weight)

    @classmethod
    def of_sizes(cls, size: Tensor, column: Tensor, weight: Tensor) -> "_SparseRows":
        """Of entries sorted by row, so many in each, int64, (N,)."""
        start = torch.zeros(len(size) + 1, dtype=torch.int64, device=size.device)
        torch.cumsum(size, 0, out=start[1:])
        return cls(start, column, weight)


class _Encoding(NamedTuple):
    weights: _SparseRows  # V of Eq. 7, after Eq. 11; rows of queries, then of the gallery
    farthest: Tensor  # squared distance, (N,)


def _encode(x: Tensor, k1: int, k2: int, chunk_size: int | None) -> _Encoding:
    neighbours, farthest = nearest_neighbours(x, max(k1 + 1, k2), chunk_size)
    item, member = k_reciprocal_sets(neighbours[:, : k1 + 1], k1)
    weights = _gaussian_weights(x, farthest, item, member)
    if k2 > 1:
        weights = _average_over_neighbours(weights, neighbours[:, :k2])
    return _Encoding(weights, farthest)


def _gaussian_weights(x: Tensor, farthest: Tensor, item: Tensor, member: Tensor) -> _SparseRows:
    """Eq. 7: exp(-d) of the members, each row divided by its sum as in the program."""
    distance = _squared_distances(x, item, member)
    weight = _on_grid(distance.clamp_(min=0).div_(farthest[item]).neg_().exp_())
    total = torch.zeros_like(farthest).index_add_(0, item, weight)
    return _SparseRows.build(item, member, _on_grid(weight / total[item]), len(x))


def _squared_distances(x: Tensor, item: Tensor, member: Tensor) -> Tensor:
    """Of pairs of rows."""
    squared_norm = x.square().sum(1)
    if is_worth_compiling(len(x), len(x), x.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.squared_distances(x, squared_norm, item, member)
    distance = squared_norm[item] + squared_norm[member]
    step = max(1, CHUNK_BYTES // (32 * x.shape[1]))
    for start in range(0, len(item), step):
        part = slice(start, start + step)
        distance[part] -= 2 * (x[item[part]] * x[member[part]]).sum(1)
    return distance


def _average_over_neighbours(weights: _SparseRows, neighbours: Tensor) -> _SparseRows:
    """Eq. 11: the mean of the rows of each item's neighbours, itself among them."""
    n, width = neighbours.shape
    if is_worth_compiling(n, n, neighbours.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        size, *entries = compiled.average_over_neighbours(*weights, neighbours, _WEIGHT_STEP)
        return _SparseRows.of_sizes(size, *entries)
    length = weights.start.diff()
    rows, columns, means = [], [], []
    for part in _windows(length[neighbours].sum(1), CHUNK_BYTES // 64):
        source = neighbours[part].flatten()
        owner, place = _ranges(weights.start[source], length[source])
        key = owner // width * n + weights.column[place]
        key, order = key.sort()
        is_new = torch.ones_like(key, dtype=torch.bool)
        is_new[1:] = key[1:] != key[:-1]
        key, entry = key[is_new], is_new.cumsum(0) - 1
        total = weights.weight.new_zeros(len(key)).index_add_(0, entry, weights.weight[place[order]])
        rows.append(key // n + part.start)
        columns.append(key % n)
        means.append(_on_grid(total / width))
    return _SparseRows.build(torch.cat(rows), torch.cat(columns), torch.cat(means), n)


def _by_column(weights: _SparseRows, first_row: int) -> _SparseRows:
    """Transpose of the rows from `first_row` on, which are counted from 0 then."""
    n = len(weights.start) - 1
    rows = torch.arange(n - first_row, device=weights.start.device)
    row = rows.repeat_interleave(weights.start[first_row:].diff())
    entries = slice(int(weights.start[first_row]), None)
    column, order = weights.column[entries].sort(stable=True)
    return _SparseRows.build(column, row[order], weights.weight[entries][order], n)


def _combine(
    original: Tensor, weights: _SparseRows, in_gallery: _SparseRows, queries: range, lambda_value: float
) -> Tensor:
    """Eq. 12, in place of the distances of some queries."""
    n = len(weights.start) - 1
    if is_worth_compiling(n, n, original.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.combine(original, weights, in_gallery, queries.start, lambda_value)
    shared = _shared_weight(weights, in_gallery, queries, original.shape[1])
    jaccard = (1 - shared / (2 - shared)).mul_(1 - lambda_value)
    return original.mul_(lambda_value).add_(jaccard)


def _shared_weight(weights: _SparseRows, in_gallery: _SparseRows, queries: range, size: int) -> Tensor:
    """Sum over all columns of the smaller weight (Eq. 10), float64, (queries, size), in [0, 1]."""
    shared = weights.weight.new_zeros(len(queries) * size)
    bounds = weights.start[queries.start : queries.stop + 1]
    entries = slice(int(bounds[0]), int(bounds[-1]))
    row = torch.arange(len(queries), device=bounds.device).repeat_interleave(bounds.diff())
    column, weight = weights.column[entries], weights.weight[entries]
    first, length = in_gallery.start[column], in_gallery.start.diff()[column]
    for part in _windows(length, CHUNK_BYTES // 64):
        owner, place = _ranges(first[part], length[part])
        target = row[part][owner] * size + in_gallery.column[place]
        shared.index_add_(0, target, torch.minimum(weight[part][owner], in_gallery.weight[place]))
    return shared.view(len(queries), size)


def _windows(length: Tensor, limit: int) -> Iterator[slice]:
    """Runs of items whose lengths add up to `limit` at most, or of one item that is longer."""
    end, start = length.cumsum(0), 0
    while start < len(length):
        before = end[start] - length[start]
        stop = max(start + 1, int(torch.searchsorted(end, before + limit, right=True)))
        yield slice(start, stop)
        start = stop


def _ranges(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The ranges first[i] ... first[i] + length[i] - 1 behind each other, and the i of each element."""
    owner = torch.arange(len(first), device=first.device).repeat_interleave(length)
    shift = first - (length.cumsum(0) - length)
    return owner, torch.arange(len(owner), device=first.device) + shift[owner]


def _on_grid(weight: Tensor) -> Tensor:
    """Rounded to a multiple of 2^-32."""
    return (weight / _WEIGHT_STEP).round() * _WEIGHT_STEP
