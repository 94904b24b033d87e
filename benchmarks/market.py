"""Folders in Market-1501's layout with images of noise."""

import io
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 128
_PATTERNS = 32


def write_market(root: Path) -> Path:
    """Write a folder with as many images as Market-1501, so that it passes the check of the counts.

    Training has 12,936 images of 751 identities; the test has 3,368 queries of 750 others, 13,115 gallery
    images of these, 2,798 distractors and 3,819 images of junk.
    """
    train = _names(range(1, 752), 12_936)
    query = _names(range(752, 1502), 3_368)
    test = (*_names(range(752, 1502), 13_115), *_names([0], 2_798), *_names([-1], 3_819))
    _write(root, {"bounding_box_train": train, "query": query, "bounding_box_test": test})
    return root


def write_small_market(root: Path, images: int) -> Path:
    """Write a folder with some training images and one query.

    Args:
        root: folder to write.
        images: number of training images, at least 4 of each of at most 750 identities.
    """
    names = {
        "bounding_box_train": _names(range(1, min(images // 4, 750) + 1), images),
        "query": _names([1501], 1),
        "bounding_box_test": _names([1501], 2),
    }
    _write(root, names)
    return root


def _names(identities: range | list[int], count: int) -> tuple[str, ...]:
    """Return ``count`` file names that cycle through the identities, and within each through cameras."""
    numbered = zip(range(count), cycle(identities))
    texts = (f"{pid:04d}" if pid >= 0 else "-1" for _, pid in numbered)
    return tuple(
        f"{text}_c{number // len(identities) % 6 + 1}s1_{number:06d}_00.jpg"
        for number, text in enumerate(texts)
    )


def _write(root: Path, names: dict[str, tuple[str, ...]]) -> None:
    """Write an image of noise for each name in each folder."""
    patterns = cycle([*_noise_jpegs()])
    for folder, files in names.items():
        (root / folder).mkdir(parents=True)
        for name in files:
            (root / folder / name).write_bytes(next(patterns))


def _noise_jpegs() -> Iterator[bytes]:
    """Yield JPEGs of smooth noise, about as large as a file of Market-1501."""
    rng = np.random.default_rng(0)
    for _ in range(_PATTERNS):
        coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()
