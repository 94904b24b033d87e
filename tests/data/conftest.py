"""Fake data sets in Market-1501's layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILES = {
    "bounding_box_train": (
        "0002_c1s1_000451_03.jpg",
        "0002_c1s1_000551_01.jpg",
        "0002_c2s1_000776_01.jpg",
        "0007_c3s3_077419_03.jpg",
        "0007_c6s3_077444_02.jpg",
        "0010_c4s6_017416_01.jpg",
        "0010_c5s3_081637_06.jpg",
        "0011_c1s6_011741_02.jpg",
        "0011_c6s4_002427_04.jpg",
    ),
    "query": ("0001_c1s1_001051_00.jpg", "0003_c3s3_077944_00.jpg.jpg", "0001_c2s1_000301_00.jpg"),
    "bounding_box_test": (
        "-1_c1s1_000401_03.jpg",
        "-1_c5s2_036521_01.jpg",
        "0000_c1s1_000151_01.jpg",
        "0000_c2s2_101327_02.jpg.jpg",
        "0000_c6s1_000176_06.jpg",
        "0001_c1s1_001051_03.jpg",
        "0001_c2s1_000301_02.jpg",
        "0003_c1s6_015971_01.jpg.jpg",
    ),
}
"""As the authors distribute them: junk, distractors and a few names that end in .jpg.jpg."""

COUNTS = {
    "train_images": 9,
    "train_identities": 4,
    "query_images": 3,
    "query_identities": 2,
    "gallery_images": 6,
    "distractor_images": 3,
    "junk_images": 2,
}


@pytest.fixture
def market_tree(tmp_path: Path) -> Path:
    """File names only: every file is empty, so nothing that opens an image works on it."""
    return _plant(tmp_path / "Market-1501-v15.09.15", Path.touch)


@pytest.fixture
def market_counts() -> dict[str, int]:
    """Counts of both trees."""
    return COUNTS


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """The same names with small images of noise."""
    rng = np.random.default_rng(0)

    def paint(path: Path) -> None:
        Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path, "JPEG")

    return _plant(tmp_path / "pictures", paint)


def _plant(root: Path, make: Callable[[Path], None]) -> Path:
    for folder, names in FILES.items():
        (root / folder).mkdir(parents=True)
        for name in reversed(names):
            make(root / folder / name)
        (root / folder / "Thumbs.db").touch()
    return root
