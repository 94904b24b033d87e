"""The paper's augmentation and test-time views, checked on pictures whose pixels name their own place."""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sharpreid.data.reid_data import DataError
from sharpreid.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    TrainTransform,
    image_size,
    mean_image,
    read_image,
    sample_crop,
    to_tensor,
)

AREA, RATIO = (0.2, 0.6), (2.0, 3.0)
WIDTH, HEIGHT = 1000, 2500
"""Every box of these areas and ratios fits into such a picture, so that none is drawn again."""


def boxes(count: int = 4000) -> np.ndarray:
    """(count, 4): left, upper, right, lower."""
    rng = np.random.default_rng(0)
    return np.array(
        [sample_crop(WIDTH, HEIGHT, area=AREA, ratio=RATIO, max_attempts=1, rng=rng) for _ in range(count)]
    )


def distance_to_uniform(values: np.ndarray, low: float, high: float) -> float:
    """Kolmogorov-Smirnov distance; beyond 1.63 / sqrt(n) in 1 % of samples."""
    cumulative = np.sort((values - low) / (high - low))
    steps = np.arange(len(values) + 1) / len(values)
    return float(max((steps[1:] - cumulative).max(), (cumulative - steps[:-1]).max()))


def gradient(width: int, height: int) -> Image.Image:
    """Red is x, green and blue are y."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y % 256, y // 256], axis=-1).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(view: Tensor) -> np.ndarray:
    """Undo the normalisation: (3, H, W) to (H, W, 3) bytes."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((view.permute(1, 2, 0) * std + mean) * 255).round().to(torch.uint8).numpy()


def train_transform(flip_probability: float = 0.5) -> TrainTransform:
    return TrainTransform(
        height=64, width=32, area=(0.64, 1.0), ratio=RATIO, max_attempts=10, flip_probability=flip_probability
    )


def test_crop_area_and_ratio_are_uniform_over_their_ranges() -> None:
    left, upper, right, lower = boxes().T
    width, height = right - left, lower - upper
    area, ratio = width * height / (WIDTH * HEIGHT), height / width
    assert distance_to_uniform(area, *AREA) < 1.63 / 4000**0.5
    assert distance_to_uniform(ratio, *RATIO) < 1.63 / 4000**0.5


def test_crop_ratio_is_not_log_uniform() -> None:
    left, upper, right, lower = boxes().T
    ratio = (lower - upper) / (right - left)
    assert ratio.mean() == pytest.approx(2.5, abs=0.015)
    assert distance_to_uniform(np.log(ratio), np.log(2), np.log(3)) > 2 * 1.63 / 4000**0.5


def test_crop_position_is_uniform_over_what_fits() -> None:
    left, upper, right, lower = boxes().T
    for start, end, size in ((left, right, WIDTH), (upper, lower, HEIGHT)):
        assert start.min() >= 0
        assert end.max() <= size
        assert distance_to_uniform((start + 0.5) / (size - (end - start) + 1), 0, 1) < 1.63 / 4000**0.5


def test_a_tight_crop_reaches_both_edges() -> None:
    rng = np.random.default_rng(0)
    found = {
        sample_crop(10, 20, area=(0.81, 0.81), ratio=(2, 2), max_attempts=1, rng=rng)[:2] for _ in range(300)
    }
    assert found == {(x, y) for x in (0, 1) for y in (0, 1, 2)}


def test_share_of_boxes_that_fit_a_market1501_picture() -> None:
    """A box of area a and ratio r fits 64 x 128 where a r <= 2: (ln 2.25 - 0.64) / 0.36, 47 % of them."""
    rng = np.random.default_rng(0)
    whole = [
        sample_crop(640, 1280, area=(0.64, 1.0), ratio=RATIO, max_attempts=1, rng=rng) == (0, 0, 640, 1280)
        for _ in range(4000)
    ]
    assert 1 - np.mean(whole) == pytest.approx((np.log(2.25) - 0.64) / 0.36, abs=4 * (0.25 / 4000) ** 0.5)


