"""Synthetic embeddings in the sizes of published test sets."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Embeddings(NamedTuple):
    """Arguments of `sharpreid.evaluation.ranking.evaluate_ranking`."""

    query: Floats
    query_pids: Ints
    query_camids: Ints
    gallery: Floats
    gallery_pids: Ints
    gallery_camids: Ints


SIZES = {  # queries, gallery images of query identities, distractors, identities, cameras
    "market1501": (3_368, 13_115, 2_798, 750, 6),
    "msmt17": (11_659, 82_161, 0, 3_060, 15),
    "market1501+500k": (3_368, 13_115, 2_798 + 500_000, 750, 6),
}


def make_test_set(name: str, dim: int, seed: int = 0) -> Embeddings:
    """Make embeddings in the size of a published test set.

    Args:
        name: key of `SIZES`.
        dim: length of an embedding.
        seed: seed of the random numbers.
    """
    return make_embeddings(*SIZES[name], dim=dim, seed=seed)


def make_embeddings(
    queries: int, matching: int, distractors: int, identities: int, cameras: int, *, dim: int, seed: int = 0
) -> Embeddings:
    """Make embeddings that cluster by identity, are shifted by camera, and have a few outliers.

    Args:
        queries: number of queries, spread evenly over the identities.
        matching: number of gallery images of these identities.
        distractors: number of gallery images of identity 0, each around a centre of its own.
        identities: number of identities of the queries.
        cameras: number of cameras, at least 2.
        dim: length of an embedding.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities + 1, dim)).astype(np.float32)
    views = rng.normal(size=(cameras + 1, dim)).astype(np.float32)

    def embed(pids: Ints, camids: Ints) -> Floats:
        noise = rng.normal(size=(len(pids), dim), scale=0.9).astype(np.float32)
        noise *= rng.lognormal(0, 0.35, (len(pids), 1)).astype(np.float32)
        base = np.where((pids == 0)[:, None], rng.normal(size=(len(pids), dim)), centres[pids])
        return (base.astype(np.float32) + 0.45 * views[camids] + noise).astype(np.float32)

    query_pids = np.arange(queries) % identities + 1
    query_camids = (query_pids + np.arange(queries) // identities) % cameras + 1
    gallery_pids = np.concatenate([np.arange(matching) % identities + 1, np.zeros(distractors, np.int64)])
    gallery_camids = rng.integers(1, cameras + 1, len(gallery_pids))
    shuffled = rng.permutation(len(gallery_pids))
    gallery_pids, gallery_camids = gallery_pids[shuffled], gallery_camids[shuffled]
    query, gallery = embed(query_pids, query_camids), embed(gallery_pids, gallery_camids)
    return Embeddings(query, query_pids, query_camids, gallery, gallery_pids, gallery_camids)
