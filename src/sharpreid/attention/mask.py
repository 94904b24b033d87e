"""The mask generator: adaptive sampling of activations (paper Sec. III-A, Eq. 3-5).

All arithmetic is float32 (float64 input stays float64), also under autocast: in bfloat16
``1 - 1e-6`` is 1, and the logit of Eq. 5 loses half a unit.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sharpreid.attention.expectation import interpolated_mean
from sharpreid.attention.noise import uniform_noise

TestMask = Literal["noise_free", "expected", "mean", "hard", "sample"]
TrainMask = Literal["sample", "straight_through", "noise_free"]
SampleNoise = Literal["shared", "per_view"]
Implementation = Literal["eager", "recompute", "compile", "triton"]
MaskGradient = Literal["whole", "range_detached", "straight_through_pi", "clipped", "expected"]
Gradient = Literal[MaskGradient, "none"]

CLIP = 0.01
"""``clipped`` passes no gradient where pi is nearer than this to 0 or 1."""


class Recipe(NamedTuple):
    """What a mask is made by in training, beside its input."""

    tau: Tensor
    """Of Eq. 5, scalar, > 0."""
    eps: float
    """See `keep_logit`."""
    seed: int | None
    """Of the noise; None leaves it out."""
    first: int
    """Place of the first image in the global batch: noise is a function of seed and place."""
    hard: bool
    """Whether the mask is rounded to 0 or 1, with the gradient of Eq. 5."""
    gradient: MaskGradient = "whole"
    """What flows back through the mask; see `MaskSampler`."""
    noise_scale: float = 1.0
    """Factor on the noise, > 0."""

    def noise(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor | float:
        """Logistic draws (g1 - g0 of Eq. 5) of a batch of ``shape``, times the scale; 0 without noise."""
        if self.seed is None:
            return 0.0
        noise = torch.logit(uniform_noise(shape, self.seed, dtype, device, first=self.first))
        return noise if self.noise_scale == 1 else noise * self.noise_scale


def keep_probability(x: Tensor, eps: float) -> Tensor:
    """Keep-probability of each activation (Eq. 3): min-max over space, per sample and channel.

    Args:
        x: mask-branch input, float, (B, C, H, W), unitless activations.
        eps: distance kept from 0 and 1, so that log(pi) in Eq. 5 is finite; in [0, 0.5). Not the paper's.

    Returns:
        pi, shape of ``x``, float32 (float64 for float64 input), in [eps, 1 - eps]. A constant channel
        (max - min < 1e-19, e.g. dead ReLU), where Eq. 3 is 0/0, gives eps: nothing attended.

    Raises:
        ValueError: ``x`` is not 4-D and floating, or ``eps`` is out of range.

    >>> keep_probability(torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]), eps=0.0).flatten().tolist()
    [0.0, 0.25, 0.5, 1.0]
    """
    x = _checked(x, eps)
    low, high, constant = _range_over_space(x)
    unit = torch.where(constant, 1.0, high - low)
    return (torch.where(constant, 0.0, x - low) / unit).clamp(eps, 1 - eps)


def keep_logit(x: Tensor, eps: float, *, range_gradient: bool = True) -> Tensor:
    """logit(pi) of Eq. 3's keep-probability, as log(x - min) - log(max - x).

    Near pi = 1 the difference ``max - x`` is exact where ``1 - pi`` has lost its digits. Arguments as
    `keep_probability`, with eps in (0, 0.5); a constant channel gives logit(eps) and no gradient. Without
    ``range_gradient`` minimum and maximum count as constants in the gradient.

    Returns:
        logit(pi), shape of ``x``, float32 or float64, in [logit(eps), logit(1 - eps)].

    Raises:
        ValueError: ``x`` is not 4-D and floating, or ``eps`` is out of range.

    >>> logit = keep_logit(torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]), eps=1e-6).flatten()
    >>> [round(value, 3) for value in logit.tolist()]  # the second is log(1 / 3)
    [-13.816, -1.099, 0.0, 13.816]
    """
    if eps <= 0:
        raise ValueError(f"eps must be > 0 for a finite logit, got {eps}")
    x = _checked(x, eps)
    low, high, constant = _range_over_space(x if range_gradient else x.detach())
    unit = torch.where(constant, 1.0, high - low)
    above = torch.where(constant, 0.0, x - low)
    below = torch.where(constant, 1.0, high - x)
    nearest, farthest = eps * unit, (1 - eps) * unit
    return torch.log(_between(above, nearest, farthest)) - torch.log(_between(below, nearest, farthest))


def gumbel_mask(pi: Tensor, tau: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Relaxed Bernoulli mask (Eq. 5), one draw per activation.

    The two-class softmax of Eq. 5 equals sigmoid((logit(pi) + g1 - g0) / tau), and the difference of two
    Gumbel draws is one logistic draw: the same distribution at half the noise. P(mask > 0.5) = pi at
    every tau; the *mean* of the mask is not pi.

    Args:
        pi: keep-probabilities (Eq. 3), float, any shape, in (0, 1).
        tau: softmax temperature, > 0, unitless.
        generator: source of the noise; None takes torch's global one.

    Returns:
        Mask, shape of ``pi``, float32 or float64, in [0, 1].

    Raises:
        ValueError: ``tau`` <= 0.

    >>> generator = torch.Generator().manual_seed(0)
    >>> masks = gumbel_mask(torch.full((20_000,), 0.3), tau=0.5, generator=generator)
    >>> round((masks > 0.5).float().mean().item(), 2)
    0.3
    """
    _check_temperature(tau)
    pi = _at_least_float32(pi)
    return relaxed_mask(torch.logit(pi), logistic_noise(pi.shape, pi, generator), tau)


