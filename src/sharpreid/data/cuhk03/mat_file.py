"""Reader of cuhk-03.mat, the single file of CUHK03.

The file has MATLAB's format 7.3, which is HDF5 with reversed axes; a cell array is an array of references.
The variables ``labeled`` and ``detected`` have 5 camera pairs, each a cell matrix (identities, 10). Columns
1-5 are images of the pair's first view and columns 6-10 of its second; cells without an image are empty.
``testsets`` has 20 lists of identities (pair, number), counted from 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from sharpreid.data.bounding_boxes import describe_other_layout
from sharpreid.data.reid_data import DataError

MAT = "cuhk-03.mat"

KINDS = ("labeled", "detected")
"""The two kinds of crops: boxes drawn by hand and boxes found by a detector."""

COLUMNS = 10
"""Cells per identity; the first half is from the first view of the pair."""

_PAIRS = 5
_ADVICE = f"restore {MAT} from the archive of its authors (docs/datasets/cuhk03.md)"


class Cell(NamedTuple):
    """Position of an image: kind of crop, camera pair, identity in the pair and column, counted from 1."""

    kind: str
    pair: int
    number: int
    column: int

    def __str__(self) -> str:
        return f"cell {self.column} of {self.kind} identity {self.number} of pair {self.pair}"


class CUHK03Mat:
    """Contents of cuhk-03.mat, read one image at a time.

    Attributes:
        path: path of the file.
        pairs: number of identities in each camera pair.
        test_sets: identities (pair, number) of each test split.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is not MATLAB 7.3, is damaged, or has another layout. Every method may raise it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        self._pairs = {kind: self._read_pairs(kind) for kind in KINDS}
        self.pairs, others = (tuple(len(matrix) for matrix in self._pairs[kind]) for kind in KINDS)
        if self.pairs != others:
            raise DataError(f"{path}: labeled and detected differ in their numbers of identities; {_ADVICE}")
        self.test_sets = self._read_test_sets()

    def __len__(self) -> int:
        """Return the number of cells, including empty ones."""
        return len(KINDS) * sum(self.pairs) * COLUMNS

    def __iter__(self) -> Iterator[Cell]:
        """Yield all cells in order, including empty ones."""
        for kind in KINDS:
            for pair, people in enumerate(self.pairs, start=1):
                for number in range(1, people + 1):
                    for column in range(1, COLUMNS + 1):
                        yield Cell(kind, pair, number, column)

    def has_image(self, cell: Cell) -> bool:
        """Return whether a cell has an image, without reading the image."""
        with _reading(self.path, str(cell)):
            return bool(self._stored(cell).ndim > 2)  # MATLAB stores an empty cell as its shape

    def image(self, cell: Cell) -> npt.NDArray[np.uint8]:
        """Return the image of a cell that has one, uint8, (height, width, 3), RGB."""
        with _reading(self.path, str(cell)):
            pixels = np.asarray(self._stored(cell)[()])
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != np.uint8:
            raise DataError(
                f"{self.path}: {cell} must hold uint8 (3, width, height), got {pixels.dtype} {pixels.shape}; "
                f"{_ADVICE}"
            )
        return pixels.transpose(2, 1, 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _stored(self, cell: Cell) -> h5py.Dataset:
        return self._file[self._pairs[cell.kind][cell.pair - 1][cell.number - 1, cell.column - 1]]

    def _read_matrices(self, variable: str) -> list[npt.NDArray[Any]]:
        """Return the matrices in the cells of a variable, with the axes in MATLAB's order."""
        with _reading(self.path, f"variable {variable!r}"):
            references = np.ravel(self._file[variable][()])
            return [np.asarray(self._file[reference][()]).T for reference in references]

    def _read_pairs(self, kind: str) -> list[npt.NDArray[Any]]:
        """Return the references to the cells of each camera pair, (identities, 10)."""
        pairs = self._read_matrices(kind)
        shapes = [matrix.shape for matrix in pairs]
        if len(pairs) != _PAIRS or any(len(shape) != 2 or shape[1] != COLUMNS for shape in shapes):
            raise DataError(
                f"{self.path}: variable {kind!r} must be {_PAIRS} cells of (identities, {COLUMNS}) images, "
                f"got {shapes}; {_ADVICE}"
            )
        return pairs

    def _read_test_sets(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        matrices = self._read_matrices("testsets")
        for matrix in matrices:
            if matrix.ndim != 2 or matrix.shape[1] != 2:
                raise DataError(
                    f"{self.path}: each of 'testsets' must be (identities, 2), got {matrix.shape}; {_ADVICE}"
                )
        sets = tuple(tuple((int(pair), int(number)) for pair, number in matrix) for matrix in matrices)
        for pair, number in (identity for one in sets for identity in one):
            if not (1 <= pair <= _PAIRS and 1 <= number <= self.pairs[pair - 1]):
                raise DataError(
                    f"{self.path}: 'testsets' names identity {number} of pair {pair}, which is not there; "
                    f"{_ADVICE}"
                )
        return sets


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Request CUHK03 from its authors (docs/datasets/cuhk03.md) and put {MAT} "
            "there, or name its folder by data.source.root=/path/to/folder"
            f"{describe_other_layout(path.parent)}"
        )
    if not h5py.is_hdf5(path):
        with path.open("rb") as opened:
            head = opened.read(64)
        raise DataError(f"{path}: expected a MATLAB v7.3 (HDF5) file, got {_describe(head)}; {_ADVICE}")
    with _reading(path, "the file"):
        return h5py.File(path, "r", locking=False)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Raise DataError for the exceptions that h5py raises on a damaged or foreign file."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path}: {what} cannot be read ({error}); damaged, incomplete or not CUHK03: {_ADVICE}"
        ) from error


def _describe(head: bytes) -> str:
    """Describe a file that is not HDF5 by its first bytes.

    >>> _describe(b"<!DOCTYPE html>"), _describe(b"PK")
    ('a web page', 'a ZIP archive that has to be unpacked')
    """
    known = {
        b"MATLAB 7.3": "the beginning of one that is cut off",
        b"MATLAB 5": "a MATLAB v5 file",
        b"<": "a web page",
        b"PK": "a ZIP archive that has to be unpacked",
    }
    head = head.lstrip()
    if not head:
        return "an empty file"
    return next(
        (what for start, what in known.items() if head.startswith(start)),
        f"one that starts {head[:12]!r}",
    )
