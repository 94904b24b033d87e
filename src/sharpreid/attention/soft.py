"""The soft attention that the paper compares with: Fig. 1a and reference [19]."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpreid.attention.context import Strides, down_bottleneck, initialise


class SigmoidGate(nn.Module):
    """Sigmoid gate in place of the sharp mask: sigmoid(x), element by element (Fig. 1a)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(x if x.dtype == torch.float64 else x.float())


class SigmoidConvGate(nn.Module):
    """Sigmoid gate behind a learned 1x1 convolution: sigmoid(W x + b) (Fig. 1a).

    After a ReLU the mask of `SigmoidGate` is never below 0.5; this one can be. W has C^2 weights per block,
    5,570,560 in the four blocks of a ResNet-50.

    Args:
        channels: C, channels of the input.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 1)
        self.gate = SigmoidGate()
        initialise(self)
        nn.init.zeros_(cast(Tensor, self.convolution.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1]."""
        mask: Tensor = self.gate(self.convolution(x))
        return mask


class ResidualAttentionMask(nn.Module):
    """Soft mask of the residual attention network (Table IV; Wang et al., reference [19]).

    The stride-2 bottlenecks of the next stages (C -> 2C -> ...) lead down to the trunk's lowest resolution.
    Mirrored bottlenecks (the same channels in reverse, after a bilinear up-sampling) lead up again, with the
    features of equal resolution added in between. A sigmoid makes the mask. The last bottleneck ends without
    ReLU, so that the mask may fall below 0.5. The paper gives only the number of parameters of its version,
    15.84 / 15.08 / 12.06 million on blocks 1-3; the convolution weights here are 15,826,944 /
    15,073,280 / 12,058,624.

    Args:
        channels: C, channels of the input; a multiple of 2.
        lowest_channels: channels of the trunk's last stage (ResNet-50: 2048); must be C times 2, 4, 8, ...
        strides: convolution of a bottleneck that has its stride: ``v1`` (first 1x1) or ``v1.5`` (3x3), as in
            the trunk.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, channels: int, lowest_channels: int, strides: Strides) -> None:
        super().__init__()
        first = down_bottleneck(channels, strides)
        widths = [channels]
        while 2 * widths[-1] <= lowest_channels:
            widths.append(2 * widths[-1])
        if len(widths) == 1 or widths[-1] != lowest_channels:
            raise ValueError(
                f"lowest_channels must be channels = {channels} times 2, 4, 8, ...; got {lowest_channels}"
            )
        self.down = nn.ModuleList([first, *(down_bottleneck(width, strides) for width in widths[1:-1])])
        self.up = nn.ModuleList(_MirroredBottleneck(width) for width in reversed(widths[:-1]))
        self.gate = SigmoidGate()
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mask of ``x`` (B, C, H, W), same shape, float32 or float64, in [0, 1]."""
        levels = [x]
        for down in self.down:
            levels.append(down(levels[-1]))
        low = levels.pop()
        for up in self.up:
            lateral = levels.pop()
            low = up(F.interpolate(low, size=lateral.shape[-2:], mode="bilinear"))
            if levels:
                low = F.relu(low) + lateral
        mask: Tensor = self.gate(low)
        return mask


class _MirroredBottleneck(nn.Module):
    """Bottleneck C -> C/2 -> C/2 -> 2C in reverse, 2C -> C/2 -> C/2 -> C, without the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, narrow = 2 * channels, channels // 2
        self.body = nn.Sequential(
            nn.Conv2d(wide, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
            nn.Conv2d(narrow, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, 2C, H, W) to (B, C, H, W)."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out
