"""The ranks of matches on a CPU, compiled by Numba: float32 distances decide, float64 where they cannot.

A float32 matrix product is twice as fast as a float64 one and wrong by at most a known bound. An item whose
float32 distance is farther than the bound from a match's distance is counted by it. For the few others the
distance is computed in float64 without any rounding (see `round_for_exact_products`), so the ranks are those
of `sharpreid.evaluation.ranking.hit_ranks`, to the last.

Threads are Python's own: the kernel holds no lock, and starts no threads of a library.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_UNIT = 2.0**-24  # largest relative rounding error of float32
_CHUNK_BYTES = 4 * 2**20  # distances held at a time: what a cache holds
_LEAST_ROWS = 64  # but so many: with fewer, a product takes longer for each
_BLOCK = 256  # items that are looked at one by one where float32 cannot decide about one of them

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Gallery(NamedTuple):
    """Gallery items in the order of their identities."""

    exact: Tensor
    """Embeddings from `exact_embeddings`, float64, (G, D)."""
    camids: Tensor
    """Int64, (G,)."""


class Queries(NamedTuple):
    """Queries, and where the gallery has the items of their identities."""

    exact: Tensor
    """Embeddings from `exact_embeddings`, float64, (Q, D)."""
    camids: Tensor
    """Int64, (Q,)."""
    first: Tensor
    """Row of the first gallery item of the query's identity, int64, (Q,)."""
    end: Tensor
    """Row after the last one."""


def ranks_of_matches(
    queries: Queries, gallery: Gallery, *, same_camera_leaves: bool, chunk_size: int | None
) -> Tensor:
    """Ranks of each query's matches.

    Args:
        queries: on the CPU.
        gallery: on the CPU.
        same_camera_leaves: everything in the query's camera leaves its ranking; else only the items of its
            identity there.
        chunk_size: queries at a time; None for as many as fit the cache. Changes no bit of the result.

    Returns:
        1-based ranks, ascending, int64, (Q, P), P >= 1; 0 pads.
    """
    centre = gallery.exact.mean(0)
    (query_32, query_norm), (gallery_32, gallery_norm) = (
        _centred(x, centre) for x in (queries.exact, gallery.exact)
    )
    unit = _power_of_two(max(query_norm.max(), gallery_norm.max()))
    for x in (query_32, query_norm, gallery_32, gallery_norm):
        x /= unit  # so that no square is too large or too small for float32
    squared_32 = gallery_norm.square().float()
    size = gallery.exact.shape[1]
    exact = _Exact(
        queries.exact.numpy(),
        gallery.exact.numpy(),
        gallery.exact.square().sum(1).numpy(),
        (2 * queries.exact @ centre - centre.square().sum()).numpy(),
    )
    bounds = _Bounds(
        query_norm.numpy(),
        float(gallery_norm.max()),
        2 * (size + 8) * _UNIT / (1 - (size + 8) * _UNIT),
        8 * _UNIT,
        size * 2.0**-120 + 2.0**-40 * (_largest(queries.exact, unit) + _largest(gallery.exact, unit)) ** 2,
        1 / unit**2,
    )
    labels = _Labels(*(x.numpy() for x in (queries.camids, gallery.camids, queries.first, queries.end)))
    ranks = np.zeros((len(labels.first), max(1, int((labels.end - labels.first).max()))), np.int64)
    rows = chunk_size or max(_LEAST_ROWS, _CHUNK_BYTES // (4 * len(gallery_32)))
    threads = torch.get_num_threads()

    def work(number: int) -> None:
        torch.set_num_threads(1)  # in this thread: they share the chunks, not a product
        buffer = torch.empty(min(rows, len(query_32)), len(gallery_32))
        for start in range(number * rows, len(query_32), threads * rows):
            part = query_32[start : start + rows]
            distances = buffer[: len(part)]
            torch.addmm(squared_32, part, gallery_32.T, alpha=-2, out=distances)
            _count(distances.numpy(), start, exact, bounds, labels, same_camera_leaves, ranks)

    try:
        with _full_precision(), ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(threads)
    return torch.from_numpy(ranks)


class _Exact(NamedTuple):
    query: Floats
    gallery: Floats
    squared_norm: Floats
    shift: Floats
    """Of each query, from |g|^2 - 2 q g to the same with q and g centred."""


class _Bounds(NamedTuple):
    query_norm: Floats
    widest: float
    """Largest norm of the gallery."""
    of_product: float
    of_square: float
    least: float
    scale: float
    """From squared distances to those in float32."""


class _Labels(NamedTuple):
    query_camids: Ints
    gallery_camids: Ints
    first: Ints
    end: Ints


def _largest(x: Tensor, unit: float) -> float:
    """The largest norm, in units of ``unit``."""
    return math.sqrt(x.square().sum(1).max()) / unit


def _power_of_two(x: Tensor) -> float:
    """The power of two at or below a number; 1 for zero."""
    return 2.0 ** (math.frexp(float(x))[1] - 1) if x > 0 else 1.0


def _centred(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Less the centre, which makes the products small, in float32; and the norms, in float64."""
    x_32 = torch.empty(x.shape, dtype=torch.float32)
    norm = torch.empty(len(x), dtype=torch.float64)
    for start in range(0, len(x), 1024):  # stays in the cache
        rows = slice(start, start + 1024)
        part = x[rows] - centre
        x_32[rows] = part
        norm[rows] = part.square().sum(1).sqrt()
    return x_32, norm


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 numbers without the shortened types that torch can be told to take."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _compiled(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _distance(exact: _Exact, query: int, item: int) -> float:
    """|g|^2 - 2 q g with one rounding: the products and their sums are exact in whatever order."""
    product = 0.0
    for n in range(exact.query.shape[1]):
        product += exact.query[query, n] * exact.gallery[item, n]
    distance: float = exact.squared_norm[item] - 2 * product
    return distance


@_compiled
def _count(
    distances: npt.NDArray[np.float32],
    start: int,
    exact: _Exact,
    bounds: _Bounds,
    labels: _Labels,
    same_camera_leaves: bool,
    ranks: Ints,
) -> None:
    """Fill the ranks of the queries in the rows of ``distances``, which are those from ``start`` on."""
    widest = bounds.widest
    found = np.empty(ranks.shape[1], np.float64)
    for row in range(len(distances)):
        query = start + row
        first, end, camera = labels.first[query], labels.end[query], labels.query_camids[query]
        matches = 0
        for item in range(first, end):
            if labels.gallery_camids[item] != camera:
                found[matches] = _distance(exact, query, item)
                matches += 1
        near = np.sort(found[:matches])
        of_norm = bounds.of_product * bounds.query_norm[query]
        margin = of_norm * widest + bounds.of_square * widest * widest + bounds.least
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
            for block in range(0, len(line), _BLOCK):
                stop = min(block + _BLOCK, len(line))
                sure, maybe = _count_up_to(line[block:stop], surely, perhaps)
                nearer += sure
                if maybe > sure:
                    for item in range(block, stop):
                        if surely < line[item] <= perhaps:
                            nearer += _distance(exact, query, item) <= near[place]
            ranks[query, place] = nearer + place + 1


@_compiled
def _count_up_to(line: npt.NDArray[np.float32], surely: float, perhaps: float) -> tuple[np.int32, np.int32]:
    """Number of items at most so far; a loop that the compiler turns into vector instructions."""
    sure, maybe = np.int32(0), np.int32(0)
    for item in range(len(line)):
        sure += np.int32(line[item] <= surely)
        maybe += np.int32(line[item] <= perhaps)
    return sure, maybe
