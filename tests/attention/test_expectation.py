"""The mean of the relaxed mask over its noise, and its slope."""

import math

import pytest
import torch

from sharpreid.attention.expectation import (
    REACH,
    interpolated_mean,
    interpolated_slope,
    mean_mask,
    mean_slope,
)

LOGITS = torch.linspace(-17.3, 17.3, 4001, dtype=torch.float64)


def test_at_tau_1_it_is_the_closed_form() -> None:
    """Of the sum of two equal logistic variables: a (a - 1 - log a) / (a - 1)^2 with a = e^l."""
    logit = LOGITS[LOGITS.abs() > 0.05]  # near 0 the closed form loses its digits
    a = logit.exp()
    torch.testing.assert_close(mean_mask(logit, 1.0), a * (a - 1 - logit) / (a - 1) ** 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [1.0, 0.5, 0.1])
def test_it_is_the_mean_of_many_draws(tau: float) -> None:
    noise = torch.logit(torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    for logit in (-4.0, 0.3, 2.0):
        draws = torch.sigmoid((logit + noise) / tau)
        error = float(draws.std()) / math.sqrt(len(draws))
        assert abs(float(draws.mean() - mean_mask(torch.tensor(logit), tau))) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [2.0, 1.0, 0.7, 0.5, 0.1])
def test_the_table_is_exact_to_a_millionth(tau: float, dtype: torch.dtype) -> None:
    logit = LOGITS.to(dtype)
    found = interpolated_mean(logit, tau)
    assert found.dtype == dtype
    assert float((found - mean_mask(logit, tau)).abs().max()) < 1e-6
    assert float((interpolated_slope(logit, tau) - mean_slope(logit, tau)).abs().max()) < 2e-5


def test_the_slope_is_the_derivative() -> None:
    step = 1e-4
    for tau in (1.0, 0.5):
        difference = (mean_mask(LOGITS + step, tau) - mean_mask(LOGITS - step, tau)) / (2 * step)
        torch.testing.assert_close(mean_slope(LOGITS, tau), difference, rtol=0, atol=1e-8)
        x = LOGITS.clone().requires_grad_()
        interpolated_mean(x, tau).sum().backward()
        torch.testing.assert_close(x.grad, interpolated_slope(LOGITS, tau))


def test_it_is_neither_pi_nor_the_mask_without_noise() -> None:
    pi = torch.tensor(0.05)
    mean = float(mean_mask(torch.logit(pi), 0.5))
    assert mean == pytest.approx(0.0685, abs=1e-4)
    assert float(torch.sigmoid(torch.logit(pi) / 0.5)) < 0.003


def test_beyond_the_table_it_stays_at_its_end_and_a_nan_is_not_hidden() -> None:
    ends = interpolated_mean(torch.tensor([-2 * REACH, 2 * REACH, math.nan], dtype=torch.float64), 0.5)
    assert float(ends[0]) < 1e-8
    assert float(ends[1]) > 1 - 1e-8
    assert ends[2].isnan()


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="tau must be > 0, got 0"):
        mean_mask(torch.zeros(1), 0.0)
