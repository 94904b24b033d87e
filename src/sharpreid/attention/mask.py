"""The mask generator: adaptive sampling of activations (paper Sec. III-A, Eq. 3-5).

These functions are the reference: each equation is defined here once, in tensor operations. By default
training uses `sharpreid.attention.fused` instead, which derives the same values and gradients without
storing a mask; ``implementation`` in conf/model/sampler/sharp.yaml selects the code.

All arithmetic is float32 (float64 for float64 input), also under autocast: in bfloat16 ``1 - 1e-6`` is 1, and
the logit of Eq. 5 has an error of half a unit.
"""

import math
from collections.abc import Iterable, Iterator
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
"""Distance of pi from 0 or 1 below which ``gradient=clipped`` passes no gradient."""


class MaskParams(NamedTuple):
    """Parameters of a training mask."""

    tau: Tensor
    """Temperature of Eq. 5, scalar, > 0, unitless."""
    eps: float
    """Distance that pi keeps from 0 and 1; see `keep_probability`."""
    seed: int | None
    """Seed of the noise, >= 0; None for a mask without noise."""
    first_image: int
    """Index of the batch's first image in the global batch. The noise depends on the seed and this index."""
    hard: bool
    """Whether the mask is rounded to 0 or 1; see `straight_through`."""
    gradient: MaskGradient = "whole"
    """Gradient that flows back through the mask; see `MaskSampler`."""
    noise_scale: float = 1.0
    """Factor on the noise, > 0; the paper's is 1."""

    def draw_noise(self, x: Tensor) -> Tensor | float:
        """Draw the scaled noise g1 - g0 of Eq. 5 for a mask of ``x`` (B, C, H, W); 0 without a seed.

        The noise has the shape and device of ``x``, and is float32 (float64 for float64 input).
        """
        if self.seed is None:
            return 0.0
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        noise = torch.logit(uniform_noise(x.shape, self.seed, dtype, x.device, first_image=self.first_image))
        return noise if self.noise_scale == 1 else noise * self.noise_scale


def keep_probability(x: Tensor, eps: float) -> Tensor:
    """Return the keep-probability of each activation (Eq. 3): min-max over space, per image and channel.

    Args:
        x: input of the mask branch, float, (B, C, H, W), unitless activations.
        eps: distance kept from 0 and 1, so that log(pi) in Eq. 5 is finite; in [0, 0.5). Not the paper's.

    Returns:
        pi, shape of ``x``, float32 (float64 for float64 input), in [eps, 1 - eps]. A constant channel
        (max - min < 1e-19, e.g. a dead ReLU), where Eq. 3 is 0/0, gives eps: nothing is attended.

    Raises:
        ValueError: ``x`` is not 4-D and floating, or ``eps`` is out of range.

    >>> keep_probability(torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]), eps=0.0).flatten().tolist()
    [0.0, 0.25, 0.5, 1.0]
    """
    above, _, span = _distances_to_extremes(x, eps)
    return (above / span).clamp(eps, 1 - eps)


def keep_logit(x: Tensor, eps: float, *, range_gradient: bool = True) -> Tensor:
    """Return logit(pi) of `keep_probability`, computed as log(x - min) - log(max - x).

    Near pi = 1 the difference ``max - x`` is exact where ``1 - pi`` has lost its digits.

    Args:
        x: input of the mask branch, float, (B, C, H, W), unitless activations.
        eps: distance of pi from 0 and 1, in (0, 0.5).
        range_gradient: False treats minimum and maximum as constants in the gradient.

    Returns:
        logit(pi), shape of ``x``, float32 or float64, in [logit(eps), logit(1 - eps)]. A constant channel
        gives logit(eps) and no gradient.

    Raises:
        ValueError: ``x`` is not 4-D and floating, or ``eps`` is out of range.

    >>> logit = keep_logit(torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]]), eps=1e-6).flatten()
    >>> [round(value, 3) for value in logit.tolist()]  # the second is log(1 / 3)
    [-13.816, -1.099, 0.0, 13.816]
    """
    if eps <= 0:
        raise ValueError(f"eps must be > 0 for a finite logit, got {eps}")
    above, below, span = _distances_to_extremes(x, eps, range_gradient=range_gradient)
    nearest, farthest = eps * span, (1 - eps) * span
    return torch.log(_clamp(above, nearest, farthest)) - torch.log(_clamp(below, nearest, farthest))


