"""Eq. 1-6 in one autograd operation that stores no mask: the backward pass draws the same noise again.

Written out in tensor operations (`sharpreid.attention.mask`), sharp attention makes about a hundred passes
over memory and stores seven float32 tensors of the size of the activations. This forward pass stores the
activations, which the preceding ReLU stores anyway, and the seed of the noise; the backward pass computes the
mask again. Both process the batch in chunks of a few images, on a CPU as many as fit in its cache.

For the same seed the mask equals the reference up to rounding: with ``a = x - min`` and ``b = max - x`` of
Eq. 3 and a uniform draw u,

    sigmoid((log a - log b + log u - log(1 - u)) / tau) = sigmoid(log(a u / (b (1 - u))) / tau),

which takes one logarithm instead of four. The gradients of Eq. 3-5 and 7 are derived by hand, because
autograd would store their intermediates. Tests compare values and gradients with the reference.
"""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sharpreid.attention.expectation import interpolated_slope
from sharpreid.attention.mask import CLIP, MaskParams
from sharpreid.attention.noise import derive_keys, fill_uniform

CHUNK_ELEMENTS = 2**25
"""Activations per chunk on a GPU: enough to keep it busy. Up to 13 float32 tensors of this size are held."""

CHUNK_ELEMENTS_CPU = 2**17
"""Activations per chunk on a CPU, but at least one image: few enough to fit in its cache, and enough to
outweigh the overhead of the calls."""

_cpu_buffers = threading.local()


