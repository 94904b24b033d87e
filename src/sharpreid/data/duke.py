"""Loader of DukeMTMC-reID (Zheng et al., 2017) in the folders of the archive published until 2019."""

import re
from collections.abc import Mapping
from pathlib import Path

from sharpreid.data.reid_data import ReIDData, Sample, check_counts, check_disjoint, samples_from_names

PUBLISHED = {
    "train_images": 16_522,
    "train_identities": 702,
    "query_images": 2_228,
    "query_identities": 702,
    "gallery_images": 17_661,
    "gallery_identities": 1_110,
}
"""The gallery has 408 identities without a query; they are numbered like all others."""

_NAME = re.compile(r"(?P<pid>(?!0000)\d{4})_c(?P<camera>[1-8])_f\d+\.jpg")


def load_duke(
    *,
    root: str | Path,
    name: str = "duke",
    expected: Mapping[str, int] | None = None,
    allow_subset: bool = False,
) -> ReIDData:
    """Read the file names of a DukeMTMC-reID folder without opening an image.

    Args:
        root: folder with bounding_box_train/, bounding_box_test/ and query/.
        name: name that is printed with scores.
        expected: counts to check, keys of `ReIDData.counts`; None checks the published ones, {} none.
        allow_subset: accept other counts; every score then names the difference.

    Returns:
        The data set, each list sorted by file name. It has neither junk nor distractors of identity 0.

    Raises:
        FileNotFoundError: ``root`` or one of its folders is missing.
        DataError: a file name does not match, a folder is empty, an identity is in training and test, or
            counts differ and ``allow_subset`` is false.
    """
    root = Path(root).expanduser()
    data = ReIDData(
        name=name,
        train=_read_folder(root, "bounding_box_train"),
        query=_read_folder(root, "query"),
        gallery=_read_folder(root, "bounding_box_test"),
        junk=0,
    )
    check_disjoint(data, root)
    return check_counts(
        data, PUBLISHED if expected is None else expected, place=root, allow_subset=allow_subset
    )


def _read_folder(root: Path, folder: str) -> tuple[Sample, ...]:
    return samples_from_names(
        root / folder,
        _NAME,
        example="0001_c2_f0046182.jpg",
        layout="Expected the DukeMTMC-reID layout (bounding_box_train/, bounding_box_test/, query/) in "
        f"{root}; put the unpacked data set there (docs/datasets/duke.md), or name its folder by "
        "data.source.root=/path/to/DukeMTMC-reID",
    )
