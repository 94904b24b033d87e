"""Images of attention masks (as Fig. 2 and 6) and of ranked lists.

The sheets are drawn with Pillow, so that the callback that draws them during a training does not have to
import matplotlib.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sharpreid.attention.block import Attended, SharpAttentionBlock
from sharpreid.attention.sharpness import mean_entropy, share_decided
from sharpreid.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from sharpreid.models.network import SharpAttentionNetwork

_GAP = 4
_FONT_SIZE, _LINE_HEIGHT = 12, 15
_IMAGE_HEIGHT, _MAX_IMAGE_WIDTH = 176, 704
_BAR_WIDTH = 44
_GREEN, _RED, _GREY, _BLUE = (0, 146, 71), (213, 45, 30), (150, 150, 150), (0, 114, 178)


class BlockAttention(NamedTuple):
    """Input, mask and output of an attention block for a batch."""

    block: int
    """Stage of the trunk, 1-4."""
    trunk: Tensor
    """T of Eq. 1, (B, C, H, W), float32."""
    mask: Tensor
    """M, (B, C, H, W), float32, in [0, 1]."""
    attended: Tensor
    """A of Eq. 1, (B, C, H, W), float32."""


@torch.no_grad()
def record_attention(network: SharpAttentionNetwork, images: Tensor) -> list[BlockAttention]:
    """Run a network in evaluation mode, and record the mask and the features of every attention block.

    Args:
        network: network with or without attention blocks. The modes of its modules are restored.
        images: normalised images, float, (B, 3, H, W), on the device of the network.

    Returns:
        One record per block, ascending, on the CPU; empty for a network without attention.
    """
    found: list[BlockAttention] = []
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with _recording(network, found):
            network(images)
    finally:
        for module in training:
            module.training = True
    return found


@contextmanager
def _recording(network: SharpAttentionNetwork, found: list[BlockAttention]) -> Iterator[None]:
    """Append a record to ``found`` whenever an attention block runs."""

    def hook(stage: str) -> object:
        def keep(module: nn.Module, arguments: tuple[Tensor], output: Attended) -> None:
            parts = (arguments[0], output.mask, output.attended)
            found.append(BlockAttention(int(stage), *(part.detach().float().cpu() for part in parts)))

        return keep

    handles = [
        block.register_forward_hook(hook(stage))  # type: ignore[arg-type]
        for stage, block in network.attention.items()
        if isinstance(block, SharpAttentionBlock)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def denormalise(image: Tensor) -> Image.Image:
    """Convert a normalised image (3, H, W) back to a photo.

    ImageNet's mean and standard deviation are assumed. If a mean image was subtracted instead, the colours
    are off by its difference from ImageNet's mean.
    """
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def heatmap(values: Tensor) -> Image.Image:
    """Colour values (H, W) in [0, 1] from black over red and yellow to white; other values are clipped.

    >>> heatmap(torch.tensor([[0.0, 1.0]])).getpixel((1, 0))
    (255, 255, 255)
    """
    v = values.clamp(0, 1).numpy()
    channels = [np.clip(3 * v - start, 0, 1) for start in (0, 1, 2)]
    return Image.fromarray(np.round(255 * np.stack(channels, -1)).astype(np.uint8))


def overlay_mask(picture: Image.Image, values: Tensor) -> Image.Image:
    """Blend the heatmap of a mask (H', W') in [0, 1] over a grey copy of an image, up-sampled bilinearly."""
    warm = heatmap(values).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(picture.convert("L").convert("RGB"), warm, 0.65)


def min_max_scale(values: Tensor) -> Tensor:
    """Scale values linearly to [0, 1]; constant values become 0.

    >>> min_max_scale(torch.tensor([2.0, 3.0, 4.0])).tolist(), min_max_scale(torch.ones(2)).tolist()
    ([0.0, 0.5, 1.0], [0.0, 0.0])
    """
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def strongest_channels(attended: Tensor, count: int) -> list[int]:
    """Return the channels of A (C, H, W) with the largest means, largest first; ties are broken by number.

    >>> strongest_channels(torch.tensor([[[0.0]], [[2.0]], [[1.0]]]), 2)
    [1, 2]
    """
    means = attended.mean((1, 2))
    return torch.sort(means, descending=True, stable=True).indices[:count].tolist()


def draw_masks(images: Tensor, attention: Sequence[BlockAttention], *, channels: int) -> Image.Image:
    """Draw a row per image: the photo, each block's mean mask over it, and the colour bar of the masks.

    The colours of mean masks end at the largest value of the sheet, rounded up to a tenth. Below each mean
    mask are single channels of its block, whose colours end at 1.

    Args:
        images: normalised images, (B, 3, H, W).
        attention: result of `record_attention` for the images.
        channels: number of single channels of each block, chosen by `strongest_channels`; a row each.

    Raises:
        ValueError: the network has no attention blocks.
    """
    if not attention:
        raise ValueError("this network has no attention blocks (model.blocks=[]), hence no masks to draw")
    means = [one.mask.mean(1) for one in attention]
    top = max(0.1, math.ceil(10 * max(mean.max().item() for mean in means) - 1e-6) / 10)
    lines = []
    for number, image in enumerate(images):
        picture = _sized(denormalise(image))
        cells = [(picture, "photo")]
        for one, mean in zip(attention, means, strict=True):
            decided = 100 * share_decided(one.mask[number]).item()
            cells.append(
                (overlay_mask(picture, mean[number] / top), f"block {one.block}\n{decided:.0f}% decided")
            )
        lines.append([*cells, (_colour_bar(top), "mean")])
        chosen = [strongest_channels(one.attended[number], channels) for one in attention]
        for place in range(channels):
            cells = [(Image.new("RGB", picture.size, "white"), "")]
            cells += [
                (overlay_mask(picture, one.mask[number][some[place]]), f"channel {some[place]}")
                if place < len(some)
                else (Image.new("RGB", picture.size, "white"), "")
                for one, some in zip(attention, chosen, strict=True)
            ]
            lines.append([*cells, (_colour_bar(1.0), "single")])
    return _sheet(lines)


def draw_mask_comparison(
    images: Tensor, names: Sequence[str], networks: Mapping[str, Sequence[BlockAttention]]
) -> Image.Image:
    """Draw a row per image: the photo, and each block's mean mask, side by side for all networks.

    Masks are not rescaled: black is 0 and white is 1.

    Args:
        images: normalised images, (B, 3, H, W).
        names: caption of each image.
        networks: results of `record_attention` for the images, by the name of the network.

    Raises:
        ValueError: the networks have no attention blocks, or different ones.
    """
    blocks = {name: [one.block for one in attention] for name, attention in networks.items()}
    if not all(blocks.values()) or len(set(map(tuple, blocks.values()))) != 1:
        raise ValueError(f"the networks must have the same attention blocks, got {blocks}")
    lines = []
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        picture = _sized(denormalise(image))
        cells = [(picture, name)]
        for attentions in zip(*networks.values(), strict=True):
            for network, one in zip(networks, attentions, strict=True):
                mask = one.mask[number]
                decided = 100 * share_decided(mask).item()
                shown = heatmap(mask.mean(0)).resize(picture.size, Image.Resampling.NEAREST)
                cells.append((shown, f"{network}, block {one.block}\n{decided:.0f}% decided"))
        lines.append([*cells, (_colour_bar(1.0), "mask")])
    return _sheet(lines)


def draw_before_and_after(
    images: Tensor, networks: Mapping[str, Sequence[BlockAttention]], *, block: int
) -> Image.Image:
    """Draw the features before a block's mask, the mask, and the features after it (as Fig. 2a and 6).

    All three are means over the channels. Features are scaled to their own range, masks are not rescaled.

    Args:
        images: normalised images, (B, 3, H, W).
        networks: results of `record_attention` for the images, by the name of the network.
        block: stage of the trunk, 1-4.

    Raises:
        ValueError: a network has no such block.
    """
    lines = []
    for number, image in enumerate(images):
        picture = _sized(denormalise(image))
        cells = [(picture, "photo")]
        for name, attention in networks.items():
            of_block = [one for one in attention if one.block == block]
            if not of_block:
                raise ValueError(f"{name}: no attention block {block}")
            one = of_block[0]
            maps = {
                "before": min_max_scale(one.trunk[number].mean(0)),
                "mask": one.mask[number].mean(0),
                "after": min_max_scale(one.attended[number].mean(0)),
            }
            for what, values in maps.items():
                shown = heatmap(values).resize(picture.size, Image.Resampling.NEAREST)
                cells.append((shown, f"{name}:\n{what}"))
        lines.append([*cells, (_colour_bar(1.0), "mask")])
    return _sheet(lines)


MatchKind = Literal["match", "other", "junk", "unlabelled"]
"""``junk`` is the query's identity in the query's camera, which is not ranked. The identity of ``unlabelled``
is not known."""


class RankedImage(NamedTuple):
    """A gallery image in a ranked list."""

    image: Image.Image
    kind: MatchKind
    distance: float


def draw_ranked_lists(queries: Sequence[tuple[Image.Image, Sequence[RankedImage]]]) -> Image.Image:
    """Draw a row per query with its ranked list, nearest first.

    The query has a blue frame, a match a green one, another person a red one, an unlabelled image a grey one.
    Junk is greyed out and has no rank.

    Args:
        queries: each query with its ranked list.
    """
    colours = {"match": _GREEN, "other": _RED, "junk": _GREY, "unlabelled": _GREY}
    lines = []
    for query, found in queries:
        cells = [(_framed(_sized(query), _BLUE), "query")]
        rank = 0
        for one in found:
            picture = _sized(one.image)
            if one.kind == "junk":
                grey = picture.convert("L").convert("RGB")
                picture = Image.blend(grey, Image.new("RGB", grey.size, (200, 200, 200)), 0.6)
            else:
                rank += 1
            title = "junk" if one.kind == "junk" else f"{rank}: {one.distance:.2f}"
            cells.append((_framed(picture, colours[one.kind]), title))
        lines.append(cells)
    return _sheet(lines)


def mask_sharpness(attention: Sequence[BlockAttention]) -> dict[int, tuple[float, float]]:
    """Return each block's share of mask values below 0.1 or above 0.9, and their mean entropy in bits."""
    return {one.block: (share_decided(one.mask).item(), mean_entropy(one.mask).item()) for one in attention}


