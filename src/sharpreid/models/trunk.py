"""The trunk: torchvision's ResNet without its classifier, split into stages."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from sharpreid.attention.context import Strides, place_stride
from sharpreid.models.weights import Coverage, WeightsError, load_strictly, read_state

NUM_STAGES = 4

WIDTH = 64
"""Channels of the stem of ResNet-50."""


class ResNetTrunk(nn.Module):
    """Stem and four stages of a bottleneck ResNet, with torchvision's keys in the state dict.

    Args:
        depths: bottlenecks per stage, four numbers >= 1; (3, 4, 6, 3) is ResNet-50.
        width: channels of the stem (ResNet-50: 64); stage i ends with ``4 * width * 2 ** (i - 1)``.
        strides: convolution of a down-sampling bottleneck that has its stride: ``v1`` (the first 1x1, as in
            the paper's [4]) or ``v1.5`` (the 3x3, as in torchvision's weights).
        weights: ``imagenet`` (torchvision's; needs v1.5), a .pth or .safetensors file, or ``none``.

    Raises:
        ValueError: an argument is out of range.
        FileNotFoundError: the weights file does not exist.
        WeightsError: the weights do not fit, or cannot be downloaded.
    """

    channels: tuple[int, ...]
    """Output channels of each stage; (256, 512, 1024, 2048) for a width of 64."""

    def __init__(self, *, depths: Sequence[int], strides: Strides, weights: str, width: int = WIDTH) -> None:
        super().__init__()
        if len(depths) != NUM_STAGES or min(depths) < 1:
            raise ValueError(f"depths must be {NUM_STAGES} numbers >= 1, got {list(depths)}")
        if width < 1:
            raise ValueError(f"width must be a positive number of channels, got {width}")
        resnet = ResNet(Bottleneck, list(depths)) if width == WIDTH else _resnet_of_width(depths, width)
        self.channels = tuple(width * Bottleneck.expansion * 2**stage for stage in range(NUM_STAGES))
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.layer1,
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )
        for stage in self.stages[1:]:
            place_stride(stage[0], strides)
        self.coverage: Coverage | None = None
        if weights == "imagenet" and strides != "v1.5":
            raise WeightsError(
                f"torchvision's ImageNet weights expect strides v1.5, got {strides}; set "
                "model.trunk.strides=v1.5, or name a file of ResNet v1 weights"
            )
        if weights != "none":
            self.coverage = load_strictly(read_state(weights), self, weights)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The paper's blocks 1-4."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def stem(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to features (B, width, H/4, W/4)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x


def _resnet_of_width(depths: Sequence[int], width: int) -> ResNet:
    """Build torchvision's bottleneck ResNet with another number of channels in the stem and every stage."""
    resnet = ResNet(Bottleneck, [1] * NUM_STAGES)
    resnet.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    resnet.bn1 = nn.BatchNorm2d(width)
    resnet.inplanes = width
    resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4 = (
        resnet._make_layer(Bottleneck, width * 2**stage, depth, stride=1 if stage == 0 else 2)
        for stage, depth in enumerate(depths)
    )
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return resnet
