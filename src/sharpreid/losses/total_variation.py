"""Total variation of attention-aware features (paper Sec. III-B, Eq. 6-7).

It is a squared L2 norm per image, unlike the L1 total variations of kornia and torchmetrics.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Reduction = Literal["sum", "mean", "relative"]


class TotalVariation(NamedTuple):
    """Eq. 6 of each image, and the statistics that `reduce_total_variation` may divide it by."""

    total: Tensor
    """Sum of squared differences, (B,), >= 0, float32 or float64."""
    mean_square: Tensor
    """Mean square of the features, (B,), without a gradient."""
    elements: int
    """Number of features per image, C * H * W."""


def squared_total_variation(a: Tensor) -> TotalVariation:
    """Return the sum of squared differences of vertical and horizontal neighbours of each image (Eq. 6).

    Its gradient is Eq. 7, which autograd derives here.

    Args:
        a: attention-aware features (A of Eq. 1), float, (B, C, H, W), unitless.

    Returns:
        Eq. 6 per image, in float32 (float64 for float64 input) also under autocast.

    Raises:
        ValueError: ``a`` is not 4-D.

    >>> squared_total_variation(torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])).total
    tensor([8.])
    """
    if a.ndim != 4:
        raise ValueError(f"a must be (B, C, H, W), got shape {tuple(a.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        a = a if a.dtype == torch.float64 else a.float()
        axes = (1, 2, 3)
        total = a.diff(dim=-2).square().sum(axes) + a.diff(dim=-1).square().sum(axes)
        return TotalVariation(total, a.detach().square().mean(axes), a[0].numel())


def reduce_total_variation(variation: TotalVariation, reduction: Reduction) -> Tensor:
    """Reduce the total variation of a batch to a scalar >= 0, the mean over its images.

    Args:
        variation: result of `squared_total_variation`.
        reduction: value of an image. ``sum`` is Eq. 6 as printed; ``mean`` divides it by C * H * W;
            ``relative`` divides ``mean`` by the detached mean square of the image's features, so that the
            value does not change when the features shrink. It is 0 for features whose mean square underflows,
            such as zeros.

    Raises:
        ValueError: ``reduction`` is unknown.

    >>> variation = squared_total_variation(torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]]))
    >>> [reduce_total_variation(variation, reduction).item() for reduction in ("sum", "mean", "relative")]
    [8.0, 2.0, 2.0]
    """
    check_reduction(reduction)
    total, mean_square, elements = variation
    if reduction == "sum":
        return total.mean()
    mean = total / elements
    if reduction == "mean":
        return mean.mean()
    divisible = mean_square >= torch.finfo(total.dtype).tiny  # the reciprocal of less overflows
    return torch.where(divisible, mean / torch.where(divisible, mean_square, 1.0), 0.0).mean()


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}")
