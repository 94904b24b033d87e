"""PNG files of the CUHK03 images, unpacked once from cuhk-03.mat."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sharpreid.atomic_io import replacing
from sharpreid.data.cuhk03.mat_file import COLUMNS, KINDS, MAT, Cell, CUHK03Mat
from sharpreid.data.progress_bar import ProgressCallback, progress_bar
from sharpreid.data.reid_data import DataError

RECORD = "cuhk03.json"
"""File beside the images. It is written last and shows that they are complete."""

IMAGE_NAME = re.compile(r"(?P<pair>[1-5])_(?P<number>\d{3,})_(?P<view>[12])_(?P<column>\d{2})\.png")


@dataclass(frozen=True)
class UnpackedImages:
    """Contents of a folder of unpacked images.

    Attributes:
        pairs: number of identities in each camera pair.
        images: number of images by kind of crop.
        test_sets: identities (pair, number) of each test split, counted from 1.
        mat_bytes: size of the source cuhk-03.mat in bytes.
    """

    pairs: tuple[int, ...]
    images: Mapping[str, int]
    test_sets: tuple[tuple[tuple[int, int], ...], ...]
    mat_bytes: int


def image_name(pair: int, number: int, column: int) -> str:
    """Return the file name of an image: pair, identity in the pair, view and column, counted from 1.

    The lists of the new protocol use the same names.

    >>> image_name(1, 43, 6)
    '1_043_2_06.png'
    """
    return f"{pair}_{number:03d}_{1 if column <= COLUMNS // 2 else 2}_{column:02d}.png"


def ensure_unpacked(mat: Path, folder: Path, progress: ProgressCallback | None = None) -> UnpackedImages:
    """Unpack cuhk-03.mat unless its images are complete; ``mat`` may be deleted afterwards.

    Args:
        mat: path of cuhk-03.mat.
        folder: folder of the unpacked images; see `unpack`.
        progress: see `unpack`; None shows a progress bar on standard error.

    Raises:
        DataError: the folder has images of another file, too many images, or too few without a ``mat`` to
            complete them. See also `unpack`.
        FileNotFoundError: neither ``mat`` nor the images exist.
        OSError: ``folder`` cannot be written.
    """
    record = _read_record(folder)
    if record is not None and mat.is_file() and record.mat_bytes != mat.stat().st_size:
        raise DataError(
            f"{folder}: unpacked from a {MAT} of {record.mat_bytes:,} bytes, but {mat} has "
            f"{mat.stat().st_size:,}; delete {folder} to unpack the images again"
        )
    if record is None or (_difference(record, folder) and mat.is_file()):
        with progress_bar(f"unpacking {MAT}") if progress is None else nullcontext(progress) as callback:
            record = unpack(mat, folder, callback)
    if difference := _difference(record, folder):
        raise DataError(
            f"{folder}: {difference}; restore {MAT} and delete this folder to unpack the images again"
        )
    return record


def unpack(mat: Path, folder: Path, progress: ProgressCallback | None = None) -> UnpackedImages:
    """Write every image of cuhk-03.mat without loss to <folder>/<kind>/ under its `image_name`.

    One image is in memory at a time. Each file is written atomically and existing files are kept, so an
    interrupted run continues where it stopped, and several processes may run at once. The record is written
    last.

    Args:
        mat: path of cuhk-03.mat.
        folder: folder of the images; created if it does not exist.
        progress: called with (finished cells, all cells) after each cell.

    Raises:
        FileNotFoundError: see `CUHK03Mat`.
        DataError: see `CUHK03Mat`.
        OSError: ``folder`` cannot be written; the message says what to do.
    """
    images = dict.fromkeys(KINDS, 0)
    with closing(CUHK03Mat(mat)) as contents:
        for done, cell in enumerate(contents, start=1):
            if contents.has_image(cell):
                images[cell.kind] += 1
                _write_image(contents, cell, folder)
            if progress is not None:
                progress(done, len(contents))
        unpacked = UnpackedImages(contents.pairs, images, contents.test_sets, mat.stat().st_size)
    with _writing(folder), replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(asdict(unpacked)) + "\n", encoding="utf-8")
    return unpacked


def _write_image(contents: CUHK03Mat, cell: Cell, folder: Path) -> None:
    path = folder / cell.kind / image_name(cell.pair, cell.number, cell.column)
    if path.exists():
        return
    image = Image.fromarray(contents.image(cell))
    with _writing(folder), replacing(path) as temporary:
        image.save(temporary, "PNG")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder}: the images of CUHK03 cannot be written ({error.strerror or error}). Name a writable "
            "folder with enough room by data.source.images=/path/to/folder. Images that are written already "
            "are kept, and the next run continues",
        ) from error


def _read_record(folder: Path) -> UnpackedImages | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return UnpackedImages(
            pairs=tuple(int(size) for size in fields["pairs"]),
            images={kind: int(fields["images"][kind]) for kind in KINDS},
            test_sets=tuple(
                tuple((int(pair), int(number)) for pair, number in one) for one in fields["test_sets"]
            ),
            mat_bytes=int(fields["mat_bytes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error!r}); delete this file to unpack missing images from {MAT}"
        ) from error


def _difference(record: UnpackedImages, folder: Path) -> str:
    """Return the difference between the files and the record; empty if there is none."""
    found = {kind: sum(1 for _ in (folder / kind).glob("[!.]*.png")) for kind in KINDS}
    return ", ".join(
        f"{found[kind]:,} {kind} images instead of {wanted:,}"
        for kind, wanted in record.images.items()
        if found[kind] != wanted
    )
