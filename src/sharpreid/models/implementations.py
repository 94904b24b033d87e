"""Training pass through a sharp attention block: Eq. 1-6 by the implementation that a config names.

The implementations are equal up to rounding (tests/attention/test_fused.py). ``eager`` is the reference: the
functions of `sharpreid.attention.mask`, `sharpreid.attention.block` and `sharpreid.losses.total_variation`
one after the other. ``compile`` is the same expression in one graph. ``recompute``, the default of the
configs, and ``triton`` have gradients derived by hand, so that no mask is stored.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sharpreid.attention.block import Combine, SharpAttentionBlock, apply_mask
from sharpreid.attention.fused import RecomputedAttention
from sharpreid.attention.mask import Implementation, MaskParams, MaskSampler, sample_mask
from sharpreid.losses.total_variation import TotalVariation, squared_total_variation

log = logging.getLogger(__name__)


def train_block(
    block: SharpAttentionBlock,
    trunk: Tensor,
    *,
    noise_seed: int | None = None,
    first_image: int = 0,
    total_variation: bool,
) -> tuple[Tensor, TotalVariation | None]:
    """Pass the features of a stage through an attention block by its sampler's ``implementation``.

    Soft attention, and any block in evaluation mode, runs the reference.

    Args:
        block: the block.
        trunk: T of Eq. 1, float, (B, C, H, W), unitless.
        noise_seed: see `MaskSampler.mask_params`.
        first_image: see `MaskSampler.mask_params`.
        total_variation: whether to compute Eq. 6 of the attended features.

    Returns:
        F of Eq. 2, shape and dtype as `Attended.output`, and Eq. 6 of A or None.
    """
    sampler = block.sampler
    if not (isinstance(sampler, MaskSampler) and sampler.training):
        output, attended, mask = block(trunk)
        if block.mask_listener is not None:
            block.mask_listener(mask.detach())
        return output, squared_total_variation(attended) if total_variation else None
    params = sampler.mask_params(noise_seed, first_image)
    source = block.mask_source(trunk)
    if block.mask_listener is not None:
        with torch.no_grad():
            block.mask_listener(sampler(source, noise_seed=params.seed, first_image=first_image))
    return attend(
        trunk,
        source,
        params,
        total_variation=total_variation,
        combine=block.combine,
        implementation=sampler.implementation,
    )


def attend(
    trunk: Tensor,
    source: Tensor,
    params: MaskParams,
    *,
    total_variation: bool,
    combine: Combine = "add",
    implementation: Implementation = "recompute",
) -> tuple[Tensor, TotalVariation | None]:
    """Return F = T + M(S) * T (Eq. 1-5) and the total variation of A = M(S) * T (Eq. 6).

    Args:
        trunk: T, float, (B, C, H, W), unitless.
        source: S, input of the mask: T itself or its context, float, same shape. A detached T is recognised;
            its mask costs no gradient and no memory.
        params: parameters of the mask.
        total_variation: whether to compute Eq. 6.
        combine: form of Eq. 2, see `SharpAttentionBlock`.
        implementation: ``eager``: the reference, in tensor operations; ``recompute``: stores no mask, on any
            device; ``compile``: the reference by torch.compile; ``triton``: kernels for CUDA. The noise is
            the same in all, up to rounding.

    Returns:
        F, (B, C, H, W) or, with ``concat``, (B, 2C, H, W), in the dtype and memory format of ``trunk``; and
        Eq. 6 per image, or None. ``recompute`` and ``triton`` do not support second derivatives.

        If ``compile`` or ``triton`` cannot compile, for example without a C compiler or a folder for its
        cache, one warning says so and ``recompute`` is used from then on.

    Raises:
        ValueError: ``triton`` is chosen without CUDA or in float64.
    """
    if implementation == "triton":
        _check_triton(trunk)
    if implementation in _BROKEN:
        implementation = "recompute"
    arguments = (trunk, source, params, total_variation, combine)
    try:
        result = _attend(*arguments, implementation=implementation)
    except Exception as error:
        if implementation in ("eager", "recompute", *_WORKING) or isinstance(error, torch.OutOfMemoryError):
            raise
        _BROKEN.add(implementation)
        log.warning(
            "model.sampler.implementation=%s cannot be used (%s: %s); recompute is used instead; its "
            "results are equal up to rounding",
            *(
                implementation,
                type(error).__name__,
                (str(error).strip() or "no reason given").splitlines()[0],
            ),
        )
        return _attend(*arguments, implementation="recompute")
    _WORKING.add(implementation)
    return result


_BROKEN: set[Implementation] = set()
"""Implementations that failed at their first use."""

_WORKING: set[Implementation] = set()


def _attend(
    trunk: Tensor,
    source: Tensor,
    params: MaskParams,
    total_variation: bool,
    combine: Combine,
    *,
    implementation: Implementation,
) -> tuple[Tensor, TotalVariation | None]:
    if implementation in ("eager", "compile"):
        reference = _compiled_reference() if implementation == "compile" else _reference
        with torch.autocast(trunk.device.type, enabled=False):
            return reference(trunk, source, params.draw_noise(source), params, total_variation, combine)
    operation: Any = RecomputedAttention  # torch's types do not know apply()
    if implementation == "triton":
        from sharpreid.attention.fused_triton import TritonAttention

        operation = TritonAttention
    shared = source.data_ptr() == trunk.data_ptr() and source.stride() == trunk.stride()
    output, total, mean_square = operation.apply(
        trunk, source, shared, params, total_variation, combine == "add"
    )
    if combine == "concat":
        output = torch.cat([trunk, output], 1)
    elements = trunk.shape[1:].numel()
    return output, TotalVariation(total, mean_square, elements) if total_variation else None


def _reference(
    trunk: Tensor,
    source: Tensor,
    noise: Tensor | float,
    params: MaskParams,
    total_variation: bool,
    combine: Combine,
) -> tuple[Tensor, TotalVariation | None]:
    output, attended = apply_mask(trunk, sample_mask(source, noise, params), combine)
    return output, squared_total_variation(attended) if total_variation else None


@cache
def _compiled_reference() -> Callable[..., tuple[Tensor, TotalVariation | None]]:
    return torch.compile(_reference)


def _check_triton(trunk: Tensor) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if trunk.dtype == torch.float64 or not (trunk.is_cuda or interpreted):
        raise ValueError(
            f"implementation=triton needs a CUDA device and no float64, got {trunk.dtype} on {trunk.device}; "
            "take model.sampler.implementation=recompute"
        )
