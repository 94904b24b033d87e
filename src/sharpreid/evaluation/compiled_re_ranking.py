"""The steps of k-reciprocal re-ranking on a CPU, compiled by Numba.

Each returns to the last bit what the function of that name in `sharpreid.evaluation.re_ranking` does:
distances are exact where they decide (see `sharpreid.evaluation.compiled_distances`), and weights are
multiples of 2^-32, so that their sums are exact in whatever order.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.compiled_distances import (
    BLOCK,
    Bounds,
    Exact,
    Floats,
    Ints,
    Lines,
    TwofoldDistances,
    compiled,
    exact_distance,
    exact_product,
    in_threads,
    margin_of,
)

Entries = tuple[Ints, Ints, Floats]
"""Of a sparse matrix: how many each row has; their columns, ascending; their weights."""


def nearest_neighbours(x: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """The k nearest items of each item, itself among them, and the largest distance less its squared norm."""
    distances = TwofoldDistances(x, x)
    neighbours = np.empty((len(x), k), np.int64)
    farthest = np.empty(len(x), np.float64)

    def find(part: Lines, start: int) -> None:
        _nearest(part, start, distances.exact, distances.bounds, neighbours, farthest)

    distances.each_chunk(find, chunk_size)
    return torch.from_numpy(neighbours), torch.from_numpy(farthest)


def k_reciprocal_sets(neighbours: Tensor, half_width: int) -> tuple[Tensor, Tensor]:
    """Item and member of every membership; ``half_width`` of the neighbours are those for k1/2."""
    own = neighbours.contiguous().numpy()
    full, half = np.empty_like(own), np.empty((len(own), half_width), np.int64)

    def keep(start: int, stop: int) -> None:
        _where_reciprocal(own, start, stop, full)
        _where_reciprocal(own, start, stop, half)

    _each_part(len(own), keep)
    size, member, _ = _gathered(len(own), lambda start, stop: _sets(full, half, start, stop))
    return torch.arange(len(own)).repeat_interleave(size), member


def average_over_neighbours(
    start: Tensor, column: Tensor, weight: Tensor, neighbours: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the rows of each item's neighbours, to multiples of ``step``: lengths, columns, weights."""
    matrix = start.numpy(), column.numpy(), weight.numpy()
    of = neighbours.contiguous().numpy()
    return _gathered(len(of), lambda first, stop: _averages(*matrix, of, step, first, stop))


def squared_distances(x: Tensor, squared_norm: Tensor, item: Tensor, member: Tensor) -> Tensor:
    """Squared distances of pairs of rows."""
    given = x.numpy(), squared_norm.numpy(), item.numpy(), member.numpy()
    found = np.empty(len(item))
    _each_part(len(item), lambda start, stop: _distances_of_pairs(*given, found, start, stop), rows=2**16)
    return torch.from_numpy(found)


def combine(
    original: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    columns: tuple[Tensor, Tensor, Tensor],
    first_query: int,
    lambda_value: float,
) -> Tensor:
    """Eq. 12, in place of the distances.

    Args:
        original: distances of some queries to the gallery, float64, (queries, G), contiguous.
        rows: sparse matrix of queries and gallery: start, column, weight.
        columns: that of the gallery, transposed.
        first_query: row of the first of these queries.
        lambda_value: weight of the original distances.
    """
    ours, theirs = (tuple(part.numpy() for part in matrix) for matrix in (rows, columns))
    distances = original.numpy()
    _each_part(
        len(distances),
        lambda start, stop: _combine(*ours, *theirs, lambda_value, first_query, distances, start, stop),
        rows=16,
    )
    return original


def _each_part(n: int, do: Callable[[int, int], None], *, rows: int = 512) -> None:
    """Call ``do`` with the first row, and the one after the last, of each part, in several threads."""
    threads = torch.get_num_threads()

    def work(number: int) -> None:
        for start in range(number * rows, n, threads * rows):
            do(start, min(start + rows, n))

    in_threads(work)


def _gathered(n: int, make: Callable[[int, int], Entries]) -> tuple[Tensor, Tensor, Tensor]:
    """What ``make`` returns for each part of n rows, joined."""
    parts: dict[int, Entries] = {}

    def do(start: int, stop: int) -> None:
        parts[start] = make(start, stop)

    _each_part(n, do)
    joined = zip(*(parts[start] for start in sorted(parts)), strict=True)
    size, column, weight = (torch.from_numpy(np.concatenate(arrays)) for arrays in joined)
    return size, column, weight


@compiled
def _extremes(line: Lines) -> tuple[np.float32, np.float32]:
    """Least and largest; a loop that the compiler turns into vector instructions."""
    low, high = line[0], line[0]
    for item in range(len(line)):
        low = line[item] if line[item] < low else low
        high = line[item] if line[item] > high else high
    return low, high