def gumbel_mask(logit: Tensor, noise: Tensor | float, tau: float | Tensor) -> Tensor:
    """Return the relaxed Bernoulli mask (Eq. 5) for a given noise.

    The two-class softmax of Eq. 5 equals sigmoid((logit(pi) + g1 - g0) / tau), and the difference of two
    Gumbel draws is one logistic draw: the same distribution with half the noise. P(mask > 0.5) = pi at every
    tau, but the *mean* of the mask is not pi.

    Args:
        logit: logit(pi), float, any shape; see `keep_logit`.
        noise: g1 - g0, broadcastable to ``logit``; see `logistic_noise`. 0 gives the mask without noise.
        tau: softmax temperature, > 0, unitless.

    Returns:
        Mask, shape of ``logit``, float32 or float64, in [0, 1].

    Raises:
        ValueError: ``tau`` is a number <= 0. A tensor is not checked, to avoid a GPU synchronisation.

    >>> logit = torch.logit(torch.full((20_000,), 0.3))
    >>> noise = logistic_noise(logit.shape, logit, torch.Generator().manual_seed(0))
    >>> round((gumbel_mask(logit, noise, tau=0.5) > 0.5).float().mean().item(), 2)
    0.3
    """
    if not isinstance(tau, Tensor):
        _check_temperature(tau)
    return torch.sigmoid((_at_least_float32(logit) + noise) / tau)


