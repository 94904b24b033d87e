"""Checks of the Triton kernels, run by test_fused.py in processes of their own."""

import re
import subprocess
import sys
import tempfile
from itertools import product
from typing import Any, get_args

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from sharpreid.attention import fused_triton
from sharpreid.attention.block import apply_mask
from sharpreid.attention.mask import MaskGradient, MaskParams, sample_mask
from sharpreid.losses.total_variation import squared_total_variation


def compare(
    trunk: Tensor, source: Tensor | None, params: MaskParams, *, skip: bool = True, detached: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Output, total variation, mean square and gradients: of kernels and reference on one noise."""
    found = []
    for by_kernels in (True, False):
        t = trunk.clone(memory_format=torch.preserve_format).requires_grad_()
        if source is None:
            s = t.detach() if detached else t
        else:
            s = source.clone(memory_format=torch.preserve_format).requires_grad_(not detached)
        if by_kernels:
            output, total, square = fused_triton.TritonAttention.apply(
                t, s, source is None, params, True, skip
            )
        else:
            mask = sample_mask(s, params.draw_noise(s), params)
            output, attended = apply_mask(t, mask, "add" if skip else "attended_only")
            total, square, _ = squared_total_variation(attended)
        weight = torch.randn(trunk.shape, generator=torch.Generator().manual_seed(1))
        ((output * weight).sum() + (total * torch.arange(1.0, len(trunk) + 1)).sum()).backward()
        gradients = [x.grad for x in ((t,) if source is None else (t, s)) if x.grad is not None]
        found.append([output.detach(), total.detach(), square, *gradients])
    return found[0], found[1]


def equal() -> None:
    """Every option, both memory formats, several tiles of places and channels, none of which divides the
    sizes; dead and constant channels."""
    largest_tile = fused_triton.tile_elements(variation=False, channels_last=True)
    assert largest_tile < 33 * 41  # else the largest of these shapes fits one tile
    for shape in ((2, 5, 7, 3), (1, 40, 12, 6), (1, 3, 33, 41)):
        every_option(shape)
    broken = torch.rand(1, 2, 4, 4)
    broken[0, 0, 0, 0] = torch.nan
    params = MaskParams(torch.tensor(1.0), 1e-6, 3, 0, False)
    output, *_ = fused_triton.TritonAttention.apply(broken, broken, True, params, False, True)
    assert output[0, 0].isnan().all()
    assert output[0, 1].isfinite().all()


def every_option(shape: tuple[int, int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for last, own, tau, seed, hard in product(
        (False, True), (True, False), (1.0, 0.5), (None, 7), (False, True)
    ):
        params = MaskParams(torch.tensor(tau), 1e-6, seed, 5, hard)
        one_option(shape, params, last=last, own=own, generator=generator)


def gradients() -> None:
    """What flows back through the mask, a factor on the noise, and A alone, without the trunk."""
    generator = torch.Generator().manual_seed(0)
    for gradient, last, own, scale, skip in product(
        (*get_args(MaskGradient), "none"), (False, True), (True, False), (1.0, 0.3), (True, False)
    ):
        detached = gradient == "none"
        params = MaskParams(torch.tensor(0.5), 1e-6, 7, 5, False, "whole" if detached else gradient, scale)
        options = {"last": last, "own": own, "skip": skip, "detached": detached}
        one_option((2, 5, 7, 3), params, **options, generator=generator)


def one_option(
    shape: tuple[int, int, int, int],
    params: MaskParams,
    *,
    last: bool,
    own: bool,
    skip: bool = True,
    detached: bool = False,
    generator: torch.Generator,
) -> None:
    trunk = torch.randn(shape, generator=generator).relu()
    source = torch.randn(shape, generator=generator)
    trunk[0, 1], trunk[-1, 2], source[0, 0] = 0, 2.5, 1
    form = torch.channels_last if last else torch.contiguous_format
    trunk, source = (x.contiguous(memory_format=form) for x in (trunk, source))
    one, reference = compare(trunk, None if own else source, params, skip=skip, detached=detached)
    for found, wanted in zip(one, reference, strict=True):
        error = float((found - wanted).abs().max() / wanted.abs().max())
        assert error < 2e-5, (shape, last, own, skip, params, error)


def bfloat16() -> None:
    """Input, output and gradients in bfloat16, which the interpreter truncates; all between in float32."""
    generator = torch.Generator().manual_seed(0)
    trunk = torch.randn(2, 5, 7, 3, generator=generator).relu().bfloat16()
    params = MaskParams(torch.tensor(0.5), 1e-6, 7, 5, False)
    found, _ = compare(trunk, None, params)
    wanted, _ = compare(trunk.float(), None, params)
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    for one, other in zip(found, wanted, strict=True):
        error = float((one.float() - other).abs().max() / other.abs().max())
        assert error < 2**-7, error


def distribution() -> None:
    """P(mask > 0.5) is the keep-probability, whatever tau (Eq. 5)."""
    unit = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(1, 4096, 4, 4).contiguous()
    ones = torch.ones_like(unit)
    params = MaskParams(torch.tensor(0.5), 1e-6, 11, 0, True)
    output, *_ = fused_triton.TritonAttention.apply(ones, unit, False, params, False, True)
    share = (output - 1).mean((0, 1)).flatten()
    assert torch.allclose(share, unit[0, 0].flatten(), atol=4 * 0.5 / 4096**0.5), share


def compiles() -> None:
    """For an H100, without one: types, and registers of which two programs find enough on a processor."""
    backward = [(fused_triton.backward_kernel, number) for number in fused_triton.GRADIENT_CODES.values()]
    for (kernel, gradient), variation, hard, last in product(
        [(fused_triton.forward_kernel, 1), *backward], (False, True), (False, True), (False, True)
    ):
        if hard and gradient != 1:  # the whole gradient
            continue
        registers, spilt = resources(kernel, variation=variation, hard=hard, last=last, gradient=gradient)
        case = kernel.fn.__name__, variation, hard, last, gradient
        assert registers * fused_triton.WARPS * 32 * 2 <= 65536, (case, registers)
        assert spilt <= 16, (case, spilt)


def resources(kernel: Any, *, variation: bool, hard: bool, last: bool, gradient: int) -> tuple[int, int]:
    """Registers and bytes of other memory that a thread takes, for the second block's 32 x 16 places."""
    pointers = ("trunk", "source", "output", "grad_output", "grad_trunk", "grad_source")
    types = dict.fromkeys(pointers, "*bf16") | {"eps": "fp32", "scale": "fp32"}
    types |= dict.fromkeys(("total", "square", "tau_pointer", "grad_total", "table"), "*fp32")
    tile = fused_triton.tile_elements(variation, last)
    c = 32 if last else tile // 512
    options = {"NOISE": True, "HARD": hard, "VARIATION": variation, "SHARED": True}
    options |= {"SCALED": False, "SKIP": True, "GRADIENT": gradient}
    fixed = {name: value for name, value in options.items() if name in kernel.arg_names}
    fixed |= {"S": tile // c, "C": c, "stride_c" if last else "stride_s": 1}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": fused_triton.WARPS})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = {name: int(re.findall(rf"{name}:(\d+)", told.stdout)[0]) for name in ("REG", "STACK", "LOCAL")}
    return found["REG"], found["STACK"] + found["LOCAL"]


if __name__ == "__main__":
    checks = (equal, gradients, bfloat16, distribution, compiles)
    {check.__name__: check for check in checks}[sys.argv[1]]()
    print("checked")
