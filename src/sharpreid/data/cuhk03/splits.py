"""Loaders of CUHK03 (Li et al., 2014): its 20 test splits and the new protocol of Zhong et al. (2017)."""

import csv
from collections.abc import Mapping
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from sharpreid.data.cuhk03.images import IMAGE_NAME, UnpackedImages, ensure_unpacked
from sharpreid.data.cuhk03.mat_file import KINDS, MAT
from sharpreid.data.progress_bar import ProgressCallback
from sharpreid.data.reid_data import (
    ReIDData,
    Sample,
    check_counts,
    check_disjoint,
    identities,
    match_file_names,
)

Kind = Literal["labeled", "detected"]
Crops = Literal["labeled", "detected", "both"]
Cameras = Literal["view", "pair_and_view"]

PUBLISHED = {
    crops: {"images": images, "identities": 1_467, "test_identities": 100}
    for crops, images in {"labeled": 14_096, "detected": 14_097, "both": 28_193}.items()
}
"""Counts of all splits together by kind of crop, from Section IV-A and the data set's page."""

PUBLISHED_NEW = {
    "labeled": {
        "train_images": 7_368,
        "train_identities": 767,
        "query_images": 1_400,
        "query_identities": 700,
        "gallery_images": 5_328,
        "gallery_identities": 700,
    },
    "detected": {
        "train_images": 7_365,
        "train_identities": 767,
        "query_images": 1_400,
        "query_identities": 700,
        "gallery_images": 5_332,
        "gallery_identities": 700,
    },
}
"""Counts of the new protocol by kind of crop."""


class _Image(NamedTuple):
    """An unpacked image and its position in cuhk-03.mat, counted from 1."""

    path: Path
    pair: int
    number: int
    view: int
    column: int

    def sample(self, unpacked: UnpackedImages, cameras: Cameras) -> Sample:
        before = list(accumulate(unpacked.pairs, initial=0))[self.pair - 1]
        camera = self.view if cameras == "view" else 2 * (self.pair - 1) + self.view
        return Sample(self.path, before + self.number, camera)


def load_cuhk03(
    *,
    root: str | Path,
    crops: Crops,
    split: int,
    cameras: Cameras,
    name: str,
    images: str | Path | None = None,
    expected: Mapping[str, int] | None = None,
    allow_subset: bool = False,
    progress: ProgressCallback | None = None,
) -> ReIDData:
    """Load one of the 20 splits that come with CUHK03: 100 test identities, the other 1,367 for training.

    The paper keeps 100 of the 1,367 for validation (Sec. IV-A) without naming them; the config holds them out
    by ``data.validation_identities``. Identities are numbered from 1 through all camera pairs. Every test
    image is both a query and in the gallery; the protocol excludes all gallery images of the query's camera,
    and thus the query itself.

    Args:
        root: folder of cuhk-03.mat; the images are unpacked on first use.
        crops: "labeled" (boxes drawn by hand), "detected", or "both", labeled images first.
        split: number of the test split, from 0.
        cameras: "view" numbers the two views of every pair 1 and 2, as the public evaluators of this data set
            do, so that a query meets the other view only. "pair_and_view" counts 10 cameras,
            2 (pair - 1) + view, so that a query also meets both views of people from other pairs, which
            lowers the mAP.
        name: name that is printed with scores.
        images: folder of the unpacked images; None is <root>/images.
        expected: "images", "identities" and "test_identities" to check; None checks the published ones.
            Counts of a single split are not checked, so that all splits of a subset have the same name.
        allow_subset: accept other counts; every score then names the difference.
        progress: see `sharpreid.data.cuhk03.images.unpack`; None shows a progress bar.

    Returns:
        The data set, each list sorted by file name within a kind of crop.

    Raises:
        FileNotFoundError: neither cuhk-03.mat nor unpacked images exist.
        DataError: the file or the images are damaged, or counts differ and ``allow_subset`` is false.
        ValueError: an option is unknown, or the split does not exist.
        OSError: ``images`` cannot be written.
    """
    _check_option("crops", crops, get_args(Crops))
    _check_option("cameras", cameras, get_args(Cameras))
    if not isinstance(split, int) or isinstance(split, bool):
        raise ValueError(f"data.source.split must be a whole number, got {split!r}")
    folder, unpacked = _unpacked(root, images, progress)
    if not 0 <= split < len(unpacked.test_sets):
        raise ValueError(f"data.source.split must be from 0 to {len(unpacked.test_sets) - 1}, got {split}")
    tested = set(unpacked.test_sets[split])
    kinds = KINDS if crops == "both" else (crops,)
    found = [image for kind in kinds for image in _list_images(folder / kind)]
    test = tuple(one.sample(unpacked, cameras) for one in found if (one.pair, one.number) in tested)
    train = tuple(one.sample(unpacked, cameras) for one in found if (one.pair, one.number) not in tested)
    variant = None if cameras == "view" else "10 cameras"
    data = ReIDData(name, train, test, test, junk=0, split=split, variant=variant)
    counts = {
        "images": len(found),
        "identities": len(identities((*train, *test))),
        "test_identities": len(identities(test)),
    }
    wanted = PUBLISHED[crops] if expected is None else expected
    return check_counts(data, wanted, place=folder, allow_subset=allow_subset, found=counts)


