"""Stores of embeddings by their place."""

from sharpreid.serving.lance_store import LanceStore
from sharpreid.serving.qdrant_store import QdrantStore
from sharpreid.serving.store import Store


def open_store(place: str, *, digest: str | None = None, dim: int | None = None) -> Store:
    """Open a store.

    Args:
        place: folder of a store; or ``http://HOST:PORT/COLLECTION`` of a Qdrant server.
        digest: digest of the model; None takes that of the store.
        dim: dimensions of an embedding, with which a store that does not exist yet is created; None refuses
            one that does not exist.

    Raises:
        FileNotFoundError: there is no such store.
        StoreError: the store is damaged, or of another model.
    """
    if place.startswith(("http://", "https://")):
        return QdrantStore(place, digest=digest, dim=dim)
    return LanceStore(place, digest=digest, dim=dim)
