"""Eq. 1-5 in one operation that keeps no mask: where the gradient needs it, the same noise is drawn again.

Written out in tensor operations, sharp attention makes about a hundred passes over memory and keeps seven
float32 tensors of the size of the activations. Here the forward pass keeps the activations, which the ReLU
before them keeps anyway, and the seed of the noise; the backward pass computes the mask again. On a CPU both
go image by image, so that everything between stays in the cache.

The mask is that of `MaskSampler` for the same seed, up to rounding: with ``a = x - min`` and ``b = max - x``
of Eq. 3, and a uniform draw u,

    sigmoid((log a - log b + log u - log(1 - u)) / tau) = sigmoid(log(a u / (b (1 - u))) / tau),

one logarithm instead of four.
"""

import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sharpreid.losses.total_variation import Variation, gradient_of_variation, variation_of

Implementation = Literal["eager", "recompute", "compile", "triton"]


class Recipe(NamedTuple):
    """What a mask is made by, beside its input."""

    tau: Tensor
    """Of Eq. 5, scalar, > 0."""
    eps: float
    """See `sharpreid.attention.mask.keep_logit`."""
    seed: int | None
    """Of the noise; None leaves it out."""
    hard: bool
    """Whether the mask is rounded to 0 or 1, with the gradient of Eq. 5."""


def attend(
    trunk: Tensor,
    source: Tensor,
    recipe: Recipe,
    *,
    variation: bool,
    implementation: Implementation = "recompute",
) -> tuple[Tensor, Variation | None]:
    """F = T + M(S) * T of Eq. 1-5.

    Args:
        trunk: T, float, (B, C, H, W).
        source: S, what the mask is made of: T itself, or what a context-aware unit makes of it; float, the
            same shape.
        recipe: of the mask.
        variation: whether the total variation of A = M(S) * T (Eq. 6) is wanted.
        implementation: ``eager``, written out in tensor operations, the reference; ``recompute``, which keeps
            no mask, on any device; ``compile``, the reference by torch.compile; ``triton``, by kernels for
            CUDA with a noise of their own.

    Returns:
        F, with shape, type and memory format of T; and the total variation, if wanted. Both have gradients.

    Raises:
        ValueError: ``triton`` without CUDA, or in float64.
    """
    if implementation == "triton":
        _check_triton(trunk)
        from sharpreid.attention.fused_triton import Attend

        arguments = recipe.tau, recipe.eps, recipe.seed, recipe.hard, variation
        output, total, mean_square = Attend.apply(trunk, source, source is trunk, *arguments)  # type: ignore[no-untyped-call]
        return output, Variation(total, mean_square, trunk[0].numel()) if variation else None
    if implementation in ("eager", "compile"):
        written_out = _compiled() if implementation == "compile" else _written_out
        with torch.autocast(trunk.device.type, enabled=False):
            output, of_attended = written_out(trunk, source, _noise(source, recipe), recipe, variation)
        return output, of_attended
    output, total, mean_square = _Attend.apply(trunk, source, source is trunk, recipe, variation)  # type: ignore[no-untyped-call]
    return output, Variation(total, mean_square, trunk[0].numel()) if variation else None


def _check_triton(trunk: Tensor) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if trunk.dtype == torch.float64 or not (trunk.is_cuda or interpreted):
        raise ValueError(
            f"implementation=triton needs a CUDA device and no float64, got {trunk.dtype} on {trunk.device}; "
            "take model.sampler.implementation=recompute"
        )


def _noise(source: Tensor, recipe: Recipe) -> Tensor | None:
    """Logistic draws of the shape of ``source``; None for none."""
    if recipe.seed is None:
        return None
    draw = torch.Generator(source.device).manual_seed(recipe.seed)
    u = torch.rand(source.shape, dtype=_arithmetic(source), device=source.device, generator=draw)
    return torch.logit(u.clamp_(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps))


def _written_out(
    trunk: Tensor, source: Tensor, noise: Tensor | None, recipe: Recipe, variation: bool
) -> tuple[Tensor, Variation | None]:
    from sharpreid.attention.mask import keep_logit, relaxed_mask, straight_through

    mask = relaxed_mask(keep_logit(source, recipe.eps), 0.0 if noise is None else noise, recipe.tau)
    if recipe.hard:
        mask = straight_through(mask)
    attended = mask * trunk
    output = (trunk + attended).to(trunk.dtype)
    return output, variation_of(attended) if variation else None


