"""The implementations of Eq. 1-6 equal the reference on the same noise, and the default stores no mask."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sharpreid.attention import fused
from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.context import ContextUnit
from sharpreid.attention.expectation import mean_slope
from sharpreid.attention.mask import (
    Gradient,
    MaskGradient,
    MaskParams,
    MaskSampler,
    keep_probability,
    sample_mask,
)
from sharpreid.losses.total_variation import reduce_total_variation
from sharpreid.models import implementations
from sharpreid.models.implementations import attend, train_block

KERNELS = Path(__file__).with_name("triton_kernels.py")


def features(dtype: torch.dtype, *, channels_last: bool) -> tuple[Tensor, Tensor]:
    """A trunk as a ReLU leaves it, with a dead and a constant channel, and another source of the mask."""
    generator = torch.Generator().manual_seed(0)
    trunk = torch.randn(3, 5, 8, 4, dtype=torch.float64, generator=generator).relu()
    trunk[0, 1], trunk[1, 2] = 0, 2.5
    source = torch.randn(3, 5, 8, 4, dtype=torch.float64, generator=generator)
    source[0, 0] = 1
    form = torch.channels_last if channels_last else torch.contiguous_format
    return tuple(x.to(dtype).contiguous(memory_format=form) for x in (trunk, source))  # type: ignore[return-value]


def results(
    trunk: Tensor,
    source: Tensor | None,
    params: MaskParams,
    reduction: Any,
    implementation: Any,
    *,
    combine: Any = "add",
) -> list[Tensor]:
    """Output, total variation and the gradients of a loss of both."""
    trunk = trunk.detach().requires_grad_()
    other = trunk if source is None else source.detach().requires_grad_()
    output, variation = attend(
        trunk, other, params, total_variation=True, combine=combine, implementation=implementation
    )
    assert variation is not None
    value = reduce_total_variation(variation, reduction)
    weight = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (output * weight.to(output)).sum().add(value).backward()
    gradients = [x.grad for x in ((trunk,) if source is None else (trunk, other))]
    return [output.detach(), value.detach(), *(x for x in gradients if x is not None)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_recomputed_equals_the_reference(
    dtype: torch.dtype,
    tolerance: float,
    own: bool,
    tau: float,
    seed: int | None,
    hard: bool,
    channels_last: bool,
) -> None:
    """In values and gradients, relative to the largest; ties and dead channels included."""
    trunk, source = features(dtype, channels_last=channels_last)
    params = MaskParams(torch.tensor(tau), 1e-6, seed, 0, hard)
    for reduction in ("sum", "mean", "relative"):
        one, reference = (
            results(trunk, None if own else source, params, reduction, implementation)
            for implementation in ("recompute", "eager")
        )
        assert len(one) == len(reference) == (3 if own else 4)
        for found, wanted in zip(one, reference, strict=True):
            assert found.dtype == wanted.dtype
            assert float((found - wanted).abs().max() / wanted.abs().max()) < tolerance


@pytest.mark.parametrize("combine", ["add", "attended_only", "concat"])
@pytest.mark.parametrize("noise_scale", [1.0, 0.3])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("gradient", get_args(MaskGradient))
def test_recomputed_equals_the_reference_with_each_gradient(
    gradient: Any, own: bool, noise_scale: float, combine: Any
) -> None:
    for channels_last, tau, hard in product((False, True), (1.0, 0.5), (False, True)):
        trunk, source = features(torch.float64, channels_last=channels_last)
        params = MaskParams(torch.tensor(tau), 1e-6, 3, 0, hard, gradient, noise_scale)
        one, reference = (
            results(trunk, None if own else source, params, "mean", implementation, combine=combine)
            for implementation in ("recompute", "eager")
        )
        for found, wanted in zip(one, reference, strict=True):
            assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-12


@pytest.mark.parametrize("gradient", ["straight_through_pi", "expected", "clipped", "range_detached"])
def test_a_gradient_is_the_chain_rule_with_another_slope(gradient: Any) -> None:
    """Against a derivation of its own: the Jacobian of Eq. 3 times dM/dpi as the option has it."""
    trunk, source = (x[:, :, :3, :3].contiguous() for x in features(torch.float64, channels_last=False))
    tau, eps = 0.7, 1e-3
    params = MaskParams(torch.tensor(tau, dtype=torch.float64), eps, 3, 0, False, gradient)
    s = source.clone().requires_grad_()
    upstream = torch.randn(trunk.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    output, _ = attend(trunk, s, params, total_variation=False, implementation="eager")
    (found,) = torch.autograd.grad(output, s, upstream)
    noise = params.draw_noise(source)
    pi = keep_probability(source, eps)
    mask = torch.sigmoid((torch.logit(pi) + noise) / tau)
    slope = mask * (1 - mask) / (tau * pi * (1 - pi))
    if gradient == "straight_through_pi":
        slope = torch.ones_like(pi)
    elif gradient == "expected":
        slope = mean_slope(torch.logit(pi), tau) / (pi * (1 - pi))
    elif gradient == "clipped":
        slope = slope * ((pi > 0.01) & (pi < 0.99))
    x = source.clone().requires_grad_()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    if gradient == "range_detached":
        low, high = low.detach(), high.detach()
    # a constant channel, and places that are kept eps away from 0 or 1, have no gradient
    free = (pi > eps) & (pi < 1 - eps)
    written = torch.where(free, (x - low) / torch.where(high > low, high - low, 1.0), 0.0)
    (wanted,) = torch.autograd.grad(written, x, upstream * trunk * slope)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=3e-5 if gradient == "expected" else 1e-12)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_from_a_detached_mask_the_trunk_gets_the_product_alone(implementation: Any) -> None:
    """dF/dT = 1 + M, and without the skip connection M."""
    trunk, _ = features(torch.float64, channels_last=True)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    with torch.no_grad():
        mask = sample_mask(trunk, params.draw_noise(trunk), params)
    for combine, skip in (("add", 1), ("attended_only", 0)):
        t = trunk.detach().requires_grad_()
        output, _ = attend(
            t, t.detach(), params, total_variation=False, combine=combine, implementation=implementation
        )
        output.sum().backward()
        torch.testing.assert_close(t.grad, mask + skip)


@pytest.mark.parametrize("gradient", get_args(Gradient))
@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_a_context_aware_unit_learns_by_every_gradient(gradient: Any, implementation: Any) -> None:
    """Also where the mask branch is cut from the trunk, which then gets the product's gradient alone."""
    trunk = features(torch.float32, channels_last=True)[0][:, :4]
    sampler = MaskSampler(eps=1e-6, gradient=gradient, implementation=implementation)
    torch.manual_seed(0)
    block = SharpAttentionBlock(
        sampler=sampler, context=ContextUnit(channels=4, strides="v1", upsample="nearest")
    )
    t = trunk.clone().requires_grad_()
    output, _ = train_block(block, t, noise_seed=5, total_variation=False)
    output.sum().backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in block.parameters())  # type: ignore[union-attr]
    assert t.grad is not None
    positive = trunk > 0
    product_alone = (output.detach() / trunk)[positive]  # 1 + M
    if gradient == "none":
        torch.testing.assert_close(t.grad[positive], product_alone)
    else:
        assert float((t.grad[positive] - product_alone).abs().max()) > 1e-3


