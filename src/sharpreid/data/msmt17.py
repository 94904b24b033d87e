"""Loader of MSMT17 (Wei et al., 2018) in the folders and lists of the published archive."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sharpreid.data.bounding_boxes import describe_other_layout
from sharpreid.data.reid_data import DataError, ReIDData, Sample, check_counts, match_all, summarize

PUBLISHED = {
    "train_images": 32_621,
    "train_identities": 1_041,
    "query_images": 11_659,
    "query_identities": 3_060,
    "gallery_images": 82_161,
    "gallery_identities": 3_060,
}
"""Counts with the images of list_val.txt in the training set."""

WITHOUT_VALIDATION = PUBLISHED | {"train_images": 30_248}
"""Counts without the images of list_val.txt."""

TRAIN_OFFSET = 1
TEST_OFFSET = 10_001
"""Offsets added to the identities of training and test lists.

Both kinds of lists number their people from 0. With the offsets no two people share a number, and no identity
is 0, the number of distractors.
"""

_FOLDERS = {"": ("train", "test"), "_v2": ("mask_train_v2", "mask_test_v2")}
_LINE = re.compile(
    r"(?P<file>\d{4}/\d{4}_\d+_(?P<camera>0[1-9]|1[0-5])_[^\s/]+\.jpg)\s+(?P<identity>\d{1,4})"
)
_EXAMPLE = "0000/0000_000_01_0303morning_0008_0.jpg 0"


def load_msmt17(
    *,
    root: str | Path,
    name: str = "msmt17",
    validation: Literal["train", "unused"] = "train",
    expected: Mapping[str, int] | None = None,
    allow_subset: bool = False,
) -> ReIDData:
    """Read the lists of an MSMT17 folder and check that every file exists, without opening an image.

    Args:
        root: folder with the four lists and train/ and test/, or mask_train_v2/ and mask_test_v2/ of the
            second release, whose faces are hidden. The second release gets the name ``name``_v2.
        name: name that is printed with scores.
        validation: use of list_val.txt. ``train`` adds it to the training images, as most publications do;
            ``unused`` ignores it.
        expected: counts to check, keys of `ReIDData.counts`; None checks the published ones, {} none.
        allow_subset: accept other counts; every score then names the difference.

    Returns:
        The data set, each list in the order of its file.

    Raises:
        FileNotFoundError: ``root``, one of its folders or one of its lists is missing.
        DataError: a line does not match, a listed file is missing, or counts differ and ``allow_subset`` is
            false.
        ValueError: ``validation`` is unknown.
    """
    if validation not in ("train", "unused"):
        raise ValueError(f"data.source.validation must be train or unused, got {validation!r}")
    root = Path(root).expanduser()
    version = _version(root)
    train_folder, test_folder = _FOLDERS[version]
    train = _read_list(root, "list_train.txt", train_folder, TRAIN_OFFSET)
    if validation == "train":
        train += _read_list(root, "list_val.txt", train_folder, TRAIN_OFFSET)
    data = ReIDData(
        name=f"{name}{version}",
        train=train,
        query=_read_list(root, "list_query.txt", test_folder, TEST_OFFSET),
        gallery=_read_list(root, "list_gallery.txt", test_folder, TEST_OFFSET),
        junk=0,
        variant=None if validation == "train" else "trained without list_val.txt",
    )
    if expected is None:
        expected = PUBLISHED if validation == "train" else WITHOUT_VALIDATION
    return check_counts(data, expected, place=root, allow_subset=allow_subset)


def _version(root: Path) -> str:
    for version, folders in _FOLDERS.items():
        if all((root / folder).is_dir() for folder in folders):
            return version
    raise FileNotFoundError(
        f"{root}: neither train/ and test/ nor mask_train_v2/ and mask_test_v2/. Expected the MSMT17_V1 (or "
        "_V2) layout with its four lists there; unpack the data set there, or name its folder by "
        f"data.source.root=/path/to/MSMT17_V1{describe_other_layout(root)}"
    )


def _read_list(root: Path, list_name: str, folder: str, offset: int) -> tuple[Sample, ...]:
    path = root / list_name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; put the list of the archive beside {folder}/")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: empty; expected lines like {_EXAMPLE!r}")
    samples = tuple(
        Sample(root / folder / match["file"], int(match["identity"]) + offset, int(match["camera"]))
        for match in match_all(path, "lines", lines, _LINE, example=repr(_EXAMPLE))
    )
    missing = [sample.path.name for sample in samples if not sample.path.is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(samples)} listed files are not in {folder}/: "
            f"{summarize(missing)}. "
            "Unpack the data set again"
        )
    return samples
