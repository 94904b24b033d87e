"""All functions that Numba compiles.

They share one file because Numba caches a compiled function until its file changes, and does not notice a
change in another file whose function it has inlined. Equation numbers are those of Zhong et al. (2017).
"""

import logging
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.core.caching import FunctionCache

log = logging.getLogger(__name__)

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Entries = tuple[Int64s, Int64s, Float64s]
"""Rows of a sparse matrix: number of entries of each row; their columns, ascending; their weights."""

BLOCK_SIZE = 256
"""Number of items of a block, which is checked item by item if float32 cannot decide about one of them."""


class ExactPair(NamedTuple):
    """Embeddings from `exact_embeddings` with what `exact_distance` needs."""

    query: Float64s
    """(Q, D)"""
    gallery: Float64s
    """(G, D)"""
    squared_norm: Float64s
    """Squared norms of the gallery, (G,)."""
    shift: Float64s
    """Difference between |g|^2 - 2 q g of the centred and the original embeddings, for each query, (Q,)."""


class ErrorBounds(NamedTuple):
    """Parts of the error bound of float32 distances, see `error_margin`."""

    query_norm: Float64s
    """Norms of the standardised queries, (Q,)."""
    max_gallery_norm: float
    """Largest norm of the standardised gallery."""
    product_error: float
    """Largest error of a dot product, relative to the product of the norms."""
    square_error: float
    """Largest error of a squared norm, relative to it."""
    absolute_error: float
    """Largest error that does not depend on the norms: underflow, and float64 rounding of the shift."""
    scale: float
    """Factor that converts squared distances to those of the standardised embeddings."""


class Labels(NamedTuple):
    """Cameras, and the rows of the gallery items of each query's identity; see `numba_kernels.ranking`."""

    query_camids: Int64s
    gallery_camids: Int64s
    first: Int64s
    end: Int64s


_warned: list[str] = []


def _warn_of_cache(reason: str) -> None:
    """Warn once that compiled code cannot be kept."""
    if not _warned:
        log.warning(
            "compiled code cannot be kept on the disk (%s), so every process compiles it again, which takes "
            "some seconds. Name a writable folder by NUMBA_CACHE_DIR=/path to avoid this",
            reason,
        )
    _warned.append(reason)


class _OptionalCache(FunctionCache):
    """Numba's cache on the disk, whose failure costs the time of the compiler but not the result."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception as error:  # a damaged file may raise anything when it is unpickled
            _warn_of_cache(str(error))
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:  # for example a full disk, or a damaged index
            _warn_of_cache(str(error))


def _cache(compiled: Any) -> Any:
    """Cache a compiled function on the disk if that is possible; Numba's own ``cache=True`` raises if not."""
    try:
        compiled._cache = _OptionalCache(compiled.py_func)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        _warn_of_cache(str(error))
    return compiled


def _compile(function: Any) -> Any:
    """Compile a function, cache it on the disk, and release the global interpreter lock in it."""
    return _cache(numba.njit(nogil=True, error_model="numpy")(function))


@_cache
@numba.njit(nogil=True, fastmath={"reassoc"})
def exact_dot(x: Float64s, row: int, y: Float64s, other: int) -> float:
    """Compute the dot product of two rows of `exact_embeddings`, exact in any order of addition."""
    product = 0.0
    for n in range(x.shape[1]):
        product += x[row, n] * y[other, n]
    return product


@_compile
def exact_distance(exact: ExactPair, query: int, item: int) -> float:
    """Compute |g|^2 - 2 q g, rounded once."""
    product = exact_dot(exact.query, query, exact.gallery, item)
    distance: float = exact.squared_norm[item] - 2 * product
    return distance


@_compile
def error_margin(bounds: ErrorBounds, query: int) -> float:
    """Bound the error of a query's float32 distances."""
    widest = bounds.max_gallery_norm
    of_product = bounds.product_error * bounds.query_norm[query] * widest
    margin: float = of_product + bounds.square_error * widest * widest + bounds.absolute_error
    return margin


@_compile
def rank_matches(
    distances: Float32s,
    start: int,
    exact: ExactPair,
    bounds: ErrorBounds,
    labels: Labels,
    exclude_same_camera: bool,
    ranks: Int64s,
) -> None:
    """Write the ranks of the matches of some queries into ``ranks``.

    Args:
        distances: float32 distances of the queries from ``start`` on, (rows, G); overwritten.
        start: number of the first query.
        exact, bounds: of `MixedPrecisionDistances`.
        labels: cameras, and rows of the matches.
        exclude_same_camera: exclude all items from the query's camera, not only those of its identity.
        ranks: (Q, P), zeros.
    """
    found = np.empty(ranks.shape[1], np.float64)
    exact_distances, exact_for = np.empty(distances.shape[1], np.float64), np.full(distances.shape[1], -1)
    for row in range(len(distances)):
        query = start + row
        first, end, camera = labels.first[query], labels.end[query], labels.query_camids[query]
        matches = 0
        for item in range(first, end):
            if labels.gallery_camids[item] != camera:
                found[matches] = exact_distance(exact, query, item)
                matches += 1
        near = np.sort(found[:matches])
        margin = error_margin(bounds, query)
        line = distances[row]
        line[first:end] = np.inf  # matches are no negatives
        if exclude_same_camera:
            for item in range(len(line)):
                if labels.gallery_camids[item] == camera:
                    line[item] = np.inf
        for place in range(matches):
            centred = (near[place] + exact.shift[query]) * bounds.scale
            surely = np.nextafter(np.float32(centred - margin), np.float32(-np.inf))
            perhaps = np.nextafter(np.float32(centred + margin), np.float32(np.inf))
            nearer = 0
            for block in range(0, len(line), BLOCK_SIZE):
                stop = min(block + BLOCK_SIZE, len(line))
                sure, maybe = _count_up_to(line[block:stop], surely, perhaps)
                nearer += sure
                if maybe > sure:
                    for item in range(block, stop):
                        if surely < line[item] <= perhaps:
                            if exact_for[item] != query:  # computed once for all matches
                                exact_distances[item] = exact_distance(exact, query, item)
                                exact_for[item] = query
                            nearer += exact_distances[item] <= near[place]
            ranks[query, place] = nearer + place + 1


