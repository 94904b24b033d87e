"""Memory-mapped cache of decoded images, keyed by the content of the files.

An array format such as HDF5 would suffice for the pixels alone. This cache also continues an interrupted
build, notices a changed file, and is shared by all processes without a copy.
"""

import csv
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from sharpreid.atomic_io import replacing, write_rows
from sharpreid.data.progress_bar import ProgressCallback
from sharpreid.data.reid_data import DataError, summarize
from sharpreid.data.transforms import image_size, read_image

SHARD_BYTES = 64 * 2**20
SHARD_FILES = 500
"""A shard ends when it has this many bytes of pixels or this many files."""

_FILES_AT_A_TIME = 64
_INDEX = "index.csv"
_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.rgb")
_UNFINISHED_NAME = re.compile(r"\.([0-9a-f]{32}|index|files|report)-[0-9a-f]{8}\.(rgb|csv|json)")
_OWN = frozenset({_INDEX, "files.csv", "report.json", ".lock"})

log = logging.getLogger(__name__)


class CachedFile(NamedTuple):
    """Entry of the index: an image file at the time it was decoded, and the location of its pixels."""

    path: str
    sha256: str
    size: int
    """Size of the file in bytes."""
    mtime_ns: int
    ctime_ns: int
    width: int
    height: int
    shard: str
    offset: int
    """Position of the first pixel in the shard, in bytes."""


@dataclass(frozen=True)
class BuildResult:
    """Result of `build_cache`.

    Attributes:
        files: entries of the readable files.
        unreadable: a message for each file that cannot be read.
    """

    files: tuple[CachedFile, ...]
    unreadable: tuple[str, ...]


