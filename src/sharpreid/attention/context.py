"""The context-aware unit (paper Sec. III-D, Fig. 4)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

Upsample = Literal["deconv", "nearest", "bilinear"]
Strides = Literal["v1", "v1.5"]
Init = Literal["random", "next_stage"]


class ContextUnit(nn.Module):
    """Unit that widens the receptive field of the mask: the next stage's first bottleneck, then up-sampling.

    Down: a bottleneck C -> 2C with stride 2. Up: a 1x1 transposed convolution 2C -> C with stride 2 and
    without bias. On blocks 1-3 of a ResNet-50 these have exactly the convolution weights of Table IV:
    507,904 / 2,031,616 / 8,126,464.

    This is Fig. 4 with p = q = 1. In general, p bottlenecks C -> 2C -> 4C -> ... are followed by as many
    transposed convolutions, with a ReLU between two of them (which the paper does not mention). A bottleneck
    has "2 stride", a transposed convolution "a fractional 1/2 stride", and the result "the same
    size as the input" (Sec. III-D), so q = p.

    Args:
        channels: C, channels of the input; a multiple of 2.
        strides: convolution of a bottleneck that has its stride: ``v1`` (first 1x1) or ``v1.5`` (3x3), as in
            the trunk.
        upsample: ``deconv`` is the paper's. It computes one position in four and sets the others to 0.
            ``nearest`` and ``bilinear`` up-sample after the same 1x1 weights.
        init: initial weights of the bottlenecks: ``random``, or ``next_stage``, a copy of the trunk's next
            stages by `copy_bottlenecks`. Sec. III-D allows both: "we reuse the architecture of the backbone
            residual units [...] but train it with a different group of parameters".
        p: number of bottlenecks, at least 1.
        q: number of transposed convolutions; equals p.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        channels: int,
        strides: Strides,
        upsample: Upsample,
        init: Init = "random",
        p: int = 1,
        q: int = 1,
    ) -> None:
        super().__init__()
        if upsample not in get_args(Upsample):
            raise ValueError(f"upsample must be one of {', '.join(get_args(Upsample))}; got {upsample!r}")
        if init not in get_args(Init):
            raise ValueError(f"init must be one of {', '.join(get_args(Init))}; got {init!r}")
        if p < 1 or q != p:
            raise ValueError(
                f"p and q must be equal and at least 1, got p = {p} and q = {q}: each of p bottlenecks "
                "halves the resolution and each of q deconvolutions doubles it; give both the same number"
            )
        self.upsample: Upsample = upsample
        self.init: Init = init
        widths = [channels * 2**level for level in range(p + 1)]
        self.down = _chain([down_bottleneck(width, strides) for width in widths[:-1]])
        self.up = _chain(
            [
                nn.ConvTranspose2d(wide, narrow, 1, stride=2, bias=False)
                for wide, narrow in pairwise(reversed(widths))
            ]
        )
        initialise(self)

    @property
    def bottlenecks(self) -> tuple[nn.Module, ...]:
        """The p bottlenecks in the order of the forward pass."""
        return _links(self.down)

    def copy_bottlenecks(self, sources: Sequence[nn.Module]) -> None:
        """Copy the parameters and running statistics of other bottlenecks into the unit's own.

        Args:
            sources: first bottlenecks of the trunk's next stages.

        Raises:
            ValueError: ``sources`` are fewer than p.
        """
        if len(sources) < len(self.bottlenecks):
            raise ValueError(
                f"init=next_stage copies from p = {len(self.bottlenecks)} stages, but only {len(sources)} "
                "come after this block; lower p and q, or take init=random"
            )
        for bottleneck, source in zip(self.bottlenecks, sources, strict=False):
            bottleneck.load_state_dict(source.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Return the context of ``x`` (float, (B, C, H, W)): same shape, unitless."""
        levels = [x]
        for bottleneck in self.bottlenecks:
            levels.append(bottleneck(levels[-1]))
        result = levels.pop()
        for number, up in enumerate(_links(self.up)):
            low = F.relu(result) if number else result
            result = self._upsample(cast(nn.ConvTranspose2d, up), low, levels.pop().shape[-2:])
        return result

    def _upsample(self, layer: nn.ConvTranspose2d, low: Tensor, size: torch.Size) -> Tensor:
        if self.upsample == "deconv":
            up: Tensor = layer(low, output_size=list(size))
            return up
        return F.interpolate(F.conv2d(low, layer.weight.transpose(0, 1)), size=size, mode=self.upsample)

    def extra_repr(self) -> str:
        """Return the options that `print` shows."""
        return f"upsample={self.upsample}, init={self.init}"


def _chain(links: Sequence[nn.Module]) -> nn.Module:
    """Chain modules. A single one is returned as it is, so that its keys in the state dict have no index."""
    return links[0] if len(links) == 1 else nn.Sequential(*links)


def _links(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module) if isinstance(module, nn.Sequential) else (module,)


def down_bottleneck(channels: int, strides: Strides) -> Bottleneck:
    """Build the first bottleneck of a stage: C channels to 2C at half the resolution.

    Raises:
        ValueError: C is not a positive multiple of 2, or ``strides`` is unknown.
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
    """Put the stride of a down-sampling bottleneck on its first 1x1 (v1) or its 3x3 convolution (v1.5).

    The paper's reference [4] is v1; torchvision's ResNet and weights are v1.5.

    Raises:
        ValueError: ``strides`` is unknown.
    """
    if strides not in get_args(Strides):
        raise ValueError(f"strides must be one of {', '.join(get_args(Strides))}; got {strides!r}")
    stride, one = (block.stride, block.stride), (1, 1)
    block.conv1.stride, block.conv2.stride = (stride, one) if strides == "v1" else (one, stride)
