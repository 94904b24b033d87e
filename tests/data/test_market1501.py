"""Market-1501's folders are read by name, checked and counted."""

from pathlib import Path
from typing import Any

import pytest

from sharpreid.data.market1501 import PUBLISHED, load_market1501
from sharpreid.data.reid_data import DataError
from tests.data.fake_images import paint_folders


def write_fake_dataset(root: Path) -> list[str]:
    """Write a small data set in the real layout; return the overrides that select it."""
    paint_folders(root, lambda person, camera, number: f"{person:04d}_c{camera}s1_{number:06d}_00.jpg")
    return [f"data.source.root={root}", "data.source.allow_subset=true"]


def test_identity_and_camera_come_from_the_file_name(
    market_tree: Path, market_counts: dict[str, int]
) -> None:
    data = load_market1501(root=market_tree, expected=market_counts)
    first = data.train[0]
    assert (first.path.name, first.pid, first.camid) == ("0002_c1s1_000451_03.jpg", 2, 1)
    assert first.path.parent == market_tree / "bounding_box_train"
    assert [(sample.pid, sample.camid) for sample in data.query] == [(1, 1), (1, 2), (3, 3)]


def test_names_that_end_in_jpg_jpg_are_images_and_thumbs_db_is_not(market_tree: Path) -> None:
    data = load_market1501(root=market_tree, expected={})
    names = [sample.path.name for sample in (*data.train, *data.query, *data.gallery)]
    assert sum(name.endswith(".jpg.jpg") for name in names) == 3
    assert "Thumbs.db" not in names


def test_hidden_files_are_no_images(market_tree: Path, market_counts: dict[str, int]) -> None:
    (market_tree / "query" / "._0001_c1s1_001051_00.jpg").touch()
    assert load_market1501(root=market_tree, expected=market_counts).subset is None


def test_junk_is_counted_but_left_out(market_tree: Path) -> None:
    data = load_market1501(root=market_tree, expected={})
    assert data.junk == 2
    assert min(sample.pid for sample in data.gallery) == 0


def test_distractors_stay_in_the_gallery(market_tree: Path) -> None:
    data = load_market1501(root=market_tree, expected={})
    assert sum(sample.pid == 0 for sample in data.gallery) == 3


def test_lists_are_sorted_whatever_the_order_on_disk(
    market_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir
    expected = load_market1501(root=market_tree, expected={})
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listed(self), reverse=True))
    data = load_market1501(root=market_tree, expected={})
    assert data == expected
    for samples in (data.train, data.query, data.gallery):
        names = [sample.path.name for sample in samples]
        assert names == sorted(names)


def test_counts_are_those_recorded_with_scores(market_tree: Path, market_counts: dict[str, int]) -> None:
    assert load_market1501(root=market_tree, expected=market_counts).counts() == {
        "train_images": 9,
        "train_identities": 4,
        "query_images": 3,
        "query_identities": 2,
        "gallery_images": 6,
        "gallery_identities": 2,
        "distractor_images": 3,
        "junk_images": 2,
    }


def test_published_counts_are_the_papers() -> None:
    assert (PUBLISHED["train_images"], PUBLISHED["train_identities"]) == (12_936, 751)
    assert (PUBLISHED["query_images"], PUBLISHED["query_identities"]) == (3_368, 750)
    assert PUBLISHED["gallery_images"] + PUBLISHED["junk_images"] == 19_732
    assert (PUBLISHED["junk_images"], PUBLISHED["distractor_images"]) == (3_819, 2_798)


def test_other_counts_are_refused_and_the_difference_is_named(market_tree: Path) -> None:
    with pytest.raises(
        DataError, match=r"not the published market1501: 9 train images instead of 12,936"
    ) as e:
        load_market1501(root=market_tree)
    message = str(e.value)
    assert "3 query images instead of 3,368" in message
    assert "2 junk images instead of 3,819" in message
    assert "data.source.allow_subset=true" in message


def test_only_what_differs_is_named(market_tree: Path, market_counts: dict[str, int]) -> None:
    (market_tree / "bounding_box_test" / "-1_c1s1_000401_03.jpg").unlink()
    with pytest.raises(DataError, match=r": 1 junk images instead of 2\. Unpack"):
        load_market1501(root=market_tree, expected=market_counts)


def test_an_allowed_subset_is_named_in_the_data(market_tree: Path, market_counts: dict[str, int]) -> None:
    wanted = market_counts | {"query_images": 5}
    data = load_market1501(root=market_tree, expected=wanted, allow_subset=True)
    assert data.subset == "3 query images instead of 5"


def test_a_complete_set_is_no_subset_even_where_one_is_allowed(
    market_tree: Path, market_counts: dict[str, int]
) -> None:
    assert load_market1501(root=market_tree, expected=market_counts, allow_subset=True).subset is None


