"""Small images for fake data sets in the layout of the real ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PEOPLE = range(1, 7)
"""The first four are for training, the others for the test."""


def paint(path: Path, mode: str = "RGB") -> None:
    """Save an image of 16 x 32 pixels, whose colour depends on the first characters of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(int.from_bytes(path.name[:6].encode()))
    pixels = np.clip(rng.integers(40, 216, 3) + rng.integers(-30, 31, (32, 16, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


def paint_folders(root: Path, name: Callable[[int, int, int], str]) -> None:
    """Fill bounding_box_train/, query/ and bounding_box_test/: each person twice from each of two cameras.

    Args:
        root: folder of the data set.
        name: function from person, camera and number of the image to the name of its file.
    """
    for person in PEOPLE:
        for camera in (1, 2):
            for number in (0, 1):
                test_folder = "bounding_box_test" if number else "query"
                folder = "bounding_box_train" if person <= 4 else test_folder
                paint(root / folder / name(person, camera, number))
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder / "Thumbs.db").touch()
