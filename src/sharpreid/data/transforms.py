"""Image decoding, the paper's augmentation and its test-time crops (Sec. IV-B).

torchvision has similar transforms, but `RandomResizedCrop` draws width over height, log-uniformly, and takes
its random numbers from torch's global generator. Here each image has a random stream of its own, so that
neither the number of workers nor a resume changes it.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sharpreid.data.reid_data import Box, DataError

Crops = Literal["plain", "flip", "ten_crop", "ten_crop_8_7"]
Normalise = Literal["imagenet", "per_pixel_mean"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 2**30 // 4 // 3
"""Largest size of an image file, 89 million pixels or 256 MiB: Pillow's limit against decompression bombs."""

_DEEP_MODES = ("I", "F")  # Pillow's modes with 16 or 32 bits per pixel

TEN_CROP_SCALES = {"ten_crop": 9 / 8, "ten_crop_8_7": 8 / 7}
"""Scale of the resize before the ten crops, relative to the size of a crop.

9/8 is the convention of reference [15], 288 x 144 for crops of 256 x 128. 8/7 is the ratio 256 / 224 of the
paper's reference [1], 293 x 146.
"""


def read_image(path: Path, content: bytes | None = None) -> Image.Image:
    """Decode an image file as RGB.

    Args:
        path: path of the file.
        content: bytes of the file, if they have been read already.

    Raises:
        DataError: the file cannot be decoded, or has more than `MAX_PIXELS` pixels or 8 bits per channel.
    """
    with _opened(path, content) as image:
        return image.convert("RGB")


def image_size(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """Return width and height in pixels without decoding; see `read_image`."""
    with _opened(path, content) as image:
        return image.size


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[Image.Image]:
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.mode.startswith(_DEEP_MODES):
                raise DataError(
                    f"{path}: more than 8 bits per channel (mode {image.mode}), which RGB would clip; "
                    "save it with 8 bits"
                )
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: cannot be read as an image (unknown format); restore the file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path}: too large to be decoded safely ({error}); an image may have {MAX_PIXELS:,} pixels "
            "at most. Shrink the image, or remove it from the data set"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); restore the file") from error


def to_tensor(image: Image.Image, mean: Tensor | None = None) -> Tensor:
    """Convert an RGB image to a normalised tensor, float32, (3, H, W), contiguous.

    ``mean`` is subtracted, and the result is divided by the standard deviation of ImageNet.

    Args:
        image: RGB image.
        mean: result of `mean_image` at the size of ``image``; None takes the mean colour of ImageNet.
    """
    # Stacking images with interleaved channels would cost more than everything else here.
    planes = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1).copy()
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    mean = torch.tensor(IMAGENET_MEAN)[:, None, None] if mean is None else mean
    return torch.from_numpy(planes).float().div_(255).sub_(mean).div_(std)


def mean_image(images: Iterable[Image.Image], *, height: int, width: int) -> Tensor:
    """Average resized RGB images pixel by pixel: float32, (3, height, width), in [0, 1].

    The sum is taken in integers, so that the order of the images does not change the result.

    Raises:
        ValueError: there is no image.

    >>> colours = (Image.new("RGB", size, colour) for size, colour in (((4, 8), "black"), ((2, 2), "white")))
    >>> mean_image(colours, height=1, width=2).flatten().tolist()
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """
    total, count = np.zeros((height, width, 3), np.int64), 0
    for image in images:
        total += np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
        count += 1
    if not count:
        raise ValueError("a mean image needs at least one image, got none")
    return torch.from_numpy(total.transpose(2, 0, 1) / (255 * count)).float()


def sample_crop(
    width: int,
    height: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
    max_attempts: int,
    rng: np.random.Generator,
) -> Box:
    """Sample the box of the paper's random crop (Sec. IV-B).

    Area fraction, aspect ratio and position are uniform. A box that does not fit is sampled again; after
    ``max_attempts`` attempts the box is the whole image.

    Args:
        width: width of the image, pixels.
        height: height of the image, pixels.
        area: range of the area of the box as a fraction of the image, in (0, 1].
        ratio: range of height / width of the box.
        max_attempts: number of attempts.
        rng: random generator.

    Returns:
        (left, upper, right, lower), pixels.
    """
    for _ in range(max_attempts):
        target = rng.uniform(*area) * width * height
        aspect = rng.uniform(*ratio)
        crop_height = round((target * aspect) ** 0.5)
        crop_width = round((target / aspect) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width, endpoint=True))
            upper = int(rng.integers(height - crop_height, endpoint=True))
            return left, upper, left + crop_width, upper + crop_height
    return 0, 0, width, height


