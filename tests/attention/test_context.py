from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sharpreid.attention.context import ContextUnit, place_stride

STRIDES = ["v1", "v1.5"]
UPSAMPLES = ["deconv", "nearest", "bilinear"]


def unit(upsample: Any = "deconv", strides: Any = "v1", channels: int = 8) -> ContextUnit:
    torch.manual_seed(0)
    return ContextUnit(channels=channels, strides=strides, upsample=upsample).eval()


def bottleneck() -> Bottleneck:
    """With batch norms that are not the identity."""
    torch.manual_seed(1)
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    block = Bottleneck(8, 4, stride=2, downsample=shortcut).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return block


def without_strides(block: Bottleneck) -> Bottleneck:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    return block


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("channels", "weights"), [(256, 507_904), (512, 2_031_616), (1024, 8_126_464)])
def test_unit_has_the_convolution_weights_of_table_iv(channels: int, weights: int, strides: Any) -> None:
    with torch.device("meta"):
        made = ContextUnit(channels=channels, strides=strides, upsample="deconv")
    convolutions = [m for m in made.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(m.weight.numel() for m in convolutions) == weights
    assert all(m.bias is None for m in convolutions)


def test_units_of_blocks_1_to_3_have_the_total_of_table_iv() -> None:
    with torch.device("meta"):
        units = [ContextUnit(channels=c, strides="v1", upsample="deconv") for c in (256, 512, 1024)]
    assert sum(p.numel() for made in units for p in made.parameters() if p.ndim == 4) == 10_665_984


@pytest.mark.parametrize("strides", STRIDES)
def test_every_upsampling_has_the_same_weights(strides: Any) -> None:
    shapes = [{k: v.shape for k, v in unit(up, strides).state_dict().items()} for up in UPSAMPLES]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("size", [(8, 4), (7, 4), (8, 5), (9, 3), (2, 1), (1, 1)])
def test_context_has_the_size_of_its_input(upsample: Any, strides: Any, size: tuple[int, int]) -> None:
    x = torch.randn(2, 8, *size)
    assert unit(upsample, strides)(x).shape == x.shape


def lowest(made: ContextUnit, x: Tensor) -> Tensor:
    """The 1x1 up-convolution at the low resolution, as a sum over channels."""
    return torch.einsum("bihw,io->bohw", made.down(x), made.up.weight[:, :, 0, 0])


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_deconvolution_writes_one_position_in_four_and_leaves_zeros(size: tuple[int, int]) -> None:
    made, x = unit("deconv"), torch.randn(2, 8, *size)
    expected = torch.zeros_like(x)
    expected[:, :, ::2, ::2] = lowest(made, x)
    torch.testing.assert_close(made(x), expected)


def test_nearest_repeats_each_low_position() -> None:
    made, x = unit("nearest"), torch.randn(2, 8, 8, 6)
    expected = lowest(made, x).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(made(x), expected)


def test_bilinear_is_a_quarter_and_three_quarters_of_its_neighbours() -> None:
    made, x = unit("bilinear"), torch.randn(1, 8, 4, 2)
    low = lowest(made, x)[:, :, :, 0]
    expected = torch.stack(
        [low[..., 0], 0.75 * low[..., 0] + 0.25 * low[..., 1], 0.25 * low[..., 0] + 0.75 * low[..., 1]], -1
    )
    torch.testing.assert_close(made(x)[:, :, :3, 0], expected)


@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("size", [(8, 4), (9, 7), (3, 2), (1, 1)])
def test_two_levels_have_twice_the_channels_twice_and_the_size_of_the_input(
    upsample: Any, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    made = ContextUnit(channels=8, strides="v1.5", upsample=upsample, p=2, q=2).eval()
    shapes = {key: tuple(value.shape[:2]) for key, value in made.state_dict().items()}
    assert (shapes["down.0.conv3.weight"], shapes["down.1.conv3.weight"]) == ((16, 4), (32, 8))
    assert (shapes["up.0.weight"], shapes["up.1.weight"]) == ((32, 16), (16, 8))
    x = torch.randn(2, 8, *size)
    assert made(x).shape == x.shape


def test_two_levels_see_farther_than_one() -> None:
    def reach(levels: int) -> int:
        """Rows of the input that the context of its first pixel depends on."""
        made = ContextUnit(channels=8, strides="v1.5", upsample="deconv", p=levels, q=levels).eval()
        x = torch.randn(1, 8, 32, 2, requires_grad=True)
        (by_x,) = torch.autograd.grad(made(x)[0, :, 0, 0].square().sum(), x)
        return int(by_x.abs().sum((0, 1, 3)).nonzero().max()) + 1

    torch.manual_seed(0)
    assert reach(1) < reach(2)


def test_one_level_has_the_names_and_weights_that_it_always_had() -> None:
    torch.manual_seed(0)
    named = ContextUnit(channels=8, strides="v1", upsample="deconv", init="random", p=1, q=1).state_dict()
    assert named.keys() == {f"down.{key}" for key in bottleneck().state_dict()} | {"up.weight"}
    usual = unit().state_dict()
    assert all(torch.equal(value, usual[key]) for key, value in named.items())


def test_copied_bottlenecks_are_not_shared() -> None:
    made, source = unit(), bottleneck()
    made.copy_bottlenecks([source])
    x = torch.randn(2, 8, 6, 4)
    place_stride(source, "v1")
    torch.testing.assert_close(made.down(x), source(x))
    torch.nn.init.zeros_(source.conv1.weight)
    assert made.down.conv1.weight.any()


def test_gradients_reach_every_weight() -> None:
    for upsample in UPSAMPLES:
        made = unit(upsample).train()
        made(torch.randn(4, 8, 7, 5)).square().sum().backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in made.parameters())


def test_v1_reads_every_second_pixel_before_its_first_convolution() -> None:
    x, strided = torch.randn(2, 8, 9, 6), bottleneck()
    place_stride(strided, "v1")
    assert (strided.conv1.stride, strided.conv2.stride) == ((2, 2), (1, 1))
    torch.testing.assert_close(strided(x), without_strides(bottleneck())(x[:, :, ::2, ::2]))


def test_v1_5_skips_every_second_output_of_its_3x3_convolution() -> None:
    x, strided = torch.randn(2, 8, 9, 6), bottleneck()
    place_stride(strided, "v1.5")
    assert (strided.conv1.stride, strided.conv2.stride) == ((1, 1), (2, 2))
    torch.testing.assert_close(strided(x), without_strides(bottleneck())(x)[:, :, ::2, ::2])


def test_place_stride_may_change_its_mind() -> None:
    block = bottleneck()
    place_stride(block, "v1")
    place_stride(block, "v1.5")
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 7}, "channels must be even and positive, got 7"),
        ({"channels": 0}, "channels must be even and positive, got 0"),
        ({"upsample": "cubic"}, "upsample must be one of deconv, nearest, bilinear; got 'cubic'"),
        ({"init": "zeros"}, "init must be one of random, next_stage; got 'zeros'"),
        ({"p": 2}, r"p and q must be equal and at least 1, got p = 2 and q = 1: .*; give both the same"),
        ({"p": 0, "q": 0}, "p and q must be equal and at least 1, got p = 0 and q = 0"),
        ({"strides": "v2"}, "strides must be one of v1, v1.5; got 'v2'"),
    ],
)
def test_refuses_an_argument_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextUnit(**{"channels": 8, "strides": "v1", "upsample": "deconv", **arguments})


def test_names_its_upsampling_when_printed() -> None:
    assert "upsample=nearest" in repr(unit("nearest"))
