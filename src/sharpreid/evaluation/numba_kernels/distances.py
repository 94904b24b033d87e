"""Distances in mixed precision: float32 wherever it is certain to agree with float64, float64 elsewhere.

A float32 matrix product is twice as fast as a float64 one, and its error has a known bound. The kernels
decide by float32 distances where the bound allows it, and compute the other distances in float64 without
rounding errors (see `round_for_exact_products`). Their results are those of float64 alone, to the last bit.

The threads are Python's own: the kernels release the global interpreter lock, and start no threads
themselves.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sharpreid.evaluation.exact import ROWS_IN_CACHE, full_precision_matmul
from sharpreid.evaluation.numba_kernels.kernels import ErrorBounds, ExactPair, Float32s

FLOAT32_ROUNDOFF = 2.0**-24
"""Largest relative rounding error of float32."""

_CACHE_BYTES = 4 * 2**20  # distances of one thread, so that they fit the processor's cache
_MIN_ROWS = 64  # a product of fewer rows takes longer per row
_MAX_BYTES = 512 * 2**20  # distances of all threads together, but at least one row per thread


class MixedPrecisionDistances:
    """The shifted squared distances |g|^2 - 2 q g of all pairs: chunks in float32, single pairs in float64.

    The float32 distances are those of standardised embeddings: their common mean is subtracted, which makes
    the products small, and they are divided by a power of two, so that no square overflows or underflows.

    Args:
        queries, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D), on the CPU.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        mean, is_same = gallery.mean(0), gallery is queries
        query_norm = _norms(queries, mean)
        gallery_norm = query_norm if is_same else _norms(gallery, mean)
        unit = _floor_power_of_two(max(query_norm.max(), gallery_norm.max()))
        self._query = _standardise(queries, mean, unit)
        self._gallery = self._query if is_same else _standardise(gallery, mean, unit)
        query_norm, gallery_norm = query_norm / unit, gallery_norm / unit
        self._squared_norm = gallery_norm.square().float()
        size = gallery.shape[1]
        self.exact = ExactPair(
            queries.numpy(),
            gallery.numpy(),
            gallery.square().sum(1).numpy(),
            (2 * queries @ mean - mean.square().sum()).numpy(),
        )
        self.bounds = ErrorBounds(
            query_norm.numpy(),
            float(gallery_norm.max()),
            2 * (size + 8) * FLOAT32_ROUNDOFF / (1 - (size + 8) * FLOAT32_ROUNDOFF),
            8 * FLOAT32_ROUNDOFF,
            size * 2.0**-120 + 2.0**-40 * (_max_norm(queries, unit) + _max_norm(gallery, unit)) ** 2,
            1 / unit**2,
        )

    def for_each_chunk(self, process: Callable[[Float32s, int], None], chunk_size: int | None = None) -> None:
        """Call a function with the float32 distances of every chunk of queries, in several threads.

        Args:
            process: called with the distances, float32, (rows, G), which it may change, and the number of
                the first query. It should release the global interpreter lock.
            chunk_size: rows at a time; None for as many as fit the cache.
        """
        threads, bytes_per_row = torch.get_num_threads(), 4 * len(self._gallery)
        most = max(1, _MAX_BYTES // (threads * bytes_per_row))
        rows = chunk_size or min(most, max(_MIN_ROWS, _CACHE_BYTES // bytes_per_row))

        def work(number: int) -> None:
            torch.set_num_threads(1)  # in this thread: chunks run in parallel, a product does not
            buffer = torch.empty(min(rows, len(self._query)), len(self._gallery))
            for start in range(number * rows, len(self._query), threads * rows):
                part = self._query[start : start + rows]
                distances = buffer[: len(part)]
                torch.addmm(self._squared_norm, part, self._gallery.T, alpha=-2, out=distances)
                process(distances.numpy(), start)

        with full_precision_matmul(torch.device("cpu")):
            run_in_threads(work)


def run_in_threads(work: Callable[[int], None]) -> None:
    """Call a function with 0, 1, ... in as many threads as torch uses.

    Args:
        work: called once in each thread, with the number of the thread.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(threads)  # a setting made in a thread may outlive it


def _max_norm(x: Tensor, unit: float) -> float:
    """Return the largest norm of a row, divided by ``unit``."""
    return math.sqrt(x.square().sum(1).max()) / unit


def _floor_power_of_two(x: Tensor) -> float:
    """Return the largest power of two that is at most x, or 1 for zero."""
    return 2.0 ** (math.frexp(float(x))[1] - 1) if x > 0 else 1.0


def _norms(x: Tensor, mean: Tensor) -> Tensor:
    """Return the norm of each row after the mean is subtracted, float64."""
    return torch.cat([(part - mean).square_().sum(1).sqrt_() for part in torch.split(x, ROWS_IN_CACHE)])


def _standardise(x: Tensor, mean: Tensor, unit: float) -> Tensor:
    """Subtract the mean and divide by the unit, float32."""
    x_32 = torch.empty(x.shape, dtype=torch.float32)
    for part, result in zip(*(torch.split(whole, ROWS_IN_CACHE) for whole in (x, x_32)), strict=True):
        result.copy_((part - mean).div_(unit))
    return x_32