def logistic_noise(shape: torch.Size, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw finite Logistic(0, 1) noise, which is g1 - g0 of Eq. 5.

    Args:
        shape: shape of the result.
        like: tensor whose dtype and device the result has.
        generator: source of the draws; None is torch's global one.
    """
    u = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    limits = torch.finfo(like.dtype)
    return torch.logit(u.clamp(limits.tiny, 1 - limits.eps))


def straight_through(mask: Tensor) -> Tensor:
    """Round a relaxed mask to 0 or 1 (Eq. 4) and pass its gradient on unchanged.

    >>> straight_through(torch.tensor([0.2, 0.5, 0.7])).tolist()
    [0.0, 0.0, 1.0]
    """
    return (mask > 0.5).to(mask.dtype) + (mask - mask.detach())


def sample_mask(x: Tensor, noise: Tensor | float, params: MaskParams) -> Tensor:
    """Return a training mask for a given noise, with the gradient that ``params.gradient`` selects.

    The values of the mask do not depend on ``params.gradient``.

    Args:
        x: input of the mask branch, float, (B, C, H, W).
        noise: result of `MaskParams.draw_noise`.
        params: parameters of the mask.

    Returns:
        Mask, shape of ``x``, float32 (float64 for float64 input), in [0, 1].
    """
    logit = keep_logit(x, params.eps, range_gradient=params.gradient != "range_detached")
    if params.gradient == "clipped":
        inside = logit.detach().abs() < -math.log(CLIP / (1 - CLIP))
        logit = torch.where(inside, logit, logit.detach())
    mask = gumbel_mask(logit, noise, params.tau)
    if params.gradient == "straight_through_pi":
        mask = _replace_gradient(mask, keep_probability(x, params.eps))
    elif params.gradient == "expected":
        mask = _replace_gradient(mask, interpolated_mean(logit, float(params.tau)))
    return straight_through(mask) if params.hard else mask


def average_draws(logit: Tensor, noise: Iterable[Tensor], tau: float | Tensor) -> Tensor:
    """Return the average of several draws of Eq. 5, shape and dtype of ``logit``.

    Args:
        logit: logit(pi), float, (B * V, C, H, W); the V views of an image are consecutive.
        noise: g1 - g0 of each draw, (V, C, H, W), the same for all images; at least one draw.
        tau: softmax temperature, > 0, unitless.
    """
    total, draws = torch.zeros_like(logit), 0
    for one in noise:
        total += gumbel_mask(logit.view(-1, *one.shape), one.to(logit.device), tau).flatten(0, 1)
        draws += 1
    return total / draws


class MaskSampler(nn.Module):
    """Mask of an activation map by Eq. 3-5, with a temperature that the training loop sets.

    In training mode ``train_mask`` is

    - ``sample``: one draw of Eq. 5, the paper's;
    - ``straight_through``: that draw rounded to 0 or 1 as in Eq. 4, with the gradient of Eq. 5;
    - ``noise_free``: Eq. 5 without noise at the current tau.

    The paper does not specify the gradient through the mask ("the error signals can be backpropagated
    directly through the sampled A", Sec. III). The gradient through the product of Eq. 1 never changes.
    ``gradient`` selects the gradient through the mask, dM/dx = dM/dpi * dpi/dx:

    - ``whole``: the exact derivative. The variance of dM/dpi = M (1 - M) / (tau pi (1 - pi)) over the noise
      has no bound as pi goes to 0;
    - ``range_detached``: no gradient through the minimum and maximum of Eq. 3;
    - ``none``: no gradient; a `SharpAttentionBlock` detaches the input of its mask branch. A context-aware
      unit comes after this point, so it still learns by the whole gradient;
    - ``straight_through_pi``: dM/dpi replaced by 1;
    - ``clipped``: the exact derivative, but 0 where pi is below 0.01 or above 0.99;
    - ``expected``: dM/dpi replaced by its mean over the noise of Eq. 5. It requires a noise factor of 1.

    ``straight_through_pi``, ``clipped`` and ``expected`` bound the variance; their gradient is not that of
    the drawn mask.

    The paper does not specify the mask in evaluation mode. ``test_mask`` is

    - ``noise_free``: Eq. 5 without noise at the current tau;
    - ``expected``: pi itself;
    - ``mean``: the mean of Eq. 5 over its noise, accurate to 1e-6;
    - ``hard``: 1 where pi > 0.5, else 0;
    - ``sample``: the average of ``draws`` seeded draws. All images have the same noise, (1, C, H, W), or with
      ``sample_noise=per_view`` (V, C, H, W) for the V views of an image. So the mask of an image depends
      neither on its batch nor on earlier calls.

    Args:
        eps: distance that pi keeps from 0 and 1, see `keep_probability`; in (0, 0.5).
        train_mask: mask in training mode.
        gradient: gradient through the mask.
        test_mask: mask in evaluation mode.
        draws: number of draws of ``sample``, >= 1.
        seed: seed of ``sample``; >= 0 with ``per_view``.
        sample_noise: noise of ``sample``: ``shared`` by all views of an image, or ``per_view``, so that the
            mean over the views averages the noise too.
        implementation: code that computes Eq. 1-6 in training; see `sharpreid.models.implementations`.

    Raises:
        ValueError: an argument is out of range.
    """

    tau: Tensor
    """Temperature of Eq. 5, scalar, part of the state dict."""

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
                "gradient=whole, which has no variance then"
            )
        self.eps = eps
        self.train_mask: TrainMask = train_mask
        self.gradient: Gradient = gradient
        self.test_mask: TestMask = test_mask
        self.draws = draws
        self.seed = seed
        self.sample_noise: SampleNoise = sample_noise
        self.implementation: Implementation = implementation
        self.noise_scale = 1.0
        """Factor on the noise in training mode, >= 0."""
        self.register_buffer("tau", torch.tensor(1.0))

    def set_temperature(self, tau: float) -> None:
        """Set tau of Eq. 5 (unitless, > 0); raise ValueError otherwise."""
        _check_temperature(tau)
        self.tau.fill_(tau)

    def forward(
        self, x: Tensor, *, noise_seed: int | None = None, first_image: int = 0, views: int = 1
    ) -> Tensor:
        """Return the mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1].

        Args:
            x: input of the mask branch, float.
            noise_seed: in training mode, see `mask_params`.
            first_image: in training mode, see `mask_params`.
            views: in evaluation mode, number of consecutive rows of ``x`` that are views of the same image;
                divides B.
        """
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                params = self.mask_params(noise_seed, first_image)
                return sample_mask(x, params.draw_noise(x), params)
            if self.test_mask == "expected":
                return keep_probability(x, self.eps)
            logit = keep_logit(x, self.eps)
            if self.test_mask == "mean":
                return interpolated_mean(logit, float(self.tau))
            if self.test_mask == "hard":
                return torch.where(logit.isnan(), logit, (logit > 0).to(logit.dtype))
            if self.test_mask == "noise_free":
                return gumbel_mask(logit, 0.0, self.tau)
            noise = self.draw_test_noise(logit.shape[1:], views, logit.dtype)
            return average_draws(logit, noise, self.tau)

    def mask_params(self, noise_seed: int | None = None, first_image: int = 0) -> MaskParams:
        """Return the parameters of the next training mask.

        Args:
            noise_seed: seed of the noise, >= 0; None draws one from torch's global generator.
            first_image: index of the batch's first image in the global batch.
        """
        has_noise = self.train_mask != "noise_free" and self.noise_scale > 0
        if has_noise and noise_seed is None:
            noise_seed = int(torch.randint(2**62, ()))
        return MaskParams(
            tau=self.tau,
            eps=self.eps,
            seed=noise_seed if has_noise else None,
            first_image=first_image,
            hard=self.train_mask == "straight_through",
            gradient="whole" if self.gradient == "none" else self.gradient,  # the block detaches for "none"
            noise_scale=self.noise_scale,
        )

    def extra_repr(self) -> str:
        """Return the options that `print` shows."""
        masks = f"train_mask={self.train_mask}, gradient={self.gradient}, test_mask={self.test_mask}"
        return f"eps={self.eps}, {masks}"

    def draw_test_noise(self, shape: torch.Size, views: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield the noise of each of the ``draws`` of ``test_mask=sample``.

        Args:
            shape: (C, H, W) of the mask.
            views: V, number of views of an image; ``shared`` noise is drawn for one view only.
            dtype: float32 or float64.

        Yields:
            Noise, (V or 1, C, H, W), on the CPU.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in self._view_seeds(views)]
        like = torch.empty((), dtype=dtype)
        for _ in range(self.draws):
            yield torch.stack([logistic_noise(shape, like, one) for one in generators])

    def _view_seeds(self, views: int) -> list[int]:
        """Return one seed per view, each a function of the view's index alone, or one seed for all views."""
        if self.sample_noise == "shared":
            return [self.seed]
        sequences = (np.random.SeedSequence((self.seed, view)) for view in range(views))
        return [int(sequence.generate_state(1, np.uint64)[0]) for sequence in sequences]


def _distances_to_extremes(
    x: Tensor, eps: float, *, range_gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x - min and max - x, (B, C, H, W), and max - min, (B, C, 1, 1), of each channel.

    In a constant channel they are 0, 1 and 1. A channel counts as constant if its range is below the root of
    the smallest normal number (1e-19 in float32), because dividing by less overflows in the gradients of
    Eq. 3 and 5. A channel with a NaN is not constant: the NaN must reach the mask.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x must be a float (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps must be in [0, 0.5), got {eps}")
    x = _at_least_float32(x)
    source = x if range_gradient else x.detach()
    low, high = source.amin((2, 3), keepdim=True), source.amax((2, 3), keepdim=True)
    constant = high - low < torch.finfo(x.dtype).tiny ** 0.5
    above, below = torch.where(constant, 0.0, x - low), torch.where(constant, 1.0, high - x)
    return above, below, torch.where(constant, 1.0, high - low)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp ``x``; at a tie each operand gets half of the gradient, unlike with torch.clamp."""
    return torch.minimum(torch.maximum(x, low), high)


def _replace_gradient(value: Tensor, source: Tensor) -> Tensor:
    """Return ``value`` with the gradient of ``source``."""
    return value.detach() + (source - source.detach())


def _check_temperature(tau: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
