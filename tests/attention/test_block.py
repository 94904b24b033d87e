from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.context import ContextUnit
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.noise import uniform_noise
from sharpreid.attention.soft import SigmoidGate
from sharpreid.models.implementations import train_block


class Constant(nn.Module):
    """A mask of one value that remembers what it was made from."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return torch.full_like(x, self.value)


def context(upsample: Any = "deconv") -> ContextUnit:
    torch.manual_seed(0)
    return ContextUnit(channels=8, strides="v1", upsample=upsample)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_attended_is_the_masked_trunk_and_the_output_their_sum(value: float) -> None:
    trunk = torch.randn(2, 8, 6, 4)
    out = SharpAttentionBlock(sampler=Constant(value), context=None)(trunk)
    torch.testing.assert_close(out.attended, value * trunk)
    torch.testing.assert_close(out.output, (1 + value) * trunk)
    assert torch.equal(out.mask, torch.full_like(trunk, value))


def test_combining_is_adding_or_concatenating_or_leaving_the_trunk_out() -> None:
    trunk = torch.randn(2, 8, 6, 4)
    concat, attended_only = (
        SharpAttentionBlock(sampler=Constant(0.25), context=None, combine=combine)(trunk)
        for combine in ("concat", "attended_only")
    )
    torch.testing.assert_close(concat.output, torch.cat([trunk, 0.25 * trunk], 1))
    torch.testing.assert_close(attended_only.output, 0.25 * trunk)
    assert torch.equal(concat.attended, attended_only.attended)


@pytest.mark.parametrize("combine", ["add", "concat", "attended_only"])
@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_training_pass_is_eq_1_to_6_written_out(combine: Any, implementation: Any) -> None:
    """Against the equations as the paper prints them, on the noise of seed 3."""
    sampler = MaskSampler(eps=1e-6, implementation=implementation)
    sampler.set_temperature(0.7)
    block = SharpAttentionBlock(sampler=sampler, context=None, combine=combine)
    trunk = torch.randn(2, 8, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = trunk.amin((2, 3), keepdim=True), trunk.amax((2, 3), keepdim=True)
    pi = ((trunk - low) / (high - low)).clamp(1e-6, 1 - 1e-6)
    u = uniform_noise(trunk.shape, 3, torch.float64, trunk.device, first_image=5)
    odds = pi / (1 - pi) * u / (1 - u)
    attended = odds ** (1 / 0.7) / (1 + odds ** (1 / 0.7)) * trunk
    output, variation = train_block(block, trunk, noise_seed=3, first_image=5, total_variation=True)
    wanted = {"add": trunk + attended, "concat": torch.cat([trunk, attended], 1), "attended_only": attended}
    torch.testing.assert_close(output, wanted[combine], rtol=1e-6, atol=1e-6)
    assert variation is not None
    steps = attended.diff(dim=2).square().sum((1, 2, 3)) + attended.diff(dim=3).square().sum((1, 2, 3))
    torch.testing.assert_close(variation.total, steps, rtol=1e-6, atol=1e-6)


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ValueError, match="combine must be one of add, concat, attended_only; got 'sum'"):
        SharpAttentionBlock(sampler=Constant(0.5), context=None, combine="sum")  # type: ignore[arg-type]


def test_mask_is_made_from_the_trunk_or_from_its_context() -> None:
    trunk, sampler, unit = torch.randn(2, 8, 6, 4), Constant(0.5), context().eval()
    SharpAttentionBlock(sampler=sampler, context=None)(trunk)
    assert torch.equal(sampler.seen, trunk)
    SharpAttentionBlock(sampler=sampler, context=unit)(trunk)
    assert torch.equal(sampler.seen, unit(trunk))


def test_block_with_a_sigmoid_passes_gradcheck() -> None:
    block = SharpAttentionBlock(sampler=SigmoidGate(), context=None)
    trunk = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda trunk: tuple(block(trunk)), trunk)


def test_sharp_block_without_noise_passes_gradcheck() -> None:
    block = SharpAttentionBlock(sampler=MaskSampler(eps=0.01), context=None).eval()
    trunk = torch.randperm(36, generator=torch.Generator().manual_seed(0)).reshape(2, 2, 3, 3) / 36.0
    assert torch.autograd.gradcheck(lambda trunk: tuple(block(trunk)), trunk.double().requires_grad_())


def test_trunk_is_learned_through_the_mask_as_well() -> None:
    trunk = torch.randn(1, 2, 4, 4, requires_grad=True)
    block = SharpAttentionBlock(sampler=MaskSampler(eps=1e-6), context=None).eval()
    (through_mask,) = torch.autograd.grad(block(trunk).mask.square().sum(), trunk)
    assert through_mask.any()


@pytest.mark.parametrize("sampler", [MaskSampler(eps=1e-6), SigmoidGate()])
@pytest.mark.parametrize("upsample", [None, "deconv", "nearest", "bilinear"])
def test_under_autocast_masks_are_float32_and_nothing_is_nan(sampler: nn.Module, upsample: Any) -> None:
    block = SharpAttentionBlock(sampler=sampler, context=None if upsample is None else context(upsample))
    trunk = torch.randn(2, 8, 7, 5).relu().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block.train()(trunk)
        loss = out.output.float().square().mean() + out.attended.square().mean()
    loss.backward()
    assert (out.output.dtype, out.attended.dtype, out.mask.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert all(torch.isfinite(tensor).all() for tensor in out)
    assert torch.isfinite(trunk.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())


def test_dead_trunk_stays_dead_with_finite_zero_gradients() -> None:
    trunk = torch.zeros(2, 8, 6, 4, requires_grad=True)
    out = SharpAttentionBlock(sampler=MaskSampler(eps=1e-6), context=None)(trunk)
    out.attended.square().sum().backward()
    assert not out.output.any()
    assert torch.equal(trunk.grad, torch.zeros_like(trunk))


def test_block_without_context_has_nothing_to_learn() -> None:
    assert not list(SharpAttentionBlock(sampler=MaskSampler(eps=1e-6), context=None).parameters())
