"""Eq. 1-5 as Triton kernels: one pass over the activations forward, and no mask in memory.

A program goes through some channels of an image twice forward, for their range and for the mask, and three
times backward; after the first time they are in the cache. The noise is that of `sharpreid.attention.noise`,
hashed again wherever it is needed.

Not yet run on a GPU: tests run the kernels in Triton's interpreter, and compile them for one.
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
from sharpreid.attention.mask import CLIP, MaskGradient, Recipe
from sharpreid.attention.noise import BITS, FIRST, SECOND, keys

WARPS = 8
_FIRST = tl.constexpr(FIRST)
_SECOND = tl.constexpr(SECOND)
_DROPPED = tl.constexpr(32 - BITS)
_STEP = tl.constexpr(2.0**-BITS)
_REACH = tl.constexpr(REACH)
_STEPS = tl.constexpr(STEPS)
_PER_UNIT = tl.constexpr(STEPS / (2 * REACH))
_CLIPPED_FROM = tl.constexpr(math.log((1 - CLIP) / CLIP))
_NUMBERS = {"none": 0, **{name: number for number, name in enumerate(get_args(MaskGradient), start=1)}}
_NONE, _RANGE_DETACHED = tl.constexpr(_NUMBERS["none"]), tl.constexpr(_NUMBERS["range_detached"])
_STRAIGHT_THROUGH_PI = tl.constexpr(_NUMBERS["straight_through_pi"])
_CLIPPED, _EXPECTED = tl.constexpr(_NUMBERS["clipped"]), tl.constexpr(_NUMBERS["expected"])


@triton.jit
def _uniform(number, one, other):
    """Draws of `sharpreid.attention.noise.draw`."""
    a = number.to(tl.uint32) + one.to(tl.uint32, bitcast=True)
    a = (a ^ (a >> 16)) * _FIRST
    a = a ^ other.to(tl.uint32, bitcast=True)
    a = (a ^ (a >> 15)) * _SECOND
    a = a ^ (a >> 16)
    return ((a >> _DROPPED).to(tl.float32) + 0.5) * _STEP


@triton.jit
def _mask(x, u, low, high, unit, constant, eps, tau, scale, NOISE: tl.constexpr, SCALED: tl.constexpr):
    """Eq. 3-5 of activations, and what of the clamps the gradient needs."""
    above, below = x - low, high - x + constant
    inside = (above > eps * unit) & (above < (1 - eps) * unit)
    a = tl.minimum(tl.maximum(above, eps * unit), (1 - eps) * unit)
    b = tl.minimum(tl.maximum(below, eps * unit), (1 - eps) * unit)
    if NOISE:
        if SCALED:
            a = a * tl.exp(scale * tl.log(u / (1 - u)))
        else:
            a, b = a * u, b * (1 - u)
    mask = 1 / (1 + tl.exp(tl.log(b / a) / tau))
    return mask + (unit - unit), inside, above, below  # NaN is not to be hidden


@triton.jit
def _attended(
    trunk,
    source,
    base,
    first,
    s,
    c,
    within,
    stride_s,
    stride_c,
    channels,
    one,
    other,
    low,
    high,
    unit,
    constant,
    eps,
    tau,
    scale,
    NOISE: tl.constexpr,
    SCALED: tl.constexpr,
    HARD: tl.constexpr,
):
    """A of Eq. 1 at places of the channels, 0 where not ``within``."""
    place = base + s * stride_s + c * stride_c
    t = tl.load(trunk + place, mask=within, other=0.0).to(tl.float32)
    x = tl.load(source + place, mask=within, other=0.0).to(tl.float32)
    u = _uniform(first + s * channels + c, one, other) if NOISE else x
    mask, _, _, _ = _mask(x, u, low, high, unit, constant, eps, tau, scale, NOISE, SCALED)
    if HARD:
        mask = tl.where(mask > 0.5, 1.0, 0.0)
    return tl.where(within, mask * t, 0.0)


@triton.jit
def _range(source, base, c, channels, size, stride_s, stride_c, S: tl.constexpr, C: tl.constexpr):
    """Minimum, maximum, their difference (1 where constant) and whether a channel is constant, as 0 or 1.

    A channel with a NaN has a difference that is NaN.
    """
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
    constant = (high - low < 1.0842021724855044e-19).to(tl.float32)
    unit = tl.where(broken > 0, float("nan"), tl.where(constant > 0, 1.0, high - low))
    return low, high, unit, constant


@triton.jit(do_not_specialize=["one", "other", "ahead"])
def _forward(
    trunk,
    source,
    output,
    total,
    square,
    tau_of,
    one,
    other,
    ahead,
    eps,
    scale,
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
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = block * C + tl.arange(0, C)[None, :]
    base, first = image * stride_b, (ahead + image) * channels * size
    tau = tl.load(tau_of)
    low, high, unit, constant = _range(source, base, c, channels, size, stride_s, stride_c, S, C)
    differences, squares = tl.full((S, C), 0, tl.float32), tl.full((S, C), 0, tl.float32)
    for start in range(0, size, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        a = _attended(
            trunk,
            source,
            base,
            first,
            s,
            c,
            within,
            stride_s,
            stride_c,
            channels,
            one,
            other,
            low,
            high,
            unit,
            constant,
            eps,
            tau,
            scale,
            NOISE,
            SCALED,
            HARD,
        )
        place = base + s * stride_s + c * stride_c
        t = tl.load(trunk + place, mask=within, other=0.0).to(tl.float32)
        f = t + a if SKIP else a
        tl.store(output + place, f.to(output.dtype.element_ty), mask=within)
        if VARIATION:
            right, lower = within & (s % width < width - 1), within & (s + width < size)
            beside = _attended(
                trunk,
                source,
                base,
                first,
                s + 1,
                c,
                right,
                stride_s,
                stride_c,
                channels,
                one,
                other,
                low,
                high,
                unit,
                constant,
                eps,
                tau,
                scale,
                NOISE,
                SCALED,
                HARD,
            )
            below = _attended(
                trunk,
                source,
                base,
                first,
                s + width,
                c,
                lower,
                stride_s,
                stride_c,
                channels,
                one,
                other,
                low,
                high,
                unit,
                constant,
                eps,
                tau,
                scale,
                NOISE,
                SCALED,
                HARD,
            )
            across, down = tl.where(right, beside - a, 0.0), tl.where(lower, below - a, 0.0)
            differences += across * across + down * down
            squares += a * a
    if VARIATION:
        at = image * tl.num_programs(1) + block
        tl.store(total + at, tl.sum(differences))
        tl.store(square + at, tl.sum(squares))


@triton.jit
def _slopes(
    trunk,
    source,
    grad_output,
    table,
    weight,
    base,
    first,
    s,
    c,
    within,
    width,
    stride_s,
    stride_c,
    size,
    channels,
    one,
    other,
    low,
    high,
    unit,
    constant,
    eps,
    tau,
    scale,
    NOISE: tl.constexpr,
    SCALED: tl.constexpr,
    HARD: tl.constexpr,
    VARIATION: tl.constexpr,
    SKIP: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """Gradient by the trunk as such, by minimum and maximum where the place bears on them, and the source."""
    place = base + s * stride_s + c * stride_c
    t = tl.load(trunk + place, mask=within, other=0.0).to(tl.float32)
    x = tl.load(source + place, mask=within, other=0.0).to(tl.float32)
    upstream = tl.load(grad_output + place, mask=within, other=0.0).to(tl.float32)
    u = _uniform(first + s * channels + c, one, other) if NOISE else x
    mask, inside, above, below = _mask(x, u, low, high, unit, constant, eps, tau, scale, NOISE, SCALED)
    used = tl.where(mask > 0.5, 1.0, 0.0) if HARD else mask
    to_attended = upstream
    if VARIATION:
        for side in tl.static_range(4):
            if side == 0:
                there, step = within & (s % width < width - 1), 1
            elif side == 1:
                there, step = within & (s % width > 0), -1
            elif side == 2:
                there, step = within & (s + width < size), width
            else:
                there, step = within & (s >= width), -width
            neighbour = _attended(
                trunk,
                source,
                base,
                first,
                s + step,
                c,
                there,
                stride_s,
                stride_c,
                channels,
                one,
                other,
                low,
                high,
                unit,
                constant,
                eps,
                tau,
                scale,
                NOISE,
                SCALED,
                HARD,
            )
            to_attended += tl.where(there, weight * (used * t - neighbour), 0.0)
    to_trunk = to_attended * used
    if SKIP:
        to_trunk += upstream
    above, below = tl.where(inside, above, 1.0), tl.where(inside, below, 1.0)
    if GRADIENT == _STRAIGHT_THROUGH_PI:
        rise = above * below / (unit * unit)
    elif GRADIENT == _EXPECTED:
        logit = tl.minimum(tl.maximum(tl.log(above / below), -_REACH), _REACH)
        at = (logit + _REACH) * _PER_UNIT
        index = tl.minimum(at.to(tl.int32), _STEPS - 1)
        left = tl.load(table + index)
        rise = left + (at - index) * (tl.load(table + index + 1) - left)
    else:
        rise = mask * (1 - mask) / tau
        if GRADIENT == _CLIPPED:
            rise = tl.where(tl.abs(tl.log(above / below)) < _CLIPPED_FROM, rise, 0.0)
    slope = tl.where(within & inside, to_attended * t * rise, 0.0)
    return to_trunk, slope / above, slope / below, x


@triton.jit(do_not_specialize=["one", "other", "ahead"])
def _backward(
    trunk,
    source,
    grad_output,
    table,
    grad_total,
    grad_trunk,
    grad_source,
    tau_of,
    one,
    other,
    ahead,
    eps,
    scale,
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
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = block * C + tl.arange(0, C)[None, :]
    base, first = image * stride_b, (ahead + image) * channels * size
    tau, weight = tl.load(tau_of), 2 * tl.load(grad_total + image)
    low, high, unit, constant = _range(source, base, c, channels, size, stride_s, stride_c, S, C)
    of_low, of_high = tl.full((1, C), 0, tl.float32), tl.full((1, C), 0, tl.float32)
    lowest, highest = tl.full((1, C), 0, tl.float32), tl.full((1, C), 0, tl.float32)
    through_range = (GRADIENT != _NONE) & (GRADIENT != _RANGE_DETACHED)
    for start in range(0, size if through_range else 0, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        _, by_low, by_high, x = _slopes(
            trunk,
            source,
            grad_output,
            table,
            weight,
            base,
            first,
            s,
            c,
            within,
            width,
            stride_s,
            stride_c,
            size,
            channels,
            one,
            other,
            low,
            high,
            unit,
            constant,
            eps,
            tau,
            scale,
            NOISE,
            SCALED,
            HARD,
            VARIATION,
            SKIP,
            GRADIENT,
        )
        of_low += tl.sum(by_low, 0, keep_dims=True)
        of_high += tl.sum(by_high, 0, keep_dims=True)
        lowest += tl.sum((within & (x == low)).to(tl.float32), 0, keep_dims=True)
        highest += tl.sum((within & (x == high)).to(tl.float32), 0, keep_dims=True)
    varies = (1 - constant) > 0
    of_low = tl.where(varies, of_low / tl.maximum(lowest, 1), 0.0)
    of_high = tl.where(varies, of_high / tl.maximum(highest, 1), 0.0)
    for start in range(0, size, S):
        s = start + tl.arange(0, S)[:, None]
        within = (s < size) & (c < channels)
        to_trunk, by_low, by_high, x = _slopes(
            trunk,
            source,
            grad_output,
            table,
            weight,
            base,
            first,
            s,
            c,
            within,
            width,
            stride_s,
            stride_c,
            size,
            channels,
            one,
            other,
            low,
            high,
            unit,
            constant,
            eps,
            tau,
            scale,
            NOISE,
            SCALED,
            HARD,
            VARIATION,
            SKIP,
            GRADIENT,
        )
        to_source = by_low + by_high - tl.where(x == low, of_low, 0.0) - tl.where(x == high, of_high, 0.0)
        place = base + s * stride_s + c * stride_c
        if SHARED and GRADIENT != _NONE:
            to_trunk += to_source
        elif GRADIENT != _NONE:
            tl.store(grad_source + place, to_source.to(grad_source.dtype.element_ty), mask=within)
        tl.store(grad_trunk + place, to_trunk.to(grad_trunk.dtype.element_ty), mask=within)


def tile(variation: bool, last: bool) -> int:
    """Activations that a program holds at a time: so few that two programs or more have room on a processor.

    Args:
        variation: the total variation is asked for, too.
        last: channels are last in memory.
    """
    return 512 if variation and not last else 1024


class _Launch:
    """Shapes and strides of a launch."""

    def __init__(self, x: Tensor, variation: bool) -> None:
        batch, channels, height, width = x.shape
        size = height * width
        last = memory_format_of(x) == torch.channels_last
        plane, held = triton.next_power_of_2(size), tile(variation, last)
        self.tile_c = min(triton.next_power_of_2(channels), 32 if last else max(1, held // plane))
        self.tile_s = min(plane, held // self.tile_c)
        self.grid = (batch, triton.cdiv(channels, self.tile_c))
        strides = (channels * size, channels, 1) if last else (channels * size, 1, size)
        self.shape = (channels, size, width, *strides)


class Attend(torch.autograd.Function):
    """As that of `sharpreid.attention.fused`, by the kernels of this file."""

    @staticmethod
    def forward(
        ctx: Any, trunk: Tensor, source: Tensor, shared: bool, recipe: Recipe, variation: bool, skip: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        form = memory_format_of(trunk)
        trunk = trunk.contiguous(memory_format=form)
        source = trunk if shared else source.contiguous(memory_format=form)
        launch = _Launch(trunk, variation)
        output = torch.empty_like(trunk)
        sums = torch.zeros(2, *launch.grid, dtype=torch.float32, device=trunk.device)
        tau = recipe.tau.to(trunk.device, torch.float32)
        options = {"NOISE": recipe.seed is not None, "SCALED": recipe.noise_scale != 1, "HARD": recipe.hard}
        options |= {"VARIATION": variation, "SKIP": skip, "S": launch.tile_s, "C": launch.tile_c}
        numbers = *keys(recipe.seed or 0), recipe.first, recipe.eps, float(recipe.noise_scale), *launch.shape
        with torch.cuda.device_of(trunk):
            _forward[launch.grid](
                trunk, source, output, sums[0], sums[1], tau, *numbers, **options, num_warps=WARPS
            )
        ctx.save_for_backward(trunk, source, tau)
        gradient = _NUMBERS[recipe.gradient if ctx.needs_input_grad[1] else "none"]
        ctx.arguments = launch, numbers, {**options, "SHARED": shared, "GRADIENT": gradient}
        square = sums[1].sum(1) / trunk.shape[1:].numel()
        ctx.mark_non_differentiable(square)
        return output, sums[0].sum(1), square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, grad_total: Tensor, _: Tensor) -> Any:
        trunk, source, tau = ctx.saved_tensors
        launch, numbers, options = ctx.arguments
        form = memory_format_of(trunk)
        grad_trunk = torch.empty_like(trunk)
        apart = not options["SHARED"] and ctx.needs_input_grad[1]
        grad_source = torch.empty_like(source) if apart else grad_trunk
        upstream, of_total = grad_output.contiguous(memory_format=form), grad_total.float().contiguous()
        table = tau  # not read
        if options["GRADIENT"] == _NUMBERS["expected"]:
            table = slope_table(float(tau), trunk.device, torch.float32)
        results = grad_trunk, grad_source
        with torch.cuda.device_of(trunk):
            _backward[launch.grid](
                trunk, source, upstream, table, of_total, *results, tau, *numbers, **options, num_warps=WARPS
            )
        return grad_trunk, grad_source if apart else None, *(None,) * 4
