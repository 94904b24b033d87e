"""The training augmentation of a whole batch at once, on the device that trains.

The loader only gathers pixels. Box and flip of each image come from the same random stream as in
`sharpreid.data.transforms.TrainTransform`, and the resize has Pillow's weights and Pillow's rounding: the
views are those of the augmentation in the loader's processes, bit for bit where crops of 64 x 128 become
128 x 256, and else within one level of 255. (Pillow rounds to bytes between the two directions, and since
version 13 chooses for itself which one comes first where an image shrinks.)
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharpreid.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from sharpreid.evaluation.exact import full_precision_matmul

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

_MOST_VALUES = 2**27
"""Of float32 at a time, half a GiB; a batch of large photos is augmented in parts."""

_SHARE = 0.5
"""Of the device's free memory that the training images may take."""


class PixelBatch(NamedTuple):
    """A batch of training images before their augmentation."""

    pixels: Tensor | None
    """(B, H, W, 3), uint8, each image in the upper left corner; None where they are on the device already."""
    extent: tuple[int, int]
    """Height and width of the largest image, H and W."""
    sizes: Tensor
    """(B, 2), width and height, pixels."""
    boxes: Tensor
    """(B, 4), left, upper, right, lower of the crop, whole pixels inside the image."""
    flips: Tensor
    """(B,), bool."""
    labels: Tensor
    """(B,), identities numbered from 0."""
    indices: Tensor
    """(B,), into the training images."""


def resize_weights(start: Tensor, end: Tensor, size: Tensor, *, extent: int, out: int) -> Tensor:
    """Weights of Pillow's bilinear resize of a box, along one axis.

    Output pixel o, of ``out``, has its centre at c = start + (o + 1/2) (end - start) / out. Input pixel x
    weighs max(0, 1 - |x + 1/2 - c| / s), where s is 1, or the scale if the box is shrunk, over the sum of
    these weights. Pixels of the image beside the box count, as they do in Pillow. Times 2 out, everything
    under the bars is a whole number, and so exact in float32 up to 2^24.

    Args:
        start: (B,), first pixel of the box.
        end: (B,), first pixel behind the box.
        size: (B,), pixels of the image.
        extent: pixels of the padded image, at least those of the largest.
        out: pixels of the result.

    Returns:
        (B, out, extent), float32; each row sums to 1.

    >>> resize_weights(*torch.tensor([[0], [2], [2]]), extent=2, out=4).mul(4).tolist()
    [[[4.0, 0.0], [3.0, 1.0], [1.0, 3.0], [0.0, 4.0]]]
    """
    start, end, size = (one.to(torch.float32)[:, None, None] for one in (start, end, size))
    result = torch.arange(out, dtype=torch.float32, device=start.device)[:, None]
    pixel = torch.arange(extent, dtype=torch.float32, device=start.device)
    distance = (out * (2 * (pixel - start) + 1) - (end - start) * (2 * result + 1)).abs_()
    weights = (1 - distance / (2 * (end - start).clamp(min=out))).clamp_(min=0)
    weights = weights.masked_fill_(pixel >= size, 0)
    return weights.div_(weights.sum(-1, keepdim=True))


def augment(
    pixels: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    flips: Tensor,
    *,
    height: int,
    width: int,
    mean: Tensor | None = None,
) -> Tensor:
    """Crop, resize as Pillow does, mirror and normalise.

    Args:
        pixels: (B, H, W, 3), uint8, see `PixelBatch`.
        sizes: (B, 2), see `PixelBatch`.
        boxes: (B, 4), see `PixelBatch`.
        flips: (B,), bool.
        height: of the result, pixels.
        width: of the result, pixels.
        mean: (3, height, width), what is subtracted; None takes the mean of ImageNet.

    Returns:
        (B, 3, height, width), float32.
    """
    extent = pixels.shape[1:3]
    values = 3 * (extent[0] + height) * (extent[1] + width) + height * extent[0] + width * extent[1]
    parts = max(1, _MOST_VALUES // values)
    split = zip(*(torch.split(one, parts) for one in (pixels, sizes, boxes, flips)), strict=True)
    with full_precision_matmul(pixels.device):
        return torch.cat([_augment(*part, height=height, width=width, mean=mean) for part in split])


def _augment(
    pixels: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    flips: Tensor,
    *,
    height: int,
    width: int,
    mean: Tensor | None,
) -> Tensor:
    count, rows, columns, _ = pixels.shape
    left, upper, right, lower = boxes.unbind(1)
    across = resize_weights(left, right, sizes[:, 0], extent=columns, out=width)
    across = torch.where(flips[:, None, None], across.flip(1), across)
    down = resize_weights(upper, lower, sizes[:, 1], extent=rows, out=height)
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32).reshape(count, 3 * rows, columns)
    planes = _rounded(planes @ across.mT).view(count, 3, rows, width)  # across before down, mostly as Pillow
    views = _rounded(down[:, None] @ planes)
    colour, std = (views.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return views.div_(255).sub_(colour if mean is None else mean.to(views)).div_(std)


def _rounded(x: Tensor) -> Tensor:
    """To whole numbers, halves up: Pillow has bytes after each direction."""
    return x.add_(0.5).floor_()


def padded(pictures: list[Picture]) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3): each picture in the upper left corner of the size of the largest; the rest is 0."""
    rows, columns = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    equal = all(picture.shape[:2] == (rows, columns) for picture in pictures)
    batch = (np.empty if equal else np.zeros)((len(pictures), rows, columns, 3), np.uint8)
    for place, picture in zip(batch, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
    return batch


class ResidentImages:
    """All training images, decoded, one after the other in the device's memory.

    Args:
        pictures: of the training images, in their order.
    """

    def __init__(self, pictures: Iterable[Picture]) -> None:
        pictures = list(pictures)
        self.sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
        """Width and height of each, pixels."""
        self._pixels = torch.from_numpy(np.concatenate([picture.reshape(-1, 3) for picture in pictures]))
        counts = torch.tensor([width * height for width, height in self.sizes])
        self._starts = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> None:
        """Move to ``device``, if they are not there.

        Raises:
            ValueError: they would take more than half of the memory that is free there.
        """
        if self._pixels.device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._pixels.nbytes > _SHARE * free:
                raise ValueError(
                    f"data.augment_on=resident: the training images are {self._pixels.nbytes / 2**30:.1f} "
                    f"GiB, more than half of the {free / 2**30:.1f} GiB that are free on {device}; take "
                    "data.augment_on=device"
                )
        self._pixels, self._starts = self._pixels.to(device), self._starts.to(device)

    def gather(self, indices: Tensor, sizes: Tensor, extent: tuple[int, int]) -> Tensor:
        """Pixels (B, H, W, 3) of some images; beside an image, where `augment` never looks, anything.

        Args:
            indices: (B,), of the images.
            sizes: (B, 2), their width and height.
            extent: H and W, at least the size of the largest.
        """
        rows, columns = (torch.arange(n, device=indices.device) for n in extent)
        width, height = (one[:, None] for one in sizes.unbind(1))
        y, x = rows.minimum(height - 1), columns.minimum(width - 1)
        place = self._starts[indices][:, None, None] + (y * width)[:, :, None] + x[:, None, :]
        return self._pixels[place]
