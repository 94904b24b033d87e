"""A folder per identity becomes a data set whose cameras are not known."""

import shutil
from pathlib import Path

import pytest

from sharpreid.data.identity_folders import load_identity_folders
from sharpreid.data.reid_data import DataError, identities
from tests.data.fake_images import PEOPLE, paint


def write_fake_dataset(root: Path) -> list[str]:
    """Write a folder of small images per person; return the overrides that select it."""
    for person in PEOPLE:
        for number in range(3):
            paint(root / ("train" if person <= 4 else "test") / f"person {person}" / f"{person}_{number}.jpg")
    validated = ["data.validation_identities=1", "data.identities_per_batch=3"]
    return [f"data.source.root={root}", "data.source.name=shop", *validated]


def plant(root: Path, files: dict[str, tuple[str, ...]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


@pytest.fixture
def sorted_tree(tmp_path: Path) -> Path:
    """Two people to train on, three to test on, one of them with a single image."""
    return plant(
        tmp_path / "shop floor",
        {
            "train/anna": ("2.JPG", "1.jpg", "notes.txt", "Thumbs.db"),
            "train/Zoë K": ("bild 1.png", "bild 2.jpeg", "._bild 2.jpeg"),
            "test/bo": ("1.bmp", "2.jpg", "3.jpg"),
            "test/carl": ("only.jpg",),
            "test/東": ("b.jpg", "a.jpg"),
            "test/.trash": ("x.jpg",),
        },
    )


@pytest.fixture
def unsorted_tree(tmp_path: Path) -> Path:
    return plant(tmp_path / "people", {f"person {n}": ("1.jpg", "2.jpg") for n in range(9)})


def test_the_first_image_of_a_test_identity_is_its_query_and_the_others_are_gallery(
    sorted_tree: Path,
) -> None:
    data = load_identity_folders(root=sorted_tree, name="shop")
    assert [str(one.path.relative_to(sorted_tree)) for one in data.query] == [
        "test/bo/1.bmp",
        "test/東/a.jpg",
    ]
    assert [str(one.path.relative_to(sorted_tree)) for one in data.gallery] == [
        "test/bo/2.jpg",
        "test/bo/3.jpg",
        "test/carl/only.jpg",
        "test/東/b.jpg",
    ]
    assert {one.camid for one in data.query} == {0}
    assert {one.camid for one in data.gallery} == {1}
    assert not data.cameras_known


def test_identities_are_numbered_from_one_in_the_order_of_their_names(sorted_tree: Path) -> None:
    data = load_identity_folders(root=sorted_tree, name="shop")
    assert [one.path.parent.name for one in data.train] == ["Zoë K"] * 2 + ["anna"] * 2
    assert [one.pid for one in data.train] == [1, 1, 2, 2]
    assert identities(data.gallery) == {3, 4, 5}


def test_half_of_the_identities_is_drawn_for_the_test_where_that_is_asked_for(unsorted_tree: Path) -> None:
    data = load_identity_folders(root=unsorted_tree, name="people", test_half_seed=0)
    assert (len(identities(data.train)), len(identities(data.query))) == (5, 4)
    assert identities(data.train).isdisjoint(identities(data.gallery))
    assert data == load_identity_folders(root=unsorted_tree, name="people", test_half_seed=0)
    draws = {
        frozenset(
            identities(load_identity_folders(root=unsorted_tree, name="people", test_half_seed=n).query)
        )
        for n in range(6)
    }
    assert len(draws) > 1


def test_folders_without_train_and_test_say_what_to_do(unsorted_tree: Path) -> None:
    with pytest.raises(
        DataError, match=r"no train/ and test/, but 9 other folders.*data\.source\.test_half_seed=0"
    ):
        load_identity_folders(root=unsorted_tree, name="people")


def test_a_draw_is_refused_where_train_and_test_are_given(sorted_tree: Path) -> None:
    with pytest.raises(
        DataError, match=r"has train/ and test/, so data\.source\.test_half_seed must be null"
    ):
        load_identity_folders(root=sorted_tree, name="shop", test_half_seed=0)


def test_train_without_test_is_refused(sorted_tree: Path) -> None:
    (sorted_tree / "test").rename(sorted_tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match="has train/ but not the other of train/ and test/"):
        load_identity_folders(root=sorted_tree, name="shop")


def test_an_identity_in_train_and_test_is_refused_by_name(sorted_tree: Path) -> None:
    plant(sorted_tree, {"test/anna": ("5.jpg",)})
    with pytest.raises(DataError, match="identities anna are both in train/ and in test/"):
        load_identity_folders(root=sorted_tree, name="shop")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("test/Zoe\u0308 K", "identities Zoë K are both in train/ and in test/"),
        ("test/anna ", "identities anna are both in"),
        ("train/Zoe\u0308 K", r"identity 'Zo\\xeb K' looks like 'Zoe\\u0308 K' in folder train/"),
        ("test/an\u200bna", r"folder 'an\\u200bna' has an invisible U\+200B"),
    ],
)
def test_folders_that_look_alike_are_refused(sorted_tree: Path, folder: str, message: str) -> None:
    plant(sorted_tree, {folder: ("5.jpg", "6.jpg")})
    with pytest.raises(DataError, match=message):
        load_identity_folders(root=sorted_tree, name="shop")


