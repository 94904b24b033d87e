"""The k-reciprocal encoding of Zhong et al., step by step, as sparse matrices.

Source: Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017.

An image is encoded by its reciprocal neighbours: the images that are among its nearest neighbours, and vice
versa. Two images are compared by the overlap of these sets. Where the paper and its authors' program differ,
this module follows the program (the float32 version, which takes distances): an image is one of its own
neighbours, so lists hold k + 1 items; k1/2 is rounded half to even; squared distances are divided by the
largest in their row.

The set of an image has at most (k1 + 1)(k1/2 + 2) members, so the encodings are rows of a sparse matrix, and
distances exist for a chunk of rows at a time. Memory grows with the number of images, not with its square.

Ties within a list of neighbours are broken by row, queries before the gallery. Only ties at the end of a list
can make the result depend on the order of the files. Weights are multiples of 2^-32, so their sums are exact
in any order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sharpreid.evaluation import exact
from sharpreid.evaluation.exact import chunk_slices, nearest_columns, shifted_squared_distances
from sharpreid.evaluation.numba_kernels import use_numba

_WEIGHT_STEP = 2.0**-32


class SparseRows(NamedTuple):
    """A sparse matrix in CSR format.

    Row i has the weights ``weight[start[i] : start[i + 1]]`` in ``column[start[i] : start[i + 1]]``.
    """

    start: Tensor
    """int64, (N + 1,)"""
    column: Tensor
    """int64, (entries,)"""
    weight: Tensor
    """float64, (entries,)"""

    @classmethod
    def from_rows(cls, row: Tensor, column: Tensor, weight: Tensor, rows: int) -> "SparseRows":
        """Build a matrix of ``rows`` rows from entries sorted by row."""
        return cls.from_sizes(torch.bincount(row, minlength=rows), column, weight)

    @classmethod
    def from_sizes(cls, size: Tensor, column: Tensor, weight: Tensor) -> "SparseRows":
        """Build a matrix from entries sorted by row and the number of entries in each row, int64, (N,)."""
        start = torch.zeros(len(size) + 1, dtype=torch.int64, device=size.device)
        torch.cumsum(size, 0, out=start[1:])
        return cls(start, column, weight)


class Encoding(NamedTuple):
    """The k-reciprocal encoding of all images, queries first."""

    weights: SparseRows
    """V of Eq. 7 after Eq. 11; each row sums to 1 up to rounding, or is empty."""
    farthest: Tensor
    """Largest squared distance from each image, float64, (N,); 1 where all are 0."""


def encode(x: Tensor, k1: int, k2: int, chunk_size: int | None) -> Encoding:
    """Compute the encodings of all images (Eq. 2-7 and 11).

    Args:
        x: embeddings from `exact_embeddings`, float64, (N, D), queries first.
        k1, k2: see `sharpreid.evaluation.re_ranking.KReciprocal`.
        chunk_size: rows of distances at a time.
    """
    neighbours, farthest = nearest_neighbours(x, max(k1 + 1, k2), chunk_size)
    item, member = k_reciprocal_sets(neighbours[:, : k1 + 1], k1)
    weights = _gaussian_weights(x, farthest, item, member)
    if k2 > 1:
        weights = _average_over_neighbours(weights, neighbours[:, :k2])
    return Encoding(weights, farthest)


def nearest_neighbours(x: Tensor, k: int, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Find the k nearest items of each item, itself included, and the squared distance of the farthest.

    Args:
        x: embeddings from `exact_embeddings`, float64, (N, D).
        k: at least 1; reduced to N if there are fewer items.
        chunk_size: rows of distances at a time.

    Returns:
        Rows of x, nearest first, ties by row, int64, (N, min(k, N)); and the largest squared distance from
        each item, float64, (N,), 1 where all are 0.
    """
    squared_norm, k = x.square().sum(1), min(k, len(x))
    if use_numba(len(x), len(x), x.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        nearest, farthest = compiled.nearest_neighbours(x, k, chunk_size)
    else:
        nearest, farthest = _nearest_neighbours(x, k, chunk_size)
    farthest += squared_norm
    return nearest, torch.where(farthest > 0, farthest, 1.0)


def _nearest_neighbours(x: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """Find the k nearest of each item, and the largest shifted squared distance."""
    distances = shifted_squared_distances(x, x)
    nearest = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    farthest = x.new_empty(len(x))
    for rows in chunk_slices(len(x), 8 * len(x), chunk_size):
        distance_rn = distances(rows)
        nearest[rows] = nearest_columns(distance_rn, k)
        farthest[rows] = distance_rn.amax(1)
    return nearest, farthest


def k_reciprocal_sets(neighbours: Tensor, k1: int) -> tuple[Tensor, Tensor]:
    """Compute the sets R* (Eq. 2-3 and 5).

    A set starts as the k1-reciprocal neighbours of an item. The k1/2-reciprocal set of a member is added if
    more than two thirds of it are k1-reciprocal neighbours of the item. Where many items are equal, an item
    may be missing from its own list of neighbours, and its set may be empty.

    Args:
        neighbours: the k1 + 1 nearest of each item, itself included, nearest first, int64,
            (N, min(k1 + 1, N)).
        k1: at least 1.

    Returns:
        The item and the member of every membership, int64, sorted, two vectors of equal length.
    """
    n, width = neighbours.shape
    half = neighbours[:, : round(k1 / 2) + 1]  # Python rounds half to even, as numpy does
    if use_numba(n, n, neighbours.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.k_reciprocal_sets(neighbours, half.shape[1])
    nobody = n  # padding, which sorts last
    reciprocal = _mask_reciprocal(neighbours, nobody)
    half_reciprocal = _mask_reciprocal(half, nobody)
    items, members = [], []
    for rows in chunk_slices(n, 64 * width * (half.shape[1] + 1)):
        own = reciprocal[rows].sort(1).values
        offered = half_reciprocal[own.clamp(max=n - 1)].flatten(1)
        place = torch.searchsorted(own, offered).clamp_(max=width - 1)
        known = (own.gather(1, place) == offered) & (offered != nobody)
        sizes = (offered != nobody).view(*own.shape, -1).sum(2)
        agrees = (3 * known.view(*own.shape, -1).sum(2) > 2 * sizes) & (own != nobody)
        added = offered.view(*own.shape, -1).masked_fill(~agrees[:, :, None], nobody).flatten(1)
        union = torch.cat([own, added], dim=1).sort(1).values
        first = union != nobody
        first[:, 1:] &= union[:, 1:] != union[:, :-1]
        row, column = first.nonzero(as_tuple=True)
        items.append(row + rows.start)
        members.append(union[row, column])
    return torch.cat(items), torch.cat(members)


def _mask_reciprocal(neighbours: Tensor, nobody: int) -> Tensor:
    """Replace the neighbours that are not reciprocal by ``nobody``."""
    n, width = neighbours.shape
    kept = []
    for rows in chunk_slices(n, 16 * width * width):
        part = neighbours[rows]
        item = torch.arange(rows.start, rows.stop, device=part.device)
        known = (neighbours[part] == item[:, None, None]).any(2)
        kept.append(part.masked_fill(~known, nobody))
    return torch.cat(kept)


def _gaussian_weights(x: Tensor, farthest: Tensor, item: Tensor, member: Tensor) -> SparseRows:
    """Weight the members by exp(-d), and divide each row by its sum as the program does (Eq. 7)."""
    distance = _squared_distances(x, item, member)
    weight = _round_weights(distance.clamp_(min=0).div_(farthest[item]).neg_().exp_())
    total = torch.zeros_like(farthest).index_add_(0, item, weight)
    return SparseRows.from_rows(item, member, _round_weights(weight / total[item]), len(x))


def _squared_distances(x: Tensor, item: Tensor, member: Tensor) -> Tensor:
    """Compute the squared distances of pairs of rows of x."""
    squared_norm = x.square().sum(1)
    if use_numba(len(x), len(x), x.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.squared_distances(x, squared_norm, item, member)
    distance = squared_norm[item] + squared_norm[member]
    for part in chunk_slices(len(item), 32 * x.shape[1]):
        distance[part] -= 2 * (x[item[part]] * x[member[part]]).sum(1)
    return distance


def _average_over_neighbours(weights: SparseRows, neighbours: Tensor) -> SparseRows:
    """Average the rows of each item's neighbours, itself included (Eq. 11)."""
    n, width = neighbours.shape
    if use_numba(n, n, neighbours.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        size, *entries = compiled.average_over_neighbours(*weights, neighbours, _WEIGHT_STEP)
        return SparseRows.from_sizes(size, *entries)
    length = weights.start.diff()
    rows, columns, means = [], [], []
    for part in _split_by_length(length[neighbours].sum(1), exact.CHUNK_BYTES // 64):
        source = neighbours[part].flatten()
        owner, place = _concatenate_ranges(weights.start[source], length[source])
        key = owner // width * n + weights.column[place]
        key, order = key.sort()
        is_new = torch.ones_like(key, dtype=torch.bool)
        is_new[1:] = key[1:] != key[:-1]
        key, entry = key[is_new], is_new.cumsum(0) - 1
        total = weights.weight.new_zeros(len(key)).index_add_(0, entry, weights.weight[place[order]])
        rows.append(key // n + part.start)
        columns.append(key % n)
        means.append(_round_weights(total / width))
    return SparseRows.from_rows(torch.cat(rows), torch.cat(columns), torch.cat(means), n)


def transpose(weights: SparseRows, first_row: int) -> SparseRows:
    """Transpose the rows from ``first_row`` on, which become the columns from 0 on."""
    n = len(weights.start) - 1
    rows = torch.arange(n - first_row, device=weights.start.device)
    row = rows.repeat_interleave(weights.start[first_row:].diff())
    entries = slice(int(weights.start[first_row]), None)
    column, order = weights.column[entries].sort(stable=True)
    return SparseRows.from_rows(column, row[order], weights.weight[entries][order], n)


def combine_distances(
    original: Tensor, weights: SparseRows, in_gallery: SparseRows, queries: range, lambda_value: float
) -> Tensor:
    """Combine original and Jaccard distances in place (Eq. 12).

    Args:
        original: distances of some queries to the gallery, float64, (queries, G), in [0, 1]; overwritten.
        weights: encodings of all images, queries first.
        in_gallery: encodings of the gallery, transposed by `transpose`.
        queries: rows of these queries.
        lambda_value: weight of the original distances, in [0, 1].

    Returns:
        ``original`` with the final distances, in [0, 1].
    """
    n = len(weights.start) - 1
    if use_numba(n, n, original.device):
        from sharpreid.evaluation.numba_kernels import re_ranking as compiled

        return compiled.combine_distances(original, weights, in_gallery, queries.start, lambda_value)
    shared = _shared_weight(weights, in_gallery, queries, original.shape[1])
    jaccard = (1 - shared / (2 - shared)).mul_(1 - lambda_value)
    return original.mul_(lambda_value).add_(jaccard)


def _shared_weight(weights: SparseRows, in_gallery: SparseRows, queries: range, size: int) -> Tensor:
    """Sum the smaller of the two weights over all columns (Eq. 10), float64, (queries, size), in [0, 1]."""
    shared = weights.weight.new_zeros(len(queries) * size)
    bounds = weights.start[queries.start : queries.stop + 1]
    entries = slice(int(bounds[0]), int(bounds[-1]))
    row = torch.arange(len(queries), device=bounds.device).repeat_interleave(bounds.diff())
    column, weight = weights.column[entries], weights.weight[entries]
    first, length = in_gallery.start[column], in_gallery.start.diff()[column]
    for part in _split_by_length(length, exact.CHUNK_BYTES // 64):
        owner, place = _concatenate_ranges(first[part], length[part])
        target = row[part][owner] * size + in_gallery.column[place]
        shared.index_add_(0, target, torch.minimum(weight[part][owner], in_gallery.weight[place]))
    return shared.view(len(queries), size)


def _split_by_length(length: Tensor, limit: int) -> Iterator[slice]:
    """Yield runs of items whose lengths add up to ``limit`` at most, or single items that are longer."""
    end, start = length.cumsum(0), 0
    while start < len(length):
        before = end[start] - length[start]
        stop = max(start + 1, int(torch.searchsorted(end, before + limit, right=True)))
        yield slice(start, stop)
        start = stop


def _concatenate_ranges(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the ranges first[i] ... first[i] + length[i] - 1.

    Returns:
        The i of each element, and the elements.
    """
    owner = torch.arange(len(first), device=first.device).repeat_interleave(length)
    shift = first - (length.cumsum(0) - length)
    return owner, torch.arange(len(owner), device=first.device) + shift[owner]


def _round_weights(weight: Tensor) -> Tensor:
    """Round to multiples of 2^-32."""
    return (weight / _WEIGHT_STEP).round() * _WEIGHT_STEP
