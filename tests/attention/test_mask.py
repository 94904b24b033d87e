import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Gumbel, RelaxedBernoulli
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from sharpreid.attention.mask import (
    MaskParams,
    MaskSampler,
    gumbel_mask,
    keep_logit,
    keep_probability,
    logistic_noise,
    sample_mask,
    straight_through,
)

EPS = 1e-6
HUGE = torch.finfo(torch.float32).max / 4
DRAWS = 20_000
# Kolmogorov's 0.1 % point for one sample of DRAWS; the seeds are fixed, so this never flickers.
ONE_SAMPLE_KS = 1.95 / math.sqrt(DRAWS)
TWO_SAMPLE_KS = ONE_SAMPLE_KS * math.sqrt(2)

EXTREMES = {
    "span of max / 4": [0.0, HUGE, HUGE / 2, 1.0],
    "both signs of max / 4": [-HUGE, HUGE, 0.0, 1.0],
    "1e30": [-1e30, 0.0, 1e30, 2e30],
    "span of 1e-25": [0.0, 1e-25, 3e-26, 7e-26],
    "span of 1e-34": [0.0, 1e-34, 3e-35, 7e-35],
    "span of 1e-38": [0.0, 1e-38, 5e-39, 2e-39],
    "denormals": [0.0, 1e-45, 3e-45, 1e-44],
    "larger denormals": [0.0, 1e-40, 3e-40, 1e-39],
    "offset of 1e8": [1e8, 1e8 + 8, 1e8 + 16, 1e8 + 64],
    "offset of -1e8": [-1e8, -1e8 + 8, -1e8 + 16, -1e8 + 64],
    "one step of float32 above 1": [1.0, 1.0, 1.0, 1.0000001],
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct(*shape: int) -> Tensor:
    """Float64 values far enough apart that a numerical gradient never changes which one is the largest."""
    order = torch.randperm(math.prod(shape), generator=seeded()).double()
    return order.reshape(shape) / math.prod(shape)


def quadruple(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 2, 2)


def draw(pi: Tensor, tau: float, generator: torch.Generator | None = None) -> Tensor:
    """Return one mask of Eq. 5 by keep-probabilities."""
    logit = torch.logit(pi)
    return gumbel_mask(logit, logistic_noise(logit.shape, logit, generator), tau)


def ks_of_two(a: Tensor, b: Tensor) -> float:
    """Greatest distance between two empirical distribution functions."""
    points = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (a, b)]
    return (below[0] - below[1]).abs().max().item()


def relaxed_bernoulli_cdf(logits_of_mask: Tensor, pi: float, tau: float) -> Tensor:
    """Integral of torch's density of the mask's logit, by the trapezoid rule on a fine grid."""
    grid = torch.linspace(-80, 80, 160_001, dtype=torch.float64)
    target = LogitRelaxedBernoulli(
        torch.tensor(tau, dtype=torch.float64), probs=torch.tensor(pi, dtype=torch.float64)
    )
    cdf = torch.cumulative_trapezoid(target.log_prob(grid).exp(), grid)
    return cdf[torch.searchsorted(grid[1:-1], logits_of_mask)]


def ks_to_relaxed_bernoulli(mask: Tensor, pi: float, tau: float) -> float:
    ordered = torch.logit(mask.double()).sort().values
    ranks = torch.arange(1, len(ordered) + 1) / len(ordered)
    told_apart = ordered.abs() < 30  # beyond, float64 rounds the mask to 0 or 1
    return (relaxed_bernoulli_cdf(ordered, pi, tau) - ranks)[told_apart].abs().max().item()


