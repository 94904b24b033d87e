"""Measure searches in a store of embeddings, beside FAISS with a table of cameras and times.

The embeddings have 128 dimensions. Those of one person lie around a centre; 20 images a person, six cameras.
Each query is another image of a person in the store. The filter admits one camera of six and half of the
time. FAISS searches all rows (IndexFlatL2), or those that a NumPy mask selects. Queries come one by one, as
users ask them, and every program has a process of its own. ``--faiss`` needs the package faiss-cpu.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks import command
from benchmarks.process import Cost, median_costs
from benchmarks.rows import Row, describe_machine
from sharpreid.serving.gallery import Item
from sharpreid.serving.store import EVERYTHING, Filter
from sharpreid.serving.stores import open_store

DIM, IMAGES, CAMERAS, DAY = 128, 20, 6, 86_400.0
QUERIES, K = 100, 10
FILTER = Filter(cameras=("2",), start=0.0, end=DAY / 2)
_PART = 100_000


class People(NamedTuple):
    """Rows of a store, and queries."""

    embeddings: npt.NDArray[np.float32]
    cameras: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64]
    queries: npt.NDArray[np.float32]


def make_people(count: int) -> People:
    """Make the embeddings of ``count`` images and of 100 queries."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, count // IMAGES), DIM), np.float32)
    person = np.arange(count) % len(centres)
    embeddings = centres[person] + 0.5 * rng.standard_normal((count, DIM), np.float32)
    asked = centres[rng.integers(len(centres), size=QUERIES)]
    queries = asked + 0.5 * rng.standard_normal((QUERIES, DIM), np.float32)
    return People(embeddings, rng.integers(CAMERAS, size=count), rng.uniform(0, DAY, count), queries)


def build(*, folder: str, count: int) -> Callable[[], None]:
    """Return a function that builds a store."""
    people = make_people(count)

    def work() -> None:
        store = open_store(folder, digest="0" * 64, dim=DIM)
        for start in range(0, count, _PART):
            rows = range(start, min(start + _PART, count))
            items = [
                Item(f"/{row}.jpg", camera=str(people.cameras[row]), time=float(people.times[row]))
                for row in rows
            ]
            store.add(items, people.embeddings[rows.start : rows.stop])

    return work


def index(*, folder: str) -> Callable[[], None]:
    """Return a function that makes the index of a store."""
    return open_store(folder).index


def search(*, folder: str, count: int, filtered: bool, approximate: bool) -> Callable[[], list[list[int]]]:
    """Return a function that searches a store; its result is the rows that each query found."""
    store, queries = open_store(folder), make_people(count).queries
    where = FILTER if filtered else EVERYTHING

    def work() -> list[list[int]]:
        found = [store.search(one[None], K, where, approximate=approximate)[0] for one in queries]
        return [[int(Path(match.item.path).stem) for match in some] for some in found]

    store.search(queries[:1], K, where, approximate=approximate)  # opens the files
    return work


def search_faiss(*, count: int, filtered: bool) -> Callable[[], list[list[int]]]:
    """Return a function that searches with FAISS."""
    import faiss

    people = make_people(count)
    flat = faiss.IndexFlatL2(DIM)
    flat.add(people.embeddings)

    def work() -> list[list[int]]:
        found = []
        for one in people.queries:
            chosen = None
            if filtered:
                mask = (people.cameras == 2) & (people.times >= 0) & (people.times <= DAY / 2)
                chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(mask)))
            found.append(flat.search(one[None], K, params=chosen)[1][0].tolist())
        return found

    return work


def measure(*, sizes: Sequence[int], repeats: int = 3, faiss: bool = True) -> list[Row]:
    """Measure stores of several sizes.

    Args:
        sizes: numbers of rows.
        repeats: number of repeats of the searches.
        faiss: measure FAISS too.
    """
    rows = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure_store(str(Path(folder, "store")), count, repeats, faiss)
    return rows


def _measure_store(folder: str, count: int, repeats: int, faiss: bool) -> list[Row]:
    built = _cost(median_costs([("benchmarks.search:build", {"folder": folder, "count": count})], 1)[0])
    indexed = _cost(median_costs([("benchmarks.search:index", {"folder": folder})], 1)[0])
    rows = []
    for filtered in (False, True):
        asked: dict[str, Any] = {"count": count, "filtered": filtered}
        calls = [("benchmarks.search:search", {"folder": folder, "approximate": False, **asked})]
        if faiss:
            calls.append(("benchmarks.search:search_faiss", asked))
        if not filtered:
            calls.insert(0, ("benchmarks.search:search", {"folder": folder, "approximate": True, **asked}))
        found = median_costs(calls, repeats)
        approximate = None if filtered else _cost(found.pop(0))
        exact = _cost(found.pop(0))
        name = f"{count:,} rows" + (", filter" if filtered else "")
        other = found.pop() if found else "not measured"
        theirs = None if isinstance(other, str) else 1000 * other.seconds / QUERIES
        note = (
            other
            if isinstance(other, str)
            else f"finds {_recall(exact.value, other.value):.0%} of the same rows"
        )
        rows.append(
            Row(
                name=f"exact search, {name}",
                ours=1000 * exact.seconds / QUERIES,
                unit="ms/query",
                other="FAISS",
                theirs=theirs,
                better="higher",
                note=f"{note}; peak {_megabytes(exact)}",
            )
        )
        if approximate is not None:
            rows.append(
                Row(
                    name=f"approximate search, {name}",
                    ours=1000 * approximate.seconds / QUERIES,
                    unit="ms/query",
                    other="exact search",
                    theirs=1000 * exact.seconds / QUERIES,
                    better="higher",
                    note=f"recall of the {K} nearest {_recall(exact.value, approximate.value):.1%}",
                )
            )
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    made = Row(
        name=f"make the index, {count:,} rows",
        ours=indexed.seconds,
        unit="s",
        other="build the store",
        theirs=built.seconds,
        better="higher",
        note=f"peak of building {_megabytes(built)}; {size / 1e6:,.0f} MB on the disk",
    )
    return [*rows, made]


def _cost(found: Cost | str) -> Cost:
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _recall(expected: list[list[int]], found: list[list[int]]) -> float:
    shares = [len({*one} & {*other}) / len(one) for one, other in zip(expected, found, strict=True)]
    return float(np.mean(shares))


def _megabytes(cost: Cost) -> str:
    return "unknown" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:,.0f} MB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("search", __doc__)
    parser.add_argument(
        "--sizes",
        type=command.integer_at_least(QUERIES),
        nargs="+",
        default=[10_000, 100_000],
        metavar="N",
        help="rows of the stores; 10000 100000 by default",
    )
    parser.add_argument(
        "--repeats", type=command.integer_at_least(1), default=3, metavar="N", help="3 by default"
    )
    parser.add_argument("--faiss", action="store_true", help="measure FAISS too")
    given = parser.parse_args(arguments)
    about = describe_machine()
    with command.errors_in_one_line():
        rows = measure(sizes=given.sizes, repeats=given.repeats, faiss=given.faiss)
        command.report_rows(rows, about, "milliseconds per query", given.output)


if __name__ == "__main__":
    main()