def load_cuhk03_new(
    *,
    root: str | Path,
    crops: Kind,
    name: str,
    images: str | Path | None = None,
    expected: Mapping[str, int] | None = None,
    allow_subset: bool = False,
    progress: ProgressCallback | None = None,
) -> ReIDData:
    """Load CUHK03 in the new protocol (Zhong et al., 2017): 767 training and 700 test identities.

    Each test identity has one query image per view; its other images are gallery. The file new_<crops>.csv
    beside this module lists pair and number of each test identity and the columns of its queries in the two
    views. The table was derived from ``query_idx`` and ``filelist`` in the authors'
    ``cuhk03_new_protocol_config_<crops>.mat`` (github.com/zhunzhong07/person-re-ranking). It is sufficient:
    in that file ``gallery_idx`` lists all other images of these identities, and ``train_idx`` all images of
    the other identities.

    Cameras are numbered 2 (pair - 1) + view. An identity is in one pair only, so the rankings are the same
    as with the authors' two camera numbers.

    ``expected`` has keys of `ReIDData.counts`. The other arguments, the result and the errors are those of
    `load_cuhk03`.
    """
    _check_option("crops", crops, get_args(Kind))
    folder, unpacked = _unpacked(root, images, progress)
    queries = new_protocol_queries(crops)
    train: list[Sample] = []
    query: list[Sample] = []
    gallery: list[Sample] = []
    for image in _list_images(folder / crops):
        columns = queries.get((image.pair, image.number))
        part = train if columns is None else query if image.column in columns else gallery
        part.append(image.sample(unpacked, "pair_and_view"))
    data = ReIDData(name, tuple(train), tuple(query), tuple(gallery), junk=0)
    check_disjoint(data, folder)
    wanted = PUBLISHED_NEW[crops] if expected is None else expected
    return check_counts(data, wanted, place=folder, allow_subset=allow_subset)


def new_protocol_queries(kind: Kind) -> dict[tuple[int, int], tuple[int, int]]:
    """Map each test identity (pair, number) of the new protocol to its query columns in views 1 and 2.

    >>> new_protocol_queries("labeled")[1, 3]
    (2, 8)
    """
    table = files("sharpreid.data.cuhk03").joinpath(f"new_{kind}.csv").read_text(encoding="utf-8")
    return {
        (int(row["pair"]), int(row["number"])): (int(row["view1"]), int(row["view2"]))
        for row in csv.DictReader(table.splitlines())
    }


def _unpacked(
    root: str | Path, images: str | Path | None, progress: ProgressCallback | None
) -> tuple[Path, UnpackedImages]:
    root = Path(root).expanduser()
    folder = root / "images" if images is None else Path(images).expanduser()
    return folder, ensure_unpacked(root / MAT, folder, progress)


def _list_images(folder: Path) -> list[_Image]:
    matches = match_file_names(
        folder, IMAGE_NAME, example="1_043_2_06.png", layout=f"Expected the unpacked images of {MAT}"
    )
    return [
        _Image(folder / match.string, *(int(match[part]) for part in ("pair", "number", "view", "column")))
        for match in matches
    ]


def _check_option(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"data.source.{option} must be one of {', '.join(known)}, got {value!r}")
