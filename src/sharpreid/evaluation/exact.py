"""Distances without rounding errors: the same bits on every device, in any order of addition.

No library offers this. Floating-point matrix products depend on the number of threads, the size of the batch
and the device, so that equal items get distances that differ in the last bit, and ties are broken at random.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = Tensor | npt.NDArray[Any]


Distances = Callable[[slice], Tensor]
"""Distances of some queries (a slice of their rows) to the whole gallery, float64, (rows, G).

Any increasing function of the distance that a ranking goes by; free to be changed, valid until the next call.
"""


CHUNK_BYTES = 32 * 2**20  # distances held at a time; larger chunks are no faster on a CPU


ROWS_IN_CACHE = 1024  # embeddings that are worked on at a time


def round_for_exact_products(x_nd: Tensor) -> Tensor:
    """Rows in float64, rounded so that their dot products involve no rounding at all.

    Each row keeps b binary digits below its largest coordinate, with D * 2^(2b) <= 2^53: then every partial
    sum of a dot product fits float64 exactly, and a matrix product has the same bits in whatever order the
    library adds, so equal items are tied exactly. b is 23 for D = 128 (float32 holds 24) and 21 for 2048.

    Args:
        x_nd: finite float32, (N, D), D >= 1.
    Returns:
        float64, (N, D).

    >>> round_for_exact_products(torch.tensor([[1.0, 2.0**-30], [2.0**-30, 0.0]])).tolist()
    [[1.0, 0.0], [9.313225746154785e-10, 0.0]]
    """
    bits = (53 - (x_nd.shape[1] - 1).bit_length()) // 2
    rounded = torch.empty(x_nd.shape, dtype=torch.float64, device=x_nd.device)
    for given, result in zip(*(torch.split(x, ROWS_IN_CACHE) for x in (x_nd, rounded)), strict=True):
        x = given.double()
        largest = x.abs().amax(dim=1, keepdim=True)
        mantissa, _ = torch.frexp(largest)
        power_of_two = torch.where(largest > 0, largest / mantissa, 1.0)
        step = power_of_two * 2.0**-bits
        torch.mul(x.div_(step).round_(), step, out=result)
    return rounded


def exact_embeddings(name: str, embeddings: Array, device: torch.device | None = None) -> Tensor:
    """Embeddings read as float32 and rounded by `round_for_exact_products`: float64, (N, D).

    Args:
        name: what an error calls them.
        embeddings: finite, any float type, (N, D), tensor or array.
        device: where to; None leaves them where they are, unless that lacks float64.
    Raises:
        ValueError: not a float matrix, empty, NaN or infinite.
    """
    x = as_tensor(embeddings)
    if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(f"{name} must be float (N, D), not empty, got {x.dtype} {tuple(x.shape)}")
    if device is None:
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # mps has no float64
    x = x.detach().to(device, torch.float32)
    bad = (~x.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"{name}: {len(bad)} of {len(x)} rows are NaN or infinite in float32, the first is row "
            f"{bad[0].item()}; a ranking of them means nothing, look at the training"
        )
    return round_for_exact_products(x)


def as_tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.array(values))  # a copy: torch warns about read-only arrays


def euclidean_order(query: Tensor, gallery: Tensor) -> Distances:
    """|q - g|^2 without |q|^2, which changes no ranking: one rounding, the same for the same pair.

    Args:
        query, gallery: embeddings from `exact_embeddings`, float64, (Q, D) and (G, D).
    """
    squared_norm, buffer = gallery.square().sum(1), gallery.new_empty(0)

    def of_chunk(rows: slice) -> Tensor:
        nonlocal buffer
        chunk = query[rows]
        if len(buffer) < len(chunk):
            buffer = gallery.new_empty(len(chunk), len(gallery))
        return torch.matmul(-2 * chunk, gallery.T, out=buffer[: len(chunk)]).add_(squared_norm)

    return of_chunk


@contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: neither in TF32 or bfloat16, nor in what autocast chooses.

    TF32 and bfloat16 are settings of the whole process: meanwhile other threads go without them too.

    Args:
        device: for whose type autocast is off.
    """
    backends: Any = torch.backends  # whose types do not know these settings yet
    products = backends.cuda.matmul, backends.mkldnn.matmul
    before = [one.fp32_precision for one in products]
    for one in products:
        one.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for one, precision in zip(products, before, strict=True):
            one.fp32_precision = precision
