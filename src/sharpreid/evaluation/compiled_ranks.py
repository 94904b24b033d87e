"""The ranks of matches on a CPU, compiled by Numba: those of `sharpreid.evaluation.ranking.hit_ranks`.

An item whose float32 distance is farther than the bound from a match's distance is counted by it, the few
others by their exact distance; see `sharpreid.evaluation.compiled_distances`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sharpreid.evaluation.compiled_distances import (
    BLOCK,
    Bounds,
    Exact,
    Ints,
    Lines,
    TwofoldDistances,
    compiled,
    exact_distance,
    margin_of,
)


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
    labels = _Labels(*(x.numpy() for x in (queries.camids, gallery.camids, queries.first, queries.end)))
    ranks = np.zeros((len(labels.first), max(1, int((labels.end - labels.first).max()))), np.int64)

    def count(part: Lines, start: int) -> None:
        _count(part, start, distances.exact, distances.bounds, labels, same_camera_leaves, ranks)

    distances.each_chunk(count, chunk_size)
    return torch.from_numpy(ranks)


class _Labels(NamedTuple):
    query_camids: Ints
    gallery_camids: Ints
    first: Ints
    end: Ints


@compiled
def _count(
    distances: Lines,
    start: int,
    exact: Exact,
    bounds: Bounds,
    labels: _Labels,
    same_camera_leaves: bool,
    ranks: Ints,
) -> None:
    """Fill the ranks of the queries in the rows of ``distances``, which are those from ``start`` on."""
    found = np.empty(ranks.shape[1], np.float64)
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
                            nearer += exact_distance(exact, query, item) <= near[place]
            ranks[query, place] = nearer + place + 1


@compiled
def _count_up_to(line: Lines, surely: float, perhaps: float) -> tuple[np.int32, np.int32]:
    """Number of items at most so far; a loop that the compiler turns into vector instructions."""
    sure, maybe = np.int32(0), np.int32(0)
    for item in range(len(line)):
        sure += np.int32(line[item] <= surely)
        maybe += np.int32(line[item] <= perhaps)
    return sure, maybe
