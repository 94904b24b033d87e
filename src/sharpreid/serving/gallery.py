"""Embeddings of many images, in a folder of Parquet files: one row per image or box."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sharpreid.atomic_io import replacing
from sharpreid.data.reid_data import Box

_PART = re.compile(r"part-(\d{6})\.parquet")

DIGEST = b"sharpreid.model"
"""Key of the model's digest in the metadata of each file."""


class GalleryError(ValueError):
    """Error for a gallery folder that cannot be read, or whose embeddings are of another model."""


class Item(NamedTuple):
    """An image of a person: a file, or a box in a file or in a frame of a video."""

    path: str
    """Path of the image or video, absolute."""
    box: Box | None = None
    """Part that shows the person; None is the whole image."""
    frame: int | None = None
    """Number of a video's frame, from 0; None for an image."""
    camera: str | None = None
    time: float | None = None
    """Seconds since a start that the user chooses."""
    track: str | None = None
    """Name of the track that a box belongs to."""
    identity: str | None = None
    changed: int = 0
    """Time of the file's last change, nanoseconds since 1970."""

    @property
    def key(self) -> tuple[object, ...]:
        """What tells the item from others: path, frame and box."""
        return self.path, self.frame, self.box


def absolute_path(path: Path) -> str:
    """Return an absolute path without `..`, so that a file is known by one path."""
    if ".." not in path.parts:
        return str(path.absolute())
    return str(path.resolve() if path.name == ".." else path.parent.resolve() / path.name)


def row_schema(dim: int) -> pa.Schema:
    """Return the columns of rows: the fields of `Item`, and the embedding, float32, ``dim`` numbers."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("box", pa.list_(pa.int32(), 4)),
            ("frame", pa.int64()),
            ("camera", pa.string()),
            ("time", pa.float64()),
            ("track", pa.string()),
            ("identity", pa.string()),
            ("changed", pa.int64()),
            ("embedding", pa.list_(pa.float32(), dim)),
        ]
    )


def item_columns(items: Sequence[Item], embeddings: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the columns of `row_schema` for items, B, and their embeddings, float32, (B, D)."""
    columns: dict[str, Any] = {name: [getattr(item, name) for item in items] for name in Item._fields}
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).ravel())
    return {**columns, "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])}


def items_of(table: pa.Table) -> list[Item]:
    """Return the items of a table's rows."""
    rows = table.select(Item._fields).to_pylist()
    return [Item(**{**row, "box": None if row["box"] is None else tuple(row["box"])}) for row in rows]


class Gallery:
    """Folder of embeddings, which grows by files that are written completely or not at all.

    Args:
        folder: the folder; created by the first `append`.
        digest: digest of the model, see `Embedder.digest`; None takes that of the files.

    Raises:
        GalleryError: a file cannot be read, or is of another model.
    """

    def __init__(self, folder: str | Path, digest: str | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.digest = digest
        self._parts = self._list_parts()
        for part in self._parts:
            self._check(part)

    def _list_parts(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("part-*") if _PART.fullmatch(path.name))

    def _check(self, part: Path) -> None:
        try:
            found = pq.read_schema(part).metadata[DIGEST].decode()
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise GalleryError(f"{part}: no readable part of a gallery ({error}); delete it") from error
        self.digest = self.digest or found
        if found != self.digest:
            raise GalleryError(
                f"{self.folder}: its embeddings are of another model ({found[:12]}..., not "
                f"{self.digest[:12]}...), and cannot be compared; give another output folder"
            )

    def append(self, items: Sequence[Item], embeddings: npt.NDArray[np.float32]) -> Path:
        """Write a part with the embeddings, float32, (B, D), of as many items; return its path."""
        assert self.digest is not None, "a new gallery needs the digest of its model"
        schema = row_schema(embeddings.shape[1]).with_metadata({DIGEST: self.digest.encode()})
        table = pa.table(item_columns(items, embeddings), schema=schema)
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock"):  # another process may append too
            number = 1 + max((int(path.stem.rpartition("-")[2]) for path in self._list_parts()), default=-1)
            path = self.folder / f"part-{number:06d}.parquet"
            with replacing(path) as temporary:
                pq.write_table(table, temporary)
        self._parts.append(path)
        return path

    def read(self) -> pa.Table:
        """Return all rows; of rows with the same path, frame and box the last one written.

        Raises:
            GalleryError: the gallery is empty or damaged.
        """
        if not self._parts:
            raise GalleryError(f"{self.folder}: no part-*.parquet; expected the folder of sharpreid.embed")
        table = self._read()
        last = {key: row for row, key in enumerate(_keys(table))}
        return table if len(last) == len(table) else table.take(sorted(last.values()))

    def known(self) -> Mapping[tuple[object, ...], Item]:
        """Return all items by their keys, see `Item.key`; of items with one key the last one written."""
        if not self._parts:
            return {}
        return {item.key: item for item in items_of(self._read(list(Item._fields)))}

    def _read(self, columns: list[str] | None = None) -> pa.Table:
        tables = []
        for part in self._parts:
            try:
                tables.append(pq.read_table(part, columns=columns))
            except (OSError, pa.ArrowException) as error:
                raise GalleryError(f"{part}: damaged ({error}); delete it, and embed again") from error
        return pa.concat_tables(tables)


def embeddings_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return the embeddings of a table's rows, float32, (B, D)."""
    dim = table.schema.field("embedding").type.list_size
    chunks = [chunk.flatten().to_numpy() for chunk in table["embedding"].chunks]
    return np.concatenate([*chunks, np.empty(0, np.float32)]).reshape(-1, dim)


def _keys(table: pa.Table) -> Iterable[tuple[object, ...]]:
    boxes = (None if box is None else tuple(box) for box in table["box"].to_pylist())
    return zip(table["path"].to_pylist(), table["frame"].to_pylist(), boxes, strict=True)