CAMERA = r"\d_c(?P<camera>\w+)\.jpg"


def test_the_camera_comes_from_the_file_name(tmp_path: Path) -> None:
    root = plant(
        tmp_path,
        {
            "train/anna": ("1_cyard.jpg",),
            "test/bo": ("1_cdoor.jpg", "2_cdoor.jpg", "3_cyard.jpg"),
            "test/carl": ("1_cdoor.jpg", "2_cdoor.jpg"),
        },
    )
    data = load_identity_folders(root=root, name="shop", camera_pattern=CAMERA)
    assert [(one.path.name, one.camid) for one in data.query] == [("1_cdoor.jpg", 1), ("3_cyard.jpg", 2)]
    assert [one.path.name for one in data.gallery if one.path.parent.name == "bo"] == [
        "2_cdoor.jpg",
        "3_cyard.jpg",
    ]
    assert sum(one.path.parent.name == "carl" for one in data.gallery) == 2
    assert data.cameras_known
    assert data.train[0].camid == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\d_c(\w+)\.jpg", r"camera_pattern=.* has no group \(\?P<camera>"),
        (r"(?P<camera>", "not a regular expression"),
        (CAMERA, r"10 file names do not look like .*camera_pattern=.*: bild 1\.png, "),
    ],
)
def test_a_pattern_that_names_no_camera_is_refused(sorted_tree: Path, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_identity_folders(root=sorted_tree, name="shop", camera_pattern=pattern)


def test_cameras_that_look_alike_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, {"train/a": ("1_c1.jpg",), "test/b": ("1_c01.jpg", "2_c2.jpg")})
    with pytest.raises(DataError, match=r"camera '01' looks like '1' in 1_c1\.jpg"):
        load_identity_folders(root=root, name="shop", camera_pattern=CAMERA)


def test_a_test_set_alone_can_be_scored(sorted_tree: Path) -> None:
    shutil.rmtree(sorted_tree / "train")
    data = load_identity_folders(root=sorted_tree, name="shop")
    assert (len(data.train), len(data.query)) == (0, 2)


def test_a_folder_without_images_is_named(sorted_tree: Path) -> None:
    plant(sorted_tree, {"train/dora": ("notes.txt",)})
    with pytest.raises(DataError, match=r"dora: no image; expected files that end in \.jpg, \.jpeg, \.png"):
        load_identity_folders(root=sorted_tree, name="shop")


def test_test_identities_with_a_single_image_each_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path / "shop", {"train/a": ("1.jpg",), "test/b": ("1.jpg",), "test/c": ("1.jpg",)})
    with pytest.raises(DataError, match="none of the 2 test identities has two images, so no query"):
        load_identity_folders(root=root, name="shop")


def test_a_missing_or_empty_root_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder.*data\.source\.root=/path"):
        load_identity_folders(root=tmp_path / "nowhere", name="shop")
    with pytest.raises(DataError, match="expected one folder per identity"):
        load_identity_folders(root=tmp_path, name="shop")
