"""DukeMTMC-reID's folders are read by name, checked and counted."""

from pathlib import Path

import pytest

from sharpreid.data.duke import PUBLISHED, load_duke
from sharpreid.data.reid_data import DataError
from tests.data.fake_images import paint_folders

FILES = {
    "bounding_box_train": (
        "0001_c2_f0046182.jpg",
        "0001_c5_f0050000.jpg",
        "0005_c8_f0168902.jpg",
        "7140_c4_f0175846.jpg",
    ),
    "query": ("0002_c1_f0044158.jpg", "0023_c7_f0200011.jpg"),
    "bounding_box_test": (
        "0002_c3_f0044302.jpg",
        "0002_c1_f0044278.jpg",
        "0023_c8_f0200155.jpg",
        "0027_c6_f0119870.jpg",
    ),
}
COUNTS = {
    "train_images": 4,
    "train_identities": 3,
    "query_images": 2,
    "query_identities": 2,
    "gallery_images": 4,
    "gallery_identities": 3,
}


def write_fake_dataset(root: Path) -> list[str]:
    """Write a small data set in the real layout; return the overrides that select it."""
    paint_folders(root, lambda person, camera, number: f"{person:04d}_c{camera}_f{number:07d}.jpg")
    return [f"data.source.root={root}", "data.source.allow_subset=true"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """File names only, as the authors distributed them, and what systems leave between them."""
    root = tmp_path / "DukeMTMC-reID"
    for folder, names in FILES.items():
        (root / folder).mkdir(parents=True)
        for name in (*names, "Thumbs.db", ".DS_Store", "._0001_c2_f0046182.jpg"):
            (root / folder / name).touch()
    return root


def test_identity_and_camera_come_from_the_file_name(tree: Path) -> None:
    data = load_duke(root=tree, expected=COUNTS)
    assert [(one.path.name, one.pid, one.camid) for one in data.query] == [
        ("0002_c1_f0044158.jpg", 2, 1),
        ("0023_c7_f0200011.jpg", 23, 7),
    ]
    assert data.train[-1].pid == 7140
    assert (data.name, data.junk, data.subset, data.cameras_known) == ("duke", 0, None, True)


def test_people_nobody_asks_for_are_ordinary_identities(tree: Path) -> None:
    data = load_duke(root=tree, expected=COUNTS)
    assert 27 in {one.pid for one in data.gallery}
    assert data.counts()["distractor_images"] == 0


def test_published_counts_are_those_of_the_data_set() -> None:
    assert (PUBLISHED["train_images"], PUBLISHED["train_identities"]) == (16_522, 702)
    assert (PUBLISHED["query_images"], PUBLISHED["query_identities"]) == (2_228, 702)
    assert (PUBLISHED["gallery_images"], PUBLISHED["gallery_identities"]) == (17_661, 702 + 408)
    assert sum(PUBLISHED[f"{part}_images"] for part in ("train", "query", "gallery")) == 36_411


def test_other_counts_are_refused_unless_a_subset_is_allowed(tree: Path) -> None:
    with pytest.raises(DataError, match="not the published duke: 4 train images instead of 16,522"):
        load_duke(root=tree)
    subset = load_duke(root=tree, allow_subset=True).subset
    assert subset is not None
    assert "3 gallery identities instead of 1,110" in subset


@pytest.mark.parametrize(
    "name", ["0001_c9_f0046182.jpg", "0001_c2s1_000451_03.jpg", "0000_c2_f0046182.jpg", "-1_c2_f0046182.jpg"]
)
def test_a_name_with_an_impossible_identity_or_camera_is_strange(tree: Path, name: str) -> None:
    (tree / "bounding_box_test" / name).touch()
    with pytest.raises(DataError, match=rf"1 file names do not look like 0001_c2_f0046182\.jpg: {name}"):
        load_duke(root=tree)


def test_a_missing_folder_is_named_with_the_expected_layout(tree: Path) -> None:
    (tree / "query").rename(tree / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match=r"query: no such folder.*DukeMTMC-reID layout.*data\.source\.root"
    ):
        load_duke(root=tree)


def test_an_identity_in_training_and_test_is_refused(tree: Path) -> None:
    (tree / "bounding_box_test" / "0005_c1_f0000001.jpg").touch()
    with pytest.raises(DataError, match="identities 5 are both in training and in test"):
        load_duke(root=tree, expected={})
