"""Anyone's own images, sorted into a folder per identity; their cameras are not known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    image_files,
    random_stream,
    some,
    split_without_cameras,
)


def load_identity_folders(*, root: str | Path, name: str, test_half_seed: int | None = None) -> ReIDData:
    """Read ``root``/train/<identity>/ and ``root``/test/<identity>/, or halves of ``root``/<identity>/.

    The first image of each test identity, by file name, is its query, the others are gallery; an identity
    with a single image is gallery. No image is opened.

    Args:
        root: folder with train/ and test/, or with a folder per identity.
        name: as printed with scores.
        test_half_seed: where there are no train/ and test/, half of the identities (rounded down), drawn with
            this seed, become the test set; None refuses such a folder.

    Returns:
        The data set. Identities are numbered from 1 in the order of their names.

    Raises:
        FileNotFoundError: ``root`` or one of train/ and test/ is missing.
        DataError: there are no identities, one has no image, one is in train/ and test/, no test identity has
            two images, or ``test_half_seed`` does not fit what is in ``root``.
    """
    root = Path(root).expanduser()
    if test_half_seed is not None and (not isinstance(test_half_seed, int) or test_half_seed < 0):
        raise ValueError(f"data.source.test_half_seed must be a whole number from 0, got {test_half_seed!r}")
    train_folders, test_folders = _train_and_test(root, test_half_seed)
    shared = sorted(train_folders.keys() & test_folders.keys())
    if shared:
        raise DataError(f"{root}: identities {some(shared)} are both in train/ and in test/")
    number = {identity: n for n, identity in enumerate(sorted({*train_folders, *test_folders}), 1)}
    train, test = (
        tuple(
            Sample(path, number[identity], 0)
            for identity, folder in folders.items()
            for path in image_files(folder)
        )
        for folders in (train_folders, test_folders)
    )
    query, gallery = split_without_cameras(test)
    if not query:
        raise DataError(
            f"{root}: none of the {len(test_folders)} test identities has two images, so no query has a match"
        )
    variant = None if test_half_seed is None else f"test half {test_half_seed}"
    return ReIDData(name, train, query, gallery, junk=0, variant=variant, cameras_known=False)


def _train_and_test(root: Path, test_half_seed: int | None) -> tuple[dict[str, Path], Mapping[str, Path]]:
    folders = _folders(root)
    given = [part for part in ("train", "test") if part in folders]
    if len(given) == 1:
        raise FileNotFoundError(
            f"{root}: {given[0]}/ is there, but the other one of train/ and test/ is missing"
        )
    if given:
        if test_half_seed is not None:
            raise DataError(f"{root}: has train/ and test/, so leave data.source.test_half_seed at null")
        return _folders(root / "train"), _folders(root / "test")
    if test_half_seed is None:
        raise DataError(
            f"{root}: no train/ and test/ in it, but {len(folders)} other folders. Sort the identities into "
            "train/ and test/, or have half of them drawn for the test by data.source.test_half_seed=0"
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
            f"{root}: no such folder; expected a folder per identity, named by data.source.root=/path"
        )
    folders = {
        entry.name: entry
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not folders:
        raise DataError(f"{root}: no folder in it; expected a folder per identity")
    return folders
