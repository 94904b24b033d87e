from typing import Any

import pytest
import torch
from torch import Tensor

from sharpreid.losses.total_variation import reduce_total_variation, squared_total_variation

REDUCTIONS = ["sum", "mean", "relative"]


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def reduced(a: Tensor, reduction: Any) -> Tensor:
    return reduce_total_variation(squared_total_variation(a), reduction)


def differences(size: int) -> Tensor:
    """D_1 as printed, (size - 1, size); D_2 is its transpose."""
    return (
        torch.eye(size - 1, size, dtype=torch.float64)
        - torch.eye(size, size, dtype=torch.float64).roll(1, 1)[: size - 1]
    )


def test_golden_values() -> None:
    a = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])
    assert reduced(a, "sum").item() == 8.0
    assert reduced(a, "mean").item() == 2.0
    assert reduced(a, "relative").item() == 2.0  # the mean square is 4 / 4


def test_sum_is_eq_6_with_the_printed_matrices() -> None:
    a = features(3, 4, 5, 6)
    d1, d2 = differences(5), differences(6).T
    per_image = [sum((d1 @ a_c).square().sum() + (a_c @ d2).square().sum() for a_c in image) for image in a]
    torch.testing.assert_close(reduced(a, "sum"), torch.stack(per_image).mean())


def test_gradient_of_the_sum_is_the_closed_form_of_eq_7() -> None:
    a = features(3, 4, 5, 6).requires_grad_()
    reduced(a, "sum").backward()
    d1, d2 = differences(5), differences(6).T
    closed_form = 2 * (d1.T @ d1 @ a.detach() + a.detach() @ d2 @ d2.T)
    torch.testing.assert_close(a.grad, closed_form / 3)  # the batch mean


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_passes_gradcheck(reduction: Any) -> None:
    a = features(2, 3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: reduced(a, reduction), a)


def test_relative_passes_gradcheck_with_its_scale_held_fixed() -> None:
    a = features(2, 3, 4, 3).requires_grad_()
    scales = a.detach().square().mean((1, 2, 3))
    reduced(a, "relative").backward()
    held = a.detach().clone().requires_grad_()

    def with_fixed_scale(x: Tensor) -> Tensor:
        each = [reduced(x[i : i + 1], "mean") / scales[i] for i in range(len(x))]
        return torch.stack(each).mean()

    assert torch.autograd.gradcheck(with_fixed_scale, held)
    with_fixed_scale(held).backward()
    torch.testing.assert_close(a.grad, held.grad)


def test_mean_divides_the_sum_by_the_elements_of_an_image() -> None:
    a = features(3, 4, 5, 6)
    ratio = reduced(a, "sum") / reduced(a, "mean")
    assert ratio.item() == pytest.approx(4 * 5 * 6)


@pytest.mark.parametrize("factor", [1e-6, 0.1, 1000.0])
def test_only_relative_ignores_the_scale_of_the_features(factor: float) -> None:
    a = features(2, 3, 4, 5)
    for reduction, power in (("relative", 0), ("mean", 2), ("sum", 2)):
        scaled = reduced(factor * a, reduction)
        torch.testing.assert_close(scaled, factor**power * reduced(a, reduction))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_of_a_batch_is_the_mean_over_its_images(reduction: Any) -> None:
    a = features(4, 3, 5, 5)
    each = torch.stack([reduced(image[None], reduction) for image in a])
    torch.testing.assert_close(reduced(a, reduction), each.mean())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_cost_nothing_and_pass_no_gradient(reduction: Any, value: float) -> None:
    a = torch.full((2, 3, 4, 4), value, requires_grad=True)
    loss = reduced(a, reduction)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_map_of_a_single_row_or_column_has_the_other_direction_only(
    reduction: Any, size: tuple[int, int]
) -> None:
    a = features(2, 3, *size)
    line = a.flatten(2)
    expected = (line[..., 1:] - line[..., :-1]).square().sum() / 2
    loss = reduced(a, "sum")
    torch.testing.assert_close(loss, expected)
    assert torch.isfinite(reduced(a, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", [1e15, 1e-15, 1e-18, 1e-21, 1e-30, 1e-45])
def test_extreme_features_give_finite_values_and_gradients(reduction: Any, scale: float) -> None:
    a = (features(2, 3, 4, 4, dtype=torch.float32) * scale).requires_grad_()
    loss = reduced(a, reduction)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_is_float32_under_autocast(reduction: Any) -> None:
    a = features(2, 3, 4, 4, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reduced(a, reduction)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, reduced(a.float(), reduction))


def test_refuses_an_unknown_reduction() -> None:
    unknown: Any = "median"
    with pytest.raises(ValueError, match="reduction must be one of sum, mean, relative; got 'median'"):
        reduced(torch.zeros(1, 1, 2, 2), unknown)


def test_refuses_features_without_a_batch() -> None:
    with pytest.raises(ValueError, match=r"a must be \(B, C, H, W\), got shape \(3, 4, 4\)"):
        reduced(torch.zeros(3, 4, 4), "sum")