def test_more_tries_fall_back_less_often() -> None:
    rng = np.random.default_rng(0)
    whole = [
        sample_crop(640, 1280, area=(0.64, 1.0), ratio=RATIO, max_attempts=10, rng=rng) == (0, 0, 640, 1280)
        for _ in range(2000)
    ]
    assert sum(whole) < 2000 * 0.01


@pytest.mark.parametrize("max_attempts", [0, 10])
def test_the_whole_picture_is_taken_where_no_box_fits(max_attempts: int) -> None:
    rng = np.random.default_rng(0)
    assert sample_crop(100, 50, area=(0.9, 1.0), ratio=RATIO, max_attempts=max_attempts, rng=rng) == (
        0,
        0,
        100,
        50,
    )


@pytest.mark.parametrize(("width", "height"), [(64, 128), (37, 150), (3, 5), (1, 1), (90, 40)])
def test_boxes_lie_inside_the_picture_and_are_not_empty(width: int, height: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        left, upper, right, lower = sample_crop(
            width, height, area=(0.64, 1.0), ratio=RATIO, max_attempts=10, rng=rng
        )
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height


def test_augmentation_depends_on_its_generator_alone() -> None:
    image, transform = noise(64, 128), train_transform()
    views = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        views.append(transform(image, np.random.default_rng((5, 6, 7))))
    assert torch.equal(*views)
    assert not torch.equal(views[0], transform(image, np.random.default_rng((5, 6, 8))))


def test_augmented_view_has_the_asked_size() -> None:
    view = train_transform()(noise(50, 90), np.random.default_rng(0))
    assert (view.shape, view.dtype) == ((3, 64, 32), torch.float32)


def test_a_flip_is_the_mirror_image_of_the_same_crop() -> None:
    image = noise(64, 128)
    plain = train_transform(0.0)(image, np.random.default_rng(3))
    flipped = train_transform(1.0)(image, np.random.default_rng(3))
    assert torch.equal(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


def test_flips_come_as_often_as_asked() -> None:
    image, transform = gradient(64, 128), train_transform(0.25)
    views = [transform(image, np.random.default_rng((0, draw))) for draw in range(1000)]
    flipped = sum(bool(view[0, 0, 0] > view[0, 0, -1]) for view in views)
    assert flipped / 1000 == pytest.approx(0.25, abs=0.06)


def test_augmentation_shows_the_box_that_was_drawn() -> None:
    """The left, upper corner of a crop of the gradient names the corner of its box."""
    image, transform = gradient(128, 256), train_transform(0.0)
    for seed in range(20):
        view = pixels(transform(image, np.random.default_rng(seed)))
        left, upper, right, lower = sample_crop(
            128, 256, area=(0.64, 1.0), ratio=RATIO, max_attempts=10, rng=np.random.default_rng(seed)
        )
        assert view[0, 0, :2].tolist() == pytest.approx((left, upper), abs=4)
        assert view[-1, -1, :2].tolist() == pytest.approx((right - 1, lower - 1), abs=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"area": (0.0, 1.0)},
        {"area": (0.9, 0.5)},
        {"area": (0.5, 1.1)},
        {"ratio": (0.0, 2.0)},
        {"ratio": (3.0, 2.0)},
        {"max_attempts": -1},
    ],
)
def test_an_impossible_crop_is_refused(changes: dict[str, object]) -> None:
    options = {"area": (0.64, 1.0), "ratio": (2.0, 3.0), "max_attempts": 10} | changes
    with pytest.raises(ValueError, match=r"area must be a range in \(0, 1\], ratio a range above 0"):
        TrainTransform(height=64, width=32, flip_probability=0.5, **options)


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_an_impossible_flip_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=rf"flip_probability must be in \[0, 1\], got {probability}"):
        train_transform(probability)


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive numbers of pixels, got 0 and 32"):
        EvalTransform(height=0, width=32, crops="plain")
    with pytest.raises(ValueError, match="positive numbers of pixels, got 64 and -1"):
        TrainTransform(height=64, width=-1, area=AREA, ratio=RATIO, max_attempts=1, flip_probability=0)


