from typing import Any

import pytest
import torch
from torch import nn

from sharpreid.attention.soft import ResidualAttentionMask, SigmoidConvGate, SigmoidGate


def test_gate_is_the_logistic_function_of_each_element() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SigmoidGate()(x), 0.5 * (1 + torch.tanh(x / 2)))


def test_gate_passes_gradcheck() -> None:
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SigmoidGate(), x)


def test_gate_is_float32_under_autocast_and_float64_where_its_input_is() -> None:
    x = torch.randn(1, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SigmoidGate()(x.bfloat16()).dtype == torch.float32
    assert SigmoidGate()(x.double()).dtype == torch.float64


def test_gate_of_extreme_input_is_0_or_1_with_finite_gradients() -> None:
    x = torch.tensor([-1e30, 1e30, -1e-45, torch.finfo(torch.float32).max]).reshape(1, 1, 2, 2)
    x.requires_grad_()
    mask = SigmoidGate()(x)
    mask.sum().backward()
    assert mask.flatten().tolist() == [0.0, 1.0, 0.5, 1.0]
    assert torch.isfinite(x.grad).all()


def test_gate_has_nothing_to_learn() -> None:
    assert not SigmoidGate().state_dict()


def test_behind_a_convolution_the_gate_may_close_on_features_behind_a_relu() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 4).relu()
    gate = SigmoidConvGate(channels=8)
    logit = torch.einsum("bihw,oi->bohw", x, gate.convolution.weight[:, :, 0, 0])
    torch.testing.assert_close(gate(x), torch.sigmoid(logit))
    assert gate(x).min() < 0.4
    assert SigmoidGate()(x).min() == 0.5


def test_under_autocast_the_gate_behind_a_convolution_is_float32_and_learns() -> None:
    gate = SigmoidConvGate(channels=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = gate(torch.randn(2, 8, 3, 3).relu().bfloat16())
    assert mask.dtype == torch.float32
    mask.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gate.parameters())


def residual(channels: int = 8, lowest: int = 32, strides: Any = "v1.5") -> ResidualAttentionMask:
    torch.manual_seed(0)
    return ResidualAttentionMask(channels=channels, lowest_channels=lowest, strides=strides)


@pytest.mark.parametrize("strides", ["v1", "v1.5"])
@pytest.mark.parametrize(
    ("channels", "weights", "printed"),
    [(256, 15_826_944, 15.84), (512, 15_073_280, 15.08), (1024, 12_058_624, 12.06)],
)
def test_residual_mask_has_the_parameters_of_table_iv(
    channels: int, weights: int, printed: float, strides: Any
) -> None:
    with torch.device("meta"):
        made = residual(channels, 2048, strides)
    convolutions = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
    assert sum(module.weight.numel() for module in convolutions) == weights
    assert all(module.bias is None for module in convolutions)
    assert weights / 1e6 == pytest.approx(printed, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 4), (7, 5), (9, 3), (1, 1)])
@pytest.mark.parametrize("lowest", [16, 64])
def test_residual_mask_has_the_size_of_its_input_and_lies_between_0_and_1(
    size: tuple[int, int], lowest: int
) -> None:
    x = torch.randn(4, 8, *size)
    mask = residual(lowest=lowest).train()(x)
    assert mask.shape == x.shape
    assert ((mask >= 0) & (mask <= 1)).all()


def test_residual_mask_may_suppress_also_where_its_input_is_positive() -> None:
    mask = residual().train()(torch.rand(4, 8, 16, 8))
    assert 0.25 < (mask < 0.5).float().mean() < 0.75


def test_residual_mask_of_a_place_depends_on_far_ones() -> None:
    made = residual(lowest=64).eval()
    x = torch.rand(1, 8, 32, 16, requires_grad=True)
    made(x)[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, :, 8:].any()


def test_gradients_reach_every_weight_of_the_residual_mask() -> None:
    made = residual().train()
    (made(torch.rand(4, 8, 8, 4)) * torch.rand(4, 8, 8, 4)).sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in made.parameters())


@pytest.mark.parametrize(
    ("channels", "lowest", "message"),
    [
        (7, 28, "channels must be even and positive, got 7"),
        (8, 8, r"lowest_channels must be channels = 8 times 2, 4, 8, \.\.\.; got 8"),
        (8, 24, "got 24"),
        (8, 4, "got 4"),
    ],
)
def test_residual_mask_refuses_channels_that_do_not_fit(channels: int, lowest: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual(channels, lowest)
