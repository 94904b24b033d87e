"""cuhk-03.mat, the one file in which CUHK03 is distributed.

The file is MATLAB v7.3, that is HDF5, where every array has its axes reversed and a cell array holds
references: ``labeled`` and ``detected`` are 5 camera pairs, each a matrix of identities x 10 images, columns
1-5 from the pair's first view and 6-10 from its second; a cell without an image is empty. ``testsets`` are 20
lists of (pair, number) of identities, counted from 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from sharpreid.data.reid_data import DataError

MAT = "cuhk-03.mat"

KINDS = ("labeled", "detected")
"""The two kinds of crops: boxes drawn by people, and found by a detector."""

COLUMNS = 10
"""Cells per identity, the first half from its pair's first view."""

_PAIRS = 5
_ADVICE = f"restore {MAT} from the archive of its authors (docs/datasets/cuhk03.md)"


class Cell(NamedTuple):
    """Where an image stands: kind of crops, camera pair, number of the identity in it, column."""

    kind: str
    pair: int
    number: int
    column: int

    def __str__(self) -> str:
        return f"cell {self.column} of {self.kind} identity {self.number} of pair {self.pair}"


class CUHK03Mat:
    """The contents of cuhk-03.mat, images one at a time.

    Attributes:
        path: the file.
        pairs: number of identities of each camera pair.
        test_sets: identities (pair, number) of each test split.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not MATLAB v7.3, damaged, or not laid out as CUHK03; here, or from any method.
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
        """Number of cells, empty ones too."""
        return len(KINDS) * sum(self.pairs) * COLUMNS

    def __iter__(self) -> Iterator[Cell]:
        """All cells in order, empty ones too."""
        for kind in KINDS:
            for pair, people in enumerate(self.pairs, start=1):
                for number in range(1, people + 1):
                    for column in range(1, COLUMNS + 1):
                        yield Cell(kind, pair, number, column)

    def has_image(self, cell: Cell) -> bool:
        """Whether the cell is not empty; reads no pixel."""
        with _reading(self.path, str(cell)):
            return bool(self._stored(cell).ndim > 2)  # an empty cell is stored as its size, 0 x 0

    def image(self, cell: Cell) -> npt.NDArray[np.uint8]:
        """The image in a cell that has one, RGB, (height, width, 3)."""
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
        """The matrices that a variable's cells refer to, each with its axes as MATLAB shows them."""
        with _reading(self.path, f"variable {variable!r}"):
            references = np.ravel(self._file[variable][()])
            return [np.asarray(self._file[reference][()]).T for reference in references]

    def _read_pairs(self, kind: str) -> list[npt.NDArray[Any]]:
        """References to the cells of each camera pair, (identities, 10)."""
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
            f"{path}: no such file. Ask its authors for CUHK03 (docs/datasets/cuhk03.md) and put {MAT} "
            "there, or name its folder by data.source.root=/path/to/folder"
        )
    if not h5py.is_hdf5(path):
        with path.open("rb") as opened:
            head = opened.read(64)
        raise DataError(f"{path}: expected a MATLAB v7.3 (HDF5) file, got {_describe(head)}; {_ADVICE}")
    with _reading(path, "the file"):
        return h5py.File(path, "r", locking=False)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Any way in which h5py fails on a damaged or foreign file, as one DataError."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"{path}: {what} cannot be read ({error}); it is damaged, incomplete or not CUHK03: {_ADVICE}"
        ) from error


def _describe(head: bytes) -> str:
    """What a file that is not HDF5 is, by its first bytes.

    >>> _describe(b"<!DOCTYPE html>"), _describe(b"PK")
    ('a web page', 'a ZIP archive that is still to be unpacked')
    """
    known = {
        b"MATLAB 7.3": "the beginning of one that is cut off",
        b"MATLAB 5": "a MATLAB v5 file",
        b"<": "a web page",
        b"PK": "a ZIP archive that is still to be unpacked",
    }
    head = head.lstrip()
    if not head:
        return "an empty file"
    return next(
        (what for start, what in known.items() if head.startswith(start)),
        f"one that starts {head[:12]!r}",
    )
