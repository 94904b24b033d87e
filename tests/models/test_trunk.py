from typing import Any

import pytest
import torch
from torchvision.models.resnet import Bottleneck, ResNet

from sharpreid.models.trunk import ResNetTrunk

TINY = (1, 1, 1, 1)


def strides_of(trunk: ResNetTrunk) -> list[tuple[int, int]]:
    """Of the first and the second convolution of each stage's first bottleneck."""
    return [(stage[0].conv1.stride[0], stage[0].conv2.stride[0]) for stage in trunk.stages]


def trunk_on_meta(**arguments: Any) -> ResNetTrunk:
    with torch.device("meta"):
        return ResNetTrunk(**{"depths": TINY, "strides": "v1.5", "weights": "none", **arguments})


@pytest.mark.parametrize(
    ("strides", "wanted"),
    [("v1", [(1, 1), (2, 1), (2, 1), (2, 1)]), ("v1.5", [(1, 1), (1, 2), (1, 2), (1, 2)])],
)
def test_only_the_first_bottlenecks_of_stages_2_to_4_have_a_stride(
    strides: str, wanted: list[tuple[int, int]]
) -> None:
    trunk = trunk_on_meta(strides=strides, depths=(2, 2, 2, 2))
    assert strides_of(trunk) == wanted
    assert all(stage[1].conv1.stride == stage[1].conv2.stride == (1, 1) for stage in trunk.stages)


def test_v1_5_is_torchvisions() -> None:
    with torch.device("meta"):
        resnet = ResNet(Bottleneck, list(TINY))
    stages = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
    assert strides_of(trunk_on_meta()) == [
        (stage[0].conv1.stride[0], stage[0].conv2.stride[0]) for stage in stages
    ]


def test_a_narrow_trunk_has_the_same_keys_and_fewer_channels() -> None:
    narrow, usual = trunk_on_meta(width=16, depths=(1, 2, 1, 1)), trunk_on_meta(depths=(1, 2, 1, 1))
    assert list(narrow.state_dict()) == list(usual.state_dict())
    assert narrow.channels == (64, 128, 256, 512)
    assert strides_of(narrow) == strides_of(usual)
    trunk = ResNetTrunk(depths=TINY, strides="v1.5", weights="none", width=8)
    x = trunk.stem(torch.randn(2, 3, 64, 32))
    for stage, channels in zip(trunk.stages, trunk.channels, strict=True):
        x = stage(x)
        assert x.shape[1] == channels
    with pytest.raises(ValueError, match="width must be a positive number of channels, got 0"):
        trunk_on_meta(width=0)


@pytest.mark.parametrize("depths", [TINY, (3, 4, 6, 3)])
def test_keys_and_shapes_are_torchvisions_without_the_classifier(depths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        wanted = {k: v.shape for k, v in ResNet(Bottleneck, list(depths)).state_dict().items()}
    del wanted["fc.weight"], wanted["fc.bias"]
    assert {k: v.shape for k, v in trunk_on_meta(depths=depths).state_dict().items()} == wanted


def test_resnet_50_has_its_published_parameters_less_the_classifier() -> None:
    parameters = sum(p.numel() for p in trunk_on_meta(depths=(3, 4, 6, 3)).parameters())
    assert parameters == 25_557_032 - (2048 * 1000 + 1000)


@pytest.mark.parametrize("strides", ["v1", "v1.5"])
def test_stages_halve_the_resolution_and_have_the_announced_channels(strides: str) -> None:
    trunk = trunk_on_meta(strides=strides)
    x = trunk.stem(torch.empty(2, 3, 256, 128, device="meta"))
    assert x.shape == (2, 64, 64, 32)
    for stage, channels, divisor in zip(trunk.stages, trunk.channels, (4, 8, 16, 32), strict=True):
        x = stage(x)
        assert x.shape == (2, channels, 256 // divisor, 128 // divisor)


@pytest.mark.parametrize("depths", [(1, 1, 1), (1, 1, 1, 0), (1, 1, 1, 1, 1)])
def test_refuses_depths_that_are_not_four_positive_numbers(depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="depths must be 4 numbers >= 1"):
        trunk_on_meta(depths=depths)


def test_refuses_unknown_strides() -> None:
    with pytest.raises(ValueError, match=r"strides must be one of v1, v1\.5; got 'v3'"):
        trunk_on_meta(strides="v3")
