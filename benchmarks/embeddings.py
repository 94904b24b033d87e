"""Synthetic embeddings of the sizes of known test sets."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Embeddings(NamedTuple):
    """Query and gallery as `sharpreid.evaluation.ranking.evaluate_ranking` takes them."""

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


def of_size(name: str, dim: int, seed: int = 0) -> Embeddings:
    """A test set of a published size; see `make`."""
    return make(*SIZES[name], dim=dim, seed=seed)


def make(
    queries: int, matching: int, distractors: int, identities: int, cameras: int, *, dim: int, seed: int = 0
) -> Embeddings:
    """Identities around centres of their own, shifted by their camera, with some samples far off.

    Args:
        queries: number of queries, spread evenly over the identities.
        matching: gallery images of these identities.
        distractors: gallery images of identity 0, each a person of its own.
        identities: of the queries.
        cameras: from 1 on; a query's identity is seen by at least two.
        dim: length of an embedding.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities + 1, dim)).astype(np.float32)
    views = rng.normal(size=(cameras + 1, dim)).astype(np.float32)

    def seen(pids: Ints, camids: Ints) -> Floats:
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
    query, gallery = seen(query_pids, query_camids), seen(gallery_pids, gallery_camids)
    return Embeddings(query, query_pids, query_camids, gallery, gallery_pids, gallery_camids)
