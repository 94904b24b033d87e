"""Ranking and re-ranking on a CPU, compiled by Numba, with the results of the torch code to the last bit.

No library offers these kernels. A float32 matrix product is twice as fast as a
float64 one, but its rounding errors can change ranks. Here float32 distances decide wherever a bound of their
error allows it, and the few undecided pairs are settled by exact float64 distances, in the same pass and
without a matrix of all distances. FAISS and scikit-learn rank by the rounded product, and support neither
excluded items, nor ranks of matches, nor k-reciprocal sets.

Importing this package does not import Numba, which is optional.
"""

import functools
import importlib.util
import logging

import torch

log = logging.getLogger(__name__)

MIN_PAIRS = 20_000_000
"""Smallest number of pairs of items for which Numba is worth its start-up time of half a second."""


def use_numba(queries: int, gallery: int, device: torch.device) -> bool:
    """Return whether there are at least `MIN_PAIRS` pairs, on a CPU, and Numba is installed and works.

    Args:
        queries, gallery: numbers of rows and columns of the distance matrix.
        device: device of the embeddings.
    """
    return queries * gallery >= MIN_PAIRS and device.type == "cpu" and _can_import_kernels()


@functools.cache
def _can_import_kernels() -> bool:
    """Import the kernels; warn if Numba is installed but cannot be imported."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module(f"{__name__}.kernels")
    except Exception as error:  # for example for a version of NumPy that Numba does not know
        log.warning("Numba cannot be used (%s); ranking by torch, which is slower but equal", error)
        return False
    return True