def test_the_reference_is_the_block_as_written_out() -> None:
    trunk, _ = features(torch.float32, channels_last=False)
    sampler = MaskSampler(eps=1e-6)
    sampler.set_temperature(0.5)
    block = SharpAttentionBlock(sampler=sampler, context=None)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    output, _ = attend(trunk, trunk, params, total_variation=False, implementation="eager")
    assert torch.equal(output, block(trunk, noise_seed=3).output)
    sampler.implementation = "recompute"
    recomputed, _ = train_block(block, trunk, noise_seed=3, total_variation=False)
    torch.testing.assert_close(recomputed, output, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradient", get_args(MaskGradient))
def test_compiled_equals_the_reference(gradient: Any) -> None:
    trunk, source = features(torch.float32, channels_last=True)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False, gradient)
    one, reference = (results(trunk, source, params, "mean", how) for how in ("compile", "eager"))
    for found, wanted in zip(one, reference, strict=True):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_gradients_are_those_of_finite_differences(tau: float) -> None:
    trunk, source = (x[:1, :2, :3, :3].contiguous() for x in features(torch.float64, channels_last=False))
    params = MaskParams(torch.tensor(tau), 1e-3, 3, 0, False)

    def both(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        output, variation = attend(t, s, params, total_variation=True)
        assert variation is not None
        return output, variation.total

    inputs = [(x + 0.01 * torch.rand_like(x)).requires_grad_() for x in (trunk, source)]
    assert torch.autograd.gradcheck(both, inputs)


def test_under_bfloat16_the_mask_is_made_in_float32() -> None:
    """Where all is done in bfloat16, the logit alone is wrong by half a unit."""
    trunk, _ = features(torch.bfloat16, channels_last=True)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attend(trunk, trunk, params, total_variation=False)
    assert output.dtype == torch.bfloat16
    wanted, _ = attend(trunk.float(), trunk.float(), params, total_variation=False)
    torch.testing.assert_close(output, wanted.bfloat16())


def test_a_nan_is_not_hidden() -> None:
    trunk, _ = features(torch.float32, channels_last=False)
    trunk[0, 0, 0, 0] = torch.nan
    output, _ = attend(trunk, trunk, MaskParams(torch.tensor(1.0), 1e-6, 3, 0, False), total_variation=False)
    assert output[0, 0].isnan().all()
    assert output[0, 1:].isfinite().all()


def stored(implementation: Any) -> float:
    """Return the bytes that attention stores for its gradient, in multiples of its input."""
    trunk = torch.rand(2, 16, 32, 16, requires_grad=True)
    seen: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        attend(
            trunk,
            trunk,
            MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False),
            total_variation=True,
            implementation=implementation,
        )
    return sum(x.untyped_storage().nbytes() for x in seen.values()) / trunk.nbytes