def _sized(picture: Image.Image) -> Image.Image:
    """Resize to the height of a row, keeping the aspect ratio up to a largest width."""
    width = round(picture.width * _IMAGE_HEIGHT / picture.height)
    width = min(max(1, width), _MAX_IMAGE_WIDTH)
    return picture.convert("RGB").resize((width, _IMAGE_HEIGHT), Image.Resampling.BICUBIC)


def _framed(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Draw a frame on a copy of the image."""
    framed = picture.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, framed.width - 1, framed.height - 1), outline=colour, width=4)
    return framed


def _colour_bar(top: float) -> Image.Image:
    """Draw the colours of `heatmap` from 0, at the bottom, to 1, with the values that they stand for."""
    bar = Image.new("RGB", (_BAR_WIDTH, _IMAGE_HEIGHT), "white")
    colours = heatmap(torch.linspace(1, 0, _IMAGE_HEIGHT)[:, None]).resize((14, _IMAGE_HEIGHT))
    bar.paste(colours, (2, 0))
    pen, font = ImageDraw.Draw(bar), ImageFont.load_default(_FONT_SIZE)
    pen.rectangle((2, 0, 15, _IMAGE_HEIGHT - 1), outline=_GREY)
    for place, anchor, share in ((0, "lt", 1.0), (0.5, "lm", 0.5), (1.0, "lb", 0.0)):
        height = round(place * (_IMAGE_HEIGHT - 1))
        pen.text((20, height), f"{share * top:.2g}", fill="black", font=font, anchor=anchor)
    return bar


def _sheet(lines: Sequence[Sequence[tuple[Image.Image, str]]]) -> Image.Image:
    """Arrange rows of images in columns on white, each with a caption below it."""
    font = ImageFont.load_default(_FONT_SIZE)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def width(cell: tuple[Image.Image, str]) -> int:
        return max(cell[0].width, round(pen.textbbox((0, 0), cell[1], font=font)[2]) + 2) + _GAP

    columns = [max(map(width, filter(None, column))) for column in zip_longest(*lines)]
    heights = [
        _IMAGE_HEIGHT + _GAP + _LINE_HEIGHT * max(1 + text.count("\n") for _, text in line) for line in lines
    ]
    sheet = Image.new("RGB", (sum(columns) + _GAP, sum(heights) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        left = _GAP
        for (picture, text), column in zip(line, columns, strict=False):
            sheet.paste(picture, (left, top))
            pen.text((left, top + _IMAGE_HEIGHT + 1), text, fill="black", font=font, spacing=2)
            left += column
        top += height
    return sheet
