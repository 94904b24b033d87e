"""MSMT17's lists are read, checked against the folders and counted."""

from pathlib import Path

import pytest

from sharpreid.data.msmt17 import PUBLISHED, WITHOUT_VALIDATION, load_msmt17
from sharpreid.data.reid_data import DataError, identities
from tests.data.fake_images import paint

LISTS = {
    "list_train.txt": (
        "0000/0000_000_01_0303morning_0008_0.jpg 0",
        "0000/0000_001_14_0303morning_0015_1.jpg 0",
        "0001/0001_000_05_0113noon_0284_2_ex.jpg 1",
    ),
    "list_val.txt": ("0001/0001_001_15_0302afternoon_1439_0.jpg 1",),
    "list_query.txt": (
        "0000/0000_000_02_0303morning_0017_2.jpg 0",
        "0001/0001_002_03_0114noon_0006_0.jpg 1",
    ),
    "list_gallery.txt": (
        "0000/0000_001_07_0303morning_0040_0.jpg 0",
        "0001/0001_000_03_0114noon_0010_0.jpg 1",
        "0001/0001_001_12_0114noon_0238_6.jpg 1",
    ),
}
COUNTS = {
    "train_images": 4,
    "train_identities": 2,
    "query_images": 2,
    "query_identities": 2,
    "gallery_images": 3,
    "gallery_identities": 2,
}


def write_fake_dataset(root: Path) -> list[str]:
    """Write a small data set in the real layout; return the overrides that select it."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    parts = {"train": ("train", "train", "val", "train"), "test": ("query", "query", "gallery", "gallery")}
    for folder, people in (("train", 4), ("test", 2)):
        for person in range(people):
            for number, part in enumerate(parts[folder]):
                file = f"{person:04d}/{person:04d}_{number:03d}_{1 + number % 2:02d}_0303morning_0008_0.jpg"
                paint(root / folder / file)
                lists[part].append(f"{file} {person}")
    for name, lines in lists.items():
        (root / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return [f"data.source.root={root}", "data.source.allow_subset=true"]


def plant(root: Path, train: str = "train", test: str = "test") -> Path:
    """Empty files and the lists, both kinds of people numbered from 0 as the authors do."""
    for list_name, lines in LISTS.items():
        folder = root / (train if list_name in ("list_train.txt", "list_val.txt") else test)
        for line in lines:
            path = folder / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (root / list_name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant(tmp_path / "MSMT17_V1")


def test_the_camera_is_the_third_field_of_the_name(tree: Path) -> None:
    data = load_msmt17(root=tree, expected=COUNTS)
    assert [one.camid for one in data.train] == [1, 14, 5, 15]
    assert [one.camid for one in data.query] == [2, 3]
    assert data.train[0].path == tree / "train" / "0000" / "0000_000_01_0303morning_0008_0.jpg"


def test_the_first_person_of_either_list_is_neither_the_other_s_nor_a_distractor(tree: Path) -> None:
    data = load_msmt17(root=tree, expected=COUNTS)
    assert identities(data.train) == {1, 2}
    assert identities(data.query) == identities(data.gallery) == {10_001, 10_002}
    assert data.counts()["distractor_images"] == 0


def test_validation_images_are_trained_on_unless_left_out(tree: Path) -> None:
    with_validation = load_msmt17(root=tree, expected=COUNTS)
    without = load_msmt17(root=tree, validation="unused", expected=COUNTS | {"train_images": 3})
    assert with_validation.train[:3] == without.train
    assert len(with_validation.train) == 4
    with pytest.raises(ValueError, match="validation must be train or unused, got 'both'"):
        load_msmt17(root=tree, validation="both")


def test_the_second_release_is_found_by_its_folders_and_named(tmp_path: Path) -> None:
    root = plant(tmp_path / "MSMT17_V2", "mask_train_v2", "mask_test_v2")
    data = load_msmt17(root=root, expected=COUNTS)
    assert data.name == "msmt17_v2"
    assert data.gallery[0].path.is_relative_to(root / "mask_test_v2")


def test_published_counts_add_up_to_the_whole_data_set() -> None:
    assert sum(PUBLISHED[f"{part}_images"] for part in ("train", "query", "gallery")) == 126_441
    assert PUBLISHED["train_identities"] + PUBLISHED["gallery_identities"] == 4_101
    assert PUBLISHED["train_images"] - WITHOUT_VALIDATION["train_images"] == 2_373


def test_other_counts_are_refused_by_the_training_lists_in_use(tree: Path) -> None:
    with pytest.raises(DataError, match="not the published msmt17: 4 train images instead of 32,621"):
        load_msmt17(root=tree)
    with pytest.raises(DataError, match="3 train images instead of 30,248"):
        load_msmt17(root=tree, validation="unused")
    assert load_msmt17(root=tree, allow_subset=True).subset


def test_listed_files_that_are_missing_are_named(tree: Path) -> None:
    (tree / "test" / "0001" / "0001_001_12_0114noon_0238_6.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"list_gallery\.txt: 1 of 3 listed files are not in test/: 0001_001_12_0114noon_0238_6\.jpg",
    ):
        load_msmt17(root=tree, expected=COUNTS)


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list_is_named(tree: Path, name: str) -> None:
    (tree / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file; put the list"):
        load_msmt17(root=tree)


@pytest.mark.parametrize(
    "line",
    [
        "0000/0000_000_16_0303morning_0008_0.jpg 0",
        "0000/0000_000_01_0303morning_0008_0.jpg",
        "../secret.jpg 0",
        "0000/0000_000_01_/../../../secret.jpg 0",
        "0000/0000_000_01_0303morning_0008_0.jpg -1",
    ],
)
def test_a_strange_line_is_shown(tree: Path, line: str) -> None:
    with (tree / "list_query.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"list_query\.txt: 1 lines do not look like") as e:
        load_msmt17(root=tree)
    assert line in str(e.value)


def test_lines_may_end_as_on_windows_and_blank_ones_are_passed_over(tree: Path) -> None:
    path = tree / "list_query.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_msmt17(root=tree, expected=COUNTS).query


def test_an_empty_list_is_refused(tree: Path) -> None:
    (tree / "list_query.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"list_query\.txt: empty; expected lines like '0000/0000_000"):
        load_msmt17(root=tree)


def test_other_folders_are_refused_with_the_expected_layout(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither train/ and test/ nor mask_train_v2/.*MSMT17_V1"):
        load_msmt17(root=tmp_path)
