"""What Numba compiles: the kernels of `compiled_ranks` and `compiled_re_ranking`.

All in one file. Numba keeps what it compiled until the file of the function changes, and does not see a
change in another file whose function it has built in.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Lines = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Entries = tuple[Ints, Ints, Floats]
"""Of a sparse matrix: how many each row has; their columns, ascending; their weights."""

BLOCK = 256
"""Items that are looked at one by one where float32 cannot decide about one of them."""


class Exact(NamedTuple):
    """What `exact_distance` needs, float64."""

    query: Floats
    gallery: Floats
    squared_norm: Floats
    """Of the gallery."""
    shift: Floats
    """Of each query, from |g|^2 - 2 q g to the same with q and g centred."""


class Bounds(NamedTuple):
    """How far float32 may be off, see `margin_of`."""

    query_norm: Floats
    widest: float
    """Largest norm of the gallery."""
    of_product: float
    of_square: float
    least: float
    scale: float
    """From squared distances to those in float32."""


class Labels(NamedTuple):
    """Cameras, and where the gallery has the items of each query's identity."""

    query_camids: Ints
    gallery_camids: Ints
    first: Ints
    end: Ints


def compiled(function: Any) -> Any:
    """By Numba, kept on the disk, without Python's lock."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def exact_product(x: Floats, row: int, y: Floats, other: int) -> float:
    """Of a row of each, from `exact_embeddings`: no rounding, in whatever order the compiler adds."""
    product = 0.0
    for n in range(x.shape[1]):
        product += x[row, n] * y[other, n]
    return product


@compiled
def exact_distance(exact: Exact, query: int, item: int) -> float:
    """|g|^2 - 2 q g with one rounding."""
    product = exact_product(exact.query, query, exact.gallery, item)
    distance: float = exact.squared_norm[item] - 2 * product
    return distance


@compiled
def margin_of(bounds: Bounds, query: int) -> float:
    """How far a query's float32 distances may be from the true ones in their unit."""
    of_norm = bounds.of_product * bounds.query_norm[query]
    margin: float = of_norm * bounds.widest + bounds.of_square * bounds.widest * bounds.widest + bounds.least
    return margin


@compiled
def count(
    distances: Lines,
    start: int,
    exact: Exact,
    bounds: Bounds,
    labels: Labels,
    same_camera_leaves: bool,
    ranks: Ints,
) -> None:
    """Fill the ranks of the queries in the rows of ``distances``, which are those from ``start`` on."""
    found = np.empty(ranks.shape[1], np.float64)
    settled, settled_for = np.empty(distances.shape[1], np.float64), np.full(distances.shape[1], -1)
    for row in range(len(distances)):
        query = start + row
        first, end, camera = labels.first[query], labels.end[query], labels.query_camids[query]
        matches = 0
        for item in range(first, end):
            if labels.gallery_camids[item] != camera:
                found[matches] = exact_distance(exact, query, item)
                matches += 1
        near = np.sort(found[:matches])
        margin = margin_of(bounds, query)
        line = distances[row]
        line[first:end] = np.inf  # not negatives
        if same_camera_leaves:
            for item in range(len(line)):
                if labels.gallery_camids[item] == camera:
                    line[item] = np.inf
        for place in range(matches):
            centred = (near[place] + exact.shift[query]) * bounds.scale
            surely = np.nextafter(np.float32(centred - margin), np.float32(-np.inf))
            perhaps = np.nextafter(np.float32(centred + margin), np.float32(np.inf))
            nearer = 0
            for block in range(0, len(line), BLOCK):
                stop = min(block + BLOCK, len(line))
                sure, maybe = _count_up_to(line[block:stop], surely, perhaps)
                nearer += sure
                if maybe > sure:
                    for item in range(block, stop):
                        if surely < line[item] <= perhaps:
                            if settled_for[item] != query:  # once for all matches
                                settled[item] = exact_distance(exact, query, item)
                                settled_for[item] = query
                            nearer += settled[item] <= near[place]
            ranks[query, place] = nearer + place + 1


@compiled
def _count_up_to(line: Lines, surely: float, perhaps: float) -> tuple[np.int32, np.int32]:
    """Number of items at most so far; a loop that the compiler turns into vector instructions."""
    sure, maybe = np.int32(0), np.int32(0)
    for item in range(len(line)):
        sure += np.int32(line[item] <= surely)
        maybe += np.int32(line[item] <= perhaps)
    return sure, maybe


@compiled
def _extremes(line: Lines) -> tuple[np.float32, np.float32]:
    """Least and largest; a loop that the compiler turns into vector instructions."""
    low, high = line[0], line[0]
    for item in range(len(line)):
        low = line[item] if line[item] < low else low
        high = line[item] if line[item] > high else high
    return low, high


@compiled
def nearest(
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
def where_reciprocal(neighbours: Ints, start: int, stop: int, kept: Ints) -> None:
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
def sets(full: Ints, half: Ints, start: int, stop: int) -> Entries:
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
def averages(
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
def distances_of_pairs(
    x: Floats, squared_norm: Floats, item: Ints, member: Ints, found: Floats, start: int, stop: int
) -> None:
    """Fill some of the distances."""
    for pair in range(start, stop):
        one, other = item[pair], member[pair]
        found[pair] = squared_norm[one] + squared_norm[other] - 2 * exact_product(x, one, x, other)


@compiled
def combine(
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
