"""Loader of a user's own images in one folder per identity, with cameras in the file names or without."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sharpreid.data.names import find_invisible, normalise_name, reject_look_alikes
from sharpreid.data.reid_data import (
    DataError,
    ReIDData,
    Sample,
    list_images,
    match_all,
    random_stream,
    split_by_camera,
    split_without_cameras,
    summarize,
)


def load_identity_folders(
    *, root: str | Path, name: str, test_half_seed: int | None = None, camera_pattern: str | None = None
) -> ReIDData:
    """Read the folders train/<identity>/ and test/<identity>/ of ``root``, or split its folders <identity>/.

    Without cameras the first image of each test identity, by file name, is the query and the others are
    gallery. An identity with a single image is gallery only. With cameras see `split_by_camera`. No image is
    opened.

    Args:
        root: folder with train/ and test/, or with one folder per identity. A folder with one of the two
            alone is a data set without training or without test images.
        name: name that is printed with scores.
        test_half_seed: seed that draws half of the identities (rounded down) for the test set if there are no
            train/ and test/; None refuses such a folder.
        camera_pattern: regular expression of a whole file name, whose group ``camera`` is the camera, such as
            ``.*_c(?P<camera>[0-9]+)_.*``; None if the cameras are unknown.

    Returns:
        The data set. Identities, and cameras, are numbered from 1 in the order of their names.

    Raises:
        FileNotFoundError: ``root``, train/ or test/ is missing.
        DataError: there are no identities, an identity has no image or is in both train/ and test/, two names
            look alike, a file name does not match ``camera_pattern``, no query has a match, or
            ``test_half_seed`` does not fit the folders.
        ValueError: ``test_half_seed`` is negative or no whole number, or ``camera_pattern`` is no regular
            expression with a group ``camera``.
    """
    root = Path(root).expanduser()
    if test_half_seed is not None and (not isinstance(test_half_seed, int) or test_half_seed < 0):
        raise ValueError(
            f"data.source.test_half_seed must be a whole number >= 0 or null, got {test_half_seed!r}"
        )
    pattern = None if camera_pattern is None else _compile(camera_pattern)
    train_folders, test_folders = _train_and_test(root, test_half_seed)
    _check_names(root, train_folders, test_folders)
    number = {identity: n for n, identity in enumerate(sorted({*train_folders, *test_folders}), 1)}
    train, test = (
        [(path, number[identity]) for identity, folder in folders.items() for path in list_images(folder)]
        for folders in (train_folders, test_folders)
    )
    camera = {} if pattern is None else _cameras(root, [path for path, _ in (*train, *test)], pattern)
    split = split_without_cameras if pattern is None else split_by_camera
    query, gallery = split([Sample(path, pid, camera.get(path, 0)) for path, pid in test])
    if test and not query:
        views = "two images" if pattern is None else "images from two cameras"
        raise DataError(
            f"{root}: none of the {len(test_folders)} test identities has {views}, so no query has a "
            "match; add images to test/"
        )
    return ReIDData(
        name=name,
        train=tuple(Sample(path, pid, camera.get(path, 0)) for path, pid in train),
        query=query,
        gallery=gallery,
        junk=0,
        variant=None if test_half_seed is None else f"test half {test_half_seed}",
        cameras_known=pattern is not None,
    )


def _compile(camera_pattern: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(camera_pattern)
    except re.error as error:
        raise ValueError(
            f"data.source.camera_pattern={camera_pattern}: not a regular expression ({error})"
        ) from error
    if "camera" not in pattern.groupindex:
        raise ValueError(
            f"data.source.camera_pattern={camera_pattern}: has no group (?P<camera>...) around the camera"
        )
    return pattern


def _cameras(root: Path, paths: Iterable[Path], pattern: re.Pattern[str]) -> dict[Path, int]:
    """Return the camera of each image, numbered from 1 in the order of the cameras' names."""
    paths = list(paths)
    example = f"the pattern of a whole name, data.source.camera_pattern={pattern.pattern}"
    matches = match_all(root, "file names", [path.name for path in paths], pattern, example=example)
    names = [match["camera"] or "" for match in matches]
    reject_look_alikes("camera", {name: path.name for path, name in zip(paths, names, strict=True)}, root)
    number = {name: n for n, name in enumerate(sorted(set(names)), 1)}
    return {path: number[name] for path, name in zip(paths, names, strict=True)}


def _check_names(root: Path, train: Mapping[str, Path], test: Mapping[str, Path]) -> None:
    """Raise DataError if an identity is in both parts, or names cannot be told apart by eye."""
    spelled = {normalise_name(identity) for identity in test}
    if shared := [identity for identity in train if normalise_name(identity) in spelled]:
        raise DataError(
            f"{root}: identities {summarize(shared)} are both in train/ and in test/; keep one of the two"
        )
    folders = {**train, **test}
    for identity, folder in folders.items():
        if invisible := find_invisible(identity):
            raise DataError(f"{folder.parent}: folder {identity!a} has an invisible {invisible}; rename it")
    reject_look_alikes("identity", {name: f"folder {folders[name].parent.name}/" for name in folders}, root)


def _train_and_test(root: Path, test_half_seed: int | None) -> tuple[dict[str, Path], Mapping[str, Path]]:
    folders = _folders(root)
    given = [part for part in ("train", "test") if part in folders]
    if len(given) == 1 and len(folders) > 1:
        raise FileNotFoundError(
            f"{root}: has {given[0]}/ but not the other of train/ and test/; both are needed"
        )
    if given:
        if test_half_seed is not None:
            raise DataError(f"{root}: has train/ and test/, so data.source.test_half_seed must be null")
        train, test = (_folders(root / part) if part in given else {} for part in ("train", "test"))
        return train, test
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
