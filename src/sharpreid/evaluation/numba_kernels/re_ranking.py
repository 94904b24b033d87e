"""The steps of k-reciprocal re-ranking on a CPU, compiled by Numba.

Each returns to the last bit what the function of that name in `sharpreid.evaluation.re_ranking` does:
distances are exact where they decide (see `sharpreid.evaluation.numba_kernels.distances`), and weights are
multiples of 2^-32, so that their sums are exact in whatever order.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.numba_kernels import kernels
from sharpreid.evaluation.numba_kernels.distances import TwofoldDistances, in_threads
from sharpreid.evaluation.numba_kernels.kernels import Entries, Lines


def nearest_neighbours(x: Tensor, k: int, chunk_size: int | None) -> tuple[Tensor, Tensor]:
    """The k nearest items of each item, itself among them, and the largest distance less its squared norm."""
    distances = TwofoldDistances(x, x)
    neighbours = np.empty((len(x), k), np.int64)
    farthest = np.empty(len(x), np.float64)

    def find(part: Lines, start: int) -> None:
        kernels.nearest(part, start, distances.exact, distances.bounds, neighbours, farthest)

    distances.each_chunk(find, chunk_size)
    return torch.from_numpy(neighbours), torch.from_numpy(farthest)


def k_reciprocal_sets(neighbours: Tensor, half_width: int) -> tuple[Tensor, Tensor]:
    """Item and member of every membership; ``half_width`` of the neighbours are those for k1/2."""
    own = neighbours.contiguous().numpy()
    full, half = np.empty_like(own), np.empty((len(own), half_width), np.int64)

    def keep(start: int, stop: int) -> None:
        kernels.where_reciprocal(own, start, stop, full)
        kernels.where_reciprocal(own, start, stop, half)

    _each_part(len(own), keep)
    size, member, _ = _gathered(len(own), lambda start, stop: kernels.sets(full, half, start, stop))
    return torch.arange(len(own)).repeat_interleave(size), member


def average_over_neighbours(
    start: Tensor, column: Tensor, weight: Tensor, neighbours: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the rows of each item's neighbours, to multiples of ``step``: lengths, columns, weights."""
    matrix = start.numpy(), column.numpy(), weight.numpy()
    of = neighbours.contiguous().numpy()
    return _gathered(len(of), lambda first, stop: kernels.averages(*matrix, of, step, first, stop))


def squared_distances(x: Tensor, squared_norm: Tensor, item: Tensor, member: Tensor) -> Tensor:
    """Squared distances of pairs of rows."""
    given = x.numpy(), squared_norm.numpy(), item.numpy(), member.numpy()
    found = np.empty(len(item))
    _each_part(
        len(item), lambda start, stop: kernels.distances_of_pairs(*given, found, start, stop), rows=2**16
    )
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
        lambda start, stop: kernels.combine(
            *ours, *theirs, lambda_value, first_query, distances, start, stop
        ),
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
