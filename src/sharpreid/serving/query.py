"""Search a store for the people in images: one query per image or per track, and "unknown" as an answer."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sharpreid.atomic_io import replacing, write_rows
from sharpreid.data.reid_data import DataError
from sharpreid.evaluation.re_ranking import k_reciprocal_distances
from sharpreid.serving.gallery import Item
from sharpreid.serving.model import Embedder
from sharpreid.serving.sources import read_items
from sharpreid.serving.store import Embeddings, Filter, Match, Store

GroupBy = Literal["image", "track", "all"]
"""Images that form one query: each image, each track, or all of them."""

_CANDIDATES = 2000  # nearest rows that are re-ranked


class Query(NamedTuple):
    """Images of one person, and the mean of their embeddings."""

    items: tuple[Item, ...]
    embedding: Embeddings
    """float32, (D,)."""

    @property
    def name(self) -> str:
        """Track or path, and how many images there are if it is not one."""
        first = self.items[0]
        frame = "" if first.frame is None else f", frame {first.frame}"
        if len(self.items) == 1:
            return f"{first.path}{frame}"
        tracks = {item.track for item in self.items}
        what = (
            f"track {first.track} of {first.path}" if tracks == {first.track} and first.track else first.path
        )
        return f"{what} ({len(self.items)} images)"


class Answer(NamedTuple):
    """Matches of a query."""

    query: Query
    matches: list[Match]
    """Nearest first, or in the order of re-ranking."""
    nearest: float | None
    """Distance of the nearest row; None if no row passes the filter."""
    known: bool | None
    """Whether the nearest row is within the threshold; None without a threshold."""


def embed_queries(
    items: Sequence[Item],
    embedder: Embedder,
    *,
    group_by: GroupBy,
    batch_size: int = 64,
    skip: Callable[[Item, DataError], None] | None = None,
) -> list[Query]:
    """Embed the images of queries.

    Args:
        items: images.
        embedder: the model of the store.
        group_by: images that form one query. Images without a track are queries of their own.
        batch_size: images per pass of the network, > 0.
        skip: called with an image that cannot be read, and the error; None raises it.

    Raises:
        DataError: an image cannot be read, or ``group_by`` is track and no image has one.
    """
    if group_by == "track" and not any(item.track for item in items):
        raise DataError("group_by=track: no image has a track; a CSV needs the column track")
    tasks = list(read_items(items, embedder))
    unread = None if skip is None else lambda number, error: skip(tasks[number].item, error)
    groups: dict[object, list[tuple[Item, Embeddings]]] = {}
    read = [task.read for task in tasks]
    for numbers, rows in embedder.embed_batches(read, batch_size=batch_size, skip=unread):
        for number, row in zip(numbers, rows, strict=True):
            item = tasks[number].item
            track = (item.path if item.frame is not None else None, item.track) if item.track else number
            key = {"image": number, "track": track, "all": None}[group_by]
            groups.setdefault(key, []).append((item, row))
    return [
        Query(tuple(item for item, _ in some), np.mean([row for _, row in some], 0))
        for some in groups.values()
    ]


def answer_queries(
    store: Store,
    queries: Sequence[Query],
    *,
    k: int,
    where: Filter,
    threshold: float | None = None,
    re_ranking: bool = False,
    approximate: bool = False,
) -> Iterator[Answer]:
    """Search a store for each query. Rows of the query's own images are left out.

    Re-ranking is k-reciprocal with its authors' parameters (`sharpreid.evaluation.re_ranking`). Each query is
    re-ranked alone, among its 2,000 nearest rows. It changes the order of the matches, and neither their
    distances nor whether the person is known.

    Args:
        store: the store.
        queries: queries, embedded by the model of the store.
        k: matches per query, > 0.
        where: rows to search.
        threshold: distance up to which a row counts as the person of the query; None if there is none.
        re_ranking: re-rank the nearest rows.
        approximate: use the index of the store.
    """
    for query in queries:
        own = {item.key for item in query.items}
        wanted = max(k, _CANDIDATES) if re_ranking else k
        found = store.search(query.embedding[None], wanted + len(own), where, approximate=approximate)[0]
        matches = [match for match in found if match.item.key not in own][:wanted]
        nearest = matches[0].distance if matches else None
        if re_ranking and matches:
            matches = _re_rank(query.embedding, matches)
        known = None if threshold is None else nearest is not None and nearest <= threshold
        yield Answer(query, matches[:k], nearest, known)


def _re_rank(embedding: Embeddings, matches: Sequence[Match]) -> list[Match]:
    gallery = np.stack([match.embedding for match in matches])
    distances = k_reciprocal_distances(embedding[None], gallery, k1=20, k2=6, lambda_value=0.3)[0]
    return [matches[number] for number in torch.argsort(distances, stable=True).tolist()]


def measure_recall(store: Store, *, k: int, queries: int = 200) -> tuple[float, int]:
    """Measure the share of the k nearest rows that an approximate search finds, in [0, 1].

    Args:
        store: a store with an index.
        k: rows per query.
        queries: rows of the store that serve as queries, drawn by a fixed seed; fewer if it has fewer.

    Returns:
        Recall, and the number of queries.
    """
    _, rows = store.read()
    some = rows[np.random.default_rng(0).permutation(len(rows))[:queries]]
    pairs = zip(store.search(some, k), store.search(some, k, approximate=True), strict=True)
    shares = [
        len({one.item.key for one in exact} & {one.item.key for one in found}) / len(exact)
        for exact, found in pairs
    ]
    return float(np.mean(shares)), len(some)


def describe_answer(answer: Answer, threshold: float | None) -> dict[str, Any]:
    """Describe an answer in values that JSON has."""
    return {
        "query": [_describe_item(item) for item in answer.query.items],
        "answer": {None: "no threshold", True: "match", False: "unknown"}[answer.known],
        "nearest": answer.nearest,
        "threshold": threshold,
        "matches": [
            {"rank": rank, **_describe_match(match, threshold)}
            for rank, match in enumerate(answer.matches, 1)
        ],
    }


def _describe_match(match: Match, threshold: float | None) -> dict[str, Any]:
    within = None if threshold is None else match.distance <= threshold
    return {"distance": match.distance, "within": within, **_describe_item(match.item)}


def _describe_item(item: Item) -> dict[str, Any]:
    fields = item._asdict()
    del fields["changed"]
    return {name: list(value) if name == "box" and value else value for name, value in fields.items()}


def is_same_person(query: Query, match: Match, threshold: float | None) -> bool | None:
    """Return whether a match shows the person of a query: by their identities, otherwise by the threshold.

    Returns:
        None if an identity and the threshold are missing.
    """
    identities = {item.identity for item in query.items}
    if match.item.identity is not None and None not in identities:
        return identities == {match.item.identity}
    return None if threshold is None else match.distance <= threshold


def print_answer(answer: Answer, threshold: float | None) -> None:
    """Print an answer as a table."""
    nearest = "no row passes the filter" if answer.nearest is None else f"nearest {answer.nearest:.3f}"
    limit = "" if threshold is None else f", threshold {threshold:.3f}"
    verdict = {None: "", True: "known: ", False: "unknown: "}[answer.known]
    print(f"{answer.query.name}\n  {verdict}{nearest}{limit}")
    for rank, match in enumerate(answer.matches, 1):
        item = match.item
        given = {"camera": item.camera, "time": item.time, "track": item.track, "identity": item.identity}
        parts = [f"{name} {value}" for name, value in given.items() if value is not None]
        frame = "" if item.frame is None else f", frame {item.frame}"
        outside = " (beyond the threshold)" if threshold is not None and match.distance > threshold else ""
        print(f"  {rank:3}  {match.distance:.3f}  {item.path}{frame}  {', '.join(parts)}{outside}".rstrip())


def write_answers(path: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write described answers to a .json file, or to a .csv file with a line for each match.

    A query without a match has a line without one.

    Raises:
        ValueError: the name has another ending.
    """
    if path.suffix.lower() == ".json":
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif path.suffix.lower() == ".csv":
        names = ("rank", "distance", "within", "path", "box", "frame", "camera", "time", "track", "identity")
        rows = [
            (
                *(answer["query"][0][name] for name in ("path", "frame", "box", "track")),
                len(answer["query"]),
                answer["answer"],
                *(match.get(name) for name in names),
            )
            for answer in answers
            for match in answer["matches"] or [{}]
        ]
        asked = ("query", "query_frame", "query_box", "query_track", "images", "answer")
        write_rows(path, (*asked, *names), rows)
    else:
        raise ValueError(f"output={path}: the name must end in .json or .csv")