class TestKeepProbability:
    def test_is_the_min_max_of_each_channel_by_hand(self) -> None:
        x = distinct(2, 3, 4, 5)
        pi = keep_probability(x, eps=0.0)
        for image in range(2):
            for channel in range(3):
                values = x[image, channel].flatten().tolist()
                low, high = min(values), max(values)
                expected = [(value - low) / (high - low) for value in values]
                assert pi[image, channel].flatten().tolist() == pytest.approx(expected, abs=1e-12)

    def test_does_not_change_when_a_channel_is_shifted_or_scaled_up(self) -> None:
        x = distinct(2, 3, 4, 5)
        moved = x * torch.tensor([3.0, 0.25, 70.0])[:, None, None] - 11
        torch.testing.assert_close(keep_probability(moved, EPS), keep_probability(x, EPS))

    def test_of_one_image_does_not_depend_on_its_batch(self) -> None:
        x = torch.randn(4, 3, 5, 6)
        assert torch.equal(keep_probability(x, EPS)[1:2], keep_probability(x[1:2], EPS))

    def test_stays_eps_away_from_0_and_1(self) -> None:
        pi = keep_probability(distinct(1, 2, 6, 6), eps=0.1)
        assert pi.min().item() == pytest.approx(0.1)
        assert pi.max().item() == pytest.approx(0.9)

    def test_passes_gradcheck(self) -> None:
        x = distinct(2, 2, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: keep_probability(x, eps=0.01), x)

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e30, 1e-45])
    def test_constant_channel_attends_nothing_and_passes_no_gradient(self, value: float) -> None:
        x = torch.full((2, 3, 4, 4), value, requires_grad=True)
        pi = keep_probability(x, EPS)
        (pi * torch.randn(pi.shape)).sum().backward()
        assert pi.detach() == pytest.approx(EPS)
        assert torch.equal(x.grad, torch.zeros_like(x))

    @pytest.mark.parametrize(
        ("dtype", "wanted"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_and_its_logit_are_at_least_float32(self, dtype: torch.dtype, wanted: torch.dtype) -> None:
        x = torch.randn(1, 2, 3, 3).to(dtype)
        assert keep_probability(x, EPS).dtype == wanted
        assert keep_logit(x, EPS).dtype == wanted

    @pytest.mark.parametrize("function", [keep_probability, keep_logit])
    @pytest.mark.parametrize(
        ("x", "eps", "message"),
        [
            (torch.zeros(3, 4, 4), EPS, r"x must be a float \(B, C, H, W\), got torch.float32 of shape \(3,"),
            (torch.zeros(1, 3, 4, 4, dtype=torch.int64), EPS, "got torch.int64"),
            (torch.zeros(1, 3, 4, 4), 0.5, r"eps must be in \[0, 0.5\), got 0.5"),
            (torch.zeros(1, 3, 4, 4), -0.1, "eps must be .*got -0.1"),
            (torch.zeros(1, 3, 4, 4), math.nan, "eps must be .*got nan"),
        ],
    )
    def test_and_its_logit_refuse_a_wrong_argument(
        self, function: Callable[[Tensor, float], Tensor], x: Tensor, eps: float, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            function(x, eps)


class TestKeepLogit:
    def test_is_the_logit_of_the_keep_probability(self) -> None:
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(keep_logit(x, EPS), torch.logit(keep_probability(x, EPS)))

    def test_is_the_logit_of_the_keep_probability_in_float32_away_from_the_ends(self) -> None:
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(keep_logit(x, 0.05), torch.logit(keep_probability(x, 0.05)))

    def test_has_the_gradient_of_the_logit_of_the_keep_probability(self) -> None:
        x, weights = distinct(2, 3, 4, 5).requires_grad_(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
        (one,) = torch.autograd.grad((keep_logit(x, EPS) * weights).sum(), x)
        (other,) = torch.autograd.grad((torch.logit(keep_probability(x, EPS)) * weights).sum(), x)
        torch.testing.assert_close(one, other)

    def test_of_the_negated_map_is_negated(self) -> None:
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(keep_logit(-x, EPS), -keep_logit(x, EPS))

    def test_near_the_maximum_is_as_exact_in_float32_as_the_input(self) -> None:
        x = 1 - torch.rand(1, 50, 16, 16) * 1e-4
        x[:, :, 0, 0], x[:, :, 0, 1] = -torch.rand(50), 1.0
        torch.testing.assert_close(
            keep_logit(x, EPS).double(), keep_logit(x.double(), EPS), atol=1e-4, rtol=0
        )

    def test_passes_gradcheck(self) -> None:
        x = distinct(2, 2, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: keep_logit(x, eps=0.01), x)

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e30, 1e-45])
    def test_constant_channel_gives_the_logit_of_eps_and_passes_no_gradient(self, value: float) -> None:
        x = torch.full((2, 3, 4, 4), value, requires_grad=True)
        logit = keep_logit(x, EPS)
        (logit * torch.randn(logit.shape)).sum().backward()
        assert logit.detach() == pytest.approx(math.log(EPS / (1 - EPS)), rel=1e-6)
        assert torch.equal(x.grad, torch.zeros_like(x))

    def test_constant_channel_leaves_its_neighbours_alone(self) -> None:
        x = torch.randn(1, 2, 4, 4)
        x[:, 0] = 0.0
        assert torch.equal(keep_logit(x, EPS)[:, 1:], keep_logit(x[:, 1:], EPS))

    def test_refuses_eps_0_because_the_logit_would_be_infinite(self) -> None:
        with pytest.raises(ValueError, match="eps must be > 0 for a finite logit, got 0"):
            keep_logit(torch.zeros(1, 1, 2, 2), eps=0.0)


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES.keys())
class TestExtremeInput:
    @pytest.mark.parametrize("function", [keep_probability, keep_logit])
    def test_gives_finite_values_and_gradients(
        self, function: Callable[[Tensor, float], Tensor], values: list[float]
    ) -> None:
        x = quadruple(values).requires_grad_()
        out = function(x, EPS)
        (out * quadruple([1.0, -2.0, 3.0, 5.0])).sum().backward()
        assert torch.isfinite(out).all()
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize("mask", ["sample", "straight_through", "noise_free"])
    def test_gives_a_training_mask_between_0_and_1_with_finite_gradients(
        self, mask: Any, values: list[float]
    ) -> None:
        sampler = MaskSampler(eps=EPS, train_mask=mask).train()
        sampler.set_temperature(0.5)
        x = quadruple(values).requires_grad_()
        out = sampler(x)
        out.sum().backward()
        assert ((out >= 0) & (out <= 1)).all()
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize("mode", ["noise_free", "expected", "hard", "sample"])
    def test_gives_a_mask_between_0_and_1_with_finite_gradients(self, mode: Any, values: list[float]) -> None:
        sampler = MaskSampler(eps=EPS, test_mask=mode).eval()
        sampler.set_temperature(0.5)
        x = quadruple(values).requires_grad_()
        mask = sampler(x)
        assert ((mask >= 0) & (mask <= 1)).all()
        if mask.requires_grad:
            mask.sum().backward()
            assert torch.isfinite(x.grad).all()


class TestNaN:
    """A broken network must not score as if it attended nothing."""

    @pytest.mark.parametrize("function", [keep_probability, keep_logit])
    def test_spreads_over_its_channel_alone(self, function: Callable[[Tensor, float], Tensor]) -> None:
        x = torch.randn(2, 3, 4, 4, generator=seeded())
        x[1, 2, 0, 0] = torch.nan
        broken = function(x, EPS).isnan()
        assert broken[1, 2].all()
        assert broken.sum() == 16

    @pytest.mark.parametrize("mode", ["noise_free", "expected", "hard", "sample"])
    def test_reaches_the_mask(self, mode: Any) -> None:
        x = torch.full((1, 1, 2, 2), torch.nan)
        assert MaskSampler(eps=EPS, test_mask=mode).eval()(x).isnan().all()
        assert MaskSampler(eps=EPS).train()(x).isnan().all()


class TestTrainMask:
    def masks(self, **options: Any) -> tuple[Tensor, Tensor]:
        """Mask and gradient of the same draw."""
        x = torch.randn(2, 3, 8, 4, generator=seeded()).requires_grad_()
        sampler = MaskSampler(eps=EPS, **options).train()
        sampler.set_temperature(0.7)
        mask = sampler(x, noise_seed=7)
        (mask * torch.arange(mask.numel()).view_as(mask)).sum().backward()
        assert x.grad is not None
        return mask.detach(), x.grad

    def test_straight_through_is_eq_4s_sample_with_eq_5s_gradient(self) -> None:
        (soft, of_soft), (hard, of_hard) = self.masks(), self.masks(train_mask="straight_through")
        assert torch.equal(hard, (soft > 0.5).float())
        assert torch.equal(of_hard, of_soft)
        assert 0 < hard.mean() < 1

    def test_noise_free_is_what_the_default_does_in_evaluation(self) -> None:
        x = torch.randn(2, 3, 8, 4, generator=seeded())
        sampler = MaskSampler(eps=EPS, train_mask="noise_free").train()
        sampler.set_temperature(0.7)
        assert torch.equal(sampler(x), sampler.eval()(x))

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match="train_mask must be one of sample, straight_through, noise_free"
        ):
            MaskSampler(eps=EPS, train_mask="hard")  # type: ignore[arg-type]


