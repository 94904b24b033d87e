"""The context-aware unit (paper Sec. III-D, Fig. 4)."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

Upsample = Literal["deconv", "nearest", "bilinear"]
Strides = Literal["v1", "v1.5"]


class ContextUnit(nn.Module):
    """Widens the mask branch's view: the next stage's first bottleneck, and back up to the input's size.

    Down: a bottleneck C -> 2C with stride 2. Up: a 1x1 transposed convolution 2C -> C with stride 2 and
    no bias. On a ResNet-50's blocks 1-3 these have exactly the convolution weights of Table IV:
    507,904 / 2,031,616 / 8,126,464.

    Args:
        channels: C, channels of the input; a multiple of 2.
        strides: where the bottleneck's stride sits, ``v1`` (first 1x1) or ``v1.5`` (3x3), as in the trunk.
        upsample: ``deconv`` is the paper's. It writes one position in four and leaves a constant in the
            others; ``nearest`` and ``bilinear`` up-sample and then apply the same 1x1 weights.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, channels: int, strides: Strides, upsample: Upsample) -> None:
        super().__init__()
        if upsample not in get_args(Upsample):
            raise ValueError(f"upsample must be one of {', '.join(get_args(Upsample))}; got {upsample!r}")
        self.upsample: Upsample = upsample
        self.down = down_bottleneck(channels, strides)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 1, stride=2, bias=False)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Context of ``x`` (B, C, H, W), same shape, unitless."""
        height, width = x.shape[-2:]
        low: Tensor = self.down(x)
        if self.upsample == "deconv":
            up: Tensor = self.up(low, output_size=[height, width])
            return up
        weight = self.up.weight.transpose(0, 1)
        return F.interpolate(F.conv2d(low, weight), size=(height, width), mode=self.upsample)

    def extra_repr(self) -> str:
        return f"upsample={self.upsample}"


def down_bottleneck(channels: int, strides: Strides) -> Bottleneck:
    """A stage's first bottleneck: C channels to 2C at half the resolution.

    Raises:
        ValueError: C is not a positive multiple of 2; see also `place_stride`.
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"channels must be even and positive, got {channels}")
    shortcut = nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), nn.BatchNorm2d(2 * channels)
    )
    block = Bottleneck(channels, channels // 2, stride=2, downsample=shortcut)
    place_stride(block, strides)
    return block


def initialise(module: nn.Module) -> None:
    """Draw the weights of all convolutions in ``module`` as torchvision's ResNet does."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def place_stride(block: Bottleneck, strides: Strides) -> None:
    """Put a down-sampling bottleneck's stride on its first 1x1 (v1) or its 3x3 (v1.5); ValueError otherwise.

    The paper's reference [4] is v1; torchvision builds, and its weights expect, v1.5.
    """
    if strides not in get_args(Strides):
        raise ValueError(f"strides must be one of {', '.join(get_args(Strides))}; got {strides!r}")
    stride, one = (block.stride, block.stride), (1, 1)
    block.conv1.stride, block.conv2.stride = (stride, one) if strides == "v1" else (one, stride)