def test_nothing_is_stored_but_the_input() -> None:
    assert stored("recompute") == pytest.approx(1, abs=0.001)  # tau is stored too
    assert stored("eager") > 6  # the comparison is one that can fail


@pytest.mark.parametrize("images", [1, 2, 3, 32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_how_many_images_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, images: int, channels_last: bool
) -> None:
    trunk, source = features(torch.float64, channels_last=channels_last)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, True)
    wanted = results(trunk, source, params, "mean", "recompute")
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS_CPU", images * trunk[0].numel())
    for one, other in zip(results(trunk, source, params, "mean", "recompute"), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("own", [True, False])
def test_another_order_in_memory_changes_nothing(own: bool) -> None:
    """Rows and columns exchanged, and a part of a wider tensor; the source in an order of its own."""
    trunk, source = features(torch.float64, channels_last=True)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    wanted = results(trunk, None if own else source, params, "mean", "eager")
    wide = torch.zeros(3, 5, 8, 9, dtype=torch.float64)
    wide[..., 2:6] = source
    for of_trunk, of_source in (
        (trunk.mT.contiguous().mT, source),
        (trunk, wide[..., 2:6]),
        (trunk.mT.contiguous().mT, wide[..., 2:6]),
    ):
        found = results(of_trunk, None if own else of_source, params, "mean", "recompute")
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_a_temperature_that_was_changed_before_the_gradient_is_refused(implementation: Any) -> None:
    trunk, _ = features(torch.float32, channels_last=False)
    trunk.requires_grad_()
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    output, _ = attend(trunk, trunk, params, total_variation=False, implementation=implementation)
    params.tau.fill_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_second_gradient_is_refused_rather_than_wrong() -> None:
    trunk, _ = features(torch.float64, channels_last=False)
    trunk.requires_grad_()
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    output, _ = attend(trunk, trunk, params, total_variation=False)
    (gradient,) = torch.autograd.grad(output.square().sum() + trunk.pow(3).sum(), trunk, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_no_images_give_none() -> None:
    trunk = torch.empty(0, 2, 4, 4, requires_grad=True)
    output, variation = attend(
        trunk, trunk, MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False), total_variation=True
    )
    output.sum().backward()
    assert output.shape == trunk.shape
    assert variation is not None
    assert variation.total.shape == (0,)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_a_listener_is_given_the_mask_that_is_used_whatever_the_seed(implementation: Any) -> None:
    trunk = torch.rand(2, 3, 4, 4) + 1
    sampler = MaskSampler(eps=1e-6, implementation=implementation)
    block = SharpAttentionBlock(sampler=sampler, context=None)
    masks: list[Tensor] = []
    block.mask_listener = masks.append
    output, _ = train_block(block, trunk, total_variation=False)
    torch.testing.assert_close(trunk + masks[0] * trunk, output)


def test_noise_follows_the_seed() -> None:
    trunk, _ = features(torch.float32, channels_last=False)
    one, same, other = (
        attend(trunk, trunk, MaskParams(torch.tensor(0.5), 1e-6, seed, 0, False), total_variation=False)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_parts_of_a_batch_are_attended_as_in_the_whole(implementation: Any) -> None:
    """As on several processes, each of which knows the place of its first image."""
    trunk, _ = features(torch.float32, channels_last=True)
    whole, last = (
        attend(
            trunk[start:],
            trunk[start:],
            MaskParams(torch.tensor(0.5), 1e-6, 3, start, False),
            total_variation=False,
            implementation=implementation,
        )[0]
        for start in (0, 2)
    )
    assert torch.equal(whole[2:], last)


def test_without_a_seed_the_global_generator_gives_one() -> None:
    trunk, _ = features(torch.float32, channels_last=False)
    block = SharpAttentionBlock(sampler=MaskSampler(eps=1e-6, implementation="recompute"), context=None)
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(train_block(block, trunk, total_variation=False)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("train_mask", ["sample", "straight_through", "noise_free"])
def test_a_block_attends_alike_by_either_implementation(train_mask: Any) -> None:
    trunk, _ = features(torch.float32, channels_last=True)
    outputs = []
    for implementation in ("eager", "recompute"):
        sampler = MaskSampler(eps=1e-6, train_mask=train_mask, implementation=implementation)  # type: ignore[arg-type]
        sampler.set_temperature(0.7)
        block = SharpAttentionBlock(sampler=sampler, context=None)
        outputs.append(train_block(block, trunk, noise_seed=5, total_variation=True))
        block.eval()
        assert torch.equal(train_block(block, trunk, total_variation=False)[0], block(trunk).output)
    (one, of_one), (other, of_other) = outputs
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert of_one is not None
    assert of_other is not None
    torch.testing.assert_close(of_one.total, of_other.total, rtol=1e-4, atol=1e-5)


def test_triton_without_cuda_names_what_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trunk = torch.rand(1, 2, 4, 4)
    message = r"needs a CUDA device and no float64, got torch.float32 on cpu; take .*=recompute"
    with pytest.raises(ValueError, match=message):
        attend(
            trunk,
            trunk,
            MaskParams(torch.tensor(1.0), 1e-6, 1, 0, False),
            total_variation=False,
            implementation="triton",
        )


def test_an_unknown_implementation_is_refused() -> None:
    unknown: Any = "fast"
    with pytest.raises(ValueError, match="must be one of eager, recompute, compile, triton; got 'fast'"):
        MaskSampler(eps=1e-6, implementation=unknown)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("implementation", ["recompute", "triton"])
def test_on_a_gpu_it_is_what_it_is_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, implementation: Any, channels_last: bool
) -> None:
    """Two images at a time of three."""
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 2 * 5 * 8 * 4)
    trunk, source = features(torch.float32, channels_last=channels_last)
    params = MaskParams(torch.tensor(0.5), 1e-6, 3, 0, False)
    wanted = results(trunk, source, params, "mean", "eager")
    on_gpu = params._replace(tau=params.tau.cuda())
    found = results(trunk.cuda(), source.cuda(), on_gpu, "mean", implementation)
    for one, other in zip(found, wanted, strict=True):
        assert float((one.cpu() - other).abs().max() / other.abs().max()) < 1e-4


@pytest.mark.own_interpreter  # Triton reads at its import whether it is to interpret
@pytest.mark.parametrize("part", ["equal", "gradients", "bfloat16", "distribution", "compiles"])
def test_triton_kernels(part: str) -> None:
    triton = pytest.importorskip("triton")
    version = np.lib.NumpyVersion
    if part != "compiles" and version(triton.__version__) < "3.7.0" and version(np.__version__) >= "2.4.0":
        pytest.skip("Triton before 3.7 cannot interpret loops beside NumPy 2.4 or later")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if part != "compiles":
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, str(KERNELS), part], capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checked" in done.stdout


def test_an_implementation_that_cannot_compile_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(implementations, "_compiled_reference", fail)
    monkeypatch.setattr(implementations, "_BROKEN", set())
    monkeypatch.setattr(implementations, "_WORKING", set())
    block = SharpAttentionBlock(sampler=MaskSampler(eps=1e-6, implementation="compile"), context=None)
    trunk, _ = features(torch.float32, channels_last=False)
    outputs = [train_block(block, trunk, noise_seed=3, total_variation=False)[0] for _ in range(2)]
    block.sampler.implementation = "recompute"
    expected, _ = train_block(block, trunk, noise_seed=3, total_variation=False)
    assert all(torch.equal(output, expected) for output in outputs)
    assert caplog.text.count("cannot be used (RuntimeError: no C compiler)") == 1