class TestGumbelMask:
    @pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 3.0])
    @pytest.mark.parametrize("pi", [0.05, 0.5, 0.9])
    def test_has_the_relaxed_bernoulli_distribution(self, pi: float, tau: float) -> None:
        mask = draw(torch.full((DRAWS,), pi, dtype=torch.float64), tau, seeded())
        assert ks_to_relaxed_bernoulli(mask, pi, tau) < ONE_SAMPLE_KS

    def test_is_told_apart_from_the_distribution_of_another_temperature(self) -> None:
        mask = draw(torch.full((DRAWS,), 0.3, dtype=torch.float64), 1.0, seeded())
        assert ks_to_relaxed_bernoulli(mask, 0.3, 0.8) > 2 * ONE_SAMPLE_KS
        assert ks_to_relaxed_bernoulli(mask, 0.35, 1.0) > 2 * ONE_SAMPLE_KS

    def test_has_the_quantiles_of_torchs_relaxed_bernoulli(self) -> None:
        levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        mask = draw(torch.full((DRAWS,), 0.4), 0.7, seeded())
        drawn = RelaxedBernoulli(torch.tensor(0.7), probs=torch.tensor(0.4)).sample((DRAWS,))
        torch.testing.assert_close(mask.quantile(levels), drawn.quantile(levels), atol=0.02, rtol=0)

    @pytest.mark.parametrize("tau", [0.5, 1.0])
    def test_has_the_distribution_of_the_printed_softmax_of_two_gumbel_draws(self, tau: float) -> None:
        pi = torch.tensor(0.3)
        kept, dropped = Gumbel(0.0, 1.0).sample((2, DRAWS))
        printed = torch.stack([(pi.log() + kept) / tau, ((1 - pi).log() + dropped) / tau]).softmax(0)[0]
        mask = draw(pi.expand(DRAWS), tau, seeded())
        assert ks_of_two(mask, printed) < TWO_SAMPLE_KS

    @pytest.mark.parametrize("tau", [0.05, 0.5, 1.0, 5.0])
    def test_is_above_one_half_with_the_keep_probability_at_every_temperature(self, tau: float) -> None:
        pi = torch.tensor([0.01, 0.2, 0.5, 0.7, 0.99])
        mask = draw(pi.expand(DRAWS, 5), tau, seeded())
        standard_error = (pi * (1 - pi) / DRAWS).sqrt()
        assert (((mask > 0.5).float().mean(0) - pi).abs() < 4 * standard_error).all()

    def test_mean_is_not_the_keep_probability(self) -> None:
        mask = draw(torch.full((DRAWS,), 0.1), 3.0, seeded())
        assert mask.mean().item() > 0.3

    def test_nears_0_and_1_as_the_temperature_falls(self) -> None:
        mask = draw(torch.full((DRAWS,), 0.5), 0.01, seeded())
        assert ((mask < 0.01) | (mask > 0.99)).float().mean().item() > 0.95

    def test_passes_gradcheck_with_fixed_noise(self) -> None:
        pi = (0.05 + 0.9 * distinct(2, 2, 3, 3)).requires_grad_()
        assert torch.autograd.gradcheck(lambda pi: draw(pi, 0.7, seeded()), pi)

    def test_is_the_generators_alone(self) -> None:
        pi = torch.full((2, 3, 4, 4), 0.5)
        before = torch.get_rng_state()
        first = draw(pi, 1.0, seeded(7))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(first, draw(pi, 1.0, seeded(7)))
        assert not torch.equal(first, draw(pi, 1.0, seeded(8)))

    def test_of_certain_keep_probabilities_is_certain(self) -> None:
        assert draw(torch.tensor([0.0, 1.0]), 0.5, seeded()).tolist() == [0.0, 1.0]

    def test_of_bfloat16_is_float32(self) -> None:
        assert gumbel_mask(torch.zeros(4, dtype=torch.bfloat16), 0.0, 1.0).dtype == torch.float32

    @pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
    def test_refuses_a_temperature_that_is_not_positive(self, tau: float) -> None:
        with pytest.raises(ValueError, match=f"tau must be > 0, got {tau}"):
            draw(torch.full((1,), 0.5), tau)

    @pytest.mark.parametrize("drawn", [0.0, 1.0])
    def test_noise_is_finite_even_when_the_uniform_draw_is_0_or_1(
        self, drawn: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, drawn))
        assert torch.isfinite(logistic_noise(torch.Size([2]), torch.empty(()))).all()