class TrainTransform:
    """The paper's augmentation: random crop, resize, horizontal flip, normalisation.

    Args:
        height: height of the result, pixels.
        width: width of the result, pixels.
        area: see `sample_crop`.
        ratio: see `sample_crop`.
        max_attempts: see `sample_crop`.
        flip_probability: probability of a horizontal flip, in [0, 1].

    Attributes:
        mean: mean that is subtracted; see `to_tensor`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        area: tuple[float, float],
        ratio: tuple[float, float],
        max_attempts: int,
        flip_probability: float,
    ) -> None:
        _check_size(height, width)
        if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1] or max_attempts < 0:
            raise ValueError(
                "area must be a range in (0, 1], ratio a range above 0 and max_attempts >= 0; got "
                f"{area}, {ratio} and {max_attempts}"
            )
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must be in [0, 1], got {flip_probability}")
        self.height, self.width = height, width
        self.area, self.ratio, self.max_attempts = area, ratio, max_attempts
        self.flip_probability = flip_probability
        self.mean: Tensor | None = None

    def sample_params(self, width: int, height: int, rng: np.random.Generator) -> tuple[Box, bool]:
        """Sample the crop box of an image of this size and whether it is flipped."""
        box = sample_crop(
            width, height, area=self.area, ratio=self.ratio, max_attempts=self.max_attempts, rng=rng
        )
        return box, bool(rng.random() < self.flip_probability)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Augment an RGB image: float32, (3, H, W); all random numbers come from ``rng``."""
        box, flip = self.sample_params(*image.size, rng)
        image = image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        return to_tensor(ImageOps.mirror(image) if flip else image, self.mean)


class EvalTransform:
    """Views of a test image, whose embeddings are averaged.

    Args:
        height: height of a view, pixels.
        width: width of a view, pixels.
        crops: ``plain``: the resized image. ``flip``: the resized image and its mirror image. ``ten_crop``
            (the paper's): four corners and centre after a resize to 9/8, each with its mirror image.
            ``ten_crop_8_7``: the same after a resize to 8/7. See `TEN_CROP_SCALES`.

    Attributes:
        mean: mean that is subtracted from each view; see `to_tensor`.

    Raises:
        ValueError: ``crops`` is unknown, or the size is not positive.
    """

    def __init__(self, *, height: int, width: int, crops: Crops) -> None:
        _check_size(height, width)
        if crops not in get_args(Crops):
            raise ValueError(f"crops must be one of {', '.join(get_args(Crops))}; got {crops!r}")
        self.height, self.width, self.crops = height, width, crops
        self.mean: Tensor | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the views of an RGB image, float32, (V, 3, H, W)."""
        views = self._crops(image)
        if self.crops != "plain":
            views = [mirrored for view in views for mirrored in (view, ImageOps.mirror(view))]
        return torch.stack([to_tensor(view, self.mean) for view in views])

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height in pixels that an image is resized to before it is cropped."""
        scale = TEN_CROP_SCALES.get(self.crops, 1)
        return round(self.width * scale), round(self.height * scale)

    @property
    def boxes(self) -> list[Box]:
        """Crops of the resized image, (left, upper, right, lower) in pixels."""
        if self.crops not in TEN_CROP_SCALES:
            return [(0, 0, self.width, self.height)]
        right, lower = self.resized[0] - self.width, self.resized[1] - self.height
        corners = [(0, 0), (right, 0), (0, lower), (right, lower), (right // 2, lower // 2)]
        return [(x, y, x + self.width, y + self.height) for x, y in corners]

    def _crops(self, image: Image.Image) -> list[Image.Image]:
        image = image.resize(self.resized, Image.Resampling.BILINEAR)
        return [image.crop(box) for box in self.boxes]


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive numbers of pixels, got {height} and {width}")
