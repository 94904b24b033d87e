"""The steps of k-reciprocal re-ranking on a CPU, compiled by Numba.

Each function returns the same bits as the function of the same name in `sharpreid.evaluation.k_reciprocal`:
undecided distances are computed exactly (see `sharpreid.evaluation.numba_kernels.distances`), and weights are
multiples of 2^-32, so that their sums are exact in any order. Equation numbers are
those of Zhong et al. (2017).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.numba_kernels import kernels
from sharpreid.evaluation.numba_kernels.distances import MixedPrecisionDistances, run_in_threads
from sharpreid.evaluation.numba_kernels.kernels import Entries, Float32s


def nearest_neighbours(x: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """Find the k nearest items of each item, itself included, and its largest shifted squared distance.

    Args:
        x: embeddings from `exact_embeddings`, float64, (N, D).
        k: 1 to N.
        chunk_size: rows of distances at a time.

    Returns:
        int64, (N, k), nearest first; and float64, (N,).
    """
    distances = MixedPrecisionDistances(x, x)
    neighbours = np.empty((len(x), k), np.int64)
    farthest = np.empty(len(x), np.float64)

    def find(part: Float32s, start: int) -> None:
        kernels.find_nearest(part, start, distances.exact, distances.bounds, neighbours, farthest)

    distances.for_each_chunk(find, chunk_size)
    return torch.from_numpy(neighbours), torch.from_numpy(farthest)


def k_reciprocal_sets(neighbours: Tensor, half_width: int) -> tuple[Tensor, Tensor]:
    """Return the item and the member of every membership of the sets R* (Eq. 2-3 and 5).

    Args:
        neighbours: the k1 + 1 nearest of each item, nearest first, int64, (N, min(k1 + 1, N)).
        half_width: number of these neighbours that count for k1/2.
    """
    own = neighbours.contiguous().numpy()
    full, half = np.empty_like(own), np.empty((len(own), half_width), np.int64)

    def mask(start: int, stop: int) -> None:
        kernels.mask_reciprocal(own, start, stop, full)
        kernels.mask_reciprocal(own, start, stop, half)

    _for_each_part(len(own), mask)
    size, member, _ = _concatenate_parts(
        len(own), lambda start, stop: kernels.reciprocal_sets(full, half, start, stop)
    )
    return torch.arange(len(own)).repeat_interleave(size), member


def average_over_neighbours(
    start: Tensor, column: Tensor, weight: Tensor, neighbours: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the rows of each item's neighbours (Eq. 11), rounded to multiples of ``step``.

    Args:
        start, column, weight: a sparse matrix in CSR format.
        neighbours: rows to average for each item, int64, (N, k2).
        step: spacing of the weights.

    Returns:
        Number of entries of each row, their columns, and their weights.
    """
    matrix = start.numpy(), column.numpy(), weight.numpy()
    of = neighbours.contiguous().numpy()
    return _concatenate_parts(
        len(of), lambda first, stop: kernels.average_rows(*matrix, of, step, first, stop)
    )


def squared_distances(x: Tensor, squared_norm: Tensor, item: Tensor, member: Tensor) -> Tensor:
    """Compute the squared distances of pairs of rows of x.

    Args:
        x: embeddings from `exact_embeddings`, float64, (N, D).
        squared_norm: squared norm of each row, float64, (N,).
        item, member: rows of each pair, int64, (pairs,).

    Returns:
        float64, (pairs,).
    """
    given = x.numpy(), squared_norm.numpy(), item.numpy(), member.numpy()
    found = np.empty(len(item))
    _for_each_part(
        len(item), lambda start, stop: kernels.pair_distances(*given, found, start, stop), rows=2**16
    )
    return torch.from_numpy(found)


def combine_distances(
    original: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    columns: tuple[Tensor, Tensor, Tensor],
    first_query: int,
    lambda_value: float,
) -> Tensor:
    """Combine original and Jaccard distances in place (Eq. 12).

    Args:
        original: distances of some queries to the gallery, float64, (queries, G), contiguous; overwritten.
        rows: encodings of all images in CSR format: start, column, weight.
        columns: transposed encodings of the gallery in CSR format.
        first_query: row of the first of these queries.
        lambda_value: weight of the original distances, in [0, 1].
    """
    ours, theirs = (tuple(part.numpy() for part in matrix) for matrix in (rows, columns))
    distances = original.numpy()
    _for_each_part(
        len(distances),
        lambda start, stop: kernels.combine_distances(
            *ours, *theirs, lambda_value, first_query, distances, start, stop
        ),
        rows=16,
    )
    return original


def _for_each_part(n: int, process: Callable[[int, int], None], *, rows: int = 512) -> None:
    """Call a function with the first row, and the row after the last, of each part, in several threads."""
    threads = torch.get_num_threads()

    def work(number: int) -> None:
        for start in range(number * rows, n, threads * rows):
            process(start, min(start + rows, n))

    run_in_threads(work)


def _concatenate_parts(n: int, compute: Callable[[int, int], Entries]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the results of a function for all parts of n rows."""
    parts: dict[int, Entries] = {}

    def process(start: int, stop: int) -> None:
        parts[start] = compute(start, stop)

    _for_each_part(n, process)
    joined = zip(*(parts[start] for start in sorted(parts)), strict=True)
    size, column, weight = (torch.from_numpy(np.concatenate(arrays)) for arrays in joined)
    return size, column, weight
