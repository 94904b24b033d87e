"""Distances that decide in float32 where float64 is sure to agree, for the kernels that Numba compiles.

A float32 matrix product is twice as fast as a float64 one and wrong by at most a known bound. Kernels decide
by it where the bound allows, and compute the few other distances in float64 without any rounding (see
`round_for_exact_products`): what they return is to the last bit what float64 alone leads to.

Threads are Python's own: the kernels hold no lock, and start no threads of a library.
"""

import math
from collections.abc import Callable, Iterator
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
BLOCK = 256
"""Items that are looked at one by one where float32 cannot decide about one of them."""

Lines = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


class TwofoldDistances:
    """|g|^2 - 2 q g of all pairs: chunks of it in float32, single ones in float64.

    Args:
        queries, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D), on the CPU.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        centre = gallery.mean(0)
        query_32, query_norm = _centred(queries, centre)
        gallery_32, gallery_norm = (query_32, query_norm) if gallery is queries else _centred(gallery, centre)
        unit = _power_of_two(max(query_norm.max(), gallery_norm.max()))
        # divided so that no square is too large or too small for float32
        self._query, query_norm = query_32.div_(unit), query_norm.div_(unit)
        if gallery is not queries:
            gallery_32.div_(unit), gallery_norm.div_(unit)
        self._gallery = gallery_32
        self._squared_norm = gallery_norm.square().float()
        size = gallery.shape[1]
        self.exact = Exact(
            queries.numpy(),
            gallery.numpy(),
            gallery.square().sum(1).numpy(),
            (2 * queries @ centre - centre.square().sum()).numpy(),
        )
        self.bounds = Bounds(
            query_norm.numpy(),
            float(gallery_norm.max()),
            2 * (size + 8) * _UNIT / (1 - (size + 8) * _UNIT),
            8 * _UNIT,
            size * 2.0**-120 + 2.0**-40 * (_largest(queries, unit) + _largest(gallery, unit)) ** 2,
            1 / unit**2,
        )

    def each_chunk(self, do: Callable[[Lines, int], None], chunk_size: int | None = None) -> None:
        """Call ``do`` with float32 distances, (rows, G), and the query of the first row, in several threads.

        Args:
            do: may change the distances; must not hold Python's lock.
            chunk_size: rows at a time; None for as many as fit the cache.
        """
        rows = chunk_size or max(_LEAST_ROWS, _CHUNK_BYTES // (4 * len(self._gallery)))
        threads = torch.get_num_threads()

        def work(number: int) -> None:
            torch.set_num_threads(1)  # in this thread: they share the chunks, not a product
            buffer = torch.empty(min(rows, len(self._query)), len(self._gallery))
            for start in range(number * rows, len(self._query), threads * rows):
                part = self._query[start : start + rows]
                distances = buffer[: len(part)]
                torch.addmm(self._squared_norm, part, self._gallery.T, alpha=-2, out=distances)
                do(distances.numpy(), start)

        with _full_precision():
            in_threads(work)


def in_threads(work: Callable[[int], None]) -> None:
    """Call ``work`` with 0, 1, ... in as many threads as torch computes with."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(threads)  # a thread's own number may become everyone's


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
