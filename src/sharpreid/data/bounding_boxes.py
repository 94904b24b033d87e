"""Loader of data sets in Market-1501's three folders: Occluded-Duke, CUHK03-NP, MSMT17 and others."""

import re
from pathlib import Path

from sharpreid.data.reid_data import (
    IMAGE_SUFFIXES,
    DataError,
    ReIDData,
    Sample,
    check_disjoint,
    samples_from_names,
)

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")

_NAME = re.compile(r"(?P<pid>-1|\d+)_c(?P<camera>\d+).*\.(jpg|jpeg|png|bmp)", re.IGNORECASE)


def load_bounding_boxes(*, root: str | Path, name: str) -> ReIDData:
    """Read the file names of three folders without opening an image.

    A name begins with the identity and the camera, such as ``0002_c1_f0044158.jpg``. In the gallery identity
    0 is a distractor and -1 is junk. Counts are not checked.

    Args:
        root: folder with bounding_box_train/, bounding_box_test/ and query/.
        name: name that is printed with scores.

    Returns:
        The data set, each list sorted by file name.

    Raises:
        FileNotFoundError: ``root`` or one of its folders is missing.
        DataError: a file name does not match, a folder is empty, an identity is in training and test, or a
            training or query image is a distractor or junk.
    """
    root = Path(root).expanduser()
    train, query, boxes = (_read_folder(root, folder) for folder in FOLDERS)
    for folder, samples in (("bounding_box_train", train), ("query", query)):
        if strange := [one for one in samples if one.pid < 1]:
            raise DataError(
                f"{strange[0].path}: identity {strange[0].pid} in {folder}; distractors (0) and junk (-1) "
                "belong into bounding_box_test"
            )
    gallery = tuple(one for one in boxes if one.pid >= 0)
    data = ReIDData(name=name, train=train, query=query, gallery=gallery, junk=len(boxes) - len(gallery))
    check_disjoint(data, root)
    return data


def _read_folder(root: Path, folder: str) -> tuple[Sample, ...]:
    place = root / folder
    found = {path.suffix.lower() for path in place.glob("[!.]*")} & {*IMAGE_SUFFIXES}
    if len(found) > 1:
        raise DataError(f"{place}: images of several types ({', '.join(sorted(found))}); convert them to one")
    return samples_from_names(
        place,
        _NAME,
        example=f"0002_c1_f0044158{min(found, default='.jpg')}",
        layout=f"Expected {', '.join(FOLDERS)} in {root}; name their folder by data.source.root=/path",
    )


def describe_other_layout(root: Path) -> str:
    """Return a hint for a data set whose folder has another layout; empty if it is not that of this module.

    >>> describe_other_layout(Path("nowhere"))
    ''
    """
    if not all((root / folder).is_dir() for folder in FOLDERS):
        return ""
    return (
        f". {root} has {', '.join(FOLDERS)}: read it by data=bounding_boxes data.source.root={root} "
        "data.source.name=NAME"
    )
