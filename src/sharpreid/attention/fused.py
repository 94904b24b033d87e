"""Eq. 1-5 in one operation that keeps no mask: where the gradient needs it, the same noise is drawn again.

Written out in tensor operations, sharp attention makes about a hundred passes over memory and keeps seven
float32 tensors of the size of the activations. Here the forward pass keeps the activations, which the ReLU
before them keeps anyway, and the seed of the noise; the backward pass computes the mask again. Both go
through the batch in parts, on a CPU in parts that fit in its cache.

The mask is that of `MaskSampler` for the same seed, up to rounding: with ``a = x - min`` and ``b = max - x``
of Eq. 3, and a uniform draw u,

    sigmoid((log a - log b + log u - log(1 - u)) / tau) = sigmoid(log(a u / (b (1 - u))) / tau),

one logarithm instead of four.
"""

import math
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sharpreid.attention.expectation import interpolated_slope
from sharpreid.attention.mask import CLIP, Implementation, Recipe, mask_by
from sharpreid.attention.noise import draw, keys
from sharpreid.losses.total_variation import Variation, gradient_of_variation, variation_of

_AT_A_TIME = 2**25
"""Activations on a GPU: enough to keep it busy, while up to 13 float32 tensors of them are held."""

_AT_A_TIME_IN_CACHE = 2**17
"""Activations on a CPU, but at least one image: few enough for its cache, enough to outweigh the calls."""

_kept = threading.local()  # of each thread that trains


def attend(
    trunk: Tensor,
    source: Tensor,
    recipe: Recipe,
    *,
    variation: bool,
    skip: bool = True,
    implementation: Implementation = "recompute",
) -> tuple[Tensor, Variation | None]:
    """F = T + M(S) * T of Eq. 1-5.

    Args:
        trunk: T, float, (B, C, H, W).
        source: S, what the mask is made of: T itself, or what a context-aware unit makes of it; float, the
            same shape. A detached T is recognised: its mask costs no gradient and no memory.
        recipe: of the mask.
        variation: whether the total variation of A = M(S) * T (Eq. 6) is wanted.
        skip: False leaves T out of the sum and returns A.
        implementation: ``eager``, written out in tensor operations, the reference; ``recompute``, which keeps
            no mask, on any device; ``compile``, the reference by torch.compile; ``triton``, by kernels for
            CUDA. The noise is the same in all, up to what is lost in rounding.

    Returns:
        F, with shape and type of T, channels last in memory where T has them so, else contiguous; and the
        total variation, if wanted. Both have gradients, but ``recompute`` and ``triton`` no second ones.

    Raises:
        ImportError: ``triton`` where the package triton is not installed.
        ValueError: ``triton`` without CUDA, or in float64.
    """
    if implementation in ("eager", "compile"):
        written_out = _compiled() if implementation == "compile" else _written_out
        with torch.autocast(trunk.device.type, enabled=False):
            noise = recipe.noise(source.shape, _arithmetic(source), source.device)
            output, of_attended = written_out(trunk, source, noise, recipe, variation, skip)
        return output, of_attended
    if implementation == "triton":
        _check_triton(trunk)
        from sharpreid.attention.fused_triton import Attend

        operation: Any = Attend
    else:
        operation = _Attend
    shared = _is_same(trunk, source)
    output, total, mean_square = operation.apply(trunk, source, shared, recipe, variation, skip)
    return output, Variation(total, mean_square, trunk.shape[1:].numel()) if variation else None


def _is_same(trunk: Tensor, source: Tensor) -> bool:
    """Whether the mask is made of the trunk itself, which may be detached."""
    return source.data_ptr() == trunk.data_ptr() and source.stride() == trunk.stride()


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last where so in memory, and not by chance of a shape for which it is both."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _check_triton(trunk: Tensor) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if trunk.dtype == torch.float64 or not (trunk.is_cuda or interpreted):
        raise ValueError(
            f"implementation=triton needs a CUDA device and no float64, got {trunk.dtype} on {trunk.device}; "
            "take model.sampler.implementation=recompute"
        )


def _written_out(
    trunk: Tensor, source: Tensor, noise: Tensor | float, recipe: Recipe, variation: bool, skip: bool
) -> tuple[Tensor, Variation | None]:
    attended = mask_by(source, recipe, noise) * trunk
    output = (trunk + attended if skip else attended).to(trunk.dtype)
    return output, variation_of(attended) if variation else None


