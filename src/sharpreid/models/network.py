"""The sharp attention network (paper Sec. III, Fig. 3; Sec. IV-B)."""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sharpreid.attention.block import Attended, Combine, SharpAttentionBlock
from sharpreid.attention.context import ContextUnit
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.soft import ResidualAttentionMask
from sharpreid.losses.total_variation import TotalVariation
from sharpreid.models.implementations import train_block
from sharpreid.models.trunk import NUM_STAGES, ResNetTrunk
from sharpreid.models.weights import load_strictly, read_state


class Output(NamedTuple):
    """Result of the network."""

    embedding: Tensor
    """Embeddings, (B, D), not normalised."""
    attended: tuple[Tensor, ...]
    """A_i of Eq. 1, (B, C_i, H_i, W_i), one per active block in ascending order."""


class TrainOutput(NamedTuple):
    """Result of a training pass."""

    embedding: Tensor
    """Embeddings, (B, D), not normalised."""
    total_variation: tuple[TotalVariation, ...]
    """Eq. 6 of A_i, one per active block in ascending order; empty unless requested."""


class EmbeddingHead(nn.Sequential):
    """Head that embeds the pooled features: linear, batch norm, ReLU, linear (Sec. IV-B).

    Args:
        in_features: channels of the last stage.
        hidden_features: outputs of the first layer (paper: 1024).
        embedding_dim: D, dimensions of the embedding (paper: 128).
        init_std: standard deviation of the last layer's initial weights.
    """

    def __init__(
        self, *, in_features: int, hidden_features: int, embedding_dim: int, init_std: float
    ) -> None:
        first = nn.Linear(in_features, hidden_features)
        last = nn.Linear(hidden_features, embedding_dim)
        super().__init__(first, nn.BatchNorm1d(hidden_features), nn.ReLU(inplace=True), last)
        nn.init.kaiming_normal_(first.weight, mode="fan_out")
        nn.init.normal_(last.weight, std=init_std)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)