class TestMaskSampler:
    @pytest.mark.parametrize("train_mask", ["sample", "straight_through", "noise_free"])
    def test_in_training_is_eq_3_to_5_one_after_the_other(self, train_mask: Any) -> None:
        x = torch.randn(2, 3, 5, 4)
        sampler = MaskSampler(eps=EPS, train_mask=train_mask)
        sampler.set_temperature(0.7)
        noise = MaskParams(sampler.tau, EPS, 5, 3, False).draw_noise(x)
        assert noise.shape == x.shape
        wanted = gumbel_mask(keep_logit(x, EPS), 0.0 if train_mask == "noise_free" else noise, 0.7)
        wanted = straight_through(wanted) if train_mask == "straight_through" else wanted
        found = sampler(x, noise_seed=5, first_image=3)
        torch.testing.assert_close(found, wanted)
        params = sampler.mask_params(5, 3)
        assert torch.equal(found, sample_mask(x, params.draw_noise(x), params))

    def test_in_training_is_above_one_half_with_the_keep_probability(self) -> None:
        ramp = torch.linspace(0, 1, 5).reshape(1, 1, 1, 5).expand(DRAWS, 1, 1, 5)
        kept = (MaskSampler(eps=EPS)(ramp) > 0.5).float().mean(0).flatten()
        torch.testing.assert_close(kept, torch.linspace(0, 1, 5), atol=0.015, rtol=0)

    def test_in_training_draws_the_relaxed_bernoulli_at_its_temperature(self) -> None:
        sampler = MaskSampler(eps=EPS)
        sampler.set_temperature(0.6)
        x = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3).expand(DRAWS, 1, 1, 3)
        assert ks_to_relaxed_bernoulli(sampler(x)[..., 1].flatten(), 0.3, 0.6) < ONE_SAMPLE_KS

    def test_in_training_draws_anew_for_every_call_and_image(self) -> None:
        sampler, x = MaskSampler(eps=EPS), torch.randn(1, 2, 6, 6).repeat(2, 1, 1, 1)
        mask = sampler(x)
        assert not torch.equal(mask[0], mask[1])
        assert not torch.equal(mask, sampler(x))

    def test_in_training_passes_gradcheck_with_fixed_noise(self) -> None:
        sampler = MaskSampler(eps=0.01)
        sampler.set_temperature(0.7)

        def mask(x: Tensor) -> Tensor:
            torch.manual_seed(3)
            return sampler(x)

        assert torch.autograd.gradcheck(mask, distinct(2, 2, 3, 4).requires_grad_())

    @pytest.mark.parametrize("tau", [0.5, 1.0])
    def test_noise_free_mask_is_the_softmax_of_eq_5_without_noise(self, tau: float) -> None:
        sampler = MaskSampler(eps=EPS, test_mask="noise_free").eval()
        sampler.set_temperature(tau)
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        pi = keep_probability(x, EPS)
        powered, complement = pi ** (1 / tau), (1 - pi) ** (1 / tau)
        torch.testing.assert_close(sampler(x), powered / (powered + complement))

    def test_expected_mask_is_the_keep_probability(self) -> None:
        x = torch.randn(2, 3, 5, 5)
        assert torch.equal(MaskSampler(eps=EPS, test_mask="expected").eval()(x), keep_probability(x, EPS))

    def test_hard_mask_is_1_in_the_upper_half_of_the_channels_range_and_else_0(self) -> None:
        x = quadruple([0.0, 4.0, 1.9, 2.1])
        assert MaskSampler(eps=EPS, test_mask="hard").eval()(x).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]

    def test_hard_mask_is_0_or_1_and_what_the_keep_probability_says(self) -> None:
        x = torch.randn(2, 3, 9, 9)
        mask = MaskSampler(eps=EPS, test_mask="hard").eval()(x)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(mask, (keep_probability(x, EPS) > 0.5).float())

    def per_view(self, views: int, x: Tensor, **options: Any) -> Tensor:
        """Return test masks with other noise for each view of an image."""
        made = MaskSampler(eps=EPS, test_mask="sample", draws=2, **{"sample_noise": "per_view", **options})
        return made.eval()(x, views=views)

    def test_views_share_their_noise_or_each_has_its_own(self) -> None:
        x = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1, 1)
        one, other, *_ = shared = self.per_view(3, x, sample_noise="shared")
        assert torch.equal(one, other)
        assert torch.equal(shared, MaskSampler(eps=EPS, test_mask="sample", draws=2).eval()(x))
        of_views = self.per_view(3, x)
        assert len({tuple(view.flatten().tolist()) for view in of_views[:3]}) == 3
        assert torch.equal(of_views[:3], of_views[3:])  # the second image's

    def test_noise_of_a_view_is_a_function_of_its_number_alone(self) -> None:
        x = torch.randn(4, 2, 6, 4, generator=torch.Generator().manual_seed(0))
        whole = self.per_view(2, x)
        assert torch.equal(self.per_view(2, x), whole)
        assert torch.equal(self.per_view(2, x[2:]), whole[2:])
        assert torch.equal(self.per_view(1, x[::2]), whole[::2])
        assert torch.equal(self.per_view(4, x)[:2], whole[:2])
        assert not torch.equal(self.per_view(2, x, seed=1), whole)

    def test_sampled_mask_nears_the_mean_of_the_relaxed_bernoulli(self) -> None:
        sampler = MaskSampler(eps=EPS, test_mask="sample", draws=4000).eval()
        sampler.set_temperature(0.6)
        mask = sampler(torch.tensor([0.0, 0.2, 0.7, 1.0]).reshape(1, 1, 1, 4)).flatten()[1:3]
        drawn = RelaxedBernoulli(torch.tensor(0.6), probs=torch.tensor([0.2, 0.7])).sample((DRAWS,))
        torch.testing.assert_close(mask, drawn.mean(0), atol=0.02, rtol=0)

    @pytest.mark.parametrize("mode", ["noise_free", "expected", "hard", "sample"])
    def test_at_test_gives_the_same_mask_twice_and_leaves_the_global_noise_alone(self, mode: Any) -> None:
        sampler, x = MaskSampler(eps=EPS, test_mask=mode).eval(), torch.randn(2, 3, 5, 5)
        before = torch.get_rng_state()
        assert torch.equal(sampler(x), sampler(x))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("mode", ["noise_free", "expected", "hard", "sample"])
    def test_at_test_an_images_mask_depends_neither_on_its_batch_nor_on_its_neighbours(
        self, mode: Any
    ) -> None:
        sampler, x = MaskSampler(eps=EPS, test_mask=mode).eval(), torch.randn(5, 3, 5, 5)
        batch = sampler(x)
        torch.testing.assert_close(batch[3:4], sampler(x[3:4]))
        torch.testing.assert_close(batch[3], sampler(torch.stack([x[3], -x[0]]))[0])

    def test_sampled_mask_depends_on_the_seed_and_the_number_of_draws(self) -> None:
        x = torch.randn(1, 2, 5, 5)
        masks = [
            MaskSampler(eps=EPS, test_mask="sample", draws=draws, seed=seed).eval()(x)
            for draws, seed in ((1, 0), (1, 1), (2, 0))
        ]
        assert not torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[0], masks[2])

    def test_temperature_travels_with_the_state_dict(self) -> None:
        trained, fresh = MaskSampler(eps=EPS).eval(), MaskSampler(eps=EPS).eval()
        trained.set_temperature(0.53)
        x = torch.randn(1, 2, 4, 4)
        assert not torch.equal(trained(x), fresh(x))
        fresh.load_state_dict(trained.state_dict())
        assert fresh.tau.item() == pytest.approx(0.53)
        assert torch.equal(trained(x), fresh(x))

    def test_starts_at_temperature_1_and_has_nothing_to_learn(self) -> None:
        sampler = MaskSampler(eps=EPS)
        assert sampler.tau.item() == 1.0
        assert not list(sampler.parameters())

    @pytest.mark.parametrize("mode", ["train", "noise_free", "expected", "hard", "sample"])
    def test_under_autocast_is_float32_and_equals_the_mask_without_it(self, mode: Any) -> None:
        sampler = MaskSampler(eps=EPS, test_mask="noise_free" if mode == "train" else mode)
        sampler.train(mode == "train")
        x = torch.randn(2, 3, 6, 6).bfloat16().requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mask = sampler(x)
        torch.manual_seed(1)
        assert torch.equal(mask, sampler(x.float()))
        assert mask.dtype == torch.float32
        assert torch.isfinite(mask).all()
        if mask.requires_grad:
            mask.sum().backward()
            assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize("tau", [0.0, -0.5, math.nan])
    def test_refuses_a_temperature_that_is_not_positive_and_keeps_its_own(self, tau: float) -> None:
        sampler = MaskSampler(eps=EPS)
        with pytest.raises(ValueError, match=f"tau must be > 0, got {tau}"):
            sampler.set_temperature(tau)
        assert sampler.tau.item() == 1.0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"eps": 0.0}, r"eps must be in \(0, 0.5\), got 0.0"),
            ({"eps": 0.5}, r"eps must be in \(0, 0.5\), got 0.5"),
            (
                {"eps": EPS, "test_mask": "median"},
                "one of noise_free, expected, mean, hard, sample; got 'median'",
            ),
            ({"eps": EPS, "draws": 0}, "draws must be at least 1, got 0"),
        ],
    )
    def test_refuses_an_argument_out_of_range(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MaskSampler(**arguments)

    def test_names_its_mode_when_printed(self) -> None:
        assert "test_mask=hard" in repr(MaskSampler(eps=EPS, test_mask="hard"))


def test_the_mean_mask_of_the_test_is_the_mean_of_many_draws() -> None:
    x = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, draws = (MaskSampler(eps=EPS, test_mask=mask, draws=4000).eval() for mask in ("mean", "sample"))
    for sampler in (mean, draws):
        sampler.set_temperature(0.5)
    torch.testing.assert_close(mean(x), draws(x), rtol=0, atol=0.03)
    assert not torch.allclose(mean(x), MaskSampler(eps=EPS).eval()(x), atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": "expected", "train_mask": "noise_free"}, "take gradient=whole"),
        ({"sample_noise": "per_view", "seed": -1}, "seed must be >= 0 with sample_noise=per_view, got -1"),
        ({"gradient": "half"}, "gradient must be one of whole, .*, none; got 'half'"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSampler(eps=EPS, **arguments)
