"""Training augmentation of a whole batch on the training device.

The loader only gathers pixels. Box and flip of each image come from the same random stream as in
`sharpreid.data.transforms.TrainTransform`, and the resize has the weights and the rounding of Pillow. So the
views equal those of the augmentation in the loader workers, bit for bit when crops of 64 x 128 are resized to
128 x 256, and otherwise within one level of 255: Pillow rounds to bytes between the two directions, and since
version 13 chooses their order when an image shrinks.

torchvision's resize is not used because it takes one box per call and crops before it resizes, whereas
Pillow's weights reach beyond the box.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sharpreid.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from sharpreid.evaluation.exact import full_precision_matmul

ImageArray = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

MAX_VALUES = 2**27
"""Largest number of float32 values at a time, half a GiB; a batch of large photos is augmented in parts."""

_MEMORY_SHARE = 0.5
"""Largest share of the free device memory for the training images."""


class PixelBatch(NamedTuple):
    """A batch of training images before their augmentation."""

    pixels: Tensor | None
    """(B, H, W, 3), uint8, each image in the upper left corner; None if the device has the pixels already."""
    extent: tuple[int, int]
    """H and W, height and width of the largest image."""
    sizes: Tensor
    """(B, 2), width and height of each image, pixels."""
    boxes: Tensor
    """(B, 4), left, upper, right and lower edge of each crop, whole pixels inside the image."""
    flips: Tensor
    """(B,), bool, True for a horizontal flip."""
    labels: Tensor
    """(B,), identities numbered from 0."""
    indices: Tensor
    """(B,), indices of the training images."""


def resize_weights(start: Tensor, end: Tensor, size: Tensor, *, extent: int, out: int) -> Tensor:
    """Return the weights of Pillow's bilinear resize of a box along one axis.

    Output pixel o has its centre at c = start + (o + 1/2) (end - start) / out. The weight of input pixel x is
    max(0, 1 - |x + 1/2 - c| / s), divided by the sum of these weights, where s = max(1, (end - start) / out).
    Pixels of the image outside the box have weights too, as in Pillow. The code multiplies |x + 1/2 - c| by
    2 out, which makes it a whole number and exact in float32 up to 2^24.

    Args:
        start: (B,), first pixel of the box.
        end: (B,), end of the box, exclusive.
        size: (B,), number of pixels of the image.
        extent: number of pixels of the padded image, at least that of the largest image.
        out: number of pixels of the result.

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
    """Crop, resize as Pillow does, flip and normalise a batch of images.

    Args:
        pixels: (B, H, W, 3), uint8; see `PixelBatch`.
        sizes: (B, 2); see `PixelBatch`.
        boxes: (B, 4); see `PixelBatch`.
        flips: (B,), bool; see `PixelBatch`.
        height: height of the result, pixels.
        width: width of the result, pixels.
        mean: (3, height, width), mean that is subtracted; None takes the mean colour of ImageNet.

    Returns:
        (B, 3, height, width), float32.
    """
    extent = pixels.shape[1:3]
    values = 3 * (extent[0] + height) * (extent[1] + width) + height * extent[0] + width * extent[1]
    images = max(1, MAX_VALUES // values)
    split = zip(*(torch.split(one, images) for one in (pixels, sizes, boxes, flips)), strict=True)
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
    planes = _rounded(planes @ across.mT).view(
        count, 3, rows, width
    )  # horizontal first, as Pillow in most cases
    views = _rounded(down[:, None] @ planes)
    colour, std = (views.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return views.div_(255).sub_(colour if mean is None else mean.to(views)).div_(std)


def _rounded(x: Tensor) -> Tensor:
    """Round to whole numbers, halves up, in place, as Pillow does after each direction."""
    return x.add_(0.5).floor_()


def pad_images(images: list[ImageArray]) -> npt.NDArray[np.uint8]:
    """Stack images of different sizes, each in the upper left corner: (B, H, W, 3), zero elsewhere."""
    rows, columns = (max(image.shape[axis] for image in images) for axis in (0, 1))
    equal = all(image.shape[:2] == (rows, columns) for image in images)
    batch = (np.empty if equal else np.zeros)((len(images), rows, columns, 3), np.uint8)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch


class ResidentImages:
    """Pixels of all training images, one after the other in the memory of the device.

    Args:
        images: pixels of each training image.

    Attributes:
        sizes: width and height of each image, pixels.
    """

    def __init__(self, images: Iterable[ImageArray]) -> None:
        images = list(images)
        self.sizes = [(image.shape[1], image.shape[0]) for image in images]
        self._pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
        counts = torch.tensor([width * height for width, height in self.sizes])
        self._starts = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device) -> None:
        """Move the pixels to ``device``, unless they are there.

        Raises:
            ValueError: the pixels need more than half of the free memory of the device.
        """
        if self._pixels.device == device:
            return
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self._pixels.nbytes > _MEMORY_SHARE * free:
                raise ValueError(
                    f"data.augment_on=resident: the training images need {self._pixels.nbytes / 2**30:.1f} "
                    f"GiB, more than half of the {free / 2**30:.1f} GiB that are free on {device}; set "
                    "data.augment_on=device"
                )
        self._pixels, self._starts = self._pixels.to(device), self._starts.to(device)

    def gather(self, indices: Tensor, sizes: Tensor, extent: tuple[int, int]) -> Tensor:
        """Return the pixels of some images, uint8, (B, H, W, 3).

        The values outside an image are arbitrary; `augment` gives them no weight.

        Args:
            indices: (B,), indices of the images.
            sizes: (B, 2), width and height of each image.
            extent: H and W, at least the size of the largest image.
        """
        rows, columns = (torch.arange(n, device=indices.device) for n in extent)
        width, height = (one[:, None] for one in sizes.unbind(1))
        y, x = rows.minimum(height - 1), columns.minimum(width - 1)
        place = self._starts[indices][:, None, None] + (y * width)[:, :, None] + x[:, None, :]
        return self._pixels[place]
