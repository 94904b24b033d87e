"""Batch norm over other images than a process's own."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sharpreid.attention.mask import MaskSampler
from sharpreid.models.batch_norm import BatchNormOver, recalibrate, set_statistics


def passed(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a training pass, and the gradient of a function of it."""
    x = x.clone().requires_grad_()
    y = norm.train()(x)
    (gradient,) = torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), x)
    return y, gradient


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 4)])
def test_over_all_on_one_process_is_torchs(shape: tuple[int, ...]) -> None:
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    theirs = kind(3, momentum=0.3).double()
    nn.init.normal_(theirs.weight)
    ours = BatchNormOver(theirs, "global").double()
    x = torch.randn(shape, dtype=torch.float64)
    for one, other in zip(passed(ours, x), passed(theirs, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_groups_are_normalised_apart() -> None:
    theirs = nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 5, 4) + torch.arange(8.0).view(8, 1, 1, 1)
    y, gradient = passed(BatchNormOver(theirs, 4), x)
    parts = [passed(nn.BatchNorm2d(3), half)[0] for half in x.split(4)]
    torch.testing.assert_close(y, torch.cat(parts))
    assert not torch.allclose(y, passed(nn.BatchNorm2d(3), x)[0], atol=0.1)
    assert gradient.isfinite().all()


def test_every_batch_norm_of_a_network_is_replaced_and_weights_still_load() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.Flatten(), nn.BatchNorm1d(4)
    )
    state = network.state_dict()
    set_statistics(network, "process")
    assert not any(isinstance(part, BatchNormOver) for part in network.modules())
    set_statistics(network, 2)
    assert sum(isinstance(part, BatchNormOver) for part in network.modules()) == 2
    network.load_state_dict(state, strict=True)


@pytest.mark.parametrize("statistics", ["all", 1, 0, -4, True, 2.0, None])
def test_other_statistics_are_refused(statistics: object) -> None:
    with pytest.raises(ValueError, match="batch_norm must be process, global or a number of images >= 2"):
        set_statistics(nn.BatchNorm1d(2), statistics)  # type: ignore[arg-type]


def test_a_batch_that_is_no_multiple_of_a_group_is_refused() -> None:
    norm = BatchNormOver(nn.BatchNorm1d(2), 4)
    with pytest.raises(ValueError, match="6 images is no multiple"):
        norm(torch.randn(6, 2))


def test_recalibrated_statistics_are_means_over_batches_seen_with_the_masks_of_the_test() -> None:
    sampler, norm = MaskSampler(eps=1e-6, test_mask="hard"), nn.BatchNorm2d(3, momentum=0.3)
    network = nn.Sequential(sampler, norm).train()
    weights = [parameter.clone() for parameter in network.parameters()]
    network(torch.rand(4, 3, 5, 4))  # statistics of drawn masks, which are to be forgotten
    batches = [torch.rand(4, 3, 5, 4), torch.rand(2, 3, 5, 4)]
    recalibrate(network, [partial(network, batch) for batch in batches])
    masks = [sampler(batch) for batch in batches]
    assert all(set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks)  # those of the test
    torch.testing.assert_close(norm.running_mean, sum(m.mean((0, 2, 3)) for m in masks) / 2)
    torch.testing.assert_close(norm.running_var, sum(m.var((0, 2, 3)) for m in masks) / 2)
    assert norm.momentum == 0.3
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))


def test_without_images_nothing_can_be_recalibrated() -> None:
    with pytest.raises(ValueError, match="without images"):
        recalibrate(nn.BatchNorm2d(3), [])
