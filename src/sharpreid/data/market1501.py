"""Loader of Market-1501 (Zheng et al., 2015) in the folders of the published archive."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    check_bool,
    check_counts,
    check_disjoint,
    list_images,
    samples_from_names,
    summarize,
)

JUNK = -1

PUBLISHED = {
    "train_images": 12_936,
    "train_identities": 751,
    "query_images": 3_368,
    "query_identities": 750,
    "gallery_images": 15_913,
    "gallery_identities": 750,
    "distractor_images": 2_798,
    "junk_images": 3_819,
}
"""Counts from Section IV-A of the paper and the data set's page. bounding_box_test has 19,732 with junk."""

DISTRACTORS = 500_000
"""Smallest number of images in the additional set of distractors, which is distributed separately."""

GT_BBOX = {"boxes in gt_bbox": 25_259}
"""Count from the readme in the archive."""

_NAME = re.compile(r"(?P<pid>-1|\d{4})_c(?P<camera>[1-6])s\d+_\d+_\d+\.jpg(\.jpg)?")


def load_market1501(
    *,
    root: str | Path,
    name: str = "market1501",
    expected: Mapping[str, int] | None = None,
    allow_subset: bool = False,
    synthetic: bool = False,
    distractors: str | Path | None = None,
    multi_query: bool = False,
) -> ReIDData:
    """Read the file names of a Market-1501 folder without opening an image.

    Args:
        root: folder with bounding_box_train/, bounding_box_test/ and query/.
        name: name that is printed with scores.
        expected: counts to check, keys of `ReIDData.counts`; None checks the published ones, {} none.
        allow_subset: accept other counts; every score then names the difference.
        synthetic: True if a program drew the images.
        distractors: folder of the 500,000 additional distractors, under any file names. They join the
            gallery, and the data set's name gets the suffix "+500k".
        multi_query: use the mean embedding of a query image and of all hand-drawn boxes (``root``/gt_bbox) of
            its identity in its camera.

    Returns:
        The data set, each list sorted by file name. Junk (identity -1) is counted and left out; distractors
        (identity 0000) stay in the gallery.

    Raises:
        FileNotFoundError: ``root`` or one of its folders is missing.
        DataError: a file name does not match, a folder is empty, junk or a distractor is outside
            bounding_box_test, an identity is in training and test, or counts differ and ``allow_subset`` is
            false.
        ValueError: a flag is neither true nor false.
    """
    check_bool("multi_query", multi_query)
    root = Path(root).expanduser()
    train = _read_folder(root, "bounding_box_train")
    query = _read_folder(root, "query")
    test = _read_folder(root, "bounding_box_test")
    for folder, samples in (("bounding_box_train", train), ("query", query)):
        misplaced = sorted(sample.path.name for sample in samples if sample.pid < 1)
        if misplaced:
            raise DataError(
                f"{root / folder}: junk (-1) and distractors (0000) belong in bounding_box_test; "
                f"move {summarize(misplaced)} there"
            )
    data = ReIDData(
        name=name,
        train=train,
        query=query,
        gallery=tuple(sample for sample in test if sample.pid != JUNK),
        junk=sum(sample.pid == JUNK for sample in test),
        synthetic=synthetic,
    )
    check_disjoint(data, root)
    data = check_counts(
        data, PUBLISHED if expected is None else expected, place=root, allow_subset=allow_subset
    )
    if multi_query:
        boxes = _read_folder(root, "gt_bbox")
        data = replace(data, multi_query=_same_camera_boxes(boxes, query))
        if expected is None:
            data = check_counts(
                data, GT_BBOX, place=root, allow_subset=allow_subset, found={"boxes in gt_bbox": len(boxes)}
            )
    return data if distractors is None else _add_distractors(data, Path(distractors), allow_subset)


def _same_camera_boxes(boxes: Sequence[Sample], query: Sequence[Sample]) -> tuple[tuple[Sample, ...], ...]:
    """Return for each query the boxes of its identity in its camera, without the query itself."""
    groups: dict[tuple[int, int], list[Sample]] = {}
    for box in boxes:
        groups.setdefault((box.pid, box.camid), []).append(box)
    return tuple(
        tuple(box for box in groups.get((one.pid, one.camid), ()) if _stem(box) != _stem(one))
        for one in query
    )


def _stem(sample: Sample) -> str:
    return sample.path.name.split(".")[0]


def _add_distractors(data: ReIDData, folder: Path, allow_subset: bool) -> ReIDData:
    files = list_images(folder.expanduser())
    gallery = (*data.gallery, *(Sample(path, 0, 0) for path in files))
    data = replace(data, name=f"{data.name}+500k", gallery=gallery)
    wanted = {"further distractors": max(DISTRACTORS, len(files))}
    found = {"further distractors": len(files)}
    return check_counts(data, wanted, place=folder, allow_subset=allow_subset, found=found)


def _read_folder(root: Path, folder: str) -> tuple[Sample, ...]:
    return samples_from_names(
        root / folder,
        _NAME,
        example="0002_c1s1_000451_03.jpg",
        layout="Expected the Market-1501-v15.09.15 layout (bounding_box_train/, bounding_box_test/, query/; "
        f"for multi-query gt_bbox/ too) in {root}; unpack the data set there (docs/datasets/"
        "market1501.md), or name its folder by data.source.root=/path/to/Market-1501-v15.09.15",
    )