class PixelCache:
    """Reader of a cache that `build_cache` wrote.

    A file that is missing from the cache or has changed is decoded again, with one warning.

    Args:
        folder: folder of the cache.

    Raises:
        DataError: the index cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {file.path: file for file in _read_index(folder / _INDEX)}
        self._shards: dict[str, npt.NDArray[np.uint8]] = {}
        self._warned = False

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self, path: Path) -> Image.Image:
        """Return a copy of the image in ``path``, RGB; see `pixels`."""
        return Image.fromarray(np.array(self.pixels(path)))

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """Return the decoded image in ``path``, uint8, (height, width, 3), RGB.

        The array is a view of the mapped file: pixels are read from the disk on first access.

        Raises:
            DataError: the file is not cached in its present state and cannot be decoded.
        """
        file = self._files.get(str(path.absolute()))
        pixels = None if file is None or not _is_unchanged(file) else self._pixels(file)
        if file is None or pixels is None:
            if not self._warned:
                log.warning(
                    "%s is missing from %s or has changed, and is decoded again; run `python -m "
                    "sharpreid.prepare` to update the cache",
                    path,
                    self.folder,
                )
            self._warned = True
            return np.asarray(read_image(path))
        return pixels.reshape(file.height, file.width, 3)

    def _pixels(self, file: CachedFile) -> npt.NDArray[np.uint8] | None:
        """Return the pixels of an entry as a flat array; None if the shard is missing or truncated."""
        if file.shard not in self._shards:
            try:
                mapped = np.memmap(self.folder / file.shard, np.uint8, mode="r")
                self._shards[file.shard] = mapped.view(np.ndarray)  # slicing a memmap is slower
            except (OSError, ValueError):
                return None
        size = file.height * file.width * 3
        pixels = self._shards[file.shard][file.offset : file.offset + size]
        return pixels if len(pixels) == size else None

    def digest(self, paths: Sequence[Path]) -> str | None:
        """Return a digest of the files' content when they were decoded; None if one of them was not."""
        files = [self._files.get(str(path.absolute())) for path in paths]
        if None in files:
            return None
        return hashlib.sha256("".join(file.sha256 for file in files if file).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_shards": {}}


def cache_folder(cache: str | Path, name: str) -> Path:
    """Return the folder of the data set ``name`` in ``cache``.

    Raises:
        ValueError: ``name`` is not a plain file name.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"data.source.name must be a name without slashes, got {name!r}")
    return Path(cache).expanduser() / name


def open_cache(folder: Path) -> PixelCache | None:
    """Open the finished cache in ``folder``; return None if there is none."""
    return PixelCache(folder) if (folder / _INDEX).is_file() else None


def build_cache(paths: Sequence[Path], folder: Path, progress: ProgressCallback | None = None) -> BuildResult:
    """Decode every file once and store the pixels.

    Pixels are stored in shards that are named by the content of their files. Each shard is written
    atomically, and the index last. So an interrupted build continues, a changed file costs one shard, and a
    second process waits for the first and then finds everything done. If all files are readable, the index is
    replaced and shards that it does not name are deleted; otherwise an existing cache stays as it is. About
    64 MiB of pixels, or one image, are in memory at a time.

    Args:
        paths: image files, without repetition.
        folder: folder of the cache; created if it does not exist.
        progress: called with (finished files, all files).

    Raises:
        DataError: ``folder`` has files that do not belong to a cache.
        OSError: ``folder`` cannot be written.
    """
    paths = [path.absolute() for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_foreign_files(folder)
    files: list[CachedFile] = []
    unreadable: list[str] = []
    with FileLock(folder / ".lock"), ThreadPoolExecutor() as pool:
        for entry in folder.iterdir():
            if _UNFINISHED_NAME.fullmatch(entry.name):  # left by a killed process
                entry.unlink()
        for group in _groups(paths, pool, unreadable):
            stored, undecodable = _store(group, folder, pool)
            files += stored
            unreadable += undecodable
            if progress is not None:
                progress(len(files) + len(unreadable), len(paths))
        if not unreadable:
            write_rows(folder / _INDEX, CachedFile._fields, files)
            for shard in _shards(folder) - {file.shard for file in files}:
                (folder / shard).unlink()
    return BuildResult(tuple(files), tuple(unreadable))


def _refuse_foreign_files(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    foreign = sorted(name for name in names - _OWN - _shards(folder) if not name.startswith("."))
    if foreign:
        raise DataError(
            f"{folder}: has files that do not belong to a cache ({summarize(foreign)}); name another folder "
            "by data.cache=/path"
        )


def _shards(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if _SHARD_NAME.fullmatch(entry.name)}


class _Content(NamedTuple):
    path: Path
    content: bytes
    sha256: str
    mtime_ns: int
    ctime_ns: int
    width: int
    height: int


def _groups(
    paths: Sequence[Path], pool: ThreadPoolExecutor, unreadable: list[str]
) -> Iterator[list[_Content]]:
    """Yield the contents of the files of each shard; append messages about other files to ``unreadable``."""
    group: list[_Content] = []
    size = 0
    for start in range(0, len(paths), _FILES_AT_A_TIME):
        for content in pool.map(_read, paths[start : start + _FILES_AT_A_TIME]):
            if isinstance(content, str):
                unreadable.append(content)
                continue
            group.append(content)
            size += content.width * content.height * 3
            if size >= SHARD_BYTES or len(group) == SHARD_FILES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _read(path: Path) -> _Content | str:
    """Return the content of a file, or a message if it cannot be read."""
    try:
        status = path.stat()
        content = path.read_bytes()
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    try:
        width, height = image_size(path, content)
    except DataError as error:
        return str(error)
    digest = hashlib.sha256(content).hexdigest()
    return _Content(path, content, digest, status.st_mtime_ns, status.st_ctime_ns, width, height)


def _store(
    contents: Sequence[_Content], folder: Path, pool: ThreadPoolExecutor
) -> tuple[list[CachedFile], list[str]]:
    """Decode files into one shard, unless the shard exists already.

    Returns:
        Index entries of the files; or no entries and a message for each file that cannot be decoded.
    """
    digest = hashlib.sha256("".join(content.sha256 for content in contents).encode()).hexdigest()
    shard = folder / f"{digest[:32]}.rgb"
    sizes = [content.width * content.height * 3 for content in contents]
    if not shard.is_file() or shard.stat().st_size != sum(sizes):
        images = [*pool.map(_decode, contents)]
        undecodable = [image for image in images if isinstance(image, str)]
        if undecodable:
            return [], undecodable
        with replacing(shard) as temporary, temporary.open("wb") as file:
            file.writelines(image for image in images if not isinstance(image, str))
    return [
        CachedFile(
            path=str(content.path),
            sha256=content.sha256,
            size=len(content.content),
            mtime_ns=content.mtime_ns,
            ctime_ns=content.ctime_ns,
            width=content.width,
            height=content.height,
            shard=shard.name,
            offset=offset,
        )
        for content, offset in zip(contents, accumulate(sizes, initial=0), strict=False)
    ], []


def _decode(content: _Content) -> bytes | str:
    """Return the pixels of a file, or a message if it cannot be decoded."""
    try:
        return read_image(content.path, content.content).tobytes()
    except DataError as error:
        return str(error)


def _is_unchanged(file: CachedFile) -> bool:
    try:
        status = os.stat(file.path)
    except OSError:
        return False
    found = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found == (file.size, file.mtime_ns, file.ctime_ns)


def _read_index(path: Path) -> list[CachedFile]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != CachedFile._fields:
                raise ValueError(f"expected the columns {', '.join(CachedFile._fields)}")
            return [
                CachedFile(
                    path=name,
                    sha256=digest,
                    size=int(size),
                    mtime_ns=int(mtime),
                    ctime_ns=int(ctime),
                    width=int(width),
                    height=int(height),
                    shard=shard,
                    offset=int(offset),
                )
                for name, digest, size, mtime, ctime, width, height, shard, offset in rows
            ]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not the index of a pixel cache ({error}); delete this folder and prepare the data again"
        ) from error
