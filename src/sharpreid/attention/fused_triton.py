"""Eq. 1-6 as Triton kernels: one pass over the activations in the forward pass, and no mask in memory.

A program handles some channels of an image. It reads them twice in the forward pass, for their range and for
the mask, and three times in the backward pass; after the first read they are in the cache. The noise is that
of `sharpreid.attention.noise`, hashed again where it is needed. The derivation is that of
`sharpreid.attention.fused`.

The kernels have not run on a GPU yet: tests run them in Triton's interpreter and compile them for an H100.

The values that all positions of a program share are passed as one tuple, ``scope``:

- ``tensors``: pointers to trunk and source, and the image's offset in them;
- ``layout``: channels C, positions H * W, width W, and the strides of position and channel;
- ``noise``: the two keys of the hash, the number of the image's first draw, and the factor on the noise;
- ``extremes``: minimum, maximum and range of each channel, and whether it is constant (0 or 1), (1, C);
- ``params``: eps and tau.
"""

import math
from typing import Any, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sharpreid.attention.expectation import REACH, STEPS, slope_table
from sharpreid.attention.fused import memory_format_of
from sharpreid.attention.mask import CLIP, MaskGradient, MaskParams
from sharpreid.attention.noise import BITS, MULTIPLIERS, derive_keys

WARPS = 8
GRADIENT_CODES = {"none": 0, **{name: code for code, name in enumerate(get_args(MaskGradient), start=1)}}
"""Gradient through the mask as the number that the backward kernel takes."""

_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = map(tl.constexpr, MULTIPLIERS)
_DROPPED_BITS = tl.constexpr(32 - BITS)
_STEP = tl.constexpr(2.0**-BITS)
_REACH = tl.constexpr(REACH)
_STEPS = tl.constexpr(STEPS)
_STEPS_PER_UNIT = tl.constexpr(STEPS / (2 * REACH))
_CLIPPED_FROM = tl.constexpr(math.log((1 - CLIP) / CLIP))
_CONSTANT_BELOW = tl.constexpr(torch.finfo(torch.float32).tiny ** 0.5)
_NONE, _RANGE_DETACHED = tl.constexpr(GRADIENT_CODES["none"]), tl.constexpr(GRADIENT_CODES["range_detached"])
_STRAIGHT_THROUGH_PI = tl.constexpr(GRADIENT_CODES["straight_through_pi"])
_CLIPPED, _EXPECTED = tl.constexpr(GRADIENT_CODES["clipped"]), tl.constexpr(GRADIENT_CODES["expected"])


@triton.jit
def _uniform(number, first_key, second_key):
    """Return the draws of `sharpreid.attention.noise.fill_uniform`."""
    a = number.to(tl.uint32) + first_key.to(tl.uint32, bitcast=True)
    a = (a ^ (a >> 16)) * _FIRST_MULTIPLIER
    a = a ^ second_key.to(tl.uint32, bitcast=True)
    a = (a ^ (a >> 15)) * _SECOND_MULTIPLIER
    a = a ^ (a >> 16)
    return ((a >> _DROPPED_BITS).to(tl.float32) + 0.5) * _STEP


