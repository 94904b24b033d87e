"""Pictures of what a network attends to (as Fig. 2 and 6), and of what it finds, made of pixels alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_LINE = 14
_HEIGHT, _WIDEST = 160, 640
_FOUND, _WRONG, _JUNK, _QUERY = (0, 146, 71), (213, 45, 30), (150, 150, 150), (0, 114, 178)


class Attention(NamedTuple):
    """What one attention block made of a batch."""

    block: int
    """Stage of the trunk, 1-4."""
    trunk: Tensor
    """T of Eq. 1, (B, C, H, W), float32."""
    mask: Tensor
    """M, (B, C, H, W), float32, in [0, 1]."""
    attended: Tensor
    """A of Eq. 1, (B, C, H, W), float32."""


@torch.no_grad()
def attend(network: SharpAttentionNetwork, images: Tensor) -> list[Attention]:
    """Masks and features of every attention block, in evaluation mode; its parts keep their modes.

    Args:
        network: with or without attention blocks.
        images: normalised, float, (B, 3, H, W).

    Returns:
        One per block, ascending, on the CPU; empty for a network without attention.
    """
    found: list[Attention] = []
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with _listening(network, found):
            network(images)
    finally:
        for module in training:
            module.training = True
    return found


@contextmanager
def _listening(network: SharpAttentionNetwork, found: list[Attention]) -> Iterator[None]:
    def hook(stage: str) -> object:
        def keep(module: nn.Module, arguments: tuple[Tensor], output: Attended) -> None:
            parts = (arguments[0], output.mask, output.attended)
            found.append(Attention(int(stage), *(part.detach().float().cpu() for part in parts)))

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


def photo(image: Tensor) -> Image.Image:
    """The picture that a normalised image (3, H, W) was made of.

    Where a mean image was subtracted, the result is off by what that differs from ImageNet's mean colour.
    """
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def heat(values: Tensor) -> Image.Image:
    """Values (H, W) in [0, 1] as black, red, yellow, white; outside of it they are cut off.

    >>> heat(torch.tensor([[0.0, 1.0]])).getpixel((1, 0))
    (255, 255, 255)
    """
    v = values.clamp(0, 1).numpy()
    channels = [np.clip(3 * v - start, 0, 1) for start in (0, 1, 2)]
    return Image.fromarray(np.round(255 * np.stack(channels, -1)).astype(np.uint8))


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """A mask (H', W') in [0, 1] laid over a picture, half transparent, up-sampled bilinearly."""
    warm = heat(values).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(picture.convert("RGB"), warm, 0.55)


def by_range(values: Tensor) -> Tensor:
    """Values stretched to [0, 1]; all 0 where they are equal.

    >>> by_range(torch.tensor([2.0, 3.0, 4.0])).tolist(), by_range(torch.ones(2)).tolist()
    ([0.0, 0.5, 1.0], [0.0, 0.0])
    """
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def strongest_channels(attended: Tensor, count: int) -> list[int]:
    """The channels of A (C, H, W) with the largest mean, the strongest first; ties by number.

    >>> strongest_channels(torch.tensor([[[0.0]], [[2.0]], [[1.0]]]), 2)
    [1, 2]
    """
    means = attended.mean((1, 2))
    return torch.sort(means, descending=True, stable=True).indices[:count].tolist()


def draw_masks(images: Tensor, attention: Sequence[Attention], *, channels: int) -> Image.Image:
    """One line per image and block: the photo, the mask's mean over channels on it, chosen channels on it.

    Args:
        images: normalised, (B, 3, H, W).
        attention: of `attend` for them.
        channels: how many single channels to show, the most attended first (`strongest_channels`).

    Raises:
        ValueError: there is no attention to draw.
    """
    if not attention:
        raise ValueError("this network has no attention blocks (model.blocks=[]), so no masks to draw")
    lines = []
    for number, image in enumerate(images):
        picture = _sized(photo(image))
        for block in attention:
            mask, attended = block.mask[number], block.attended[number]
            decided = 100 * share_decided(mask).item()
            cells = [
                (picture, f"block {block.block}"),
                (overlay(picture, mask.mean(0)), f"mean, {decided:.0f}% sharp"),
            ]
            chosen = strongest_channels(attended, channels)
            cells += [(overlay(picture, mask[c]), f"channel {c}") for c in chosen]
            lines.append(cells)
    return _sheet(lines)


def draw_beside_each_other(
    images: Tensor, names: Sequence[str], networks: Mapping[str, Sequence[Attention]]
) -> Image.Image:
    """Draw one line per image: the photo, then each block's mean mask over channels, network by network.

    Masks are not stretched: a mask that is the same everywhere is one colour, black for 0 and white for 1.

    Args:
        images: normalised, (B, 3, H, W).
        names: what to call each image.
        networks: what to call it -> `attend` of a network for the images; all have the same blocks.

    Raises:
        ValueError: the networks have different blocks, or none.
    """
    blocks = {name: [one.block for one in attention] for name, attention in networks.items()}
    if not all(blocks.values()) or len(set(map(tuple, blocks.values()))) != 1:
        raise ValueError(f"the networks must have the same attention blocks, got {blocks}")
    lines = []
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        picture = _sized(photo(image))
        cells = [(picture, name)]
        for attentions in zip(*networks.values(), strict=True):
            for network, one in zip(networks, attentions, strict=True):
                mask = one.mask[number]
                decided = 100 * share_decided(mask).item()
                shown = heat(mask.mean(0)).resize(picture.size, Image.Resampling.NEAREST)
                cells.append((shown, f"{network} {one.block}: {decided:.0f}% sharp"))
        lines.append(cells)
    return _sheet(lines)


def draw_before_and_after(
    images: Tensor, networks: Mapping[str, Sequence[Attention]], *, block: int
) -> Image.Image:
    """Features before the mask, the mask, and features after it, for one block (as Fig. 2a and 6).

    Features are means over the channels, each stretched to its own range; masks are not stretched.

    Args:
        images: normalised, (B, 3, H, W).
        networks: what to call it -> `attend` of a network for the images.
        block: which block, 1-4.

    Raises:
        ValueError: a network has no such block.
    """
    lines = []
    for number, image in enumerate(images):
        picture = _sized(photo(image))
        cells = [(picture, "image")]
        for name, attention in networks.items():
            of_block = [one for one in attention if one.block == block]
            if not of_block:
                raise ValueError(f"{name}: no attention block {block}")
            one = of_block[0]
            maps = {
                "before": by_range(one.trunk[number].mean(0)),
                "mask": one.mask[number].mean(0),
                "after": by_range(one.attended[number].mean(0)),
            }
            for what, values in maps.items():
                shown = heat(values).resize(picture.size, Image.Resampling.NEAREST)
                cells.append((shown, f"{name}: {what}"))
        lines.append(cells)
    return _sheet(lines)


Verdict = Literal["match", "other", "junk"]


class Found(NamedTuple):
    """One place of a ranked list."""

    picture: Image.Image
    verdict: Verdict
    """``junk`` is the query's person in its own camera, which is not ranked."""
    distance: float


