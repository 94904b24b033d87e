import torch

from sharpreid.attention.soft import SigmoidGate


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
