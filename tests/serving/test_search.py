"""Stores and queries: what is found, what is refused, and what an interruption leaves."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpreid import load
from sharpreid.search import main
from sharpreid.serving import lance_store
from sharpreid.serving.embedding import embed_images
from sharpreid.serving.gallery import Item
from sharpreid.serving.qdrant_store import QdrantStore
from sharpreid.serving.query import (
    Query,
    answer_queries,
    describe_answer,
    embed_queries,
    is_same_person,
    measure_recall,
    write_answers,
)
from sharpreid.serving.sources import find_items
from sharpreid.serving.store import EVERYTHING, Embeddings, Filter, Match, Store, StoreError
from sharpreid.serving.stores import open_store
from tests.serving.test_model import saved

__all__ = ["saved"]  # a fixture

pytest.importorskip("lancedb")

DIGEST = "a" * 64
CAMERA = r"_c(?P<camera>\d)s(?P<time>\d)"


def corner(*values: float) -> Embeddings:
    """Embeddings in two dimensions, (B, 2); the second number is 0."""
    return np.array([[value, 0.0] for value in values], np.float32)


Opened = Callable[..., Store]


@pytest.fixture(params=["lance", "qdrant"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Open the same store again and again: a folder, or a collection of Qdrant's local mode."""
    if request.param == "lance":
        yield partial(open_store, str(tmp_path / "store"))
        return
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    yield partial(QdrantStore, "http://127.0.0.1:6333/people", client=client)
    client.close()


def five_rows() -> tuple[list[Item], Embeddings]:
    """Rows at 0, 1, 2, 3 and 9; cameras 1, 2, 1, 2 and none; times 0, 10, 20, 30 and none."""
    items = [
        Item(f"/photos/{number}.jpg", camera="12"[number % 2], time=10.0 * number, track=f"t{number}")
        for number in range(4)
    ]
    return [*items, Item("/other/9.jpg")], corner(0, 1, 2, 3, 9)


