"""Ranking and re-ranking on a CPU, compiled by Numba, with the results of the torch code to the last bit.

No library offers these kernels. A float32 matrix product is twice as fast as a
float64 one, but its rounding errors can change ranks. Here float32 distances decide wherever a bound of their
error allows it, and the few undecided pairs are settled by exact float64 distances, in the same pass and
without a matrix of all distances. FAISS and scikit-learn rank by the rounded product, and support neither
excluded items, nor ranks of matches, nor k-reciprocal sets.

Importing this package does not import Numba, which is optional.
"""

import importlib.util

import torch

MIN_PAIRS = 20_000_000
"""Smallest number of pairs of items for which Numba is worth its start-up time of half a second."""


def use_numba(queries: int, gallery: int, device: torch.device) -> bool:
    """Return whether there are at least `MIN_PAIRS` pairs, on a CPU, and Numba is installed.

    Args:
        queries, gallery: numbers of rows and columns of the distance matrix.
        device: device of the embeddings.
    """
    return (
        queries * gallery >= MIN_PAIRS
        and device.type == "cpu"
        and importlib.util.find_spec("numba") is not None
    )
