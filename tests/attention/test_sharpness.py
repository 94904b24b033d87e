import pytest
import torch
from torch.distributions import Bernoulli

from sharpreid.attention.mask import gumbel_mask, logistic_noise
from sharpreid.attention.sharpness import mean_entropy, share_decided


def test_entropy_is_that_of_torchs_bernoulli() -> None:
    mask = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    wanted = Bernoulli(probs=mask).entropy().mean() / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(mean_entropy(mask), wanted)


def test_hard_masks_are_decided_and_have_no_entropy() -> None:
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert share_decided(mask).item() == 1.0
    assert mean_entropy(mask).item() == 0.0


@pytest.mark.parametrize(("low", "high", "share"), [(0.1, 0.9, 0.0), (0.3, 0.7, 0.5)])
def test_the_limits_themselves_are_not_decided(low: float, high: float, share: float) -> None:
    mask = torch.tensor([0.1, 0.9, 0.3, 0.7], dtype=torch.float64)
    assert share_decided(mask, low, high).item() == share


def test_a_lower_temperature_is_sharper() -> None:
    logit = torch.logit(torch.full((20_000,), 0.4))
    noise = logistic_noise(logit.shape, logit, torch.Generator().manual_seed(0))
    warm, cool = (gumbel_mask(logit, noise, tau) for tau in (1.0, 0.5))
    assert share_decided(cool) > share_decided(warm) + 0.1
    assert mean_entropy(cool) < mean_entropy(warm) - 0.1
