"""The ranks of matches on a CPU, compiled by Numba: those of `sharpreid.evaluation.ranking.hit_ranks`.

An item whose float32 distance is farther than the bound from a match's distance is counted by it, the few
others by their exact distance; see `sharpreid.evaluation.numba_kernels.distances`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.numba_kernels import kernels
from sharpreid.evaluation.numba_kernels.distances import TwofoldDistances
from sharpreid.evaluation.numba_kernels.kernels import Labels, Lines


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
    distances = TwofoldDistances(queries.exact, gallery.exact)
    labels = Labels(*(x.numpy() for x in (queries.camids, gallery.camids, queries.first, queries.end)))
    ranks = np.zeros((len(labels.first), max(1, int((labels.end - labels.first).max()))), np.int64)

    def count(part: Lines, start: int) -> None:
        kernels.count(part, start, distances.exact, distances.bounds, labels, same_camera_leaves, ranks)

    distances.each_chunk(count, chunk_size)
    return torch.from_numpy(ranks)
