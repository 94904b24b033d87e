"""The ranks of matches on a CPU, compiled by Numba; the reference is `functional.hit_ranks`.

An item is counted by its float32 distance if this differs from the match's distance by more than the error
bound, and by its exact distance otherwise; see `sharpreid.evaluation.numba_kernels.distances`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.numba_kernels import kernels
from sharpreid.evaluation.numba_kernels.distances import MixedPrecisionDistances
from sharpreid.evaluation.numba_kernels.kernels import Float32s, Labels


class Gallery(NamedTuple):
    """Gallery items sorted by identity, on the CPU."""

    embeddings: Tensor
    """Embeddings from `exact_embeddings`, float64, (G, D)."""
    camids: Tensor
    """int64, (G,)"""


class Queries(NamedTuple):
    """Queries and the rows of the gallery items of their identities, on the CPU."""

    embeddings: Tensor
    """Embeddings from `exact_embeddings`, float64, (Q, D)."""
    camids: Tensor
    """int64, (Q,)"""
    first: Tensor
    """Row of the first gallery item of the query's identity, int64, (Q,)."""
    end: Tensor
    """Row after the last one, int64, (Q,)."""


def match_ranks(
    queries: Queries, gallery: Gallery, *, exclude_same_camera: bool, chunk_size: int | None
) -> Tensor:
    """Compute the ranks of each query's matches.

    Args:
        queries: queries.
        gallery: gallery items.
        exclude_same_camera: exclude all items from the query's camera; otherwise only those of its identity.
        chunk_size: queries at a time; None for as many as fit the cache. Does not change the result.

    Returns:
        1-based ranks, ascending, int64, (Q, P), P >= 1; 0 pads.
    """
    distances = MixedPrecisionDistances(queries.embeddings, gallery.embeddings)
    labels = Labels(*(x.numpy() for x in (queries.camids, gallery.camids, queries.first, queries.end)))
    ranks = np.zeros((len(labels.first), max(1, int((labels.end - labels.first).max()))), np.int64)

    def count(part: Float32s, start: int) -> None:
        kernels.rank_matches(
            part, start, distances.exact, distances.bounds, labels, exclude_same_camera, ranks
        )

    distances.for_each_chunk(count, chunk_size)
    return torch.from_numpy(ranks)
