"""What the page of sharpreid.explore answers: matches, unknown people, masks, map, worst queries."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpreid.exploration import explorer as module
from sharpreid.exploration.explorer import Answer, Explorer
from sharpreid.serving.gallery import Item
from sharpreid.serving.model import Embedder, load_model
from sharpreid.serving.sources import find_items, read_picture
from sharpreid.serving.store import Filter, Store
from sharpreid.serving.stores import open_store
from tests.serving.test_model import saved

__all__ = ["saved"]  # a fixture

pytest.importorskip("lancedb")

CAMERA = r"_c(?P<camera>\d)s(?P<time>\d)"


def filled(model: Embedder, folder: Path, place: Path) -> Store:
    items = find_items(str(folder), boxes=None, camera_pattern=CAMERA)
    store = open_store(str(place), digest=model.digest, dim=model.dim)
    store.add(items, model.embed([item.path for item in items]))
    return store


@pytest.fixture
def explorer(saved: Callable[..., tuple[Path, Any]], tiny_market: Path, tmp_path: Path) -> Explorer:
    model = load_model(saved("method=sab")[0])
    return Explorer(filled(model, tiny_market / "bounding_box_test", tmp_path / "store"), model)


def test_the_row_of_the_query_is_its_first_match_and_no_match_of_itself(explorer: Explorer) -> None:
    item = explorer.items[0]
    picture = read_picture(item)
    found = explorer.search(picture, Filter(), count=3, threshold=1e-3)
    assert found.matches[0].item == item
    assert found.matches[0].distance == pytest.approx(0, abs=1e-4)
    assert found.within == 1
    assert "Found" in found.sentence
    others = explorer.search(picture, Filter(), count=3, threshold=1e-3, leave_out=item)
    assert item not in [one.item for one in others.matches]
    assert len(others.matches) == 3


def test_nobody_within_the_threshold_is_an_answer(explorer: Explorer) -> None:
    found = explorer.search(Image.new("RGB", (16, 32), "red"), Filter(), count=3, threshold=0.0)
    assert found.within == 0
    assert "Unknown" in found.sentence
    assert f"{found.matches[0].distance:.3f}" in found.sentence


def test_only_chosen_cameras_are_searched(explorer: Explorer) -> None:
    picture = read_picture(explorer.items[0])
    found = explorer.search(picture, Filter(cameras=("2",)), count=9, threshold=1.0)
    assert {one.item.camera for one in found.matches} == {"2"}
    assert explorer.search(picture, Filter(cameras=("7",)), count=9, threshold=1.0).matches == []


def test_cameras_are_sorted_as_numbers_and_times_have_a_range(explorer: Explorer) -> None:
    explorer.items = [Item("a", camera=camera, time=time) for camera, time in (("10", 5.0), ("2", 1.5))]
    assert explorer.cameras == ["2", "10"]
    assert explorer.times == (1.5, 5.0)


def test_a_store_of_another_model_is_refused(explorer: Explorer, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "other"), digest="0" * 64, dim=128)
    with pytest.raises(ValueError, match="another model"):
        Explorer(store, explorer.model)


def test_soft_masks_are_drawn_beside_sharp_ones_and_the_model_stays_as_it_was(explorer: Explorer) -> None:
    picture = read_picture(explorer.items[0])
    before = explorer.model.embed(picture)
    sheet = explorer.draw_masks([picture, picture], ["query", "match"])
    np.testing.assert_array_equal(explorer.model.embed(picture), before)
    soft_alone = Explorer(explorer.store, explorer.model, beside=explorer.model)
    assert sheet.size != (0, 0)
    assert sheet.tobytes() != soft_alone.draw_masks([picture, picture], ["query", "match"]).tobytes()


def test_a_search_while_masks_are_drawn_finds_the_same(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, answers, threads = read_picture(explorer.items[0]), list[Answer](), list[threading.Thread]()
    record = module.record_attention

    def search() -> None:
        answers.append(explorer.search(picture, Filter(), count=3, threshold=1.0))

    def record_during_a_search(*arguments: Any) -> Any:
        threads.append(threading.Thread(target=search))
        threads[-1].start()
        threads[-1].join(0.2)
        return record(*arguments)

    monkeypatch.setattr(module, "record_attention", record_during_a_search)
    search()
    explorer.draw_masks([picture], ["query"])
    for one in threads:
        one.join()
    distances = [[match.distance for match in one.matches] for one in answers]
    assert len(threads) == 2, "one with sharp and one with soft masks"
    assert distances[1:] == [distances[0]] * 2


def test_a_model_without_attention_has_no_masks(
    saved: Callable[..., tuple[Path, Any]], tiny_market: Path, tmp_path: Path
) -> None:
    model = load_model(saved("method=baseline")[0])
    explorer = Explorer(filled(model, tiny_market / "bounding_box_test", tmp_path / "store"), model)
    with pytest.raises(ValueError, match="no attention blocks"):
        explorer.draw_masks([Image.new("RGB", (16, 32))], ["query"])


def test_the_map_shows_every_row_in_the_colour_of_its_camera(explorer: Explorer) -> None:
    pytest.importorskip("sklearn")
    axes = explorer.draw_map("camera").axes[0]
    rows = {str(part.get_label()): len(part.get_offsets()) for part in axes.collections}
    assert rows == {"1": 4, "2": 4}


def test_a_picture_that_is_gone_is_shown_grey(explorer: Explorer) -> None:
    assert explorer.thumbnail(Item("gone.jpg")).getcolors() == [(64 * 128, (200, 200, 200))]


def test_worst_queries_are_those_with_the_lowest_average_precision(
    explorer: Explorer, tiny_market: Path, tmp_path: Path
) -> None:
    names = [path.name for path in sorted((tiny_market / "query").glob("*.jpg"))]
    rows = [f"{names[0]},9,1,0.5,1", f"{names[1]},9,2,0.25,0", f"{names[2]},10,1,,", "gone.jpg,10,2,0.125,0"]
    (tmp_path / "queries.csv").write_text("\n".join(["image,identity,camera,ap,rank1", *rows]) + "\n")
    root = (
        f"data_root: {tiny_market.parent}\ndata: {{source: {{root: '${{data_root}}/{tiny_market.name}'}}}}\n"
    )
    (tmp_path / "config.yaml").write_text(root)
    explorer.run = tmp_path
    worst = explorer.worst_queries(2)
    assert [one.average_precision for one in worst] == [0.125, 0.25]
    assert [one.path for one in worst] == [None, tiny_market / "query" / names[1]]
    with pytest.raises(FileNotFoundError, match="finished run"):
        Explorer(explorer.store, explorer.model, run=tmp_path / "nowhere").worst_queries(2)