def relaxed_mask(logit: Tensor, noise: Tensor | float, tau: float | Tensor) -> Tensor:
    """Eq. 5 for given noise: sigmoid((logit(pi) + g1 - g0) / tau), in [0, 1]."""
    return torch.sigmoid((logit + noise) / tau)


def mask_by(x: Tensor, recipe: Recipe, noise: Tensor | float) -> Tensor:
    """Eq. 3-5 of ``x``, (B, C, H, W), for given noise, with the gradient that the recipe asks for.

    The values do not depend on ``recipe.gradient``. Returns float32 (float64 for float64 input), in [0, 1].
    """
    gradient = recipe.gradient
    logit = keep_logit(x, recipe.eps, range_gradient=gradient != "range_detached")
    if gradient == "clipped":
        inside = logit.detach().abs() < -math.log(CLIP / (1 - CLIP))
        logit = torch.where(inside, logit, logit.detach())
    mask = relaxed_mask(logit, noise, recipe.tau)
    if gradient == "straight_through_pi":
        mask = _with_gradient_of(keep_probability(x, recipe.eps), mask)
    elif gradient == "expected":
        mask = _with_gradient_of(interpolated_mean(logit, float(recipe.tau)), mask)
    return straight_through(mask) if recipe.hard else mask


def _with_gradient_of(source: Tensor, value: Tensor) -> Tensor:
    return value.detach() + (source - source.detach())


