"""Search embeddings: ``python -m sharpreid.search build|add|remove|query|serve key=value ...``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sharpreid.standard_streams import tolerate_write_errors

if TYPE_CHECKING:
    from sharpreid.serving.gallery import Item
    from sharpreid.serving.query import Answer, GroupBy
    from sharpreid.serving.store import Filter, Store

USAGE = """\
usage: python -m sharpreid.search ACTION store=STORE [key=value ...]

Finds the images of a person again. STORE is a folder (LanceDB), or http://HOST:PORT/COLLECTION of a Qdrant
server. It holds embeddings of one model.

build   make a new store           gallery=FOLDER of sharpreid.embed
add     add or replace rows        gallery=FOLDER, or images=PLACE model=RUN as for sharpreid.embed
remove  remove rows                at least one filter; all=yes removes all rows
query   find people                images=PLACE model=RUN
serve   answer queries by HTTP     model=RUN [host=127.0.0.1] [port=8000]

Queries: images=PLACE is an image, a folder, a glob, a CSV file, or a video with boxes=FILE.csv.
  group_by=image           images that form one query: image (each), track, or all; their mean is searched
  k=10                     matches shown
  threshold=0.8            distance up to which a row counts as the same person; beyond it the answer is
                           "unknown". By default the calibrated threshold of the model, if it has one
  re_ranking=k_reciprocal  order the 2,000 nearest rows by k-reciprocal re-ranking
  approximate=yes          use the index of the store. Without one, or with a filter, a search is exact
  output=matches.json      also write .json, .csv (a line for each match) or .png (a row for each query)

Filters, for query and remove; they come before the search:
  camera=1,2  not_camera=3  identity=7,8  track=a,b  from=0  to=59.5 (seconds)  path=FILE_OR_FOLDER
  A name that has a comma is written in a list: camera='["north, gate"]'

build and add:  index=yes makes the index for approximate searches, and measures its recall
add and query:  camera_pattern='_c(?P<camera>\\d+)'  batch_size=64  device=cpu (serve has device, too)

