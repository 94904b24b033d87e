"""Images decoded once: a memory-mapped cache of their pixels, keyed by the content of the files."""

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
from sharpreid.data.progress_bar import Progress
from sharpreid.data.reid_data import DataError, some
from sharpreid.data.transforms import image_size, read_image

_SHARD_BYTES = 64 * 2**20
_SHARD_FILES = 500
_WINDOW = 64  # files read at a time
_INDEX = "index.csv"
_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.rgb")
_UNFINISHED_NAME = re.compile(r"\.([0-9a-f]{32}|index|files|report)-[0-9a-f]{8}\.(rgb|csv|json)")
_OWN = frozenset({_INDEX, "files.csv", "report.json", ".lock"})

log = logging.getLogger(__name__)


class CachedFile(NamedTuple):
    """An image file as it was when its pixels were stored, and where they are."""

    path: str
    sha256: str
    size: int
    """Bytes of the file."""
    mtime_ns: int
    ctime_ns: int
    width: int
    height: int
    shard: str
    offset: int
    """Place of the first pixel in the shard, bytes."""


@dataclass(frozen=True)
class Built:
    """What `build_cache` found: every readable file, and why the others are not."""

    files: tuple[CachedFile, ...]
    unreadable: tuple[str, ...]


class PixelCache:
    """Reads images from the cache that `build_cache` wrote; a file that has changed since is decoded anew.

    Args:
        folder: of the cache.

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
        """The image in ``path`` as RGB; otherwise as `pixels`."""
        return Image.fromarray(np.array(self.pixels(path)))

    def pixels(self, path: Path) -> npt.NDArray[np.uint8]:
        """The image in ``path``, (height, width, 3), RGB: the pixels that decoding the file gives.

        They are not copied, and read from the disk when they are looked at.

        Raises:
            DataError: it is not in the cache as it is now, and cannot be decoded.
        """
        file = self._files.get(str(path.absolute()))
        pixels = None if file is None or not _is_unchanged(file) else self._pixels(file)
        if file is None or pixels is None:
            if not self._warned:
                log.warning("%s is not in %s as it is now; run sharpreid.prepare again", path, self.folder)
            self._warned = True
            return np.asarray(read_image(path))
        return pixels.reshape(file.height, file.width, 3)

    def _pixels(self, file: CachedFile) -> npt.NDArray[np.uint8] | None:
        """None where the shard is gone or cut short."""
        if file.shard not in self._shards:
            try:
                mapped = np.memmap(self.folder / file.shard, np.uint8, mode="r")
                self._shards[file.shard] = mapped.view(np.ndarray)  # whose slices cost less
            except (OSError, ValueError):
                return None
        size = file.height * file.width * 3
        pixels = self._shards[file.shard][file.offset : file.offset + size]
        return pixels if len(pixels) == size else None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_shards": {}}


def cache_folder(cache: str | Path, name: str) -> Path:
    """Folder of the data set ``name`` in ``cache``; ValueError if ``name`` is no plain name."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"data.source.name must be a name without slashes, got {name!r}")
    return Path(cache).expanduser() / name


def open_cache(folder: Path) -> PixelCache | None:
    """The finished cache in ``folder``, or None if there is none."""
    return PixelCache(folder) if (folder / _INDEX).is_file() else None


def build_cache(paths: Sequence[Path], folder: Path, progress: Progress | None = None) -> Built:
    """Decode every file once and store the pixels.

    Files are stored in shards named after their content, each written whole, and the index comes last: an
    interrupted build goes on where it was, a changed file costs its shard, and of two processes the second
    waits and then finds everything done. Without an unreadable file the index is replaced and shards that
    it does not name are deleted; with one nothing that was there changes. About 64 MiB of pixels, or one
    image, are in memory at a time.

    Args:
        paths: image files, without repetition.
        folder: of the cache; made if missing.
        progress: called with (files done, files in all).

    Raises:
        DataError: ``folder`` holds files that are not a cache's.
        OSError: ``folder`` cannot be written.
    """
    paths = [path.absolute() for path in paths]
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_foreign_files(folder)
    files: list[CachedFile] = []
    unreadable: list[str] = []
    with FileLock(folder / ".lock"), ThreadPoolExecutor() as pool:
        for entry in folder.iterdir():
            if _UNFINISHED_NAME.fullmatch(entry.name):  # of a process that was killed
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
    return Built(tuple(files), tuple(unreadable))


def _refuse_foreign_files(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    foreign = sorted(name for name in names - _OWN - _shards(folder) if not name.startswith("."))
    if foreign:
        raise DataError(
            f"{folder}: holds files that are no decoded images ({some(foreign)}); name another folder by "
            "data.cache=/path"
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
    """The files' contents, shard by shard; what cannot be read is added to ``unreadable``."""
    group: list[_Content] = []
    size = 0
    for start in range(0, len(paths), _WINDOW):
        for content in pool.map(_read, paths[start : start + _WINDOW]):
            if isinstance(content, str):
                unreadable.append(content)
                continue
            group.append(content)
            size += content.width * content.height * 3
            if size >= _SHARD_BYTES or len(group) == _SHARD_FILES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _read(path: Path) -> _Content | str:
    """The file's content, or why there is none."""
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
    """Entries of ``contents``, decoded into a shard unless it is there already; or what cannot be decoded."""
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
    """The pixels, or why there are none."""
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
        raise DataError(f"{path}: not the index of a pixel cache ({error}); delete its folder") from error
