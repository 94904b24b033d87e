"""A store in a folder, by LanceDB: exact or approximate search with filters, and writes that are atomic."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
import pyarrow as pa

from sharpreid.atomic_io import replacing
from sharpreid.serving.gallery import Item, embeddings_of, item_columns, items_of, row_schema
from sharpreid.serving.store import (
    EVERYTHING,
    Embeddings,
    Filter,
    Match,
    StoreError,
    check_digest,
    check_embeddings,
    in_order,
)

_ABOUT, _TABLE, _LOCK = "store.json", "rows", "write.lock"
_FORMAT = "sharpreid-store-1"
_WAIT = 60.0  # seconds for another writer
_COMPACTED = 64  # fragments, files of rows, that are joined into few
_PROBED = 0.1  # share of an index's partitions that an approximate search reads


class LanceStore:
    """Embeddings in a folder; see `sharpreid.serving.store.Store`.

    Several processes may read, also while one writes. A second writer waits for up to a minute.

    Args:
        folder: the folder.
        digest: digest of the model; None takes that of the store.
        dim: dimensions of an embedding, to create a store that does not exist; None refuses one.

    Raises:
        FileNotFoundError: there is no such store.
        StoreError: the store is damaged, or of another model.
    """

    def __init__(self, folder: str | Path, *, digest: str | None = None, dim: int | None = None) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise StoreError(
                f"a store needs the package lancedb ({error}): pip install 'sharpreid[serve]'"
            ) from error
        self.folder = Path(folder).expanduser()
        if not (self.folder / _ABOUT).is_file():
            if digest is None or dim is None:
                raise FileNotFoundError(
                    f"{self.folder}: no store; expected a folder with {_ABOUT}, made by "
                    "python -m sharpreid.search build"
                )
            self._create(digest, dim)
        self._digest, self._dim = self._read_about()
        check_digest(self.folder, self._digest, digest)
        self._schema = row_schema(self._dim).insert(0, pa.field("key", pa.string()))
        try:
            database = lancedb.connect(self.folder)
            self._table: Any = database.create_table(_TABLE, schema=self._schema, exist_ok=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{self.folder}: cannot be opened ({error}); restore it, or build it again from the gallery"
            ) from error

    def _create(self, digest: str, dim: int) -> None:
        file = self.folder / _ABOUT
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder}: a file; a store is a folder, give the name of a new one")
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {one.name for one in self.folder.iterdir() if not one.name.startswith(".")}
        if names - {_LOCK} and not file.is_file():
            raise StoreError(f"{self.folder}: a folder with other files; give a new folder for the store")
        with self._locked():
            if file.is_file():  # another process was faster
                return
            with replacing(file) as temporary:
                about = {"format": _FORMAT, "digest": digest, "dim": dim}
                temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def _read_about(self) -> tuple[str, int]:
        file = self.folder / _ABOUT
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            if about["format"] != _FORMAT:
                raise StoreError(f"{file}: format {about['format']!r}; this version reads {_FORMAT!r}")
            return str(about["digest"]), int(about["dim"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{file}: damaged ({error}); restore it, or build the store again from the gallery"
            ) from error

    @property
    def digest(self) -> str:
        """Digest of the model."""
        return self._digest

    @property
    def dim(self) -> int:
        """D, dimensions of an embedding."""
        return self._dim

    def count(self, where: Filter = EVERYTHING) -> int:
        """Return the number of rows that pass a filter."""
        return cast(int, self._latest().count_rows(_condition(where)))

    def add(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        """Add rows, all or none of them; a row of the same path, frame and box is replaced."""
        check_embeddings(embeddings, self.dim)
        last = {item.key: number for number, item in enumerate(items)}
        chosen = sorted(last.values())
        columns = item_columns([items[number] for number in chosen], embeddings[chosen])
        keys = [json.dumps(items[number].key) for number in chosen]
        rows = pa.table({"key": keys, **columns}, schema=self._schema)
        with self._writing():
            merge = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)
            if self._table.stats()["fragment_stats"]["num_fragments"] > _COMPACTED:
                self._table.optimize()

    def remove(self, where: Filter) -> int:
        """Remove the rows that pass a filter; return their number."""
        with self._writing():
            return cast(int, self._table.delete(_condition(where) or "true").num_deleted_rows)

    def search(
        self, embeddings: Embeddings, k: int, where: Filter = EVERYTHING, *, approximate: bool = False
    ) -> list[list[Match]]:
        """Return for each query the ``k`` nearest rows that pass a filter; see `Store.search`."""
        check_embeddings(embeddings, self.dim)
        if k < 1:
            raise ValueError(f"k must be > 0, got {k}")
        table, condition, found = self._latest(), _condition(where), []
        for embedding in embeddings:
            query = table.search(embedding, vector_column_name="embedding").distance_type("l2").limit(k)
            indexed = approximate and condition is None  # few rows of a filter are in the nearest partitions
            if condition is not None:
                query = query.where(condition, prefilter=True)
            rows = self._result_of(query.nprobes(self._probes())) if indexed else None
            if rows is None or len(rows) < k:  # also where the nearest partitions have fewer rows
                rows = self._result_of(query.bypass_vector_index())
            distances = np.sqrt(rows["_distance"].to_numpy()).tolist()
            matches = map(Match, items_of(rows), distances, embeddings_of(rows))
            found.append(in_order([*matches]))
        return found

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Item], Embeddings]:
        """Return the rows that pass a filter: their images, and their embeddings, float32, (N, D)."""
        query = self._latest().search()
        if (condition := _condition(where)) is not None:
            query = query.where(condition)
        rows = self._result_of(query)
        return items_of(rows), embeddings_of(rows)

    def index(self) -> None:
        """Make or renew the index for approximate searches."""
        from lancedb.index import IvfFlat

        with self._writing():
            partitions = max(1, round(math.sqrt(self._table.count_rows())))
            self._table.create_index(
                "embedding", config=IvfFlat(distance_type="l2", num_partitions=partitions), replace=True
            )

    def _probes(self) -> int:
        return max(8, math.ceil(_PROBED * math.sqrt(self._table.count_rows())))

    def _result_of(self, query: Any) -> pa.Table:
        try:
            return query.to_arrow()
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"{self.folder}: cannot be read ({error}); restore it, or build it again from the gallery"
            ) from error

    def _latest(self) -> Any:
        self._table.checkout_latest()
        return self._table

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._locked():
            self._table.checkout_latest()
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with filelock.FileLock(self.folder / _LOCK, timeout=_WAIT):
                yield
        except filelock.Timeout as error:
            raise StoreError(
                f"{self.folder}: another process has been writing for {_WAIT:.0f} s; try again when it has "
                "ended"
            ) from error


def _condition(where: Filter) -> str | None:
    """Return a filter as a condition of SQL; None admits all rows."""
    parts = []
    for column, values in (
        ("camera", where.cameras),
        ("identity", where.identities),
        ("track", where.tracks),
    ):
        if values:
            parts.append(f"{column} IN ({', '.join(map(_quoted, values))})")
    if where.not_cameras:
        parts.append(f"(camera IS NULL OR camera NOT IN ({', '.join(map(_quoted, where.not_cameras))}))")
    if where.start is not None:
        parts.append(f"time >= {float(where.start)!r}")
    if where.end is not None:
        parts.append(f"time <= {float(where.end)!r}")
    if where.paths:
        some = [
            f"path = {_quoted(path)} OR starts_with(path, {_quoted(path.rstrip('/') + '/')})"
            for path in where.paths
        ]
        parts.append(f"({' OR '.join(some)})")
    return " AND ".join(parts) or None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
