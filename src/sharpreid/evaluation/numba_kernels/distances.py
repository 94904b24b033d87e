"""Distances that decide in float32 where float64 is sure to agree, for the kernels that Numba compiles.

A float32 matrix product is twice as fast as a float64 one and wrong by at most a known bound. Kernels decide
by it where the bound allows, and compute the few other distances in float64 without any rounding (see
`round_for_exact_products`): what they return is to the last bit what float64 alone leads to.

Threads are Python's own: the kernels hold no lock, and start no threads of a library.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sharpreid.evaluation.exact import ROWS_IN_CACHE, full_precision_matmul
from sharpreid.evaluation.numba_kernels.kernels import Bounds, Exact, Lines

_UNIT = 2.0**-24  # largest relative rounding error of float32
_CHUNK_BYTES = 4 * 2**20  # distances that a thread holds at a time: what a cache holds
_LEAST_ROWS = 64  # but so many: with fewer, a product takes longer for each
_BYTES_OF_ALL = 512 * 2**20  # but no more than this, or a row, in all threads together


class TwofoldDistances:
    """|g|^2 - 2 q g of all pairs: chunks of it in float32, single ones in float64.

    Args:
        queries, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D), on the CPU.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        centre, itself = gallery.mean(0), gallery is queries
        query_norm = _norms(queries, centre)
        gallery_norm = query_norm if itself else _norms(gallery, centre)
        unit = _power_of_two(max(query_norm.max(), gallery_norm.max()))
        self._query = _centred(queries, centre, unit)
        self._gallery = self._query if itself else _centred(gallery, centre, unit)
        query_norm, gallery_norm = query_norm / unit, gallery_norm / unit
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
        threads, line = torch.get_num_threads(), 4 * len(self._gallery)
        most = max(1, _BYTES_OF_ALL // (threads * line))
        rows = chunk_size or min(most, max(_LEAST_ROWS, _CHUNK_BYTES // line))

        def work(number: int) -> None:
            torch.set_num_threads(1)  # in this thread: they share the chunks, not a product
            buffer = torch.empty(min(rows, len(self._query)), len(self._gallery))
            for start in range(number * rows, len(self._query), threads * rows):
                part = self._query[start : start + rows]
                distances = buffer[: len(part)]
                torch.addmm(self._squared_norm, part, self._gallery.T, alpha=-2, out=distances)
                do(distances.numpy(), start)

        with full_precision_matmul(torch.device("cpu")):
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


def _norms(x: Tensor, centre: Tensor) -> Tensor:
    """Of each row less the centre, float64."""
    return torch.cat([(part - centre).square_().sum(1).sqrt_() for part in torch.split(x, ROWS_IN_CACHE)])


def _centred(x: Tensor, centre: Tensor, unit: float) -> Tensor:
    """Less the centre, which makes the products small, and in units of which no square is too large or too
    small for float32; float32."""
    x_32 = torch.empty(x.shape, dtype=torch.float32)
    for part, result in zip(*(torch.split(whole, ROWS_IN_CACHE) for whole in (x, x_32)), strict=True):
        result.copy_((part - centre).div_(unit))
    return x_32
