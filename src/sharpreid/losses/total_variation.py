"""Total variation of attention-aware features (paper Sec. III-B, Eq. 6-7)."""

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["sum", "mean", "relative"]


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
    if a.ndim != 4:
        raise ValueError(f"a must be (B, C, H, W), got shape {tuple(a.shape)}")
    check_reduction(reduction)
    with torch.autocast(a.device.type, enabled=False):
        a = a if a.dtype == torch.float64 else a.float()
        space = (1, 2, 3)
        total = a.diff(dim=-2).square().sum(space) + a.diff(dim=-1).square().sum(space)
        if reduction == "sum":
            return total.mean()
        mean = total / a[0].numel()
        if reduction == "mean":
            return mean.mean()
        scale = a.detach().square().mean(space)
        divisible = scale >= torch.finfo(a.dtype).tiny  # below, its reciprocal overflows
        return torch.where(divisible, mean / torch.where(divisible, scale, 1.0), 0.0).mean()


def check_reduction(reduction: str) -> None:
    """ValueError for an unknown reduction; names the known ones."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {reduction!r}")
