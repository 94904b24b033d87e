"""Distances whose bits depend on the two embeddings alone.

A floating-point matrix product depends on the device, the number of threads and the size of the batch: equal
items get distances that differ in the last bit, and ties are broken at random. No library offers a product
without rounding errors, so the embeddings are rounded here until their float64 products are exact.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = Tensor | npt.NDArray[Any]

DistanceFunction = Callable[[slice], Tensor]
"""Function that returns the distances of a slice of the queries to the whole gallery, float64, (rows, G).

It may return any increasing function of the distance instead. The caller may change the result,
which is valid until the next call.
"""

CHUNK_BYTES = 32 * 2**20
"""Memory for a chunk of distances. Larger chunks are no faster on a CPU."""

ROWS_IN_CACHE = 1024
"""Number of embeddings that are converted at a time."""


def round_for_exact_products(x_nd: Tensor) -> Tensor:
    """Round the rows of a matrix so that float64 computes their dot products exactly.

    Each row keeps b binary digits below its largest coordinate, with D * 2^(2b) <= 2^53. Every partial sum of
    a dot product then fits float64, so the order of addition does not matter, and equal items are tied
    exactly. b is 23 for D = 128 (float32 has 24) and 21 for D = 2048.

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
    """Check embeddings, convert them to float32 and round them with `round_for_exact_products`.

    Args:
        name: name of the embeddings in error messages.
        embeddings: finite, any float type, (N, D), tensor or array.
        device: device of the result. None keeps the device of the embeddings, unless it lacks float64.

    Returns:
        float64, (N, D).

    Raises:
        ValueError: the embeddings are not a float matrix, are empty, or contain NaN or infinity.
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
            f"{bad[0].item()}; such embeddings cannot be ranked, check whether the training diverged"
        )
    return round_for_exact_products(x)


def exact_pair(query: Array, gallery: Array, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Return the `exact_embeddings` of query and gallery, on the device of the query.

    Args:
        query, gallery: embeddings, (Q, D) and (G, D).
        names: names of both in error messages.

    Raises:
        ValueError: `exact_embeddings` rejects one of them, or their lengths D differ.
    """
    q = exact_embeddings(names[0], query)
    g = exact_embeddings(names[1], gallery, q.device)
    if q.shape[1] != g.shape[1]:
        raise ValueError(
            f"query and gallery embeddings must have the same length, got {q.shape[1]} and {g.shape[1]}"
        )
    return q, g


def as_tensor(values: Array) -> Tensor:
    """Return a tensor unchanged, and an array as a tensor that owns its memory."""
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.array(values))  # copied, because torch warns about read-only arrays


def shifted_squared_distances(query: Tensor, gallery: Tensor) -> DistanceFunction:
    """Return a function that computes |g|^2 - 2 q g, the squared Euclidean distance minus |q|^2.

    The shift is the same for all gallery items of a query, so it changes no ranking. Each value is rounded
    once, and is the same for the same pair.

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


def nearest_columns(distance_rn: Tensor, k: int) -> Tensor:
    """Return the columns of the k smallest values of each row, as a stable sort would order them.

    `torch.topk` breaks ties arbitrarily. Here equal values keep the order of their columns, without the cost
    of a full sort.

    Args:
        distance_rn: float, without NaN, (R, N).
        k: 1 to N.

    Returns:
        int64, (R, k), nearest first.

    >>> nearest_columns(torch.tensor([[2.0, 1.0, 2.0, 0.0, 2.0]]), 3)
    tensor([[3, 1, 0]])
    """
    n = distance_rn.shape[1]
    value, column = distance_rn.topk(min(k + 1, n), dim=1, largest=False)
    column = column[:, :k]
    if k < n:
        tied = (value[:, k - 1] == value[:, k]).nonzero().flatten()
        part, last = distance_rn[tied], value[tied, k - 1, None]
        place = torch.arange(n, device=part.device) + n * ((part >= last).long() + (part > last))
        column[tied] = place.topk(k, dim=1, largest=False).indices
    column = column.sort(1).values
    return column.gather(1, distance_rn.gather(1, column).argsort(dim=1, stable=True))


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise ValueError for a chunk size below 1; None is allowed."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}")


def chunk_slices(rows: int, bytes_per_row: int, chunk_size: int | None = None) -> Iterator[slice]:
    """Yield slices that cover all rows in order.

    Args:
        rows: number of rows.
        bytes_per_row: memory that one row needs; a slice needs about `CHUNK_BYTES`.
        chunk_size: rows of a slice; overrides ``bytes_per_row``.
    """
    step = chunk_size or max(1, CHUNK_BYTES // bytes_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Compute float32 matrix products in float32, not in TF32, bfloat16 or a type that autocast chooses.

    TF32 and bfloat16 are settings of the whole process, so the products of other threads are affected too.

    Args:
        device: device for whose type autocast is disabled.
    """
    backends: Any = torch.backends  # torch's type stubs lack fp32_precision
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
