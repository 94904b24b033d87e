"""The mean of the relaxed mask of Eq. 5 over its noise, and how steeply it rises with the logit.

A mask of Eq. 5 is sigmoid((l + g) / tau) with l = logit(pi) and g logistic. So its mean is the distribution
function, at l, of a sum of two logistic variables of scales 1 and tau. Only at tau = 1 does it have a closed
form. The trapezoid rule on the real line converges exponentially: the integrand is analytic in a strip.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_Table = Callable[[float, torch.device, torch.dtype], Tensor]
_uncompiled: Callable[[_Table], _Table] = torch.compiler.disable
"""Keeps torch.compile from tracing a table, which it would make anew in every step."""

REACH = 20.0
"""Largest |logit| of the table. Beyond it, mean and slope are within 5e-8 of their limits for tau <= 1."""
STEPS = 1280
"""Intervals of the table. Their width is 1/32, which float32 holds exactly."""


def mean_mask(logit: Tensor, tau: float) -> Tensor:
    """Mean of Eq. 5 over its noise, by quadrature: exact to 1e-8, float64, shape of ``logit``.

    Holds some 200 numbers per element (more at a lower tau); `interpolated_mean` is for whole images.

    >>> [round(mean_mask(torch.tensor(logit), tau=1.0).item(), 4) for logit in (0.0, 1.0)]
    [0.5, 0.6613]
    """
    density, rise = _quadrature(logit, tau)
    return (density * torch.sigmoid(rise)).sum(-1)


def mean_slope(logit: Tensor, tau: float) -> Tensor:
    """Derivative of `mean_mask` by the logit, by quadrature: float64, in [0, 0.25], shape of ``logit``.

    This is the mean of M (1 - M) / tau, Eq. 5's own derivative, over the noise.
    """
    density, rise = _quadrature(logit, tau)
    return (density * torch.sigmoid(rise) * torch.sigmoid(-rise)).sum(-1) / tau


def _quadrature(logit: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Weights of the nodes of the noise, and (l + g) / tau there, (..., nodes)."""
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    width = min(1.0, tau) / 2
    nodes = torch.arange(-40.0, 40.0 + width, width, dtype=torch.float64, device=logit.device)
    density = width * torch.sigmoid(nodes) * torch.sigmoid(-nodes)
    return density, (logit.double().unsqueeze(-1) + nodes) / tau


def interpolated_mean(logit: Tensor, tau: float) -> Tensor:
    """`mean_mask` from a table, with its gradient: exact to 1e-6, dtype and shape of ``logit``.

    The gradient is `interpolated_slope`.
    """
    operation: Any = _InterpolatedMean  # torch's types do not know apply()
    mean: Tensor = operation.apply(logit, tau)
    return mean


def interpolated_slope(logit: Tensor, tau: float) -> Tensor:
    """`mean_slope` from a table, linear between its nodes: exact to 2e-5, dtype and shape of ``logit``."""
    index, part = _place(logit)
    slopes = slope_table(tau, logit.device, logit.dtype)
    left = slopes[index]
    return left + part * (slopes[index + 1] - left)


@_uncompiled
@lru_cache(maxsize=8)
def slope_table(tau: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`mean_slope` at the nodes -REACH, -REACH + 1/32, ... REACH: (STEPS + 1,)."""
    return mean_slope(_nodes(), tau).to(device, dtype)


@_uncompiled
@lru_cache(maxsize=8)
def _mean_table(tau: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return mean_mask(_nodes(), tau).to(device, dtype)


def _nodes() -> Tensor:
    return torch.linspace(-REACH, REACH, STEPS + 1, dtype=torch.float64)


def _place(logit: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the interval of each logit, and where in it the logit lies, in [0, 1]. A NaN stays one."""
    place = (logit.clamp(-REACH, REACH) + REACH) * (STEPS / (2 * REACH))
    index = place.nan_to_num(0.0).floor().clamp(max=STEPS - 1)
    return index.long(), place - index


class _InterpolatedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(logit)
        ctx.tau = tau
        index, t = _place(logit)
        means = _mean_table(tau, logit.device, logit.dtype)
        slopes = slope_table(tau, logit.device, logit.dtype) * (2 * REACH / STEPS)
        low, high = means[index], means[index + 1]
        rise_low, rise_high = slopes[index], slopes[index + 1]
        # the cubic that has both values and both slopes
        change = high - low
        square = t * t
        curve = square * (3 - 2 * t) * change
        return low + curve + t * (1 - t) * ((1 - t) * rise_low - t * rise_high)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (logit,) = ctx.saved_tensors
        return upstream * interpolated_slope(logit, ctx.tau), None
