"""Loader of a user's own images in one folder per identity, without camera ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    list_images,
    random_stream,
    split_without_cameras,
    summarize,
)


def load_identity_folders(*, root: str | Path, name: str, test_half_seed: int | None = None) -> ReIDData:
    """Read the folders train/<identity>/ and test/<identity>/ of ``root``, or split its folders <identity>/.

    In the test set the first image of each identity, by file name, is the query and the others are gallery.
    An identity with a single image is gallery only. No image is opened.

    Args:
        root: folder with train/ and test/, or with one folder per identity.
        name: name that is printed with scores.
        test_half_seed: seed that draws half of the identities (rounded down) for the test set if there are no
            train/ and test/; None refuses such a folder.

    Returns:
        The data set. Identities are numbered from 1 in the order of their names.

    Raises:
        FileNotFoundError: ``root``, train/ or test/ is missing.
        DataError: there are no identities, an identity has no image or is in both train/ and test/, no test
            identity has two images, or ``test_half_seed`` does not fit the folders.
        ValueError: ``test_half_seed`` is negative or no whole number.
    """
    root = Path(root).expanduser()
    if test_half_seed is not None and (not isinstance(test_half_seed, int) or test_half_seed < 0):
        raise ValueError(
            f"data.source.test_half_seed must be a whole number >= 0 or null, got {test_half_seed!r}"
        )
    train_folders, test_folders = _train_and_test(root, test_half_seed)
    shared = sorted(train_folders.keys() & test_folders.keys())
    if shared:
        raise DataError(
            f"{root}: identities {summarize(shared)} are both in train/ and in test/; keep one of the two"
        )
    number = {identity: n for n, identity in enumerate(sorted({*train_folders, *test_folders}), 1)}
    train, test = (
        tuple(
            Sample(path, number[identity], 0)
            for identity, folder in folders.items()
            for path in list_images(folder)
        )
        for folders in (train_folders, test_folders)
    )
    query, gallery = split_without_cameras(test)
    if not query:
        raise DataError(
            f"{root}: none of the {len(test_folders)} test identities has two images, so no query has a "
            "match; add images to test/"
        )
    variant = None if test_half_seed is None else f"test half {test_half_seed}"
    return ReIDData(name, train, query, gallery, junk=0, variant=variant, cameras_known=False)


def _train_and_test(root: Path, test_half_seed: int | None) -> tuple[dict[str, Path], Mapping[str, Path]]:
    folders = _folders(root)
    given = [part for part in ("train", "test") if part in folders]
    if len(given) == 1:
        raise FileNotFoundError(
            f"{root}: has {given[0]}/ but not the other of train/ and test/; both are needed"
        )
    if given:
        if test_half_seed is not None:
            raise DataError(f"{root}: has train/ and test/, so data.source.test_half_seed must be null")
        return _folders(root / "train"), _folders(root / "test")
    if test_half_seed is None:
        raise DataError(
            f"{root}: has no train/ and test/, but {len(folders)} other folders. Sort the identities into "
            "train/ and test/, or draw half of them for the test by data.source.test_half_seed=0"
        )
    drawn = set(_draw_half(sorted(folders), test_half_seed))
    return (
        {identity: folder for identity, folder in folders.items() if identity not in drawn},
        {identity: folder for identity, folder in folders.items() if identity in drawn},
    )


def _draw_half(identities: Sequence[str], seed: int) -> list[str]:
    order = random_stream("test-half", seed).permutation(len(identities))
    return [identities[place] for place in order[: len(identities) // 2]]


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; expected one folder per identity. Name it by data.source.root=/path"
        )
    folders = {
        entry.name: entry
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not folders:
        raise DataError(f"{root}: has no folders; expected one folder per identity")
    return folders