def draw_ranked_lists(queries: Sequence[tuple[Image.Image, Sequence[Found]]]) -> Image.Image:
    """One line per query (blue frame): what was found, nearest first; green a match, red another person.

    Junk, which leaves the ranking, is greyed.
    """
    colours = {"match": _FOUND, "other": _WRONG, "junk": _JUNK}
    lines = []
    for query, found in queries:
        cells = [(_framed(_sized(query), _QUERY), "query")]
        rank = 0
        for one in found:
            picture = _sized(one.picture)
            if one.verdict == "junk":
                grey = picture.convert("L").convert("RGB")
                picture = Image.blend(grey, Image.new("RGB", grey.size, (200, 200, 200)), 0.6)
            else:
                rank += 1
            title = "junk" if one.verdict == "junk" else f"{rank}: {one.distance:.2f}"
            cells.append((_framed(picture, colours[one.verdict]), title))
        lines.append(cells)
    return _sheet(lines)


def sharpness(attention: Sequence[Attention]) -> dict[int, tuple[float, float]]:
    """Block -> share of mask values below 0.1 or above 0.9, and mean entropy in bits."""
    return {one.block: (share_decided(one.mask).item(), mean_entropy(one.mask).item()) for one in attention}


def _sized(picture: Image.Image) -> Image.Image:
    width = round(picture.width * _HEIGHT / picture.height)
    width = min(max(1, width), _WIDEST)
    return picture.convert("RGB").resize((width, _HEIGHT), Image.Resampling.BICUBIC)


def _framed(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    framed = picture.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, framed.width - 1, framed.height - 1), outline=colour, width=4)
    return framed


def _sheet(lines: Sequence[Sequence[tuple[Image.Image, str]]]) -> Image.Image:
    """Pictures in lines, each with a caption below it, on white."""
    font = ImageFont.load_default(10)
    widths = [[max(p.width, round(font.getlength(text)) + 2) + _GAP for p, text in line] for line in lines]
    width = max(map(sum, widths))
    sheet = Image.new("RGB", (width + _GAP, len(lines) * (_HEIGHT + _LINE + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (line, places) in enumerate(zip(lines, widths, strict=True)):
        top, left = _GAP + row * (_HEIGHT + _LINE + _GAP), _GAP
        for (picture, text), place in zip(line, places, strict=True):
            sheet.paste(picture, (left, top))
            pen.text((left, top + _HEIGHT + 1), text, fill="black", font=font)
            left += place
    return sheet