@triton.jit
def _extremes(tensors, layout, c, S: tl.constexpr, C: tl.constexpr):
    """Return minimum, maximum, range (1 if constant, NaN with a NaN) and constancy of each channel."""
    _, source, base = tensors
    channels, size, _, stride_s, stride_c = layout
    low = tl.full((1, C), float("inf"), tl.float32)
    high = tl.full((1, C), float("-inf"), tl.float32)
    broken = tl.full((1, C), 0, tl.int32)
    for start in range(0, size, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        x = tl.load(source + base + s * stride_s + c * stride_c, mask=within, other=0.0).to(tl.float32)
        low = tl.minimum(low, tl.min(tl.where(within, x, float("inf")), 0, keep_dims=True))
        high = tl.maximum(high, tl.max(tl.where(within, x, float("-inf")), 0, keep_dims=True))
        broken = tl.maximum(broken, tl.max((x != x).to(tl.int32), 0, keep_dims=True))
    constant = (high - low < _CONSTANT_BELOW).to(tl.float32)
    span = tl.where(broken > 0, float("nan"), tl.where(constant > 0, 1.0, high - low))
    return low, high, span, constant


@triton.jit
def _mask(scope, s, c, within, NOISE: tl.constexpr, SCALED: tl.constexpr):
    """Return T, S, the mask (Eq. 3-5), x - min, max - x, and whether the clamps leave these two unchanged."""
    tensors, layout, noise, extremes, params = scope
    trunk, source, base = tensors
    channels, _, _, stride_s, stride_c = layout
    first_key, second_key, first_draw, scale = noise
    low, high, span, constant = extremes
    eps, tau = params
    at = base + s * stride_s + c * stride_c
    t = tl.load(trunk + at, mask=within, other=0.0).to(tl.float32)
    x = tl.load(source + at, mask=within, other=0.0).to(tl.float32)
    above, below = x - low, high - x + constant
    inside = (above > eps * span) & (above < (1 - eps) * span)
    a = tl.minimum(tl.maximum(above, eps * span), (1 - eps) * span)
    b = tl.minimum(tl.maximum(below, eps * span), (1 - eps) * span)
    if NOISE:
        u = _uniform(first_draw + s * channels + c, first_key, second_key)
        if SCALED:
            a = a * tl.exp(scale * tl.log(u / (1 - u)))
        else:
            a, b = a * u, b * (1 - u)
    mask = 1 / (1 + tl.exp(tl.log(b / a) / tau))
    return t, x, mask + (span - span), above, below, inside  # a NaN in the range reaches the mask


@triton.jit
def _attended(scope, s, c, within, NOISE: tl.constexpr, SCALED: tl.constexpr, HARD: tl.constexpr):
    """Return T and A (Eq. 1) at positions ``s`` of channels ``c``; A is 0 where not ``within``."""
    t, _, mask, _, _, _ = _mask(scope, s, c, within, NOISE, SCALED)
    if HARD:
        mask = tl.where(mask > 0.5, 1.0, 0.0)
    return t, tl.where(within, mask * t, 0.0)


@triton.jit(do_not_specialize=["first_key", "second_key", "first_image"])
def forward_kernel(
    trunk,
    source,
    output,
    total,
    square,
    tau_pointer,
    first_key,
    second_key,
    first_image,
    scale,
    eps,
    channels,
    size,
    width,
    stride_b,
    stride_s,
    stride_c,
    NOISE: tl.constexpr,
    SCALED: tl.constexpr,
    HARD: tl.constexpr,
    VARIATION: tl.constexpr,
    SKIP: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
):
    """Write F (Eq. 2) and each program's share of the sums of squared differences (Eq. 6) and squares."""
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = block * C + tl.arange(0, C)[None, :]
    tensors, layout = (trunk, source, image * stride_b), (channels, size, width, stride_s, stride_c)
    noise = (first_key, second_key, (first_image + image) * channels * size, scale)
    extremes = _extremes(tensors, layout, c, S, C)
    scope = (tensors, layout, noise, extremes, (eps, tl.load(tau_pointer)))
    differences, squares = tl.full((S, C), 0, tl.float32), tl.full((S, C), 0, tl.float32)
    for start in range(0, size, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        t, a = _attended(scope, s, c, within, NOISE, SCALED, HARD)
        f = t + a if SKIP else a
        at = image * stride_b + s * stride_s + c * stride_c
        tl.store(output + at, f.to(output.dtype.element_ty), mask=within)
        if VARIATION:
            right, lower = within & (s % width < width - 1), within & (s + width < size)
            _, beside = _attended(scope, s + 1, c, right, NOISE, SCALED, HARD)
            _, below = _attended(scope, s + width, c, lower, NOISE, SCALED, HARD)
            across, down = tl.where(right, beside - a, 0.0), tl.where(lower, below - a, 0.0)
            differences += across * across + down * down
            squares += a * a
    if VARIATION:
        at_program = image * tl.num_programs(1) + block
        tl.store(total + at_program, tl.sum(differences))
        tl.store(square + at_program, tl.sum(squares))


@triton.jit
def _gradients(
    scope,
    upstream,
    table,
    s,
    c,
    within,
    NOISE: tl.constexpr,
    SCALED: tl.constexpr,
    HARD: tl.constexpr,
    VARIATION: tl.constexpr,
    SKIP: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Return the gradients of T (with the mask fixed), of x - min and of max - x, and S."""
    tensors, layout, _, extremes, params = scope
    base, span, tau = tensors[2], extremes[2], params[1]
    _, size, width, stride_s, stride_c = layout
    grad_output, weight = upstream
    t, x, mask, above, below, inside = _mask(scope, s, c, within, NOISE, SCALED)
    at = base + s * stride_s + c * stride_c
    by_output = tl.load(grad_output + at, mask=within, other=0.0).to(tl.float32)
    final_mask = tl.where(mask > 0.5, 1.0, 0.0) if HARD else mask
    by_attended = by_output
    if VARIATION:  # Eq. 7
        for side in tl.static_range(4):
            if side == 0:
                there, step = within & (s % width < width - 1), 1
            elif side == 1:
                there, step = within & (s % width > 0), -1
            elif side == 2:
                there, step = within & (s + width < size), width
            else:
                there, step = within & (s >= width), -width
            _, neighbour = _attended(scope, s + step, c, there, NOISE, SCALED, HARD)
            by_attended += tl.where(there, weight * (final_mask * t - neighbour), 0.0)
    by_trunk = by_attended * final_mask
    if SKIP:
        by_trunk += by_output
    above, below = tl.where(inside, above, 1.0), tl.where(inside, below, 1.0)
    if GRADIENT == _STRAIGHT_THROUGH_PI:
        slope = above * below / (span * span)
    elif GRADIENT == _EXPECTED:
        logit = tl.minimum(tl.maximum(tl.log(above / below), -_REACH), _REACH)
        position = (logit + _REACH) * _STEPS_PER_UNIT
        index = tl.minimum(position.to(tl.int32), _STEPS - 1)
        left = tl.load(table + index)
        slope = left + (position - index) * (tl.load(table + index + 1) - left)
    else:
        slope = mask * (1 - mask) / tau
        if GRADIENT == _CLIPPED:
            slope = tl.where(tl.abs(tl.log(above / below)) < _CLIPPED_FROM, slope, 0.0)
    by_logit = tl.where(within & inside, by_attended * t * slope, 0.0)
    return by_trunk, by_logit / above, by_logit / below, x


@triton.jit(do_not_specialize=["first_key", "second_key", "first_image"])
def backward_kernel(
    trunk,
    source,
    grad_output,
    table,
    grad_total,
    grad_trunk,
    grad_source,
    tau_pointer,
    first_key,
    second_key,
    first_image,
    scale,
    eps,
    channels,
    size,
    width,
    stride_b,
    stride_s,
    stride_c,
    NOISE: tl.constexpr,
    SCALED: tl.constexpr,
    HARD: tl.constexpr,
    VARIATION: tl.constexpr,
    SKIP: tl.constexpr,
    SHARED: tl.constexpr,
    GRADIENT: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
):
    """Write the gradients with respect to trunk and source.

    The first loop sums the gradients of each channel's minimum and maximum; the second distributes them.
    """
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = block * C + tl.arange(0, C)[None, :]
    tensors, layout = (trunk, source, image * stride_b), (channels, size, width, stride_s, stride_c)
    noise = (first_key, second_key, (first_image + image) * channels * size, scale)
    upstream = (grad_output, 2 * tl.load(grad_total + image))
    extremes = _extremes(tensors, layout, c, S, C)
    scope = (tensors, layout, noise, extremes, (eps, tl.load(tau_pointer)))
    low, high, constant = extremes[0], extremes[1], extremes[3]
    of_low, of_high = tl.full((1, C), 0, tl.float32), tl.full((1, C), 0, tl.float32)
    lowest, highest = tl.full((1, C), 0, tl.float32), tl.full((1, C), 0, tl.float32)
    through_range = (GRADIENT != _NONE) & (GRADIENT != _RANGE_DETACHED)
    for start in range(0, size if through_range else 0, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        _, by_above, by_below, x = _gradients(
            scope, upstream, table, s, c, within, NOISE, SCALED, HARD, VARIATION, SKIP, GRADIENT
        )
        of_low += tl.sum(by_above, 0, keep_dims=True)
        of_high += tl.sum(by_below, 0, keep_dims=True)
        lowest += tl.sum((within & (x == low)).to(tl.float32), 0, keep_dims=True)
        highest += tl.sum((within & (x == high)).to(tl.float32), 0, keep_dims=True)
    varies = (1 - constant) > 0
    of_low = tl.where(varies, of_low / tl.maximum(lowest, 1), 0.0)
    of_high = tl.where(varies, of_high / tl.maximum(highest, 1), 0.0)
    for start in range(0, size, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        by_trunk, by_above, by_below, x = _gradients(
            scope, upstream, table, s, c, within, NOISE, SCALED, HARD, VARIATION, SKIP, GRADIENT
        )
        by_source = by_above + by_below - tl.where(x == low, of_low, 0.0) - tl.where(x == high, of_high, 0.0)
        at = image * stride_b + s * stride_s + c * stride_c
        if SHARED and GRADIENT != _NONE:
            by_trunk += by_source
        elif GRADIENT != _NONE:
            tl.store(grad_source + at, by_source.to(grad_source.dtype.element_ty), mask=within)
        tl.store(grad_trunk + at, by_trunk.to(grad_trunk.dtype.element_ty), mask=within)


def tile_elements(variation: bool, channels_last: bool) -> int:
    """Return how many activations a program holds at a time, so that a multiprocessor fits two programs.

    Args:
        variation: whether the total variation is computed too.
        channels_last: whether channels are last in memory.
    """
    return 512 if variation and not channels_last else 1024


class _Launch:
    """Grid, tile and layout of a launch on a batch ``x`` (B, C, H, W)."""

    def __init__(self, x: Tensor, variation: bool) -> None:
        batch, channels, height, width = x.shape
        size = height * width
        last = memory_format_of(x) == torch.channels_last
        plane, elements = triton.next_power_of_2(size), tile_elements(variation, last)
        self.tile_c = min(triton.next_power_of_2(channels), 32 if last else max(1, elements // plane))
        self.tile_s = min(plane, elements // self.tile_c)
        self.grid = (batch, triton.cdiv(channels, self.tile_c))
        strides = (channels * size, channels, 1) if last else (channels * size, 1, size)
        self.layout = (channels, size, width, *strides)


class TritonAttention(torch.autograd.Function):
    """Sharp attention by the kernels of this file, with the interface of `RecomputedAttention`."""

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
        """Return F, the sum of squared differences of each image's A, and the mean square of A."""
        form = memory_format_of(trunk)
        trunk = trunk.contiguous(memory_format=form)
        source = trunk if shared else source.contiguous(memory_format=form)
        launch = _Launch(trunk, variation)
        output = torch.empty_like(trunk)
        sums = torch.zeros(2, *launch.grid, dtype=torch.float32, device=trunk.device)
        tau = params.tau.to(trunk.device, torch.float32)
        options = {"NOISE": params.seed is not None, "SCALED": params.noise_scale != 1, "HARD": params.hard}
        options |= {"VARIATION": variation, "SKIP": skip, "S": launch.tile_s, "C": launch.tile_c}
        noise = *derive_keys(params.seed or 0), params.first_image, float(params.noise_scale)
        numbers = *noise, params.eps, *launch.layout
        with torch.cuda.device_of(trunk):
            forward_kernel[launch.grid](
                trunk, source, output, sums[0], sums[1], tau, *numbers, **options, num_warps=WARPS
            )
        ctx.save_for_backward(trunk, source, tau)
        gradient = GRADIENT_CODES[params.gradient if ctx.needs_input_grad[1] else "none"]
        ctx.arguments = launch, numbers, {**options, "SHARED": shared, "GRADIENT": gradient}
        mean_square = sums[1].sum(1) / trunk.shape[1:].numel()
        ctx.mark_non_differentiable(mean_square)
        return output, sums[0].sum(1), mean_square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_total: Tensor, _: Tensor) -> Any:
        """Return the gradients with respect to trunk and source."""
        trunk, source, tau = ctx.saved_tensors
        launch, numbers, options = ctx.arguments
        form = memory_format_of(trunk)
        grad_trunk = torch.empty_like(trunk)
        separate = not options["SHARED"] and ctx.needs_input_grad[1]
        grad_source = torch.empty_like(source) if separate else grad_trunk
        upstream, of_total = grad_output.contiguous(memory_format=form), grad_total.float().contiguous()
        expected = options["GRADIENT"] == GRADIENT_CODES["expected"]
        # a kernel argument must be a tensor, also where no code reads it
        table = slope_table(float(tau), trunk.device, torch.float32) if expected else tau
        results = grad_trunk, grad_source
        with torch.cuda.device_of(trunk):
            backward_kernel[launch.grid](
                trunk, source, upstream, table, of_total, *results, tau, *numbers, **options, num_warps=WARPS
            )
        return grad_trunk, grad_source if separate else None, *(None,) * 4
