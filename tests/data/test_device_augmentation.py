"""The augmentation on the device, compared with the one of Pillow, image by image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sharpreid.data import device_augmentation
from sharpreid.data.device_augmentation import ResidentImages, augment, pad_images
from sharpreid.data.reid_data import Box
from sharpreid.data.transforms import IMAGENET_MEAN, IMAGENET_STD, to_tensor

SIZES = [(64, 128), (64, 128), (37, 150), (1, 1), (3, 5), (300, 90), (128, 256), (200, 500), (129, 255)]


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


def by_pillow(picture: np.ndarray, box: Box, flip: bool, height: int, width: int) -> Tensor:
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return to_tensor(ImageOps.mirror(image) if flip else image)


def at_once(images: list[np.ndarray], boxes: Any, flips: Any, height: int, width: int) -> Tensor:
    sizes = torch.tensor([(one.shape[1], one.shape[0]) for one in images])
    pixels = torch.from_numpy(pad_images(images))
    return augment(pixels, sizes, torch.tensor(boxes), torch.tensor(flips), height=height, width=width)


def levels(views: Tensor) -> Tensor:
    """Undo the normalisation: of 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((views * std + mean) * 255).round()


def random_boxes(images: list[np.ndarray], rng: np.random.Generator) -> list[Box]:
    """Of any place and size."""
    boxes = []
    for one in images:
        height, width = one.shape[:2]
        left, upper = int(rng.integers(width)), int(rng.integers(height))
        right, lower = int(rng.integers(left, width)) + 1, int(rng.integers(upper, height)) + 1
        boxes.append((left, upper, right, lower))
    return boxes


@pytest.mark.parametrize(("height", "width"), [(256, 128), (64, 32), (61, 47), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_views_are_pillows(height: int, width: int, seed: int) -> None:
    images, rng = pictures(), np.random.default_rng(seed)
    boxes, flips = random_boxes(images, rng), (rng.random(len(images)) < 0.5).tolist()
    found = at_once(images, boxes, flips, height, width)
    assert (found.shape, found.dtype) == ((len(images), 3, height, width), torch.float32)
    drawn = zip(images, boxes, flips, strict=True)
    difference = levels(found) - levels(torch.stack([by_pillow(*one, height, width) for one in drawn]))
    assert difference.abs().max() <= 1, "of 255: which direction Pillow takes first is its own choice"
    assert difference.mean().abs() < 0.01 + 1 / difference.numel() ** 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box",
    [(0, 0, 64, 128), (0, 0, 1, 1), (63, 127, 64, 128), (0, 0, 50, 120), (14, 8, 64, 128), (5, 0, 64, 99)],
)
def test_enlarged_views_are_pillows_bit_for_bit(box: Box, flip: bool) -> None:
    """To a size of powers of two every weight is a short binary fraction: only Pillow rounds."""
    images = pictures([(64, 128)])
    assert torch.equal(at_once(images, [box], [flip], 256, 128)[0], by_pillow(images[0], box, flip, 256, 128))


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    images = pictures([(128, 256)])
    assert torch.equal(
        at_once(images, [(0, 0, 128, 256)], [False], 256, 128)[0], to_tensor(Image.fromarray(images[0]))
    )


def test_pixels_beside_the_box_but_none_beside_the_image_count() -> None:
    images = pictures([(64, 128), (300, 300)])
    alone = at_once(images[:1], [(3, 5, 64, 128)], [False], 64, 32)
    padded_white = torch.full((1, 300, 300, 3), 255, dtype=torch.uint8)
    padded_white[0, :128, :64] = torch.from_numpy(images[0])
    among = augment(
        padded_white,
        torch.tensor([[64, 128]]),
        torch.tensor([[3, 5, 64, 128]]),
        torch.tensor([False]),
        height=64,
        width=32,
    )
    assert torch.equal(among, alone)
    cut = at_once([images[0][5:, 3:]], [(0, 0, 61, 123)], [False], 64, 32)
    assert not torch.equal(cut, alone)


def test_parts_make_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    boxes, flips = random_boxes(images, np.random.default_rng(0)), [True] * len(images)
    whole = at_once(images, boxes, flips, 64, 32)
    monkeypatch.setattr(device_augmentation, "MAX_VALUES", 1)
    assert torch.equal(at_once(images, boxes, flips, 64, 32), whole)


def test_neither_the_precision_of_the_training_nor_its_default_matters() -> None:
    images = pictures([(64, 128)])
    arguments = images, [(0, 0, 60, 120)], [True], 64, 32
    expected = at_once(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(at_once(*arguments), expected)
    torch.set_default_dtype(torch.float64)
    try:
        found = at_once(*arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_lower_precision_of_matrix_products_is_not_used_and_stays_as_it_was() -> None:
    images = pictures([(64, 128)])
    arguments = images, [(0, 0, 60, 120)], [True], 256, 128
    expected = at_once(*arguments)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(at_once(*arguments), expected)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_resident_images_are_gathered_in_any_order() -> None:
    images = pictures()
    resident = ResidentImages(images)
    assert len(resident) == len(images)
    assert resident.sizes == SIZES
    order = torch.tensor([5, 0, 3, 5])
    sizes = torch.tensor(SIZES)[order]
    found = resident.gather(order, sizes, (128, 300))
    for pixels, index in zip(found, order.tolist(), strict=True):
        width, height = SIZES[index]
        assert (pixels[:height, :width].numpy() == images[index]).all()


@pytest.mark.parametrize("free", [2000, 10**6])
def test_images_that_leave_too_little_memory_are_refused(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = ResidentImages(pictures([(20, 20)]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    moved: list[torch.device] = []
    monkeypatch.setattr(Tensor, "to", lambda self, device: moved.append(device) or self)
    if free == 2000:
        with pytest.raises(
            ValueError, match=r"more than half of .* free on cuda:0; set data\.augment_on=dev"
        ):
            resident.to(torch.device("cuda:0"))
    else:
        resident.to(torch.device("cuda:0"))
    assert moved == [torch.device("cuda:0")] * 2 * (free > 2000)


def test_batches_are_padded_to_their_largest(tmp_path: Path) -> None:
    batch = pad_images([np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)])
    assert batch.shape == (2, 4, 3, 3)
    assert batch[0, :, :, 0].tolist() == [[7, 7, 7], [7, 7, 7], [0, 0, 0], [0, 0, 0]]
    assert batch[1, :, :, 0].tolist() == [[9, 0, 0]] * 4
