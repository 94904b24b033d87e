"""Mean of the relaxed mask of Eq. 5 over its noise, and its derivative with respect to the logit.

A mask of Eq. 5 is sigmoid((l + g) / tau) with l = logit(pi) and logistic noise g. Its mean is therefore the
distribution function, at l, of a sum of two logistic variables with the scales 1 and tau. This function has a
closed form only at tau = 1, so the mean is integrated by the trapezoid rule on the real line, which converges
exponentially because the integrand is analytic in a strip.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_Table = Callable[[float, torch.device, torch.dtype], Tensor]
_uncompiled: Callable[[_Table], _Table] = torch.compiler.disable
"""Decorator that keeps torch.compile from tracing a table, which would then be computed in every step."""

REACH = 20.0
"""Largest |logit| of the tables. Beyond it, mean and slope are within 5e-8 of their limits for tau <= 1."""
STEPS = 1280
"""Number of intervals of the tables. Their width is 1/32, which float32 holds exactly."""


def mean_mask(logit: Tensor, tau: float) -> Tensor:
    """Return the mean of Eq. 5 over its noise by quadrature: float64, shape of ``logit``, accurate to 1e-8.

    It allocates at least 160 numbers per element (more at a lower tau); use `interpolated_mean` for whole
    images.

    Args:
        logit: logit(pi), float, any shape.
        tau: temperature, unitless.

    Raises:
        ValueError: ``tau`` <= 0.

    >>> [round(mean_mask(torch.tensor(logit), tau=1.0).item(), 4) for logit in (0.0, 1.0)]
    [0.5, 0.6613]
    """
    density, scaled = _quadrature(logit, tau)
    return (density * torch.sigmoid(scaled)).sum(-1)


def mean_slope(logit: Tensor, tau: float) -> Tensor:
    """Return the derivative of `mean_mask` with respect to the logit, by quadrature: float64, in [0, 0.25].

    It is the mean over the noise of M (1 - M) / tau, the derivative of Eq. 5. Arguments and errors are those
    of `mean_mask`.
    """
    density, scaled = _quadrature(logit, tau)
    return (density * torch.sigmoid(scaled) * torch.sigmoid(-scaled)).sum(-1) / tau


def _quadrature(logit: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return the weights of the quadrature nodes, (nodes,), and (l + g) / tau at them, (..., nodes)."""
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    width = min(1.0, tau) / 2
    nodes = torch.arange(-40.0, 40.0 + width, width, dtype=torch.float64, device=logit.device)
    density = width * torch.sigmoid(nodes) * torch.sigmoid(-nodes)
    return density, (logit.double().unsqueeze(-1) + nodes) / tau


def interpolated_mean(logit: Tensor, tau: float) -> Tensor:
    """Interpolate `mean_mask` in a table: dtype and shape of ``logit``, accurate to 1e-6.

    Its gradient is `interpolated_slope`.
    """
    operation: Any = _InterpolatedMean  # torch's types do not know apply()
    mean: Tensor = operation.apply(logit, tau)
    return mean


def interpolated_slope(logit: Tensor, tau: float) -> Tensor:
    """Interpolate `mean_slope` linearly in a table: dtype and shape of ``logit``, accurate to 2e-5."""
    index, part = _locate(logit)
    slopes = slope_table(tau, logit.device, logit.dtype)
    left = slopes[index]
    return left + part * (slopes[index + 1] - left)


def interpolate_mean(logit: Tensor, means: Tensor, slopes: Tensor) -> Tensor:
    """Interpolate the mean mask (cubic Hermite): dtype and shape of ``logit``.

    Args:
        logit: logit(pi), float, any shape.
        means: result of `mean_table`.
        slopes: result of `slope_table`.
    """
    index, t = _locate(logit)
    low, high = means[index], means[index + 1]
    step = 2 * REACH / STEPS
    rise_low, rise_high = slopes[index] * step, slopes[index + 1] * step
    curve = t * t * (3 - 2 * t) * (high - low)
    return low + curve + t * (1 - t) * ((1 - t) * rise_low - t * rise_high)


@_uncompiled
@lru_cache(maxsize=8)
def slope_table(tau: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute `mean_slope` at the nodes -REACH, -REACH + 1/32, ... REACH: (STEPS + 1,)."""
    return mean_slope(_nodes(), tau).to(device, dtype)


@_uncompiled
@lru_cache(maxsize=8)
def mean_table(tau: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute `mean_mask` at the nodes of `slope_table`: (STEPS + 1,)."""
    return mean_mask(_nodes(), tau).to(device, dtype)


def _nodes() -> Tensor:
    return torch.linspace(-REACH, REACH, STEPS + 1, dtype=torch.float64)


def _locate(logit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the interval of each logit and the logit's position in it, in [0, 1] or NaN."""
    place = (logit.clamp(-REACH, REACH) + REACH) * (STEPS / (2 * REACH))
    index = place.nan_to_num(0.0).floor().clamp(max=STEPS - 1)
    return index.long(), place - index


class _InterpolatedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(logit)
        ctx.tau = tau
        means = mean_table(tau, logit.device, logit.dtype)
        return interpolate_mean(logit, means, slope_table(tau, logit.device, logit.dtype))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (logit,) = ctx.saved_tensors
        return upstream * interpolated_slope(logit, ctx.tau), None