class RecomputedAttention(torch.autograd.Function):
    """Sharp attention without a stored mask; ``apply`` takes the arguments of `forward` without ``ctx``.

    `sharpreid.models.implementations.attend` is its public form. `TritonAttention` has the same arguments
    and results. Second derivatives are not supported.
    """

    @staticmethod
    def forward(
        ctx: Any,
        trunk: Tensor,
        source: Tensor,
        shared: bool,
        params: MaskParams,
        variation: bool,
        skip: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return F of Eq. 2 and two statistics of each image's A.

        Args:
            ctx: autograd's context.
            trunk: T of Eq. 1, float, (B, C, H, W).
            source: input of the mask, same shape and dtype.
            shared: whether ``source`` is ``trunk``, possibly detached. A shared input is stored once.
            params: parameters of the mask.
            variation: whether to compute the statistics; else they are 0.
            skip: False omits the skip connection and returns A.

        Returns:
            F, dtype of ``trunk``; the sum of squared differences of neighbours in A (Eq. 6), (B,); and the
            mean square of A, (B,), without a gradient.
        """
        form = memory_format_of(trunk)
        trunk = trunk.contiguous(memory_format=form)
        source = trunk if shared else source.contiguous(memory_format=form)
        output = torch.empty_like(trunk)
        total, mean_square = torch.zeros(2, len(trunk), dtype=_compute_dtype(trunk), device=trunk.device)

        def attend(chunk: _Chunk) -> None:
            attended = chunk.final_mask().mul_(chunk.trunk)
            if variation:
                images = chunk.unflatten(attended)
                total[chunk.rows] = _sum_of_squared_differences(images)
                mean_square[chunk.rows] = images.square().mean((1, 2, 3))
            chunk.flat_rows(output).copy_(attended.add_(chunk.trunk) if skip else attended)

        _for_each_chunk(trunk, source, params, attend)
        ctx.save_for_backward(params.tau, trunk, *(() if shared else (source,)))
        ctx.params, ctx.variation, ctx.skip = params, variation, skip
        ctx.mark_non_differentiable(mean_square)
        return output, total, mean_square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_total: Tensor, _: Tensor) -> Any:
        """Return the gradients with respect to trunk and source."""
        tau, trunk, *other = ctx.saved_tensors
        params: MaskParams = ctx.params._replace(tau=tau)  # autograd has checked that tau is unchanged
        source = other[0] if other else trunk
        grad_trunk = torch.empty_like(trunk)
        grad_source = torch.empty_like(source) if other and ctx.needs_input_grad[1] else None

        def differentiate(chunk: _Chunk) -> None:
            upstream = chunk.flat_rows(grad_output).to(chunk.trunk.dtype)
            mask = chunk.final_mask()
            by_attended = upstream
            if ctx.variation:
                gradient = _gradient_of_squared_differences(
                    chunk.unflatten(mask * chunk.trunk), grad_total[chunk.rows]
                )
                by_attended = chunk.flatten(gradient).add_(upstream)
            by_trunk = torch.mul(by_attended, mask, out=chunk.buffers[1])
            if ctx.skip:
                by_trunk += upstream
            if not ctx.needs_input_grad[1]:
                chunk.flat_rows(grad_trunk).copy_(by_trunk)
                return
            by_logit = chunk.mask_slope().mul_(chunk.trunk).mul_(by_attended)
            by_source = chunk.source_gradient(by_logit)
            if grad_source is None:
                by_trunk += by_source
            else:
                chunk.flat_rows(grad_source).copy_(by_source)
            chunk.flat_rows(grad_trunk).copy_(by_trunk)

        _for_each_chunk(trunk, source, params, differentiate)
        return grad_trunk, grad_source, *(None,) * 4


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return ``channels_last`` if ``x`` is stored so and is not contiguous, else ``contiguous_format``."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _sum_of_squared_differences(a: Tensor) -> Tensor:
    """Return Eq. 6 of each image, (B,), of features (B, C, H, W)."""
    axes = (1, 2, 3)
    return a.diff(dim=-2).square().sum(axes) + a.diff(dim=-1).square().sum(axes)


def _gradient_of_squared_differences(a: Tensor, weight: Tensor) -> Tensor:
    """Return Eq. 7, (B, C, H, W): the gradient of Eq. 6, times ``weight`` (B,)."""
    gradient = torch.zeros_like(a)
    scale = 2 * weight[:, None, None, None]
    for dim in (2, 3):
        difference, length = a.diff(dim=dim).mul_(scale), a.shape[dim] - 1
        gradient.narrow(dim, 1, length).add_(difference)
        gradient.narrow(dim, 0, length).sub_(difference)
    return gradient


class _Chunk(NamedTuple):
    """Images of a chunk, flat: (images, C, H * W) or, if channels are last in memory, (images, H * W, C).

    Comparisons are stored as 0 and 1 in float32, which on a CPU is ten times faster than bool.
    """

    rows: slice  # of the batch
    channels_last: bool
    height: int
    trunk: Tensor
    source: Tensor
    low: Tensor  # minimum over space of the source
    high: Tensor  # maximum over space of the source
    limits: tuple[Tensor, Tensor]  # least and greatest value of x - low and high - x after the clamp
    constant: Tensor  # 1 for a constant channel, else 0
    params: MaskParams
    mask: Tensor  # before rounding
    buffers: list[Tensor]  # six work spaces of the shape of ``trunk``; the first holds the mask

    @property
    def space(self) -> int:
        """Axis of the positions."""
        return 1 if self.channels_last else 2

    def flat_rows(self, x: Tensor) -> Tensor:
        """Return these images of a batch (B, C, H, W) as a flat view."""
        return _flatten(x[self.rows], self.channels_last)

    def flatten(self, images: Tensor) -> Tensor:
        return _flatten(images, self.channels_last)

    def unflatten(self, flat: Tensor) -> Tensor:
        """Return flat images as (images, C, H, W)."""
        if self.channels_last:
            return flat.view(len(flat), self.height, -1, flat.shape[2]).permute(0, 3, 1, 2)
        return flat.view(*flat.shape[:2], self.height, -1)

    def final_mask(self) -> Tensor:
        """Return the mask, rounded (Eq. 4) if the parameters say so; overwrites the fourth buffer."""
        return torch.gt(self.mask, 0.5, out=self.buffers[3]) if self.params.hard else self.mask

    def mask_slope(self) -> Tensor:
        """Return dM/dlogit as ``params.gradient`` defines it; overwrites the last four buffers."""
        gradient, tau = self.params.gradient, self.params.tau
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

    def source_gradient(self, by_logit: Tensor) -> Tensor:
        """Turn the gradient of the logit (overwritten) into the gradient of the source.

        An activation whose pi is clamped by eps gets no gradient, because its logit is constant. The gradient
        of a minimum or maximum is shared evenly among the activations that attain it.
        """
        _, _, _, flags, by_low, by_high = self.buffers
        nearest, farthest = self.limits
        torch.sub(self.source, self.low, out=by_low)
        by_logit.mul_(torch.gt(by_low, nearest, out=flags)).mul_(torch.lt(by_low, farthest, out=flags))
        torch.div(by_logit, by_low.clamp_(nearest, farthest), out=by_low)
        torch.sub(self.high, self.source, out=by_high).clamp_(nearest, farthest)
        torch.div(by_logit, by_high, out=by_high)
        gradient = torch.add(by_low, by_high, out=by_logit)
        if self.params.gradient == "range_detached":
            return gradient
        varies = 1 - self.constant
        for extreme, share in ((self.low, by_low), (self.high, by_high)):
            at_extreme = torch.eq(self.source, extreme, out=flags)
            each = share.sum(self.space, keepdim=True).mul_(varies) / at_extreme.sum(self.space, keepdim=True)
            gradient.addcmul_(at_extreme, each, value=-1)
        return gradient


@torch.no_grad()
def _for_each_chunk(
    trunk: Tensor, source: Tensor, params: MaskParams, work: Callable[[_Chunk], None]
) -> None:
    """Compute the masks of a batch chunk by chunk, and call ``work`` on each chunk."""
    last = memory_format_of(trunk) == torch.channels_last
    space, dtype = 1 if last else 2, _compute_dtype(trunk)
    size = _images_per_chunk(trunk)
    whole = _work_buffers(_flatten(trunk[:size], last).shape, dtype, trunk.device)
    keys = None if params.seed is None else derive_keys(params.seed)
    with torch.autocast(trunk.device.type, enabled=False):
        for start in range(0, len(trunk), size):
            rows = slice(start, start + size)
            t = _flatten(trunk[rows], last).to(dtype)
            x = t if source is trunk else _flatten(source[rows], last).to(dtype)
            low, high = x.amin(space, keepdim=True), x.amax(space, keepdim=True)
            constant = (high - low < torch.finfo(dtype).tiny ** 0.5).to(dtype)
            span = torch.where(constant > 0, 1.0, high - low)
            limits = params.eps * span, (1 - params.eps) * span
            buffers = [buffer[: len(t)] for buffer in whole]
            above, below, u, spare, *others = buffers
            torch.sub(x, low, out=above).clamp_(*limits)
            torch.sub(high, x, out=below).add_(constant).clamp_(*limits)
            if keys is not None:
                draws = spare.view(len(t), -1, trunk.shape[1])
                first_draw = (params.first_image + start) * trunk.shape[1:].numel()
                fill_uniform(draws.view(-1), first_draw, keys, *(_as_int32(buffer) for buffer in others))
                u = draws if last else u.copy_(draws.mT)
                if params.noise_scale == 1:
                    above.mul_(u)
                    below.mul_(u.neg_().add_(1))
                else:
                    above.mul_(u.logit_().mul_(params.noise_scale).exp_())
            mask = above.div_(below).log_().div_(params.tau).sigmoid_()
            height = trunk.shape[2]
            work(_Chunk(rows, last, height, t, x, low, high, limits, constant, params, mask, buffers))


def _images_per_chunk(x: Tensor) -> int:
    elements = CHUNK_ELEMENTS_CPU if x.device.type == "cpu" else CHUNK_ELEMENTS
    return max(1, elements // max(1, x.shape[1:].numel()))


def _as_int32(x: Tensor) -> Tensor:
    """Return the memory of a float tensor as int32, (elements,)."""
    return x.view(torch.int32).view(-1)[: x.numel()]


def _work_buffers(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return six uninitialised tensors.

    On a CPU each thread keeps them, because touching new memory costs as much as computing on it.
    """
    if device.type != "cpu":
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(6)]
    kept: dict[Any, list[Tensor]] = vars(_cpu_buffers).setdefault("buffers", {})
    if (shape, dtype) not in kept:
        kept[shape, dtype] = [torch.empty(shape, dtype=dtype) for _ in range(6)]
    return kept[shape, dtype]


def _flatten(x: Tensor, channels_last: bool) -> Tensor:
    """Return images (B, C, H, W) as (B, C, H * W), or as (B, H * W, C) if channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2) if channels_last else x.flatten(2)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