@cache
def _compiled() -> Callable[..., tuple[Tensor, Variation | None]]:
    return torch.compile(_written_out)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, trunk: Tensor, source: Tensor, shared: bool, recipe: Recipe, variation: bool, skip: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        form = memory_format_of(trunk)
        trunk = trunk.contiguous(memory_format=form)
        source = trunk if shared else source.contiguous(memory_format=form)
        output = torch.empty_like(trunk)
        total, mean_square = torch.zeros(2, len(trunk), dtype=_arithmetic(trunk), device=trunk.device)

        def work(piece: _Piece) -> None:
            attended = piece.used_mask().mul_(piece.trunk)
            if variation:
                of_piece = variation_of(piece.image(attended))
                total[piece.rows], mean_square[piece.rows] = of_piece.total, of_piece.mean_square
            piece.of(output).copy_(attended.add_(piece.trunk) if skip else attended)

        _for_each_piece(trunk, source, recipe, work)
        ctx.save_for_backward(recipe.tau, trunk, *(() if shared else (source,)))
        ctx.recipe, ctx.variation, ctx.skip = recipe, variation, skip
        ctx.mark_non_differentiable(mean_square)
        return output, total, mean_square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_total: Tensor, _: Tensor) -> Any:
        tau, trunk, *other = ctx.saved_tensors
        recipe: Recipe = ctx.recipe._replace(tau=tau)  # autograd has seen to it that it is the forward pass's
        source = other[0] if other else trunk
        grad_trunk = torch.empty_like(trunk)
        grad_source = torch.empty_like(source) if other and ctx.needs_input_grad[1] else None

        def work(piece: _Piece) -> None:
            upstream, to_attended = piece.of(grad_output).to(piece.trunk.dtype), None
            used = piece.used_mask()
            if ctx.variation:
                gradient = gradient_of_variation(piece.image(used * piece.trunk), grad_total[piece.rows])
                to_attended = piece.flat(gradient).add_(upstream)
            to_attended = upstream if to_attended is None else to_attended
            to_trunk = torch.mul(to_attended, used, out=piece.buffers[1])
            if ctx.skip:
                to_trunk += upstream
            if not ctx.needs_input_grad[1]:
                piece.of(grad_trunk).copy_(to_trunk)
                return
            slope = piece.slope_by_logit().mul_(piece.trunk).mul_(to_attended)
            to_source = piece.gradient_by_logit(slope)
            if grad_source is None:
                to_trunk += to_source
            else:
                piece.of(grad_source).copy_(to_source)
            piece.of(grad_trunk).copy_(to_trunk)

        _for_each_piece(trunk, source, recipe, work)
        return grad_trunk, grad_source, *(None,) * 4


class _Piece(NamedTuple):
    """Some images, as (images, C, H * W) or, where channels come last in memory, (images, H * W, C).

    What is compared is kept as 0 and 1 in float32: on a CPU that is ten times faster than in bool.
    """

    rows: slice
    channels_last: bool
    height: int
    trunk: Tensor
    source: Tensor
    low: Tensor
    high: Tensor
    limits: tuple[Tensor, Tensor]  # of x - low and high - x
    constant: Tensor  # 1 where so, else 0
    recipe: Recipe
    mask: Tensor  # before it is rounded
    buffers: list[Tensor]  # of the shape of ``trunk``; the first is the mask's

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

    def used_mask(self) -> Tensor:
        """The mask, rounded where it is to be (Eq. 4)."""
        return torch.gt(self.mask, 0.5, out=self.buffers[3]) if self.recipe.hard else self.mask

    def slope_by_logit(self) -> Tensor:
        """dM/dlogit as ``recipe.gradient`` has it, in the third buffer; the last three are overwritten."""
        gradient, tau = self.recipe.gradient, self.recipe.tau
        _, _, slope, spare, above, below = self.buffers
        if gradient in ("whole", "range_detached"):
            return torch.neg(self.mask, out=slope).add_(1).mul_(self.mask).div_(tau)
        nearest, farthest = self.limits
        torch.sub(self.source, self.low, out=above).clamp_(nearest, farthest)
        torch.sub(self.high, self.source, out=below).clamp_(nearest, farthest)
        if gradient == "straight_through_pi":
            return torch.mul(above, below, out=slope).div_(torch.add(above, below, out=spare).square_())
        logit = torch.div(above, below, out=spare).log_()
        if gradient == "expected":
            return slope.copy_(interpolated_slope(logit, float(tau)))
        torch.neg(self.mask, out=slope).add_(1).mul_(self.mask).div_(tau)
        return slope.mul_(logit.abs_() < -math.log(CLIP / (1 - CLIP)))

    def gradient_by_logit(self, slope: Tensor) -> Tensor:
        """Gradient by the source of Eq. 3-5, from that by the logit, which is overwritten.

        An activation that is kept eps away from 0 or 1 has none: there the logit is constant. What minimum
        and maximum get is shared evenly among the activations that have it.
        """
        _, _, _, flags, by_low, by_high = self.buffers
        nearest, farthest = self.limits
        torch.sub(self.source, self.low, out=by_low)
        slope.mul_(torch.gt(by_low, nearest, out=flags)).mul_(torch.lt(by_low, farthest, out=flags))
        torch.div(slope, by_low.clamp_(nearest, farthest), out=by_low)
        torch.sub(self.high, self.source, out=by_high).clamp_(nearest, farthest)
        torch.div(slope, by_high, out=by_high)
        gradient = torch.add(by_low, by_high, out=slope)
        if self.recipe.gradient == "range_detached":
            return gradient
        varies = 1 - self.constant
        for extreme, share in ((self.low, by_low), (self.high, by_high)):
            at_extreme = torch.eq(self.source, extreme, out=flags)
            each = share.sum(self.space, keepdim=True).mul_(varies) / at_extreme.sum(self.space, keepdim=True)
            gradient.addcmul_(at_extreme, each, value=-1)
        return gradient


