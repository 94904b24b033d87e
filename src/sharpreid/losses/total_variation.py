"""Total variation of attention-aware features (paper Sec. III-B, Eq. 6-7)."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Reduction = Literal["sum", "mean", "relative"]


class Variation(NamedTuple):
    """Eq. 6 of each image, and what it may be divided by."""

    total: Tensor
    """Sum of squared differences, (B,), >= 0, float32 or float64."""
    mean_square: Tensor
    """Of the features, (B,), without a gradient."""
    elements: int
    """C * H * W."""


def variation_of(a: Tensor) -> Variation:
    """Eq. 6 of attention-aware features, float, (B, C, H, W); float32 (or float64) also under autocast.

    Raises:
        ValueError: ``a`` is not 4-D.
    """
    if a.ndim != 4:
        raise ValueError(f"a must be (B, C, H, W), got shape {tuple(a.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        a = a if a.dtype == torch.float64 else a.float()
        space = (1, 2, 3)
        total = a.diff(dim=-2).square().sum(space) + a.diff(dim=-1).square().sum(space)
        return Variation(total, a.detach().square().mean(space), a[0].numel())


def gradient_of_variation(a: Tensor, weight: Tensor) -> Tensor:
    """Eq. 7: the gradient of sum(weight * total) of `variation_of` by its features.

    Args:
        a: float, (B, C, H, W).
        weight: of each image, (B,).
    """
    gradient = torch.zeros_like(a)
    scale = 2 * weight[:, None, None, None]
    for dim in (2, 3):
        difference, length = a.diff(dim=dim).mul_(scale), a.shape[dim] - 1
        gradient.narrow(dim, 1, length).add_(difference)
        gradient.narrow(dim, 0, length).sub_(difference)
    return gradient


def reduced(variation: Variation, reduction: Reduction) -> Tensor:
    """The batch's scalar, see `squared_total_variation`."""
    check_reduction(reduction)
    total, scale, elements = variation
    if reduction == "sum":
        return total.mean()
    mean = total / elements
    if reduction == "mean":
        return mean.mean()
    divisible = scale >= torch.finfo(total.dtype).tiny  # below, its reciprocal overflows
    return torch.where(divisible, mean / torch.where(divisible, scale, 1.0), 0.0).mean()


def squared_total_variation(a: Tensor, reduction: Reduction) -> Tensor:
    """Sum of squared differences of vertical and horizontal neighbours (Eq. 6), averaged over the batch.

    Squared L2, unlike the L1 total variations of common libraries. Float32 (or float64) also under autocast.

    Args:
        a: attention-aware features (A of Eq. 1), float, (B, C, H, W), unitless.
        reduction: per image, ``sum`` is Eq. 6 as printed; ``mean`` divides it by C * H * W; ``relative`` is
            ``mean`` divided by the detached mean square of the image's features, so that the value does
            not change when they shrink.

    Returns:
        Scalar, >= 0. ``relative`` of features whose mean square underflows, such as all zeros, is 0.

    Raises:
        ValueError: ``a`` is not 4-D, or ``reduction`` is unknown.

    >>> a = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])
    >>> squared_total_variation(a, "sum").item(), squared_total_variation(a, "mean").item()
    (8.0, 2.0)
    """
    check_reduction(reduction)
    return reduced(variation_of(a), reduction)


def check_reduction(reduction: str) -> None:
    """ValueError for an unknown reduction; names the known ones."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}")