@_compile
def _count_up_to(line: Float32s, surely: float, perhaps: float) -> tuple[np.int32, np.int32]:
    """Count the items up to each of two distances, in a loop that compiles to vector instructions."""
    sure, maybe = np.int32(0), np.int32(0)
    for item in range(len(line)):
        sure += np.int32(line[item] <= surely)
        maybe += np.int32(line[item] <= perhaps)
    return sure, maybe


@_compile
def _min_max(line: Float32s) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest value, in a loop that compiles to vector instructions."""
    low, high = line[0], line[0]
    for item in range(len(line)):
        low = line[item] if line[item] < low else low
        high = line[item] if line[item] > high else high
    return low, high


@_compile
def find_nearest(
    distances: Float32s,
    start: int,
    exact: ExactPair,
    bounds: ErrorBounds,
    neighbours: Int64s,
    farthest: Float64s,
) -> None:
    """Write the k nearest of some items into ``neighbours``, and the largest distance into ``farthest``.

    Args:
        distances: float32 distances of the items from ``start`` on, (rows, N).
        start: number of the first item.
        exact, bounds: of `MixedPrecisionDistances`.
        neighbours: (N, k).
        farthest: (N,).
    """
    n, k = distances.shape[1], neighbours.shape[1]
    blocks = (n + BLOCK_SIZE - 1) // BLOCK_SIZE
    low, high = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    nearest = np.empty(k, np.float32)
    candidates, their_distances = np.empty(n, np.int64), np.empty(n, np.float64)
    for row in range(len(distances)):
        line = distances[row]
        nearest[:] = np.inf
        for block in range(blocks):
            first, stop = block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, n)
            low[block], high[block] = _min_max(line[first:stop])
            if low[block] < nearest[k - 1]:
                for item in range(first, stop):
                    place = k - 1
                    if line[item] < nearest[place]:
                        while place > 0 and nearest[place - 1] > line[item]:
                            nearest[place] = nearest[place - 1]
                            place -= 1
                        nearest[place] = line[item]
        margin = 2 * error_margin(bounds, start + row)
        within = np.nextafter(np.float32(nearest[k - 1] + margin), np.float32(np.inf))
        beyond = np.nextafter(np.float32(high.max() - margin), np.float32(-np.inf))
        count, largest = 0, -np.inf
        for block in range(blocks):
            if low[block] > within and high[block] < beyond:
                continue
            for item in range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, n)):
                if line[item] <= within:
                    candidates[count] = item
                    their_distances[count] = exact_distance(exact, start + row, item)
                    count += 1
                if line[item] >= beyond:
                    largest = max(largest, exact_distance(exact, start + row, item))
        order = np.argsort(their_distances[:count], kind="mergesort")  # stable: ties are broken by row
        for place in range(k):
            neighbours[start + row, place] = candidates[order[place]]
        farthest[start + row] = largest


@_compile
def mask_reciprocal(neighbours: Int64s, start: int, stop: int, kept: Int64s) -> None:
    """Copy the first neighbours into ``kept``, with N in place of those that are not reciprocal."""
    n, width = len(neighbours), kept.shape[1]
    for item in range(start, stop):
        for place in range(width):
            other = neighbours[item, place]
            kept[item, place] = n
            for theirs in range(width):
                if neighbours[other, theirs] == item:
                    kept[item, place] = other
                    break


@_compile
def reciprocal_sets(full: Int64s, half: Int64s, start: int, stop: int) -> Entries:
    """Return the members of the sets R* (Eq. 2-3 and 5) of some items, without weights."""
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


@_compile
def average_rows(
    row_start: Int64s,
    column: Int64s,
    weight: Float64s,
    neighbours: Int64s,
    step: float,
    start: int,
    stop: int,
) -> Entries:
    """Average the rows of the neighbours of some items (Eq. 11), rounded to multiples of ``step``."""
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


@_compile
def pair_distances(
    x: Float64s, squared_norm: Float64s, item: Int64s, member: Int64s, found: Float64s, start: int, stop: int
) -> None:
    """Write the squared distances of some pairs of rows into ``found``."""
    for pair in range(start, stop):
        one, other = item[pair], member[pair]
        found[pair] = squared_norm[one] + squared_norm[other] - 2 * exact_dot(x, one, x, other)


@_compile
def combine_distances(
    row_start: Int64s,
    column: Int64s,
    weight: Float64s,
    column_start: Int64s,
    item: Int64s,
    their_weight: Float64s,
    lambda_value: float,
    first_query: int,
    distances: Float64s,
    start: int,
    stop: int,
) -> None:
    """Combine original and Jaccard distances in some rows of ``distances`` (Eq. 12)."""
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