@pytest.mark.parametrize("folder", ["bounding_box_train", "query", "bounding_box_test"])
def test_a_missing_folder_is_named_with_the_expected_layout(market_tree: Path, folder: str) -> None:
    (market_tree / folder).rename(market_tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{folder}: no such folder.*Market-1501-v15\.09\.15 layout"):
        load_market1501(root=market_tree)


def test_a_missing_root_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.source\.root=/path/to/Market-1501-v15\.09\.15"):
        load_market1501(root=tmp_path / "nowhere")


def test_a_folder_without_images_is_refused(market_tree: Path) -> None:
    for path in (market_tree / "query").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"query: no \.jpg file; expected images named like 0002_c1s1"):
        load_market1501(root=market_tree)


def test_strange_names_are_counted_and_shown(market_tree: Path) -> None:
    for number in range(7):
        (market_tree / "query" / f"holiday{number}.jpg").touch()
    with pytest.raises(DataError, match=r"7 file names do not look like .*holiday0\.jpg.* and 2 more"):
        load_market1501(root=market_tree)


@pytest.mark.parametrize(
    "name", ["0002_c7s1_000451_03.jpg", "002_c1s1_000451_03.jpg", "-2_c1s1_000451_03.jpg", "0002_c1_1_3.jpg"]
)
def test_a_name_with_an_impossible_identity_or_camera_is_strange(market_tree: Path, name: str) -> None:
    (market_tree / "bounding_box_train" / name).touch()
    with pytest.raises(DataError, match=f"1 file names do not look like .*{name}"):
        load_market1501(root=market_tree)


@pytest.mark.parametrize("folder", ["query", "bounding_box_test"])
def test_an_identity_in_training_and_test_is_refused(market_tree: Path, folder: str) -> None:
    (market_tree / folder / "0007_c1s1_000001_01.jpg").touch()
    with pytest.raises(DataError, match=r"identities 7 are both in training and in test"):
        load_market1501(root=market_tree, expected={})


def test_the_home_directory_may_be_abbreviated(market_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(market_tree.parent))
    assert load_market1501(root=f"~/{market_tree.name}", expected={}).train


def plant_hand_drawn(root: Path) -> None:
    """gt_bbox: each query's own box under its own name, others of its track, and those of other people."""
    (root / "gt_bbox").mkdir()
    for name in (
        "0001_c1s1_001051_00.jpg",
        "0001_c1s1_001076_00.jpg",
        "0001_c1s2_005000_00.jpg",
        "0001_c3s1_002000_00.jpg",
        "0002_c1s1_000451_00.jpg",
        "0003_c3s3_077944_00.jpg",
        "Thumbs.db",
    ):
        (root / "gt_bbox" / name).touch()


def test_multi_query_takes_the_hand_drawn_boxes_of_the_query_s_identity_and_camera(
    market_tree: Path, market_counts: dict[str, int]
) -> None:
    plant_hand_drawn(market_tree)
    data = load_market1501(root=market_tree, expected=market_counts, multi_query=True)
    assert data.multi_query is not None
    assert [[one.path.name for one in group] for group in data.multi_query] == [
        ["0001_c1s1_001076_00.jpg", "0001_c1s2_005000_00.jpg"],
        [],
        [],
    ]
    single = load_market1501(root=market_tree, expected=market_counts)
    assert (data.query, data.gallery, single.multi_query) == (single.query, single.gallery, None)


def test_a_multi_query_flag_that_is_neither_true_nor_false_is_refused(market_tree: Path) -> None:
    wrong: Any = "no"
    with pytest.raises(ValueError, match=r"data\.source\.multi_query must be true or false, got 'no'"):
        load_market1501(root=market_tree, expected={}, multi_query=wrong)


def test_multi_query_without_gt_bbox_is_refused(market_tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gt_bbox: no such folder"):
        load_market1501(root=market_tree, expected={}, multi_query=True)


@pytest.fixture
def further_distractors(tmp_path: Path) -> Path:
    folder = tmp_path / "ein Ordner voller Störer"
    folder.mkdir()
    for name in ("b.jpg", "0000_c3s1_1_1.jpg", "-1_c1s1_000401_03.jpg", ".hidden.jpg", "Thumbs.db"):
        (folder / name).touch()
    return folder


def test_further_distractors_join_the_gallery_and_the_name(
    market_tree: Path,
    market_counts: dict[str, int],
    further_distractors: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sharpreid.data.market1501.DISTRACTORS", 3)
    data = load_market1501(root=market_tree, expected=market_counts, distractors=further_distractors)
    assert (data.name, data.subset) == ("market1501+500k", None)
    assert [(one.path.name, one.pid, one.camid) for one in data.gallery[-3:]] == [
        ("-1_c1s1_000401_03.jpg", 0, 0),
        ("0000_c3s1_1_1.jpg", 0, 0),
        ("b.jpg", 0, 0),
    ]
    assert data.counts()["distractor_images"] == 6


def test_too_few_further_distractors_are_refused_or_named(
    market_tree: Path, market_counts: dict[str, int], further_distractors: Path
) -> None:
    with pytest.raises(DataError, match=r"3 further distractors instead of 500,000.*allow_subset=true"):
        load_market1501(root=market_tree, expected=market_counts, distractors=further_distractors)
    data = load_market1501(
        root=market_tree,
        expected=market_counts | {"junk_images": 5},
        distractors=further_distractors,
        allow_subset=True,
    )
    assert data.subset == "2 junk images instead of 5, 3 further distractors instead of 500,000"
