"""A store on a Qdrant server, for galleries that one machine does not hold."""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from sharpreid.serving.gallery import Item
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

_BATCH = 256  # rows of a request
_DIGEST = "sharpreid.model"


class QdrantStore:
    """Embeddings in a collection of a Qdrant server; see `sharpreid.serving.store.Store`.

    An addition is sent in batches of 256 rows. If it is interrupted, the same addition sends all rows again.

    Args:
        place: ``http://HOST:PORT/COLLECTION``. The server's key is taken from ``QDRANT_API_KEY``.
        digest: digest of the model; None takes that of the collection.
        dim: dimensions of an embedding, to create a collection that does not exist; None refuses one.
        client: client to use instead of a new one for ``place``.

    Raises:
        FileNotFoundError: there is no such collection.
        StoreError: the server cannot be reached, or the collection is of another model or program.
    """

    def __init__(
        self, place: str, *, digest: str | None = None, dim: int | None = None, client: Any = None
    ) -> None:
        try:
            import qdrant_client
        except ImportError as error:
            raise StoreError(
                f"{place}: needs the package qdrant-client ({error}): pip install 'sharpreid[qdrant]'"
            ) from error
        self._models = qdrant_client.models
        self.place = place
        parts = urlsplit(place)
        self._collection = parts.path.strip("/")
        if not self._collection or "/" in self._collection:
            raise StoreError(f"{place}: expected http://HOST:PORT/COLLECTION")
        self._local = client is not None
        self._client: Any = client or _connect(f"{parts.scheme}://{parts.netloc}")
        with self._reported():
            exists = self._client.collection_exists(self._collection)
            if not exists and digest is not None and dim is not None:
                self._create(digest, dim)
            elif not exists:
                raise FileNotFoundError(
                    f"{place}: no such collection; make one with python -m sharpreid.search build"
                )
            config = self._client.get_collection(self._collection).config
        self._digest = str((config.metadata or {}).get(_DIGEST))
        if self._digest == "None":
            raise StoreError(f"{place}: a collection of another program; give a new name for the store")
        check_digest(place, self._digest, digest)
        self._dim = int(config.params.vectors.size)

    def _create(self, digest: str, dim: int) -> None:
        models = self._models
        self._client.create_collection(
            self._collection,
            vectors_config=models.VectorParams(size=dim, distance=models.Distance.EUCLID),
            metadata={_DIGEST: digest},
        )
        if not self._local:
            for name in ("camera", "identity", "track", "path", "folders"):
                self._client.create_payload_index(self._collection, name, models.PayloadSchemaType.KEYWORD)
            self._client.create_payload_index(self._collection, "time", models.PayloadSchemaType.FLOAT)

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
        with self._reported():
            return int(
                self._client.count(self._collection, count_filter=self._condition(where), exact=True).count
            )

    def add(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        """Add rows in batches; a row of the same path, frame and box is replaced."""
        check_embeddings(embeddings, self.dim)
        points = [
            self._models.PointStruct(id=_id_of(item), vector=row.tolist(), payload=_payload(item))
            for item, row in zip(items, embeddings, strict=True)
        ]
        with self._reported():
            for start in range(0, len(points), _BATCH):
                self._client.upsert(self._collection, points[start : start + _BATCH], wait=True)

    def remove(self, where: Filter) -> int:
        """Remove the rows that pass a filter; return their number."""
        count = self.count(where)
        selector = self._models.FilterSelector(filter=self._condition(where))
        with self._reported():
            self._client.delete(self._collection, points_selector=selector, wait=True)
        return count

    def search(
        self, embeddings: Embeddings, k: int, where: Filter = EVERYTHING, *, approximate: bool = False
    ) -> list[list[Match]]:
        """Return for each query the ``k`` nearest rows that pass a filter; see `Store.search`."""
        check_embeddings(embeddings, self.dim)
        if k < 1:
            raise ValueError(f"k must be > 0, got {k}")
        exact = None if self._local else self._models.SearchParams(exact=not approximate)
        found = []
        with self._reported():
            for embedding in embeddings:
                answer = self._client.query_points(
                    self._collection,
                    query=embedding.tolist(),
                    limit=k,
                    query_filter=self._condition(where),
                    search_params=exact,
                    with_payload=True,
                    with_vectors=True,
                )
                found.append(
                    in_order(
                        [
                            Match(_item(point.payload), point.score, np.array(point.vector, np.float32))
                            for point in answer.points
                        ]
                    )
                )
        return found

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Item], Embeddings]:
        """Return the rows that pass a filter: their images, and their embeddings, float32, (N, D)."""
        points: list[Any] = []
        offset = None
        with self._reported():
            while True:
                some, offset = self._client.scroll(
                    self._collection,
                    scroll_filter=self._condition(where),
                    limit=_BATCH,
                    offset=offset,
                    with_vectors=True,
                )
                points += some
                if offset is None:
                    break
        rows = np.array([point.vector for point in points], np.float32).reshape(-1, self.dim)
        return [_item(point.payload) for point in points], rows

    def index(self) -> None:
        """Do nothing: the server makes and renews its index itself."""

    def _condition(self, where: Filter) -> Any:
        models = self._models

        def among(name: str, values: Sequence[str]) -> Any:
            return models.FieldCondition(key=name, match=models.MatchAny(any=list(values)))

        must = [
            among(name, values)
            for name, values in (
                ("camera", where.cameras),
                ("identity", where.identities),
                ("track", where.tracks),
            )
            if values
        ]
        if where.start is not None or where.end is not None:
            time = models.Range(gte=where.start, lte=where.end)
            must.append(models.FieldCondition(key="time", range=time))
        if where.paths:
            folders = [path.rstrip("/") or "/" for path in where.paths]
            must.append(models.Filter(should=[among("path", where.paths), among("folders", folders)]))
        left_out = [among("camera", where.not_cameras)] if where.not_cameras else []
        return models.Filter(must=must, must_not=left_out)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except ApiException as error:
            raise StoreError(
                f"{self.place}: the Qdrant server does not answer as expected ({error}); is it running there?"
            ) from error


def _connect(url: str) -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(
        url=url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False
    )


def _id_of(item: Item) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(item.key)))


def _payload(item: Item) -> dict[str, Any]:
    folders = [str(folder) for folder in PurePosixPath(item.path).parents]
    return {**item._asdict(), "folders": folders}


def _item(payload: dict[str, Any]) -> Item:
    fields = {name: payload.get(name) for name in Item._fields}
    box = fields["box"]
    return Item(**{**fields, "box": None if box is None else tuple(box)})  # type: ignore[arg-type]