def test_unknown_crops_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="one of plain, flip, ten_crop, ten_crop_8_7; got 'five'"):
        EvalTransform(height=64, width=32, crops="five")  # a misspelt configuration


@pytest.mark.parametrize(
    ("crops", "count"), [("plain", 1), ("flip", 2), ("ten_crop", 10), ("ten_crop_8_7", 10)]
)
def test_number_and_size_of_the_views(crops: str, count: int) -> None:
    views = EvalTransform(height=64, width=32, crops=crops)(noise(50, 90))
    assert (views.shape, views.dtype) == ((count, 3, 64, 32), torch.float32)


def test_plain_view_is_the_resized_picture() -> None:
    image = noise(64, 128)
    (view,) = EvalTransform(height=256, width=128, crops="plain")(image)
    assert (pixels(view) == np.array(image.resize((128, 256), Image.Resampling.BILINEAR))).all()


@pytest.mark.parametrize("crops", ["flip", "ten_crop", "ten_crop_8_7"])
def test_every_second_view_mirrors_the_one_before(crops: str) -> None:
    views = EvalTransform(height=64, width=32, crops=crops)(noise(50, 90))
    assert torch.equal(views[1::2], views[::2].flip(-1))


def test_flip_starts_with_the_plain_view() -> None:
    image = noise(50, 90)
    plain = EvalTransform(height=64, width=32, crops="plain")(image)
    assert torch.equal(EvalTransform(height=64, width=32, crops="flip")(image)[:1], plain)


def test_ten_crop_cuts_centre_and_corners_of_288_x_144() -> None:
    views = EvalTransform(height=256, width=128, crops="ten_crop")(gradient(144, 288))
    whole = np.array(gradient(144, 288))
    found = set()
    for view in views[::2]:
        shown = pixels(view)
        x, y = int(shown[0, 0, 0]), int(shown[0, 0, 1])
        assert (shown == whole[y : y + 256, x : x + 128]).all()
        found.add((x, y))
    assert found == {(0, 0), (16, 0), (0, 32), (16, 32), (8, 16)}


def test_ten_crop_first_resizes_to_nine_eighths() -> None:
    image = noise(64, 128)
    resized = np.array(image.resize((144, 288), Image.Resampling.BILINEAR))
    views = EvalTransform(height=256, width=128, crops="ten_crop")(image)
    assert (pixels(views[0]) == resized[:256, :128]).all()


def test_ten_crop_of_eight_sevenths_cuts_centre_and_corners_of_293_x_146() -> None:
    whole = np.array(gradient(146, 293))
    views = EvalTransform(height=256, width=128, crops="ten_crop_8_7")(gradient(146, 293))
    corners = [(0, 0), (18, 0), (0, 37), (18, 37), (9, 18)]
    for view, (x, y) in zip(views[::2], corners, strict=True):
        assert (pixels(view) == whole[y : y + 256, x : x + 128]).all()


def test_eight_sevenths_are_the_256_pixels_for_crops_of_224() -> None:
    whole = np.array(gradient(256, 256))
    (first, *_) = EvalTransform(height=224, width=224, crops="ten_crop_8_7")(gradient(256, 256))
    assert (pixels(first) == whole[:224, :224]).all()


def test_images_are_contiguous_and_so_quickly_stacked() -> None:
    assert to_tensor(noise(3, 5)).is_contiguous()


def test_normalisation_values() -> None:
    white, black = to_tensor(Image.new("RGB", (2, 3), "white")), to_tensor(Image.new("RGB", (2, 3)))
    assert white.shape == (3, 3, 2)
    assert white[:, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)
    assert black[:, 2, 1].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)


