"""Torch datasets over the lists of a `ReIDData`: training images, training pixels and test images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sharpreid.data.device_augmentation import ImageArray, PixelBatch, pad_images
from sharpreid.data.pixel_cache import PixelCache
from sharpreid.data.reid_data import Sample, random_stream
from sharpreid.data.sampler import SampleIndex
from sharpreid.data.transforms import EvalTransform, TrainTransform, read_image

ReadImage = Callable[[Path], Image.Image]
"""A function from the path of an image file to its pixels, RGB."""


class TrainBatch(NamedTuple):
    """A batch of training images; an item of the dataset lacks the axis B."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    labels: Tensor
    """(B,), identities numbered from 0."""
    indices: Tensor
    """(B,), indices of the training images."""


class EvalBatch(NamedTuple):
    """A batch of query and gallery images; an item of the dataset lacks the axis B."""

    views: Tensor
    """(B, V, 3, H, W), normalised."""
    pids: Tensor
    """(B,), identities."""
    camids: Tensor
    """(B,), cameras."""
    is_query: Tensor
    """(B,), bool."""
    indices: Tensor
    """(B,), indices into ``EvalImages.samples``."""


def load_image(sample: Sample, read: ReadImage = read_image) -> Image.Image:
    """Load the image of a sample as RGB, cropped to the sample's box."""
    image = read(sample.path)
    return image.crop(sample.box) if sample.box else image


def load_pixels(sample: Sample, read: ReadImage) -> ImageArray:
    """Load the image of a sample as an array, cropped to the sample's box.

    From a `PixelCache` the array is a view of the mapped file.
    """
    pixels = read.pixels(sample.path) if isinstance(read, PixelCache) else np.asarray(read(sample.path))
    if sample.box is None:
        return pixels
    left, upper, right, lower = sample.box
    return pixels[upper:lower, left:right]


class TrainImages(Dataset[TrainBatch]):
    """Training images, augmented one by one.

    The augmentation of an image is a function of (seed, epoch, position in the epoch) alone.

    Args:
        samples: training images.
        transform: augmentation.
        seed: seed of the augmentation.
        read: reader of an image file.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: TrainTransform,
        seed: int,
        read: ReadImage = read_image,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.read = read
        label_of = {pid: label for label, pid in enumerate(sorted({sample.pid for sample in samples}))}
        self.labels = [label_of[sample.pid] for sample in samples]

    def random_stream(self, index: SampleIndex) -> np.random.Generator:
        """Return the random generator of one image's augmentation."""
        return random_stream("augmentation", self.seed, index.epoch, index.position)

    def __getitem__(self, index: SampleIndex) -> TrainBatch:
        """Load and augment one image."""
        image = load_image(self.samples[index.image], self.read)
        view = self.transform(image, self.random_stream(index))
        return TrainBatch(view, torch.tensor(self.labels[index.image]), torch.tensor(index.image))

    def __len__(self) -> int:
        return len(self.samples)


class TrainPixels(Dataset[PixelBatch]):
    """Whole batches of training pixels with their augmentation parameters, to be augmented on the device.

    The parameters come from the same random streams as in `TrainImages`.

    Args:
        images: training images.
        sizes: width and height of each image if the pixels are on the device already; None loads the pixels.
    """

    def __init__(self, images: TrainImages, sizes: Sequence[tuple[int, int]] | None) -> None:
        self.images = images
        self.sizes = sizes

    def __getitems__(self, indices: Sequence[SampleIndex]) -> PixelBatch:
        """Return one batch; torch calls this method in place of ``__getitem__``."""
        images, pixels = self.images, None
        if self.sizes is None:
            arrays = [load_pixels(images.samples[index.image], images.read) for index in indices]
            sizes = [(array.shape[1], array.shape[0]) for array in arrays]
            pixels = torch.from_numpy(pad_images(arrays))
        else:
            sizes = [self.sizes[index.image] for index in indices]
        boxes, flips = zip(
            *(
                images.transform.sample_params(*size, images.random_stream(index))
                for size, index in zip(sizes, indices, strict=True)
            ),
            strict=True,
        )
        return PixelBatch(
            pixels=pixels,
            extent=(max(height for _, height in sizes), max(width for width, _ in sizes)),
            sizes=torch.tensor(sizes),
            boxes=torch.tensor(boxes),
            flips=torch.tensor(flips),
            labels=torch.tensor([images.labels[index.image] for index in indices]),
            indices=torch.tensor([index.image for index in indices]),
        )

    def __len__(self) -> int:
        return len(self.images)


class EvalImages(Dataset[EvalBatch]):
    """Query images, then gallery images, then the additional images of a multi-query protocol.

    Args:
        query: query images.
        gallery: gallery images.
        transform: test-time views of an image.
        read: reader of an image file.
        multi_query: additional images of each query; None is single-query.

    Attributes:
        query_group: (N,), None for single-query. Embeddings of images with the same number are averaged: an
            additional image has the index of its query, and every other image has its own index.
    """

    def __init__(
        self,
        query: Sequence[Sample],
        gallery: Sequence[Sample],
        transform: EvalTransform,
        read: ReadImage = read_image,
        multi_query: Sequence[Sequence[Sample]] | None = None,
    ) -> None:
        additional = [(index, sample) for index, group in enumerate(multi_query or ()) for sample in group]
        self.samples = [*query, *gallery, *(sample for _, sample in additional)]
        self.num_query = len(query)
        self.query_group: Tensor | None = None
        if multi_query is not None:
            alone = range(len(query) + len(gallery))
            self.query_group = torch.tensor([*alone, *(index for index, _ in additional)])
        self.transform = transform
        self.read = read

    def __getitem__(self, index: int) -> EvalBatch:
        """Load one image and return its views."""
        sample = self.samples[index]
        views = self.transform(load_image(sample, self.read))
        numbers = torch.tensor((sample.pid, sample.camid, index))
        return EvalBatch(views, numbers[0], numbers[1], torch.tensor(index < self.num_query), numbers[2])

    def __len__(self) -> int:
        return len(self.samples)
