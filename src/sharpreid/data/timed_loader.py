"""A DataLoader that knows how long it was waited for."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T_co = TypeVar("T_co", covariant=True)


class TimedLoader(DataLoader[T_co]):
    """Adds up the time that getting the next batch takes, the start of its processes included."""

    waited: float = 0.0
    """Seconds, since the loader was made."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] | None = None
        while True:
            start = time.perf_counter()
            try:
                batches = super().__iter__() if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - start
            yield batch