@compiled
def _nearest(
    distances: Lines, start: int, exact: Exact, bounds: Bounds, neighbours: Ints, farthest: Floats
) -> None:
    """Fill both results for the items in the rows of ``distances``, which are those from ``start`` on."""
    n, k = distances.shape[1], neighbours.shape[1]
    blocks = (n + BLOCK - 1) // BLOCK
    low, high = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    nearest = np.empty(k, np.float32)
    candidates, their_distances = np.empty(n, np.int64), np.empty(n, np.float64)
    for row in range(len(distances)):
        line = distances[row]
        nearest[:] = np.inf
        for block in range(blocks):
            first, stop = block * BLOCK, min((block + 1) * BLOCK, n)
            low[block], high[block] = _extremes(line[first:stop])
            if low[block] < nearest[k - 1]:
                for item in range(first, stop):
                    place = k - 1
                    if line[item] < nearest[place]:
                        while place > 0 and nearest[place - 1] > line[item]:
                            nearest[place] = nearest[place - 1]
                            place -= 1
                        nearest[place] = line[item]
        margin = 2 * margin_of(bounds, start + row)
        within = np.nextafter(np.float32(nearest[k - 1] + margin), np.float32(np.inf))
        beyond = np.nextafter(np.float32(high.max() - margin), np.float32(-np.inf))
        count, largest = 0, -np.inf
        for block in range(blocks):
            if low[block] > within and high[block] < beyond:
                continue
            for item in range(block * BLOCK, min((block + 1) * BLOCK, n)):
                if line[item] <= within:
                    candidates[count] = item
                    their_distances[count] = exact_distance(exact, start + row, item)
                    count += 1
                if line[item] >= beyond:
                    largest = max(largest, exact_distance(exact, start + row, item))
        order = np.argsort(their_distances[:count], kind="mergesort")  # equal ones stay in the order of rows
        for place in range(k):
            neighbours[start + row, place] = candidates[order[place]]
        farthest[start + row] = largest


@compiled
def _where_reciprocal(neighbours: Ints, start: int, stop: int, kept: Ints) -> None:
    """The first neighbours that have the item among their first, the others replaced by their number."""
    n, width = len(neighbours), kept.shape[1]
    for item in range(start, stop):
        for place in range(width):
            other = neighbours[item, place]
            kept[item, place] = n
            for theirs in range(width):
                if neighbours[other, theirs] == item:
                    kept[item, place] = other
                    break


@compiled
def _sets(full: Ints, half: Ints, start: int, stop: int) -> Entries:
    """Members of the sets of some items."""
    n = len(full)
    size = np.zeros(stop - start, np.int64)
    members = np.empty((stop - start) * full.shape[1] * (half.shape[1] + 1), np.int64)
    own, taken = np.full(n + 1, -1), np.full(n + 1, -1)
    end = 0
    for item in range(start, stop):
        first = end
        for other in full[item]:
            if other != n:
                own[other] = taken[other] = item
                members[end] = other
                end += 1
        for other in full[item]:
            if other == n:
                continue
            offered, known = 0, 0
            for candidate in half[other]:
                if candidate != n:
                    offered += 1
                    known += own[candidate] == item
            if 3 * known > 2 * offered:
                for candidate in half[other]:
                    if candidate != n and taken[candidate] != item:
                        taken[candidate] = item
                        members[end] = candidate
                        end += 1
        members[first:end].sort()
        size[item - start] = end - first
    return size, members[:end].copy(), np.empty(0, np.float64)


@compiled
def _averages(
    row_start: Ints, column: Ints, weight: Floats, neighbours: Ints, step: float, start: int, stop: int
) -> Entries:
    """Rows of the mean of some items."""
    n, width = neighbours.shape
    size = np.zeros(stop - start, np.int64)
    most = 0
    for item in range(start, stop):
        for other in neighbours[item]:
            most += row_start[other + 1] - row_start[other]
    columns, means = np.empty(most, np.int64), np.empty(most, np.float64)
    total, seen = np.zeros(n, np.float64), np.full(n, -1)
    end = 0
    for item in range(start, stop):
        first = end
        for other in neighbours[item]:
            for entry in range(row_start[other], row_start[other + 1]):
                member = column[entry]
                if seen[member] != item:
                    seen[member] = item
                    total[member] = 0.0
                    columns[end] = member
                    end += 1
                total[member] += weight[entry]
        columns[first:end].sort()
        for entry in range(first, end):
            means[entry] = np.rint(total[columns[entry]] / width / step) * step
        size[item - start] = end - first
    return size, columns[:end].copy(), means[:end].copy()


@compiled
def _distances_of_pairs(
    x: Floats, squared_norm: Floats, item: Ints, member: Ints, found: Floats, start: int, stop: int
) -> None:
    """Fill some of the distances."""
    for pair in range(start, stop):
        one, other = item[pair], member[pair]
        found[pair] = squared_norm[one] + squared_norm[other] - 2 * exact_product(x, one, x, other)


@compiled
def _combine(
    row_start: Ints,
    column: Ints,
    weight: Floats,
    column_start: Ints,
    item: Ints,
    their_weight: Floats,
    lambda_value: float,
    first_query: int,
    distances: Floats,
    start: int,
    stop: int,
) -> None:
    """Eq. 12 for some rows of ``distances``."""
    shared = np.empty(distances.shape[1])
    for row in range(start, stop):
        shared[:] = 0
        query = first_query + row
        for entry in range(row_start[query], row_start[query + 1]):
            own, member = weight[entry], column[entry]
            for place in range(column_start[member], column_start[member + 1]):
                shared[item[place]] += min(own, their_weight[place])
        for place in range(len(shared)):
            jaccard = (1 - shared[place] / (2 - shared[place])) * (1 - lambda_value)
            distances[row, place] = distances[row, place] * lambda_value + jaccard
