"""The interface of stores of embeddings, see `sharpreid.serving.stores.open_store`."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sharpreid.serving.gallery import Item

Embeddings = npt.NDArray[np.float32]


class StoreError(ValueError):
    """Error for a store that is not there, is damaged, or holds embeddings of another model."""


class Filter(NamedTuple):
    """Rows of a store; an empty field admits all rows, and a row must pass every field."""

    cameras: tuple[str, ...] = ()
    not_cameras: tuple[str, ...] = ()
    """Cameras that are left out. Rows without a camera stay in."""
    start: float | None = None
    """Earliest time in seconds. Rows without a time are left out."""
    end: float | None = None
    """Latest time in seconds. Rows without a time are left out."""
    identities: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    """Files, or folders with all that is below them."""


EVERYTHING = Filter()
"""Filter that admits all rows."""


class Match(NamedTuple):
    """A row of a store and its Euclidean distance to a query."""

    item: Item
    distance: float
    embedding: Embeddings
    """Embedding of the row, float32, (D,)."""


class Store(Protocol):
    """Embeddings of one model, each with the image that it is of.

    A row is identified by path, frame and box. `LanceStore` keeps a store in a folder, `QdrantStore` in a
    collection of a server.
    """

    @property
    def digest(self) -> str:
        """Digest of the model, see `Embedder.digest`."""

    @property
    def dim(self) -> int:
        """D, dimensions of an embedding."""

    def count(self, where: Filter = EVERYTHING) -> int:
        """Return the number of rows that pass a filter."""

    def add(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        """Add rows; a row of the same path, frame and box is replaced. In a folder all are added, or none.

        Args:
            items: images, B.
            embeddings: their embeddings, float32, (B, D).
        """

    def remove(self, where: Filter) -> int:
        """Remove the rows that pass a filter; return their number."""

    def search(
        self, embeddings: Embeddings, k: int, where: Filter = EVERYTHING, *, approximate: bool = False
    ) -> list[list[Match]]:
        """Return for each query the ``k`` nearest rows that pass a filter, or all of them if they are fewer.

        The filter comes before the search, so it never shortens the answer. Rows at the same distance are
        ordered by path and frame.

        Args:
            embeddings: queries, float32, (Q, D).
            k: rows per query, > 0.
            where: rows to search.
            approximate: use the index, see `index`. Without an index, and in a folder also with a filter, the
                search is exact.
        """

    def read(self, where: Filter = EVERYTHING) -> tuple[list[Item], Embeddings]:
        """Return the rows that pass a filter: their images, and their embeddings, float32, (N, D)."""

    def index(self) -> None:
        """Make or renew the index for approximate searches; rows added later are searched without it."""


def check_digest(place: object, found: str, wanted: str | None) -> None:
    """Raise `StoreError` if a store is of another model than ``wanted``; None accepts every model."""
    if wanted is not None and found != wanted:
        raise StoreError(
            f"{place}: its embeddings are of another model ({found[:12]}..., not {wanted[:12]}...), and "
            "cannot be compared; take the model that embedded them, or another store"
        )


def check_embeddings(embeddings: Embeddings, dim: int) -> None:
    """Raise `ValueError` unless embeddings are finite, (B, dim)."""
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(f"embeddings must be (B, {dim}), got {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings must be finite; the model or its weights are damaged")


def in_order(matches: Sequence[Match]) -> list[Match]:
    """Sort matches by distance; those at the same distance by path, frame and box."""
    return sorted(
        matches, key=lambda one: (one.distance, one.item.path, one.item.frame or 0, one.item.box or ())
    )