@torch.no_grad()
def _for_each_piece(trunk: Tensor, source: Tensor, recipe: Recipe, work: Callable[[_Piece], None]) -> None:
    """Do the work on a batch piece by piece, with its masks."""
    last = memory_format_of(trunk) == torch.channels_last
    space, dtype = 1 if last else 2, _arithmetic(trunk)
    size = _images_at_a_time(trunk)
    whole = _buffers(_in_memory_order(trunk[:size], last).shape, dtype, trunk.device)
    key = None if recipe.seed is None else keys(recipe.seed)
    with torch.autocast(trunk.device.type, enabled=False):
        for start in range(0, len(trunk), size):
            rows = slice(start, start + size)
            t = _in_memory_order(trunk[rows], last).to(dtype)
            x = t if source is trunk else _in_memory_order(source[rows], last).to(dtype)
            low, high = x.amin(space, keepdim=True), x.amax(space, keepdim=True)
            constant = (high - low < torch.finfo(dtype).tiny ** 0.5).to(dtype)
            unit = torch.where(constant > 0, 1.0, high - low)
            limits = recipe.eps * unit, (1 - recipe.eps) * unit
            buffers = [buffer[: len(t)] for buffer in whole]
            above, below, u, spare, *others = buffers
            torch.sub(x, low, out=above).clamp_(*limits)
            torch.sub(high, x, out=below).add_(constant).clamp_(*limits)
            if key is not None:
                drawn = spare.view(len(t), -1, trunk.shape[1])
                first = (recipe.first + start) * trunk.shape[1:].numel()
                draw(drawn.view(-1), first, key, *(_words(buffer) for buffer in others))
                u = drawn if last else u.copy_(drawn.mT)
                if recipe.noise_scale == 1:
                    above.mul_(u)
                    below.mul_(u.neg_().add_(1))
                else:
                    above.mul_(u.logit_().mul_(recipe.noise_scale).exp_())
            mask = above.div_(below).log_().div_(recipe.tau).sigmoid_()
            height = trunk.shape[2]
            work(_Piece(rows, last, height, t, x, low, high, limits, constant, recipe, mask, buffers))


def _images_at_a_time(x: Tensor) -> int:
    at_a_time = _AT_A_TIME_IN_CACHE if x.device.type == "cpu" else _AT_A_TIME
    return max(1, at_a_time // max(1, x.shape[1:].numel()))


def _words(x: Tensor) -> Tensor:
    """The memory of a float tensor as int32, as many as it has elements."""
    return x.view(torch.int32).view(-1)[: x.numel()]


def _buffers(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Six of a shape. On a CPU they are kept: new memory costs as much as the work on it."""
    if device.type != "cpu":
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(6)]
    kept: dict[Any, list[Tensor]] = vars(_kept).setdefault("buffers", {})
    if (shape, dtype) not in kept:
        kept[shape, dtype] = [torch.empty(shape, dtype=dtype) for _ in range(6)]
    return kept[shape, dtype]


def _in_memory_order(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else x.flatten(2)


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