def logistic_noise(shape: torch.Size, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Finite Logistic(0, 1) draws (g1 - g0 of Eq. 5) of ``shape``, with dtype and device of ``like``."""
    u = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    limits = torch.finfo(like.dtype)
    return torch.logit(u.clamp(limits.tiny, 1 - limits.eps))


def straight_through(mask: Tensor) -> Tensor:
    """A relaxed mask rounded to 0 or 1 (Eq. 4) that passes its gradient on unchanged.

    >>> straight_through(torch.tensor([0.2, 0.5, 0.7])).tolist()
    [0.0, 0.0, 1.0]
    """
    return (mask > 0.5).to(mask.dtype) + (mask - mask.detach())


class MaskSampler(nn.Module):
    """Soft mask of an activation map: Eq. 3-5 with a temperature that the training loop sets.

    In training mode ``train_mask`` is

    - ``sample``: one draw of Eq. 5, the paper's;
    - ``straight_through``: that draw rounded to 0 or 1, which is Eq. 4's, with the gradient of Eq. 5;
    - ``noise_free``: Eq. 5 without noise at the current tau.

    The paper does not specify the gradient through the mask ("the error signals can be backpropagated
    directly through the sampled A", Sec. III). The gradient through the product of Eq. 1 is never touched;
    of that through the mask, dM/dx = dM/dpi * dpi/dx, ``gradient`` passes on

    - ``whole``: all of it. The variance of dM/dpi = M (1 - M) / (tau pi (1 - pi)) over the noise has no bound
      as pi goes to 0;
    - ``range_detached``: all but the part through the minimum and maximum of Eq. 3;
    - ``none``: nothing: a `SharpAttentionBlock` gives its mask branch a detached input. A context-aware unit,
      which comes after that cut, still learns by the whole gradient;
    - ``straight_through_pi``: dM/dpi replaced by 1;
    - ``clipped``: all, but 0 where pi is below 0.01 or above 0.99;
    - ``expected``: dM/dpi replaced by its mean over the whole noise of Eq. 5. Not with a factor on the noise.

    ``straight_through_pi``, ``clipped`` and ``expected`` bound the variance; their gradient is not that of
    the drawn mask.

    In evaluation mode the paper is silent; ``test_mask``:

    - ``noise_free``: Eq. 5 without noise at the current tau;
    - ``expected``: pi itself;
    - ``mean``: the mean of Eq. 5 over its noise, exact to 1e-6;
    - ``hard``: 1 where pi > 0.5, else 0;
    - ``sample``: the average of ``draws`` seeded draws. The noise has shape (1, C, H, W), or with
      ``sample_noise=per_view`` (V, C, H, W) for the ``views`` of an image, so the result of an image depends
      neither on its batch nor on earlier calls.

    Args:
        eps: see `keep_logit`; in (0, 0.5).
        train_mask: the mask in training mode.
        gradient: what flows back through it.
        test_mask: the mask in evaluation mode.
        draws: number of draws of ``sample``, >= 1.
        seed: seed of ``sample``; >= 0 with ``per_view``.
        sample_noise: noise of ``sample``: ``shared`` by all views of an image, or ``per_view``, each view's
            own, which the mean over the views then averages too. All images have the same.
        implementation: how a `SharpAttentionBlock` computes Eq. 1-5 in training mode; see
            `sharpreid.attention.fused.attend`.

    Raises:
        ValueError: an argument is out of range.
    """

    tau: Tensor

    def __init__(
        self,
        *,
        eps: float,
        train_mask: TrainMask = "sample",
        gradient: Gradient = "whole",
        test_mask: TestMask = "noise_free",
        draws: int = 8,
        seed: int = 0,
        sample_noise: SampleNoise = "shared",
        implementation: Implementation = "eager",
    ) -> None:
        super().__init__()
        if not 0 < eps < 0.5:
            raise ValueError(f"eps must be in (0, 0.5), got {eps}")
        for name, value, known in (
            ("train_mask", train_mask, TrainMask),
            ("gradient", gradient, Gradient),
            ("test_mask", test_mask, TestMask),
            ("sample_noise", sample_noise, SampleNoise),
            ("implementation", implementation, Implementation),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}; got {value!r}")
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        if sample_noise == "per_view" and seed < 0:
            raise ValueError(f"seed must be >= 0 with sample_noise=per_view, got {seed}")
        if gradient == "expected" and train_mask == "noise_free":
            raise ValueError(
                "gradient=expected is a mean over noise, and train_mask=noise_free draws none; take "
                "gradient=whole, which has no spread then"
            )
        self.eps = eps
        self.train_mask: TrainMask = train_mask
        self.gradient: Gradient = gradient
        self.test_mask: TestMask = test_mask
        self.draws = draws
        self.seed = seed
        self.sample_noise: SampleNoise = sample_noise
        self.views = 1
        """Views of each image in the next batch in evaluation mode; those of one follow one another."""
        self.implementation: Implementation = implementation
        self.noise_seed: int | None = None
        """Seed of the next draws in training mode; None takes one from torch's global generator."""
        self.noise_first = 0
        """Place of the batch's first image in the global batch."""
        self.noise_scale = 1.0
        """Factor on the noise of the next draws in training mode."""
        self.register_buffer("tau", torch.tensor(1.0))

    def set_temperature(self, tau: float) -> None:
        """Set tau of Eq. 5 (unitless, > 0); ValueError otherwise."""
        _check_temperature(tau)
        self.tau.fill_(tau)

    def forward(self, x: Tensor) -> Tensor:
        """Mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1]."""
        if self.training:
            return self.drawn(x, self.recipe())
        with torch.autocast(x.device.type, enabled=False):
            if self.test_mask == "expected":
                return keep_probability(x, self.eps)
            logit = keep_logit(x, self.eps)
            if self.test_mask == "mean":
                return interpolated_mean(logit, float(self.tau))
            if self.test_mask == "hard":
                return torch.where(logit.isnan(), logit, (logit > 0).to(logit.dtype))
            if self.test_mask == "noise_free":
                return relaxed_mask(logit, 0.0, self.tau)
            return self._averaged_draws(logit)

    def recipe(self) -> Recipe:
        """Of the next mask in training mode."""
        seed = None
        if self.train_mask != "noise_free" and self.noise_scale > 0:
            seed = int(torch.randint(2**62, ())) if self.noise_seed is None else self.noise_seed
        return Recipe(
            tau=self.tau,
            eps=self.eps,
            seed=seed,
            first=self.noise_first,
            hard=self.train_mask == "straight_through",
            gradient="whole" if self.gradient == "none" else self.gradient,  # its cut is the block's
            noise_scale=self.noise_scale,
        )

    def drawn(self, x: Tensor, recipe: Recipe) -> Tensor:
        """Mask of ``x`` (B, C, H, W) in training mode, same shape, float32 or float64, in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            x = _at_least_float32(x)
            return mask_by(x, recipe, recipe.noise(x.shape, x.dtype, x.device))

    def extra_repr(self) -> str:
        masks = f"train_mask={self.train_mask}, gradient={self.gradient}, test_mask={self.test_mask}"
        return f"eps={self.eps}, {masks}"

    def _averaged_draws(self, logit: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in self._seeds()]
        by_view = logit.view(-1, len(generators), *logit.shape[1:])
        total = torch.zeros_like(by_view)
        for _ in range(self.draws):
            like = torch.empty((), dtype=logit.dtype)
            noise = torch.stack([logistic_noise(logit.shape[1:], like, one) for one in generators])
            total += relaxed_mask(by_view, noise.to(logit.device), self.tau)
        return total.flatten(0, 1) / self.draws

    def _seeds(self) -> list[int]:
        """Seed of each view's draws, or one for all views; a view's is a function of its number alone."""
        if self.sample_noise == "shared":
            return [self.seed]
        sequences = (np.random.SeedSequence((self.seed, view)) for view in range(self.views))
        return [int(sequence.generate_state(1, np.uint64)[0]) for sequence in sequences]


def _checked(x: Tensor, eps: float) -> Tensor:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be a float (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps must be in [0, 0.5), got {eps}")
    return _at_least_float32(x)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _range_over_space(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum and maximum of each channel and whether it is constant, (B, C, 1, 1) each.

    Constant is a channel whose range is below the root of the smallest normal number (1e-19 in float32):
    dividing by less overflows in the gradients of Eq. 3 and 5. One with a NaN is not: it must not be hidden.
    """
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return low, high, high - low < torch.finfo(x.dtype).tiny ** 0.5


def _between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def _check_temperature(tau: float | Tensor) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {float(tau)}")
