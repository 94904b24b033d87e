"""Embed many images into a gallery, so that an interruption loses nothing."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sharpreid.atomic_io import write_rows
from sharpreid.data.progress_bar import progress_bar
from sharpreid.data.reid_data import DataError
from sharpreid.serving.gallery import Gallery, Item
from sharpreid.serving.model import load_model
from sharpreid.serving.sources import find_items, read_items

_ROWS = 2048  # of a part


def embed_images(
    images: str,
    *,
    model: str,
    output: Path,
    boxes: str | None = None,
    camera_pattern: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
) -> tuple[int, int]:
    """Embed all images of a place that the gallery in ``output`` does not have yet.

    See the help of `sharpreid.embed` for the arguments.

    Returns:
        Number of images that were embedded, and number of those that could not be read.

    Raises:
        FileNotFoundError: there is no such place or model.
        ValueError: the place has no image, a file is wrong, or the gallery is of another model.
    """
    items = find_items(images, boxes=boxes, camera_pattern=camera_pattern)
    embedder = load_model(model).to(device)
    gallery = Gallery(output, embedder.digest)
    known = gallery.known()
    new = [item for item in dict.fromkeys(items) if not _is_same(item, known.get(item.key))]
    if len(new) < len(items):
        print(f"{len(items) - len(new)} of {len(items)} images are in {output} already")
    skipped: list[tuple[str, str]] = []
    done: list[Item] = []
    with progress_bar("embedding") as show, _Parts(gallery) as parts:
        tasks: list[Item] = []

        def readers() -> Iterator[Callable[[], Tensor]]:
            for item, read in read_items(new, embedder):
                tasks.append(item)
                yield read

        def skip(number: int, error: DataError) -> None:
            skipped.append((tasks[number].path, str(error)))

        for numbers, embeddings in embedder.embed_batches(readers(), batch_size=batch_size, skip=skip):
            some = [tasks[number] for number in numbers]
            parts.add(some, embeddings)
            done += some
            show(len(done) + len(skipped), len(new))
    if skipped:
        write_rows(output / "skipped.csv", ("path", "reason"), skipped)
    else:
        (output / "skipped.csv").unlink(missing_ok=True)
    total = len(known.keys() | {item.key for item in done})
    print(f"{len(done)} images embedded; {output} has {total}")
    return len(done), len(skipped)


def _is_same(item: Item, known: Item | None) -> bool:
    """Return whether a gallery has an item as it is. Where no time is given, that of a frame was decoded."""
    return known is not None and item == (known._replace(time=None) if item.time is None else known)


class _Parts:
    """Rows that become a part of a gallery when they are many, and at the end, also after an error."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.items: list[Item] = []
        self.embeddings: list[npt.NDArray[np.float32]] = []

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def add(self, items: Sequence[Item], embeddings: npt.NDArray[np.float32]) -> None:
        self.items += items
        self.embeddings.append(embeddings)
        if len(self.items) >= _ROWS:
            self.write()

    def write(self) -> None:
        if self.items:
            self.gallery.append(self.items, np.concatenate(self.embeddings))
        self.items, self.embeddings = [], []