Exit status: 0, also if a person is unknown; 1 for an error; 2 for wrong arguments.
"""

_FILTERS = ("camera", "not_camera", "from", "to", "identity", "track", "path")
_IMAGES = ("images", "boxes", "model", "camera_pattern", "batch_size", "device")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "build": ("store", "gallery", "index"),
    "add": ("store", "gallery", "index", *_IMAGES),
    "remove": ("store", "all", *_FILTERS),
    "query": (
        *("store", "group_by", "k", "threshold", "re_ranking", "approximate", "output"),
        *_IMAGES,
        *_FILTERS,
    ),
    "serve": ("store", "model", "host", "port", "device"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.serving.arguments import UsageError, parse_pairs

    action, *rest = arguments
    try:
        if action not in _KEYS:
            raise UsageError(f"{action}: no such action; known are {', '.join(_KEYS)}")
        given = parse_pairs(rest, _KEYS[action], required=("store",))
        {"build": build, "add": add, "remove": remove, "query": query, "serve": serve}[action](given)
    except UsageError as error:
        print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"error: {error}; the command needs pip install 'sharpreid[serve]'", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def build(given: Mapping[str, str]) -> None:
    """Make a new store from a gallery.

    Raises:
        ValueError: the store exists already.
    """
    from sharpreid.serving.arguments import UsageError, parse_yes
    from sharpreid.serving.store import StoreError
    from sharpreid.serving.stores import open_store

    if "gallery" not in given:
        raise UsageError("gallery=... is missing")
    index = parse_yes(given, "index")
    try:
        exists = open_store(given["store"]).count() > 0
    except FileNotFoundError:
        exists = False
    if exists:
        raise StoreError(
            f"{given['store']}: has rows already; use the action add, or give a new folder for the store"
        )
    _add_gallery(given)
    if index:
        _index(given)


def add(given: Mapping[str, str]) -> None:
    """Add a gallery, or images, to a store."""
    from sharpreid.serving.arguments import UsageError, parse_yes

    if ("gallery" in given) == ("images" in given):
        raise UsageError("give either gallery=FOLDER, or images=PLACE and model=RUN")
    index = parse_yes(given, "index")
    if "gallery" in given:
        if unused := [key for key in _IMAGES if key in given]:
            raise UsageError(f"{unused[0]} goes with images=..., not with gallery=...")
        _add_gallery(given)
    else:
        _add_images(given)
    if index:
        _index(given)


def remove(given: Mapping[str, str]) -> None:
    """Remove the rows that pass a filter."""
    from sharpreid.serving.arguments import UsageError, parse_yes
    from sharpreid.serving.store import EVERYTHING
    from sharpreid.serving.stores import open_store

    where = _filter(given)
    if (where == EVERYTHING) != parse_yes(given, "all"):
        raise UsageError("give either a filter such as camera=2, or all=yes to remove all rows")
    store = open_store(given["store"])
    _check_names(store, where)
    print(f"{store.remove(where)} rows removed; {given['store']} has {store.count()}")


def query(given: Mapping[str, str]) -> None:
    """Find the people of images, print the matches, and write them to a file if one is named."""
    from sharpreid.serving.arguments import UsageError, parse_choice, parse_count, parse_number, parse_yes

    k, batch_size = parse_count(given, "k", 10), parse_count(given, "batch_size", 64)
    threshold = parse_number(given, "threshold")
    if threshold is not None and threshold < 0:
        raise UsageError(f"threshold must be a distance, 0 or more, got {threshold}")
    group_by: GroupBy = parse_choice(given, "group_by", ("image", "track", "all"))
    re_ranking = parse_choice(given, "re_ranking", ("none", "k_reciprocal")) == "k_reciprocal"
    approximate = parse_yes(given, "approximate")
    output = Path(given["output"]).expanduser() if "output" in given else None
    if output is not None and output.suffix.lower() not in (".json", ".csv", ".png"):
        raise UsageError(f"output={output}: the name must end in .json, .csv or .png")
    where = _filter(given)
    if missing := [key for key in ("images", "model") if key not in given]:
        raise UsageError(f"{missing[0]}=... is missing")

    from sharpreid.data.reid_data import DataError
    from sharpreid.serving.model import load_model
    from sharpreid.serving.query import (
        answer_queries,
        describe_answer,
        embed_queries,
        print_answer,
        write_answers,
    )
    from sharpreid.serving.sources import find_items
    from sharpreid.serving.stores import open_store

    items = find_items(given["images"], boxes=given.get("boxes"), camera_pattern=given.get("camera_pattern"))
    embedder = load_model(given["model"]).to(given.get("device", "cpu"))
    store = open_store(given["store"], digest=embedder.digest)
    if threshold is None and (calibrated := embedder.config.threshold) is not None:
        threshold = calibrated.distance
        if caution := calibrated.find_caution(store.count(where)):
            print(f"Warning: {caution}", file=sys.stderr)

    def report_unread(item: "Item", error: Exception) -> None:
        print(f"left out: {error}", file=sys.stderr)

    queries = embed_queries(items, embedder, group_by=group_by, batch_size=batch_size, skip=report_unread)
    if not queries:
        raise DataError(f"images={given['images']}: no image could be read")
    answers = []
    for answer in answer_queries(
        store,
        queries,
        k=k,
        where=where,
        threshold=threshold,
        re_ranking=re_ranking,
        approximate=approximate,
    ):
        print_answer(answer, threshold)
        answers.append(answer)
    if threshold is None:
        print(
            "the model has no calibrated threshold, so nobody is called unknown; threshold=NUMBER sets one",
            file=sys.stderr,
        )
    if output is not None and output.suffix.lower() == ".png":
        _draw(output, answers, threshold)
    elif output is not None:
        write_answers(output, [describe_answer(answer, threshold) for answer in answers])


def _draw(output: Path, answers: "Sequence[Answer]", threshold: float | None) -> None:
    """Draw a row for each query, with a green frame round its person and a red one round others.

    Where the identity of the query or of the match is not known, the threshold decides.
    """
    from sharpreid.atomic_io import replacing
    from sharpreid.serving.query import is_same_person
    from sharpreid.serving.sources import read_picture
    from sharpreid.visualization.attention import MatchKind, RankedImage, draw_ranked_lists

    rows = []
    for answer in answers:
        found = []
        for match in answer.matches:
            same = is_same_person(answer.query, match, threshold)
            kind: MatchKind = "unlabelled" if same is None else "match" if same else "other"
            found.append(RankedImage(read_picture(match.item), kind, match.distance))
        rows.append((read_picture(answer.query.items[0]), found))
    with replacing(output) as temporary:
        draw_ranked_lists(rows).save(temporary)


def serve(given: Mapping[str, str]) -> None:
    """Answer queries by HTTP until Ctrl-C."""
    from sharpreid.serving.arguments import UsageError, parse_port

    if "model" not in given:
        raise UsageError("model=... is missing")
    port = parse_port(given, 8000)
    from sharpreid.serving.http import serve_store
    from sharpreid.serving.model import load_model
    from sharpreid.serving.stores import open_store

    embedder = load_model(given["model"]).to(given.get("device", "cpu"))
    store = open_store(given["store"], digest=embedder.digest)
    serve_store(store, embedder, host=given.get("host", "127.0.0.1"), port=port)


def _check_names(store: "Store", where: "Filter") -> None:
    """Refuse names that no row has: a name that was split at its comma must not remove the rows of others."""
    from sharpreid.serving.store import Filter, StoreError

    for key, names in (("camera", where.cameras), ("identity", where.identities), ("track", where.tracks)):
        for name in names:
            one = {"camera": Filter(cameras=(name,)), "identity": Filter(identities=(name,))}
            if not store.count(one.get(key, Filter(tracks=(name,)))):
                raise StoreError(
                    f"no row of the store has the {key} {name!r}; a name that has a comma is written in a "
                    f"list, such as {key}='[\"north, gate\"]'"
                )


def _filter(given: Mapping[str, str]) -> "Filter":
    from sharpreid.serving.arguments import parse_names, parse_number
    from sharpreid.serving.gallery import absolute_path
    from sharpreid.serving.store import Filter

    def values(key: str) -> tuple[str, ...]:
        return parse_names(given[key], key) if key in given else ()

    paths = (absolute_path(Path(given["path"]).expanduser()),) if "path" in given else ()
    return Filter(
        cameras=values("camera"),
        not_cameras=values("not_camera"),
        start=parse_number(given, "from"),
        end=parse_number(given, "to"),
        identities=values("identity"),
        tracks=values("track"),
        paths=paths,
    )


def _add_gallery(given: Mapping[str, str]) -> None:
    from sharpreid.serving.gallery import Gallery, embeddings_of, items_of
    from sharpreid.serving.stores import open_store

    gallery = Gallery(given["gallery"])
    table = gallery.read()
    embeddings = embeddings_of(table)
    store = open_store(given["store"], digest=gallery.digest, dim=embeddings.shape[1])
    store.add(items_of(table), embeddings)
    print(f"{len(table)} rows added; {given['store']} has {store.count()}")


def _add_images(given: Mapping[str, str]) -> None:
    import csv
    import tempfile

    from sharpreid.data.reid_data import DataError
    from sharpreid.serving.arguments import UsageError, parse_count
    from sharpreid.serving.embedding import embed_images

    if "model" not in given:
        raise UsageError("model=... is missing")
    batch_size = parse_count(given, "batch_size", 64)
    with tempfile.TemporaryDirectory() as folder:
        embedded, skipped = embed_images(
            given["images"],
            model=given["model"],
            output=Path(folder, "gallery"),
            boxes=given.get("boxes"),
            camera_pattern=given.get("camera_pattern"),
            batch_size=batch_size,
            device=given.get("device", "cpu"),
        )
        if skipped:
            with Path(folder, "gallery", "skipped.csv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    print(f"left out: {row['reason']}", file=sys.stderr)
        if not embedded:
            raise DataError(f"images={given['images']}: no image could be read")
        _add_gallery({**given, "gallery": str(Path(folder, "gallery"))})


def _index(given: Mapping[str, str]) -> None:
    from sharpreid.serving.query import measure_recall
    from sharpreid.serving.stores import open_store

    store = open_store(given["store"])
    store.index()
    recall, count = measure_recall(store, k=10)
    print(f"index made; recall of the 10 nearest rows: {100 * recall:.1f} % ({count} rows as queries)")


if __name__ == "__main__":
    tolerate_write_errors()
    main()