@pytest.fixture
def store(opened: Opened) -> Store:
    store = opened(digest=DIGEST, dim=2)
    store.add(*five_rows())
    return store


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A store in a folder."""
    open_store(str(tmp_path / "store"), digest=DIGEST, dim=2).add(*five_rows())
    return str(tmp_path / "store")


def names(store: Store, value: float, k: int, where: Filter = EVERYTHING) -> list[str]:
    found = store.search(corner(value), k, where)[0]
    return [Path(match.item.path).stem for match in found]


def test_the_nearest_rows_come_first_with_their_euclidean_distances(store: Store) -> None:
    found = store.search(corner(2.75, 9), 3)
    assert [[Path(match.item.path).stem for match in one] for one in found] == [
        ["3", "2", "1"],
        ["9", "3", "2"],
    ]
    assert [match.distance for match in found[0]] == pytest.approx([0.25, 0.75, 1.75])
    np.testing.assert_array_equal(found[0][0].embedding, [3, 0])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(cameras=("2",)), ["1", "3"]),
        (Filter(cameras=("1", "2")), ["0", "1", "2", "3"]),
        (Filter(not_cameras=("1",)), ["1", "3", "9"]),
        (Filter(start=10, end=20), ["1", "2"]),
        (Filter(cameras=("1",), end=5), ["0"]),
        (Filter(tracks=("t3",)), ["3"]),
        (Filter(paths=("/photos",)), ["0", "1", "2", "3"]),
        (Filter(paths=("/photos/1.jpg", "/other/")), ["1", "9"]),
        (Filter(paths=("/photo",)), []),
        (Filter(paths=("/",)), ["0", "1", "2", "3", "9"]),
        (Filter(cameras=("3",)), []),
    ],
)
def test_a_filter_comes_before_the_search(store: Store, where: Filter, expected: list[str]) -> None:
    assert names(store, 0, len(expected) or 1, where) == expected
    assert store.count(where) == len(expected)
    items, embeddings = store.read(where)
    assert sorted(Path(item.path).stem for item in items) == expected
    assert embeddings.shape == (len(expected), 2)


@pytest.mark.parametrize("name", ["'", "' OR '1'='1", "1' --", '"', "a,b", "É\u200d", "\\", "%"])
def test_names_with_odd_characters_are_only_names(store: Store, name: str) -> None:
    store.add([Item(f"/x/{name}", camera=name)], corner(5))
    assert [item.camera for item in store.read(Filter(cameras=(name,)))[0]] == [name]
    assert [item.path for item in store.read(Filter(paths=(f"/x/{name}",)))[0]] == [f"/x/{name}"]
    assert store.remove(Filter(cameras=(name,))) == 1
    assert store.count() == 5


def test_rows_at_the_same_distance_are_ordered_by_path(opened: Opened) -> None:
    store = opened(digest=DIGEST, dim=2)
    items = [Item(f"/{name}.jpg") for name in "dbca"]
    store.add(items, corner(1, 1, 1, 1))
    assert [match.item.path for match in store.search(corner(0), 4)[0]] == [
        "/a.jpg",
        "/b.jpg",
        "/c.jpg",
        "/d.jpg",
    ]


def test_a_row_of_the_same_image_and_box_is_replaced(store: Store) -> None:
    store.add([Item("/photos/0.jpg"), Item("/photos/0.jpg", box=(0, 0, 1, 1))], corner(7, 8))
    assert store.count() == 6
    assert names(store, 7.4, 2) == ["0", "0"]
    assert store.count(Filter(cameras=("1",))) == 1, "the row that was replaced had camera 1"
    store.add([Item("/twice.jpg"), Item("/twice.jpg")], corner(20, 21))
    assert [match.distance for match in store.search(corner(21), 1)[0]] == [0], "the last one counts"


def test_removed_rows_are_found_no_more(store: Store) -> None:
    assert store.remove(Filter(cameras=("1",))) == 2
    assert names(store, 0, 9) == ["1", "3", "9"]
    assert store.remove(EVERYTHING) == 3
    assert names(store, 0, 9) == []


def test_embeddings_that_do_not_fit_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"\(B, 2\)"):
        store.add([Item("/a.jpg")], np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        store.add([Item("/a.jpg")], np.full((1, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="k must be > 0"):
        store.search(corner(0), 0)


def test_a_store_is_opened_as_it_was_made(store: Store, opened: Opened) -> None:
    again = opened()
    assert (again.digest, again.dim, again.count()) == (DIGEST, 2, 5)
    with pytest.raises(StoreError, match="another model"):
        opened(digest="b" * 64)


def test_a_server_that_is_not_there_and_what_is_no_collection_are_refused() -> None:
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    with pytest.raises(FileNotFoundError, match="no such collection"):
        QdrantStore("http://127.0.0.1:6333/people", client=client)
    vectors = pytest.importorskip("qdrant_client").models
    client.create_collection(
        "theirs", vectors_config=vectors.VectorParams(size=2, distance=vectors.Distance.COSINE)
    )
    with pytest.raises(StoreError, match="another program"):
        QdrantStore("http://127.0.0.1:6333/theirs", client=client)
    client.close()
    with pytest.raises(StoreError, match="HOST:PORT/COLLECTION"):
        open_store("http://127.0.0.1:6333")
    with pytest.raises(StoreError, match="is it running"):
        open_store("http://127.0.0.1:9/people")


def test_a_folder_of_another_model_and_what_is_no_store_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another model"):
        open_store(place, digest="b" * 64)
    with pytest.raises(FileNotFoundError, match="no store"):
        open_store(str(tmp_path / "nowhere"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(StoreError, match="other files"):
        open_store(str(tmp_path / "photos"), digest=DIGEST, dim=2)
    with pytest.raises(StoreError, match="a file; a store is a folder"):
        open_store(str(tmp_path / "photos" / "a.jpg"), digest=DIGEST, dim=2)
    Path(place, "store.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        open_store(place)


def test_two_models_that_create_a_store_at_once_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, threads, replacing = list[str](), list[threading.Thread](), lance_store.replacing

    def create_other() -> None:
        try:
            open_store(str(tmp_path / "store"), digest="b" * 64, dim=2)
        except StoreError as error:
            refused.append(str(error))

    def replacing_beside_another(path: Path) -> Any:
        if not threads:
            threads.append(threading.Thread(target=create_other))
            threads[0].start()
            threads[0].join(0.3)
        return replacing(path)

    monkeypatch.setattr(lance_store, "replacing", replacing_beside_another)
    assert open_store(str(tmp_path / "store"), digest=DIGEST, dim=2).digest == DIGEST
    threads[0].join()
    assert "another model" in refused[0]


def test_a_creation_that_was_killed_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for name in (".store-0123.json", "write.lock"):
        (tmp_path / "store" / name).touch()
    assert open_store(str(tmp_path / "store"), digest=DIGEST, dim=2).count() == 0


def test_a_store_whose_rows_are_damaged_says_so(place: str) -> None:
    for file in Path(place, "rows.lance", "data").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(place).search(corner(0), 1)


def test_an_open_store_sees_what_others_write(place: str) -> None:
    reader, writer = open_store(place), open_store(place)
    writer.add([Item("/new.jpg")], corner(50))
    assert reader.search(corner(50), 1)[0][0].item.path == "/new.jpg"


def test_writers_wait_for_each_other_and_lose_nothing(place: str) -> None:
    def add(name: str) -> None:
        store = open_store(place)
        for number in range(5):
            store.add([Item(f"/{name}/{number}.jpg")], corner(number))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert open_store(place).count() == 20


def test_the_index_finds_nearly_what_the_exact_search_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    people = rng.normal(size=(60, 16))
    rows = (people.repeat(20, 0) + 0.3 * rng.normal(size=(1200, 16))).astype(np.float32)
    store = open_store(str(tmp_path / "store"), digest=DIGEST, dim=16)
    store.add([Item(f"/{number}.jpg", camera=str(number % 3)) for number in range(1200)], rows)
    assert measure_recall(store, k=10) == (1.0, 200), "without an index the search is exact"
    store.index()
    assert measure_recall(store, k=10)[0] > 0.9
    assert len(store.search(rows[:1], 1000, approximate=True)[0]) == 1000, "more than the nearest partitions"
    store.add([Item("/late.jpg")], rows[:1] + 100)
    late = store.search(rows[:1] + 100, 1, approximate=True)[0][0]
    assert late.item.path == "/late.jpg", "rows that were added later are found"
    filtered = store.search(rows[:1], 10, Filter(cameras=("2",)), approximate=True)[0]
    assert {match.item.camera for match in filtered} == {"2"}
    assert len(filtered) == 10


def test_a_query_within_the_threshold_is_known_and_its_own_image_is_no_match(place: str) -> None:
    store = open_store(place)
    query = Query((Item("/photos/0.jpg"),), corner(0)[0])
    near, far = (
        next(answer_queries(store, [query], k=2, where=EVERYTHING, threshold=threshold))
        for threshold in (1, 0.9)
    )
    assert [Path(match.item.path).stem for match in near.matches] == ["1", "2"]
    assert (near.known, far.known, near.nearest) == (True, False, 1.0)
    nobody = next(answer_queries(store, [query], k=2, where=Filter(cameras=("7",)), threshold=1))
    assert (nobody.known, nobody.nearest, nobody.matches) == (False, None, [])
    assert next(answer_queries(store, [query], k=2, where=EVERYTHING)).known is None


@pytest.mark.parametrize(
    ("query", "match", "threshold", "same"),
    [
        ("7", "7", 0.1, True),
        ("7", "8", 9.0, False),
        ("7", None, 1.0, True),
        (None, "8", 0.4, False),
        (None, "8", None, None),
    ],
)
def test_identities_say_who_is_the_same_person_otherwise_the_threshold(
    query: str | None, match: str | None, threshold: float | None, same: bool | None
) -> None:
    asked = Query((Item("/a.jpg", identity=query),), corner(0)[0])
    found = Match(Item("/b.jpg", identity=match), 0.5, corner(0.5)[0])
    assert is_same_person(asked, found, threshold) is same


def test_re_ranking_changes_the_order_and_not_the_verdict(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), digest=DIGEST, dim=2)
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 0.1, (25, 2)), rng.normal((2, 0), 0.1, (30, 2)), [[-1.0, 0]]])
    store.add([Item(f"/{number:02d}.jpg") for number in range(len(rows))], rows.astype(np.float32))
    query = Query((Item("/query.jpg"),), corner(0.9)[0])
    plain, ranked = (
        next(answer_queries(store, [query], k=56, where=EVERYTHING, threshold=0.8, re_ranking=again))
        for again in (False, True)
    )
    order = [[match.item.path for match in one.matches] for one in (plain, ranked)]
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1])
    assert (plain.nearest, plain.known) == (ranked.nearest, ranked.known)


@pytest.fixture
def model(saved: Callable[..., tuple[Path, Any]]) -> Path:
    return saved()[0]


@pytest.fixture
def photos(tiny_market: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_market / "bounding_box_test", tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def built(model: Path, photos: Path, tmp_path: Path) -> str:
    """A store of 8 photos, made by the commands."""
    embed_images(str(photos), model=str(model), output=tmp_path / "gallery", camera_pattern=CAMERA)
    main(["build", f"gallery={tmp_path / 'gallery'}", f"store={tmp_path / 'store'}"])
    return str(tmp_path / "store")


def test_images_of_one_person_or_track_are_one_query(model: Path, photos: Path, tmp_path: Path) -> None:
    embedder = load(model)
    items = find_items(str(photos), boxes=None, camera_pattern=None)
    rows = embedder.embed([item.path for item in items])
    (one,) = embed_queries(items, embedder, group_by="all")
    np.testing.assert_allclose(one.embedding, rows.mean(0), atol=1e-4)
    tracks = [
        item._replace(track="ab"[number % 2] if number < 6 else None) for number, item in enumerate(items)
    ]
    queries = embed_queries(tracks, embedder, group_by="track")
    assert [len(query.items) for query in queries] == [3, 3, 1, 1]
    np.testing.assert_allclose(queries[0].embedding, rows[[0, 2, 4]].mean(0), atol=1e-4)
    with pytest.raises(ValueError, match="no image has a track"):
        embed_queries(items, embedder, group_by="track")


def test_the_commands_build_query_add_and_remove(
    built: str, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = sorted(photos.glob("*.jpg"))[0]
    copy = shutil.copy(one, tmp_path / "somebody.jpg")
    asked = [f"store={built}", f"images={copy}", f"model={model}"]
    output = tmp_path / "found.json"
    main(["query", *asked, "k=2", "threshold=0.01", f"output={output}"])
    (answer,) = json.loads(output.read_text())
    assert answer["answer"] == "match"
    assert [match["within"] for match in answer["matches"]] == [True, False]
    assert answer["matches"][0]["path"] == str(one)
    assert "known: nearest 0.000" in capsys.readouterr().out
    main(["query", *asked, "camera=2", "threshold=0.000001", f"output={tmp_path / 'found.csv'}"])
    rows = [*csv.DictReader((tmp_path / "found.csv").read_text().splitlines())]
    assert {(row["answer"], row["camera"]) for row in rows} == {("unknown", "2")}
    assert len(rows) == 4
    main(["query", *asked, "camera=7", "threshold=1", f"output={tmp_path / 'found.csv'}"])
    (row,) = csv.DictReader((tmp_path / "found.csv").read_text().splitlines())
    assert (row["query"], row["answer"], row["path"]) == (str(copy), "unknown", ""), "nobody of camera 7"
    capsys.readouterr()
    main(["query", *asked, f"output={tmp_path / 'found.png'}"])
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 8 * picture.height / 3, "a row of the query and eight matches"
    assert "no calibrated threshold" in capsys.readouterr().err
    main(["add", *asked])
    main(["remove", f"store={built}", f"path={photos}"])
    assert "8 rows removed" in capsys.readouterr().out
    assert [item.path for item in open_store(built).read()[0]] == [str(copy)]


def test_an_image_that_cannot_be_read_is_left_out(
    built: str, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked").mkdir()
    shutil.copy(sorted(photos.glob("*.jpg"))[0], tmp_path / "asked" / "b.jpg")
    (tmp_path / "asked" / "a.jpg").write_bytes(b"no image")
    asked = [f"store={built}", f"images={tmp_path / 'asked'}", f"model={model}"]
    main(["query", *asked, "k=1"])
    captured = capsys.readouterr()
    assert captured.out.count("nearest 0.000") == 1
    assert "left out: " in captured.err
    assert "a.jpg" in captured.err
    (tmp_path / "asked" / "b.jpg").unlink()
    for action in ("query", "add"):
        with pytest.raises(SystemExit) as ended:
            main([action, *asked])
        assert ended.value.code == 1
        error = capsys.readouterr().err
        assert "a.jpg: cannot be read" in error
        assert "no image could be read" in error


def test_the_calibrated_threshold_of_the_model_is_used(
    built: str, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    Image.new("RGB", (16, 32), "red").save(tmp_path / "stranger.jpg")
    nearest = open_store(built).search(load(model).embed(tmp_path / "stranger.jpg"), 1)[0][0].distance
    for factor, word in ((1.01, "known: "), (0.99, "unknown: ")):
        config["threshold"] = {
            "distance": factor * nearest,
            "false_positive_rate": 0.01,
            "interval": [0.0, 0.02],
            "detection_rate": 0.5,
            "gallery_identities": 4,
            "gallery_images": 8 if factor > 1 else 3,
            "identities": 8,
            "queries": 16,
            "exclusion": "same_camera",
            "dataset": "shop",
        }
        (model / "config.json").write_text(json.dumps(config))
        main(["query", f"store={built}", f"images={tmp_path / 'stranger.jpg'}", f"model={model}"])
        captured = capsys.readouterr()
        assert f"\n  {word}nearest" in captured.out
        assert "no calibrated threshold" not in captured.err
        assert ("Warning" in captured.err) == (factor < 1), "the gallery of the calibration had 3 images"


def test_a_program_asks_by_http(built: str, model: Path, photos: Path) -> None:
    http = pytest.importorskip("sharpreid.serving.http")
    from fastapi.testclient import TestClient

    embedder = load(model)
    one = sorted(photos.glob("*.jpg"))[0]
    with TestClient(http.build_app(open_store(built), embedder)) as client:
        assert client.get("/").json() == {"rows": 8, "model": embedder.digest, "threshold": None}
        content = one.read_bytes()
        answer = client.post("/query?k=2&threshold=0.01", content=content).json()
        assert (answer["answer"], len(answer["matches"])) == ("match", 2)
        assert answer["matches"][0]["path"] == str(one)
        answer = client.post("/query?camera=2&camera=3&threshold=0.000001", content=content).json()
        assert answer["answer"] == "unknown"
        assert {match["camera"] for match in answer["matches"]} == {"2"}
        for wrong in ("k=0", "start=nan", "end=inf", "threshold=inf", "threshold=-1"):
            assert client.post(f"/query?{wrong}", content=content).status_code == 422
        unknown = client.post("/query?from=1", content=content)
        assert (unknown.status_code, "no such parameter" in unknown.text) == (400, True)
        broken = client.post("/query", content=b"no image")
        assert (broken.status_code, "cannot be read" in broken.text) == (400, True)
        assert client.post("/query", content=b"").status_code == 400
        assert client.post("/query", content=bytes(http.MAX_BYTES + 1)).status_code == 413
        assert client.get("/docs").status_code == 404, "its scripts come from another machine"


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_the_command_serve_answers_until_ctrl_c(built: str, model: Path, photos: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sharpreid.search",
        "serve",
        f"store={built}",
        f"model={model}",
        "port=0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(
            found.group() for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line))
        )
        body = sorted(photos.glob("*.jpg"))[0].read_bytes()
        with urllib.request.urlopen(f"{address}/query?k=1", data=body, timeout=30) as response:
            assert json.load(response)["matches"][0]["distance"] == pytest.approx(0, abs=1e-4)
        other_site = urllib.request.Request(address, headers={"Host": "other.example"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(other_site, timeout=30)
        assert refused.value.code == 400
        refused.value.close()
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30) in (0, -signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find"], "no such action"),
        (["query", "store=s", "images=a.jpg"], "model=... is missing"),
        (["query", "store=s", "images=a.jpg", "model=m", "k=0"], "k must be"),
        (["query", "store=s", "images=a.jpg", "model=m", "batch_size=x"], "batch_size must be"),
        (["query", "store=s", "images=a.jpg", "model=m", "threshold=-1"], "threshold must be"),
        (["query", "store=s", "images=a.jpg", "model=m", "from=noon"], "from must be a number"),
        (["query", "store=s", "images=a.jpg", "model=m", "output=found.txt"], ".csv or .png"),
        (["query", "store=s", "images=a.jpg", "model=m", "re_ranking=yes"], "k_reciprocal"),
        (["query", "store=s", "images=a.jpg", "model=m", "kamera=1"], "did you mean camera"),
        (["remove", "store=s", 'camera=["a'], "names with commas"),
        (["remove", "store=s", "camera=[1]"], "names with commas"),
        (["build", "store=s"], "gallery=... is missing"),
        (["build", "store=s", "gallery=g", "index=maybe"], "index must be"),
        (["add", "store=s"], "give either gallery"),
        (["add", "store=s", "gallery=g", "index=maybe"], "index must be"),
        (["add", "store=s", "gallery=g", "model=m"], "goes with images"),
        (["remove", "store=s"], "all=yes"),
        (["remove", "store=s", "all=yes", "camera=1"], "all=yes"),
        (["serve", "store=s"], "model=... is missing"),
        (["serve", "store=s", "model=m", "port=99999"], "port must be"),
    ],
)
def test_wrong_arguments_end_with_status_2_and_the_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "usage:" in error


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sharpreid.serving.stores", None)
    with pytest.raises(SystemExit) as ended:
        main(["remove", "store=s", "all=yes"])
    assert ended.value.code == 1
    assert "pip install 'sharpreid[serve]'" in capsys.readouterr().err


def test_tracks_of_one_video_are_told_apart_in_a_csv_file(store: Store, tmp_path: Path) -> None:
    tracks = [Query((Item("/a.mp4", frame=1, track=track),), corner(0)[0]) for track in "ab"]
    answers = answer_queries(store, tracks, k=1, where=EVERYTHING)
    write_answers(tmp_path / "found.csv", [describe_answer(answer, None) for answer in answers])
    rows = [*csv.DictReader((tmp_path / "found.csv").read_text().splitlines())]
    assert [(row["query"], row["query_track"]) for row in rows] == [("/a.mp4", "a"), ("/a.mp4", "b")]


def test_a_name_that_no_row_has_removes_nothing(built: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["remove", f"store={built}", "camera=2, Hof"])
    assert ended.value.code == 1
    assert "' Hof'" in capsys.readouterr().err
    assert open_store(built).count() == 8


def test_a_store_with_rows_is_not_built_again(
    built: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["build", f"gallery={tmp_path / 'gallery'}", f"store={built}"])
    assert ended.value.code == 1
    assert "use the action add" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_writer_leaves_a_store_that_opens_and_the_command_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "store"
    program = f"""
import numpy as np
from sharpreid.serving import lance_store
from sharpreid.serving.gallery import Item
from sharpreid.serving.stores import open_store
store = open_store({str(place)!r}, digest={DIGEST!r}, dim=2)
for part in range(10_000):
    store.add([Item(f"/{{part}}-{{n}}.jpg") for n in range(100)], np.full((100, 2), part, np.float32))
    print(part, flush=True)
"""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(4):
                process.stdout.readline()
            time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
        count = open_store(str(place)).count()
        assert count >= 400
        assert count % 100 == 0, "an addition is there whole or not at all"
