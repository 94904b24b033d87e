"""The trunk: torchvision's ResNet without its classifier, stage by stage."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from sharpreid.attention.context import Strides, place_stride
from sharpreid.models.weights import Coverage, WeightsError, load_strictly, read_state

NUM_STAGES = 4


class ResNetTrunk(nn.Module):
    """Stem and four stages of a bottleneck ResNet; keys as torchvision's.

    Args:
        depths: bottlenecks per stage, four numbers >= 1; (3, 4, 6, 3) is ResNet-50.
        strides: ``v1`` (the paper's [4]: a down-sampling bottleneck's stride sits on its first 1x1) or
            ``v1.5`` (on its 3x3; what torchvision's weights expect).
        weights: ``imagenet`` (torchvision's; needs v1.5), a .pth or .safetensors file, or ``none``.

    Raises:
        ValueError: an argument is out of range.
        FileNotFoundError: the weights file does not exist.
        WeightsError: the weights do not fit, or cannot be had.
    """

    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    """Channels at the end of each stage."""

    def __init__(self, *, depths: Sequence[int], strides: Strides, weights: str) -> None:
        super().__init__()
        if len(depths) != NUM_STAGES or min(depths) < 1:
            raise ValueError(f"depths must be {NUM_STAGES} numbers >= 1, got {list(depths)}")
        resnet = ResNet(Bottleneck, list(depths))
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
        """(B, 3, H, W) normalised images to (B, 64, H/4, W/4)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x