@cache
def _compiled() -> Callable[..., tuple[Tensor, Variation | None]]:
    return torch.compile(_written_out)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, trunk: Tensor, source: Tensor, shared: bool, recipe: Recipe, variation: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(trunk)
        total, mean_square = torch.zeros(2, len(trunk), dtype=_arithmetic(trunk), device=trunk.device)
        with torch.autocast(trunk.device.type, enabled=False):
            for piece in _pieces(trunk, source, recipe):
                mask = (piece.mask > 0.5).to(piece.mask.dtype) if recipe.hard else piece.mask
                attended = mask.mul_(piece.trunk)
                if variation:
                    of_piece = variation_of(piece.image(attended))
                    total[piece.rows], mean_square[piece.rows] = of_piece.total, of_piece.mean_square
                piece.of(output).copy_(attended.add_(piece.trunk))
        ctx.save_for_backward(trunk, *(() if shared else (source,)))
        ctx.recipe, ctx.variation = recipe, variation
        ctx.mark_non_differentiable(mean_square)
        return output, total, mean_square

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_total: Tensor, _: Tensor) -> Any:
        trunk, *other = ctx.saved_tensors
        source = other[0] if other else trunk
        grad_trunk, grad_source = torch.empty_like(trunk), torch.empty_like(source) if other else None
        with torch.autocast(trunk.device.type, enabled=False):
            for piece in _pieces(trunk, source, ctx.recipe):
                mask = piece.mask
                used = (mask > 0.5).to(mask.dtype) if ctx.recipe.hard else mask
                upstream = piece.of(grad_output).to(mask.dtype)
                by_variation: Tensor | None = None
                if ctx.variation:
                    gradient = gradient_of_variation(piece.image(used * piece.trunk), grad_total[piece.rows])
                    by_variation = piece.flat(gradient)
                to_attended = upstream if by_variation is None else upstream + by_variation
                to_trunk = torch.addcmul(upstream, to_attended, used)
                slope = (1 - mask).mul_(mask).mul_(piece.trunk).mul_(to_attended).div_(ctx.recipe.tau)
                to_source = piece.gradient_by_logit(slope)
                if grad_source is None:
                    to_trunk += to_source
                else:
                    piece.of(grad_source).copy_(to_source)
                piece.of(grad_trunk).copy_(to_trunk)
        return grad_trunk, grad_source, None, None, None


class _Piece(NamedTuple):
    """Some images, as (images, C, H * W) or, where channels come last in memory, (images, H * W, C)."""

    rows: slice
    channels_last: bool
    height: int
    trunk: Tensor
    source: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
    constant: Tensor
    eps: float
    mask: Tensor

    @property
    def space(self) -> int:
        return 1 if self.channels_last else 2

    def of(self, x: Tensor) -> Tensor:
        """These images of a batch, (B, C, H, W), in the order of memory."""
        return _in_memory_order(x[self.rows], self.channels_last)

    def image(self, flat: Tensor) -> Tensor:
        """In the order of memory to (images, C, H, W)."""
        if self.channels_last:
            return flat.view(len(flat), self.height, -1, flat.shape[2]).permute(0, 3, 1, 2)
        return flat.view(*flat.shape[:2], self.height, -1)

    def flat(self, image: Tensor) -> Tensor:
        return _in_memory_order(image, self.channels_last)

    def gradient_by_logit(self, slope: Tensor) -> Tensor:
        """Gradient by the source of Eq. 3-5, from that by the logit.

        An activation that is kept eps away from 0 or 1 has none: there the logit is constant. What minimum
        and maximum get is shared evenly among the activations that have it.
        """
        above = self.source - self.low
        inside = (above > self.eps * self.unit).logical_and_(above < (1 - self.eps) * self.unit)
        slope = slope * inside
        by_low = slope / torch.where(inside, above, 1.0)
        by_high = slope.div_(torch.where(inside, self.high - self.source, 1.0))
        gradient = by_low + by_high
        for extreme, share in ((self.low, by_low), (self.high, by_high)):
            at_extreme = (self.source == extreme).to(share.dtype)
            each = share.sum(self.space, keepdim=True) / at_extreme.sum(self.space, keepdim=True)
            gradient -= at_extreme.mul_(torch.where(self.constant, 0.0, each))
        return gradient


def _pieces(trunk: Tensor, source: Tensor, recipe: Recipe) -> Iterator[_Piece]:
    """The batch piece by piece, with masks: on a CPU image by image. A piece is valid until the next."""
    last = trunk.is_contiguous(memory_format=torch.channels_last) and not trunk.is_contiguous()
    space, dtype, size = 1 if last else 2, _arithmetic(trunk), 1 if trunk.device.type == "cpu" else len(trunk)
    draw = None
    if recipe.seed is not None:
        draw = torch.Generator(trunk.device).manual_seed(recipe.seed)
    height = trunk.shape[2]
    for start in range(0, len(trunk), size):
        rows = slice(start, start + size)
        t = _in_memory_order(trunk[rows], last).to(dtype)
        x = t if source is trunk else _in_memory_order(source[rows], last).to(dtype)
        low, high = x.amin(space, keepdim=True), x.amax(space, keepdim=True)
        constant = high - low < torch.finfo(dtype).tiny ** 0.5
        unit = torch.where(constant, 1.0, high - low)
        limits = recipe.eps * unit, (1 - recipe.eps) * unit
        above = torch.clamp(x - low, *limits)
        below = torch.clamp((high - x).add_(constant), *limits)
        if draw is not None:
            u = torch.rand(
                len(t), t.shape[3 - space], t.shape[space], dtype=dtype, device=t.device, generator=draw
            )
            u = u.mT.contiguous() if last else u
            u.clamp_(torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps)
            above *= u
            below *= u.neg_().add_(1)
        mask = above.div_(below).log_().div_(recipe.tau).sigmoid_()
        yield _Piece(rows, last, height, t, x, low, high, unit, constant, recipe.eps, mask)


def _in_memory_order(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else x.flatten(2)


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