class SharpAttentionNetwork(nn.Module):
    """ResNet whose stages may each be followed by a sharp attention block; see Fig. 3.

    Args:
        trunk: the ResNet.
        head: maps (B, channels of the last stage) to (B, D).
        blocks: stages followed by attention, a subset of 1-4 in any order; empty for the plain baseline.
        context_blocks: blocks with a context-aware unit, a subset of ``blocks`` and of 1-3.
        sampler: builds the mask sampler of one block, see `SharpAttentionBlock`. It is called with the
            keyword ``channels`` if it has such a parameter.
        context_unit: builds one `ContextUnit` or `ResidualAttentionMask` from the keyword ``channels``. With
            ``init=next_stage`` a `ContextUnit` starts with a copy of the trunk's next stages.
        combine: how attended features join the trunk's; see `SharpAttentionBlock`. With ``concat`` the
            layers that read [T; A] take 2C channels: the next stage's first convolution and its shortcut, or
            after block 4 the first layer of an `EmbeddingHead` (any other head must take 2C by itself). Both
            halves of a widened weight start as the original W. Then W T + W A = W (T + A), so the network
            starts as with ``add`` and pretrained weights stay in use.

        weights: ``none``, or a file with the weights of the whole network, such as a run's final.ckpt.

    Raises:
        ValueError: ``blocks`` or ``context_blocks`` is no such subset, or `SharpAttentionBlock` raises it.
        FileNotFoundError: the weights file does not exist.
        WeightsError: the weights do not fit.
    """

    def __init__(
        self,
        *,
        trunk: ResNetTrunk,
        head: nn.Module,
        blocks: Sequence[int],
        context_blocks: Sequence[int],
        sampler: Callable[..., nn.Module],
        context_unit: Callable[..., ContextUnit | ResidualAttentionMask],
        combine: Combine = "add",
        weights: str = "none",
    ) -> None:
        super().__init__()
        _check_blocks(blocks, context_blocks)
        _check_head(head, trunk)
        self.trunk = trunk
        self.head = head
        self.attention = nn.ModuleDict(
            {
                str(stage): SharpAttentionBlock(
                    sampler=_build_sampler(sampler, trunk.channels[stage - 1]),
                    context=_build_context(context_unit, trunk, stage) if stage in context_blocks else None,
                    combine=combine,
                )
                for stage in sorted(blocks)
            }
        )
        if combine == "concat":
            for stage in blocks:
                self._double_input_after(stage)
        if weights != "none":
            load_strictly(read_state(weights), self, weights)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Stages followed by attention, ascending, 1-based."""
        return tuple(int(stage) for stage in self.attention)

    def set_temperature(self, tau: float) -> None:
        """Set tau of Eq. 5 in every block (unitless, > 0)."""
        for module in self.modules():
            if isinstance(module, MaskSampler):
                module.set_temperature(tau)

    def set_noise_scale(self, scale: float) -> None:
        """Set the factor on the noise of Eq. 5 in every block (1 is the paper's).

        Raises:
            ValueError: the factor is negative.
        """
        if not scale >= 0:
            raise ValueError(f"the factor on the noise must be >= 0, got {scale}")
        for module in self.modules():
            if isinstance(module, MaskSampler):
                module.noise_scale = scale

    def forward(self, images: Tensor, *, views: int = 1) -> Output:
        """Embed images by the reference code of the blocks.

        Args:
            images: normalised, float, (B, 3, H, W).
            views: number of consecutive images that are views of the same image; divides B. It matters only
                for masks with ``sample_noise=per_view``.
        """
        attended = []

        def attend(stage: int, block: SharpAttentionBlock, trunk: Tensor) -> Tensor:
            result: Attended = block(trunk, views=views)
            attended.append(result.attended)
            return result.output

        return Output(self._embed(images, attend), tuple(attended))

    def training_forward(
        self,
        images: Tensor,
        *,
        total_variation: bool,
        noise_seeds: Sequence[int] | None = None,
        first_image: int = 0,
    ) -> TrainOutput:
        """Embed images in training, with each block by the ``implementation`` of its sampler.

        Args:
            images: normalised, float, (B, 3, H, W).
            total_variation: whether to compute Eq. 6 of each block's attended features.
            noise_seeds: seeds of the noise of Eq. 5, >= 0, one per stage of the trunk; None draws them from
                torch's global generator.
            first_image: index of the first image in the global batch, on which the noise depends.
        """
        variations = []

        def attend(stage: int, block: SharpAttentionBlock, trunk: Tensor) -> Tensor:
            seed = None if noise_seeds is None else noise_seeds[stage - 1]
            output, variation = train_block(
                block, trunk, noise_seed=seed, first_image=first_image, total_variation=total_variation
            )
            if variation is not None:
                variations.append(variation)
            return output

        return TrainOutput(self._embed(images, attend), tuple(variations))

    def _embed(self, images: Tensor, attend: Callable[[int, SharpAttentionBlock, Tensor], Tensor]) -> Tensor:
        """Return the embeddings, (B, D); ``attend`` passes the features of a stage through its block."""
        x = self.trunk.stem(images)
        for number, stage in enumerate(self.trunk.stages, start=1):
            x = stage(x)
            if str(number) in self.attention:
                x = attend(number, cast(SharpAttentionBlock, self.attention[str(number)]), x)
        embedding: Tensor = self.head(x.mean((2, 3)))
        return embedding

    def _double_input_after(self, stage: int) -> None:
        """Double the input channels of the layers that read the output of ``stage``."""
        if stage < NUM_STAGES:
            reader = cast(Bottleneck, self.trunk.stages[stage][0])
            _double_input(reader.conv1)
            _double_input(cast(nn.Conv2d, cast(nn.Sequential, reader.downsample)[0]))
        elif isinstance(self.head, EmbeddingHead):
            _double_input(cast(nn.Linear, self.head[0]))


def _check_head(head: nn.Module, trunk: ResNetTrunk) -> None:
    first = next((layer for layer in head.modules() if isinstance(layer, nn.Linear)), None)
    if first is not None and first.in_features != trunk.channels[-1]:
        raise ValueError(
            f"head.in_features must be {trunk.channels[-1]}, the channels of the trunk's last stage; got "
            f"{first.in_features}"
        )


def _build_sampler(sampler: Callable[..., nn.Module], channels: int) -> nn.Module:
    """Build the sampler of a block; only a sampler with weights takes the channels."""
    return sampler(channels=channels) if "channels" in inspect.signature(sampler).parameters else sampler()


def _build_context(
    context_unit: Callable[..., ContextUnit | ResidualAttentionMask], trunk: ResNetTrunk, stage: int
) -> ContextUnit | ResidualAttentionMask:
    unit = context_unit(channels=trunk.channels[stage - 1])
    if isinstance(unit, ContextUnit) and unit.init == "next_stage":
        unit.copy_bottlenecks([following[0] for following in trunk.stages[stage:]])
    return unit


@torch.no_grad()
def _double_input(layer: nn.Conv2d | nn.Linear) -> None:
    """Double the input of a layer, with a copy of its weights for the second half."""
    if isinstance(layer, nn.Conv2d):
        layer.in_channels *= 2
    else:
        layer.in_features *= 2
    layer.weight = nn.Parameter(torch.cat([layer.weight, layer.weight], 1))


def _check_blocks(blocks: Sequence[int], context_blocks: Sequence[int]) -> None:
    for name, value in (("blocks", blocks), ("context_blocks", context_blocks)):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list such as [1,2], got {value!r}")
    allowed = set(range(1, NUM_STAGES + 1))
    if len(set(blocks)) != len(blocks) or not set(blocks) <= allowed:
        raise ValueError(f"blocks must be different numbers of 1-{NUM_STAGES}, got {list(blocks)}")
    if NUM_STAGES in context_blocks:
        raise ValueError(
            f"context_blocks: block {NUM_STAGES} cannot have a context-aware unit: the unit is the next "
            f"stage's down-sampling bottleneck and block {NUM_STAGES} is the last; use a subset of 1-3"
        )
    if len(set(context_blocks)) != len(context_blocks) or not set(context_blocks) <= set(blocks):
        raise ValueError(
            f"context_blocks must be different numbers among the attention blocks {sorted(blocks)}, "
            f"got {list(context_blocks)}"
        )
