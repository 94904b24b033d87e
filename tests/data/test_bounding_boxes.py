"""Data sets in Market-1501's three folders, whatever their own name."""

from pathlib import Path

import pytest

from sharpreid.data.bounding_boxes import FOLDERS, load_bounding_boxes
from sharpreid.data.cuhk03.mat_file import CUHK03Mat
from sharpreid.data.msmt17 import load_msmt17
from sharpreid.data.reid_data import DataError
from tests.data.fake_images import paint_folders


def write_fake_dataset(root: Path) -> list[str]:
    """Write a small data set in the real layout; return the overrides that select it."""
    paint_folders(root, lambda person, camera, number: f"{person:04d}_c{camera}_{number}.png")
    return [f"data.source.root={root}"]


def write(root: Path, train: str, query: str, *gallery: str) -> Path:
    for folder, names in zip(FOLDERS, ([train], [query], gallery), strict=True):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


@pytest.mark.parametrize(
    ("train", "query", "gallery"),
    [
        ("0001_c2_f0046182.jpg", "0002_c1_f0044158.jpg", "0002_c3_f0044302.jpg"),  # Occluded-Duke
        ("0001_c2_10.png", "0002_c1_1.png", "0002_c3_2.png"),  # CUHK03-NP
        ("0001_c2_0001.jpg", "0002_c1_0001.JPG", "0002_c3_0003.jpg"),  # MSMT17
        ("0001_c2s1_000451_03.jpg", "0002_c1s1_000451_03.jpg", "0002_c3s1_000451_03.jpg"),  # Market-1501
    ],
)
def test_identity_and_camera_come_from_the_names(
    tmp_path: Path, train: str, query: str, gallery: str
) -> None:
    suffix = Path(gallery).suffix
    root = write(tmp_path, train, query, gallery, f"0000_c4_1{suffix}", f"-1_c5_1{suffix}")
    data = load_bounding_boxes(root=root, name="mine")
    assert [(one.pid, one.camid) for one in (*data.train, *data.query)] == [(1, 2), (2, 1)]
    assert {(one.pid, one.camid) for one in data.gallery} == {(2, 3), (0, 4)}
    assert (data.name, data.junk, data.subset) == ("mine", 1, None)


@pytest.mark.parametrize(
    ("train", "query", "message"),
    [
        ("0002_c1_1.jpg", "0002_c1_1.jpg", "both in training and in test"),
        ("-1_c1_1.jpg", "0002_c1_1.jpg", "identity -1 in bounding_box_train"),
        ("0001_c1_1.jpg", "0000_c1_1.jpg", "identity 0 in query"),
        ("person.jpg", "0002_c1_1.jpg", "do not look like"),
        ("person.txt", "0002_c1_1.jpg", "no .jpg file"),
    ],
)
def test_a_wrong_image_is_refused(tmp_path: Path, train: str, query: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_bounding_boxes(root=write(tmp_path, train, query, "0002_c2_1.jpg"), name="mine")


def test_the_loaders_of_the_authors_layouts_name_this_one(tmp_path: Path) -> None:
    root = write(tmp_path, "0001_c1_1.jpg", "0002_c1_1.jpg", "0002_c2_1.jpg")
    with pytest.raises(FileNotFoundError, match="data=bounding_boxes"):
        load_msmt17(root=root)
    with pytest.raises(FileNotFoundError, match="data=bounding_boxes"):
        CUHK03Mat(root / "cuhk-03.mat")


def test_images_of_several_types_are_not_read_in_part(tmp_path: Path) -> None:
    root = write(tmp_path, "0001_c1_1.jpg", "0002_c1_1.jpg", "0002_c2_1.jpg", "0002_c3_1.png")
    with pytest.raises(DataError, match=r"several types \(\.jpg, \.png\)"):
        load_bounding_boxes(root=root, name="mine")