def test_the_mean_image_is_that_of_the_resized_images_in_any_order() -> None:
    pictures = [noise(16, 32), noise(20, 44), Image.new("RGB", (5, 7), "white")]
    mean = mean_image(pictures, height=24, width=12)
    assert (mean.shape, mean.dtype) == ((3, 24, 12), torch.float32)
    resized = [np.asarray(one.resize((12, 24), Image.Resampling.BILINEAR), np.float64) for one in pictures]
    np.testing.assert_allclose(mean, np.mean(resized, 0).transpose(2, 0, 1) / 255, atol=1e-6)
    assert torch.equal(mean_image(reversed(pictures), height=24, width=12), mean)


def test_the_mean_of_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one image, got none"):
        mean_image([], height=4, width=4)


def test_a_mean_image_takes_the_place_of_imagenet_s_mean_colour_in_every_view() -> None:
    image, mean = noise(32, 64), torch.rand(3, 64, 32, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor(IMAGENET_MEAN)[:, None, None]
    difference = (colour - mean) / torch.tensor(IMAGENET_STD)[:, None, None]
    evaluate = EvalTransform(height=64, width=32, crops="ten_crop")
    train = TrainTransform(height=64, width=32, area=AREA, ratio=RATIO, max_attempts=10, flip_probability=0.5)
    for views in (evaluate, lambda image: train(image, np.random.default_rng(0))):
        usual = views(image)
        train.mean = evaluate.mean = mean
        torch.testing.assert_close(views(image), usual + difference, atol=1e-5, rtol=0)
        train.mean = evaluate.mean = None
        assert torch.equal(views(image), usual)


def test_channels_come_in_the_order_red_green_blue() -> None:
    red = to_tensor(Image.new("RGB", (1, 1), (255, 0, 0)))
    assert red.flatten().tolist() == pytest.approx([2.2489, -2.0357, -1.8044], abs=1e-4)


@pytest.mark.parametrize(("mode", "ending"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png")])
def test_an_image_of_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / f"0002_c1s1_000451_03.{ending}"
    Image.new("RGB", (20, 40), (102, 102, 102)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 40))
    assert image.getpixel((10, 20)) == pytest.approx((102, 102, 102), abs=3)


@pytest.mark.parametrize(("kind", "ending"), [("uint16", "png"), ("int32", "tif"), ("float32", "tif")])
def test_an_image_of_more_than_8_bits_is_refused_rather_than_cut_off(
    tmp_path: Path, kind: str, ending: str
) -> None:
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(np.linspace(0, 60_000, 800).reshape(40, 20).astype(kind)).save(path)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"deep\..*more than 8 bits per channel.*save it with 8"):
            read(path)


def test_an_image_of_one_pixel_works(tmp_path: Path) -> None:
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), "white").save(path)
    image = read_image(path)
    expected = to_tensor(Image.new("RGB", (32, 64), "white"))
    assert torch.equal(train_transform()(image, np.random.default_rng(0)), expected)
    for view in EvalTransform(height=64, width=32, crops="ten_crop")(image):
        assert torch.equal(view, expected)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "missing"])
def test_an_unreadable_picture_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "0002_c1s1_000451_03.jpg"
    noise(64, 128).save(path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"text": b"Not Found", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"0002_c1s1_000451_03\.jpg: cannot be read as an image .*restore"):
        read_image(path)


def png(width: int, height: int) -> bytes:
    """A black picture of one bit per pixel, its rows compressed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("side", [9_460, 20_000])
@pytest.mark.parametrize("made", [png, jpeg])
def test_an_image_that_would_fill_the_memory_is_refused_by_name(
    made: Callable[[int, int], bytes], side: int, tmp_path: Path
) -> None:
    """Above Pillow's limit, where it warns, and above twice that, where it refuses."""
    path = tmp_path / "bomb.img"
    path.write_bytes(made(side, side))
    assert path.stat().st_size < 10**6
    for read in (read_image, image_size):
        with pytest.raises(
            DataError, match=r"bomb\.img: too large to be decoded .* may have 89,478,485 pixels"
        ):
            read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outside of the tests Pillow's warning is no error
        with pytest.raises(DataError, match="too large"):
            read_image(path)


def test_a_large_photo_is_read(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(9_450, 9_450))
    assert image_size(tmp_path / "photo.png") == (9_450, 9_450)
