"""The images of CUHK03 as PNG files, unpacked once from cuhk-03.mat."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sharpreid.atomic_io import replacing
from sharpreid.data.cuhk03.mat_file import COLUMNS, KINDS, MAT, Cell, CUHK03Mat
from sharpreid.data.progress_bar import Progress, progress_bar
from sharpreid.data.reid_data import DataError

RECORD = "cuhk03.json"
"""File beside the images, written last: it says that they are complete."""

IMAGE_NAME = re.compile(r"(?P<pair>[1-5])_(?P<number>\d{3,})_(?P<view>[12])_(?P<column>\d{2})\.png")


@dataclass(frozen=True)
class Unpacked:
    """What the folder of unpacked images holds.

    Attributes:
        pairs: number of identities of each camera pair.
        images: number of images of each kind of crops.
        test_sets: identities (pair, number) of each test split, both counted from 1.
        mat_bytes: size of the cuhk-03.mat that the images come from.
    """

    pairs: tuple[int, ...]
    images: Mapping[str, int]
    test_sets: tuple[tuple[tuple[int, int], ...], ...]
    mat_bytes: int


def image_name(pair: int, number: int, column: int) -> str:
    """File name of an image: pair, identity in it, view, and column in its row of cells, all counted from 1.

    The same names as in the lists of the new protocol.

    >>> image_name(1, 43, 6)
    '1_043_2_06.png'
    """
    return f"{pair}_{number:03d}_{1 if column <= COLUMNS // 2 else 2}_{column:02d}.png"


def ensure_unpacked(mat: Path, folder: Path, progress: Progress | None = None) -> Unpacked:
    """Unpack cuhk-03.mat unless that has been done; afterwards the file itself is no longer needed.

    Args:
        mat: the file.
        folder: of the unpacked images, see `unpack`.
        progress: see `unpack`; None shows a bar on the standard error output.

    Raises:
        DataError: the folder holds images of another file, too many of them, or too few and ``mat`` is not
            there to complete them; and see `unpack`.
        FileNotFoundError: there is neither a file nor images.
        OSError: ``folder`` cannot be written.
    """
    record = _read_record(folder)
    if record is not None and mat.is_file() and record.mat_bytes != mat.stat().st_size:
        raise DataError(
            f"{folder}: unpacked from a {MAT} of {record.mat_bytes:,} bytes, but {mat} has "
            f"{mat.stat().st_size:,}; delete {folder} to have the images unpacked again"
        )
    if record is None or (_difference(record, folder) and mat.is_file()):
        if progress is not None:
            record = unpack(mat, folder, progress)
        else:
            with progress_bar(f"unpacking {MAT}") as progress:
                record = unpack(mat, folder, progress)
    if difference := _difference(record, folder):
        raise DataError(
            f"{folder}: {difference}; put {MAT} in its place and delete this folder to have it unpacked again"
        )
    return record


def unpack(mat: Path, folder: Path, progress: Progress | None = None) -> Unpacked:
    """Write every image of cuhk-03.mat, pixel for pixel, to <folder>/<kind>/ under its `image_name`.

    One image is in memory at a time. A file appears when it is fully written, and one that is there is kept:
    an interrupted run goes on where it stopped, and processes that start at once do the work together. The
    record comes last.

    Args:
        mat: the file.
        folder: made if it does not exist.
        progress: called with (cells done, cells in all), after each one.

    Raises:
        FileNotFoundError, DataError: see `CUHK03Mat`.
        OSError: ``folder`` cannot be written; says what to do.
    """
    images = dict.fromkeys(KINDS, 0)
    with closing(CUHK03Mat(mat)) as contents:
        for done, cell in enumerate(contents, start=1):
            if contents.has_image(cell):
                images[cell.kind] += 1
                _write_image(contents, cell, folder)
            if progress is not None:
                progress(done, len(contents))
        unpacked = Unpacked(contents.pairs, images, contents.test_sets, mat.stat().st_size)
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
            f"{folder}: the images of CUHK03 cannot be written ({error.strerror or error}); name a folder on "
            "a disk that you may write to and that has room by data.source.images=/path/to/folder. What is "
            "written is kept, and the next run goes on from there",
        ) from error


def _read_record(folder: Path) -> Unpacked | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Unpacked(
            pairs=tuple(int(size) for size in told["pairs"]),
            images={kind: int(told["images"][kind]) for kind in KINDS},
            test_sets=tuple(
                tuple((int(pair), int(number)) for pair, number in one) for one in told["test_sets"]
            ),
            mat_bytes=int(told["mat_bytes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error!r}); delete it, and what is missing is unpacked from {MAT}"
        ) from error


def _difference(record: Unpacked, folder: Path) -> str:
    """How the files differ from the record; empty if they do not."""
    found = {kind: sum(1 for _ in (folder / kind).glob("[!.]*.png")) for kind in KINDS}
    return ", ".join(
        f"{found[kind]:,} {kind} images instead of {wanted:,}"
        for kind, wanted in record.images.items()
        if found[kind] != wanted
    )
