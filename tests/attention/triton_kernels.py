"""Checks of the Triton kernels, run by test_fused.py in processes of their own."""

import sys
from itertools import product

import torch
from torch import Tensor

from sharpreid.attention import fused_triton
from sharpreid.attention.mask import keep_logit, relaxed_mask, straight_through
from sharpreid.attention.noise import uniform_noise
from sharpreid.losses.total_variation import variation_of


def compare(
    trunk: Tensor, source: Tensor | None, tau: float, seed: int | None, hard: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Output, total variation, mean square and gradients: of kernels and reference on one noise."""
    found = []
    for by_kernels in (True, False):
        t = trunk.clone(memory_format=torch.preserve_format).requires_grad_()
        s = t if source is None else source.clone(memory_format=torch.preserve_format).requires_grad_()
        if by_kernels:
            arguments = torch.tensor(tau), 1e-6, seed, 5, hard, True
            output, total, square = fused_triton.Attend.apply(t, s, source is None, *arguments)
        else:
            noise = torch.zeros(())
            if seed is not None:
                noise = torch.logit(uniform_noise(t.shape, seed, t.dtype, t.device, first=5))
            mask = relaxed_mask(keep_logit(s, 1e-6), noise, tau)
            attended = (straight_through(mask) if hard else mask) * t
            output, (total, square, _) = t + attended, variation_of(attended)
        weight = torch.randn(trunk.shape, generator=torch.Generator().manual_seed(1))
        ((output * weight).sum() + (total * torch.arange(1.0, len(trunk) + 1)).sum()).backward()
        gradients = [x.grad for x in ((t,) if source is None else (t, s)) if x.grad is not None]
        found.append([output.detach(), total.detach(), square, *gradients])
    return found[0], found[1]


def equal() -> None:
    """Every option, both memory formats, sizes that no block divides, dead and constant channels."""
    generator = torch.Generator().manual_seed(0)
    for last, own, tau, seed, hard in product(
        (False, True), (True, False), (1.0, 0.5), (None, 7), (False, True)
    ):
        trunk = torch.randn(2, 5, 7, 3, generator=generator).relu()
        source = torch.randn(2, 5, 7, 3, generator=generator)
        trunk[0, 1], trunk[1, 2], source[0, 0] = 0, 2.5, 1
        form = torch.channels_last if last else torch.contiguous_format
        trunk, source = (x.contiguous(memory_format=form) for x in (trunk, source))
        one, reference = compare(trunk, None if own else source, tau, seed, hard)
        for found, wanted in zip(one, reference, strict=True):
            error = float((found - wanted).abs().max() / wanted.abs().max())
            assert error < 2e-5, (last, own, tau, seed, hard, error)
    broken = torch.rand(1, 2, 4, 4)
    broken[0, 0, 0, 0] = torch.nan
    output, *_ = fused_triton.Attend.apply(broken, broken, True, torch.tensor(1.0), 1e-6, 3, 0, False, False)
    assert output[0, 0].isnan().all()
    assert output[0, 1].isfinite().all()


def distribution() -> None:
    """P(mask > 0.5) is the keep-probability, whatever tau (Eq. 5)."""
    unit = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(1, 4096, 4, 4).contiguous()
    ones = torch.ones_like(unit)
    output, *_ = fused_triton.Attend.apply(ones, unit, False, torch.tensor(0.5), 1e-6, 11, 0, True, False)
    share = (output - 1).mean((0, 1)).flatten()
    assert torch.allclose(share, unit[0, 0].flatten(), atol=4 * 0.5 / 4096**0.5), share


def compiles() -> None:
    """For an H100, without one: types, and registers that suffice."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    pointers = ("trunk", "source", "output", "grad_output", "grad_trunk", "grad_source")
    types = dict.fromkeys(pointers, "*bf16") | {"eps": "fp32"}
    types |= dict.fromkeys(("total", "square", "tau_of", "grad_total"), "*fp32")
    for kernel in (fused_triton._forward, fused_triton._backward):
        fixed = {"NOISE": True, "HARD": False, "VARIATION": False, "SHARED": True, "S": 64, "C": 32}
        fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names} | {"stride_c": 1}
        signature = {
            name: "constexpr" if name in fixed else types.get(name, "i32") for name in kernel.arg_names
        }
        places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert made.asm["cubin"]


if __name__ == "__main__":
    {"equal": equal, "distribution": distribution, "compiles": compiles}[sys.argv[1]]()
    print("checked")
