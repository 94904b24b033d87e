"""The common form of all data sets: lists of image files with identity and camera."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels; right and lower are exclusive."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

Purpose = Literal[
    "hold-out", "sampling", "augmentation", "noise", "test-half", "training-subset", "recalibration"
]
"""Purpose of a random generator. Add new ones at the end: the position is part of the seed."""


class DataError(ValueError):
    """Error for a data set whose files are missing, incomplete, unreadable or in the wrong format."""


class Sample(NamedTuple):
    """One image of a data set."""

    path: Path
    pid: int
    """Identity. 0 is a distractor, a wrong answer to every query."""
    camid: int
    """Camera, counted from 1. If cameras are unknown: 0 for training and query images, 1 for the gallery."""
    box: Box | None = None
    """Bounding box of the person; None is the whole image."""


class HardPair(NamedTuple):
    """Two test identities that differ in one small detail."""

    pids: tuple[int, int]
    detail: str
    """Name of the detail, such as ``knapsack``."""


@dataclass(frozen=True)
class ReIDData:
    """A data set: training images, and the query and gallery images of one test split.

    Attributes:
        name: name that is printed with scores.
        train: training images; none of their identities is in ``query`` or ``gallery``.
        query: query images.
        gallery: gallery images with distractors, without junk.
        junk: number of junk images (identity -1). They are not in ``gallery`` and enter no ranking.
        synthetic: True if a program drew the images; such scores say nothing about a real benchmark.
        subset: difference from the published counts; None if there is none.
        split: number of the test split, for data sets that have several.
        variant: name of an unusual choice that scores depend on, such as the number of cameras; or None.
        cameras_known: False if the images have no camera ids; then no image is excluded from a ranking.
        multi_query: additional images of each query, without the query itself. The query's embedding is the
            mean over all of them. None is single-query.
        hard_pairs: test identities that differ in one detail, if the data set records them.
    """

    name: str
    train: tuple[Sample, ...]
    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    junk: int
    synthetic: bool = False
    subset: str | None = None
    split: int | None = None
    variant: str | None = None
    cameras_known: bool = True
    multi_query: tuple[tuple[Sample, ...], ...] | None = None
    hard_pairs: tuple[HardPair, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the numbers of images and identities that are recorded with scores."""
        return {
            "train_images": len(self.train),
            "train_identities": len(identities(self.train)),
            "query_images": len(self.query),
            "query_identities": len(identities(self.query)),
            "gallery_images": len(self.gallery),
            "gallery_identities": len(identities(self.gallery) - {0}),
            "distractor_images": sum(sample.pid == 0 for sample in self.gallery),
            "junk_images": self.junk,
        }


def identities(samples: Sequence[Sample]) -> set[int]:
    """Return the set of identities in ``samples``."""
    return {sample.pid for sample in samples}


def split_validation(
    train: Sequence[Sample], count: int, seed: int, *, cameras_known: bool = True
) -> tuple[ReIDData, tuple[Sample, ...]]:
    """Hold out training identities for validation, so that no choice is made on the test set.

    Args:
        train: training images.
        count: number of identities to hold out. Only identities seen by at least two cameras are eligible.
        seed: seed of the choice.
        cameras_known: False makes identities with at least two images eligible; see `split_without_cameras`.

    Returns:
        The held-out identities as a data set without training images, and the remaining training images. For
        each identity and camera the first image is a query and the others are gallery. The only image of an
        identity in a camera is both: the protocol excludes it from its own ranking, by its camera.

    Raises:
        ValueError: ``count`` is above the number of eligible identities, or would leave fewer than 2 for
            training.
    """
    seen: dict[int, set[object]] = {}
    for sample in train:
        seen.setdefault(sample.pid, set()).add(sample.camid if cameras_known else sample)
    eligible = sorted(pid for pid, views in seen.items() if len(views) > 1)
    if count < 1 or count > len(eligible) or len(seen) - count < 2:
        what = "seen by two cameras" if cameras_known else "with two images"
        raise ValueError(
            f"data.validation_identities must be from 1 to the {len(eligible)} identities {what}, and leave "
            f"2 of the {len(seen)} identities for training; got {count}"
        )
    chosen = set(random_stream("hold-out", seed).permutation(eligible)[:count].tolist())
    held = sorted((sample for sample in train if sample.pid in chosen), key=_file_order)
    query, gallery = (split_by_camera if cameras_known else split_without_cameras)(held)
    validation = ReIDData("held-out training identities", (), query, gallery, 0, cameras_known=cameras_known)
    return validation, tuple(sample for sample in train if sample.pid not in chosen)


def subsample_identities(data: ReIDData, count: int, seed: int) -> ReIDData:
    """Keep a random subset of the training identities; the test images stay as they are.

    Args:
        data: whole data set.
        count: number of training identities to keep, at least 2.
        seed: seed of the choice.

    Raises:
        ValueError: ``count`` is below 2 or above the number of training identities.
    """
    known = sorted(identities(data.train))
    if not 2 <= count <= len(known):
        raise ValueError(
            f"data.training_identities must be from 2 to the {len(known)} training identities of "
            f"{data.name}, got {count}"
        )
    kept = set(random_stream("training-subset", seed).permutation(known)[:count].tolist())
    return replace(data, train=tuple(sample for sample in data.train if sample.pid in kept))


def _file_order(sample: Sample) -> tuple[object, ...]:
    return (*sample[:3], sample.box or ())


def split_by_camera(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split images into query and gallery: the first image of each identity in each camera is a query.

    All other images are gallery. The only image of an identity in a camera is both: the protocol excludes it
    from its own ranking. An identity seen by a single camera has no matches and is gallery only.
    """
    sizes = Counter((sample.pid, sample.camid) for sample in samples)
    cameras = Counter(pid for pid, _ in sizes)
    first: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        if cameras[sample.pid] > 1:
            first.setdefault((sample.pid, sample.camid), sample)
    chosen = set(first.values())
    gallery = tuple(s for s in samples if s not in chosen or sizes[s.pid, s.camid] == 1)
    return tuple(first.values()), gallery


def split_without_cameras(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split the images of a data set without camera ids into query and gallery.

    The first image of each identity with at least two images is a query and gets camera 0. All other images
    are gallery and get camera 1. No image is in both, so none has to be excluded from a ranking.
    """
    sizes = Counter(sample.pid for sample in samples)
    first: dict[int, Sample] = {}
    for sample in samples:
        if sizes[sample.pid] > 1:
            first.setdefault(sample.pid, sample)
    chosen = set(first.values())
    query = tuple(sample._replace(camid=0) for sample in first.values())
    return query, tuple(sample._replace(camid=1) for sample in samples if sample not in chosen)


def random_stream(purpose: Purpose, *seeds: int) -> np.random.Generator:
    """Return a random generator that depends on ``purpose`` and ``seeds`` alone.

    Generators of different purposes or seeds are independent. The purpose and the number of seeds are part of
    the key, because numpy gives (seed, epoch) and (seed, epoch, 0) the same stream.
    """
    return np.random.default_rng((1 + get_args(Purpose).index(purpose), len(seeds), *seeds))


def check_counts(
    data: ReIDData,
    published: Mapping[str, int],
    *,
    place: Path,
    allow_subset: bool,
    found: Mapping[str, int] | None = None,
) -> ReIDData:
    """Return the data set if its counts are the published ones.

    Args:
        data: data set as it was read.
        published: expected counts; keys of ``found``.
        place: folder of the data set, for the message.
        allow_subset: accept other counts. The ``subset`` of the result then names the differences.
        found: counts to check; None takes `ReIDData.counts`.

    Raises:
        DataError: the counts differ and ``allow_subset`` is false. The message names every difference.
    """
    found = data.counts() if found is None else found
    check_bool("allow_subset", allow_subset)
    difference = ", ".join(
        f"{found[what]:,} {what.replace('_', ' ')} instead of {wanted:,}"
        for what, wanted in published.items()
        if found[what] != wanted
    )
    if not difference:
        return data
    if not allow_subset:
        raise DataError(
            f"{place}: not the published {data.name}: {difference}. Unpack the data set again, or set "
            "data.source.allow_subset=true to accept the difference, which every score then names"
        )
    return replace(data, subset=f"{data.subset}, {difference}" if data.subset else difference)


def check_bool(name: str, value: object) -> None:
    """Raise ValueError if an option is not a bool.

    ``no`` and ``off`` on the command line are strings, which Python would take as true.
    """
    if not isinstance(value, bool):
        raise ValueError(f"data.source.{name} must be true or false, got {value!r}")


def match_file_names(
    folder: Path, pattern: re.Pattern[str], *, example: str, layout: str
) -> list[re.Match[str]]:
    """Match the names of the images in ``folder`` against ``pattern``.

    Hidden files and files with another suffix than ``example`` (such as ``Thumbs.db``) are ignored.

    Args:
        folder: folder with the images.
        pattern: pattern of a whole file name.
        example: a file name that matches, for the messages.
        layout: sentence about the expected folders, for the messages.

    Returns:
        The matches, sorted by file name.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the folder has no image, or a name does not match.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. {layout}")
    suffix = Path(example).suffix
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() == suffix and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(f"{folder}: no {suffix} file; expected images named like {example}")
    return match_all(folder, "file names", names, pattern, example=example)


def match_all(
    place: Path, what: str, texts: Sequence[str], pattern: re.Pattern[str], *, example: str
) -> list[re.Match[str]]:
    """Match every text against ``pattern``; raise DataError with ``place`` and ``what`` if a text fails."""
    matches = [pattern.fullmatch(text) for text in texts]
    unmatched = [text for text, match in zip(texts, matches, strict=True) if match is None]
    if unmatched:
        raise DataError(
            f"{place}: {len(unmatched)} {what} do not look like {example}: {summarize(unmatched)}"
        )
    return [match for match in matches if match]


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without subfolders and hidden files.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the folder has no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a folder with images")
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder}: no image; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return files


def samples_from_names(
    folder: Path, pattern: re.Pattern[str], *, example: str, layout: str
) -> tuple[Sample, ...]:
    """Return the images of a folder, with ``pid`` and ``camera`` from their names.

    ``pattern`` has groups of these names. Arguments and errors are those of `match_file_names`.

    Raises:
        ValueError: ``pattern`` lacks one of the groups.
    """
    if missing := sorted({"pid", "camera"} - pattern.groupindex.keys()):
        raise ValueError(
            f"the pattern {pattern.pattern!r} has no group {' and '.join(missing)}, written (?P<pid>...) or "
            "(?P<camera>...). Without a camera in the names build each Sample from match_file_names"
        )
    return tuple(
        Sample(folder / match.string, int(match["pid"]), int(match["camera"]))
        for match in match_file_names(folder, pattern, example=example, layout=layout)
    )


def check_disjoint(data: ReIDData, place: Path) -> None:
    """Raise DataError if an identity is in both the training and the test images."""
    shared = identities(data.train) & (identities(data.query) | identities(data.gallery))
    if shared:
        raise DataError(
            f"{place}: identities {summarize(sorted(shared))} are both in training and in test images; "
            "a test identity must not be trained on"
        )


def summarize(items: Iterable[object], shown: int = 5) -> str:
    """Join the first items with commas and count the others.

    >>> summarize("abc"), summarize(range(9))
    ('a, b, c', '0, 1, 2, 3, 4 and 4 more')
    """
    items = list(items)
    text = ", ".join(map(str, items[:shown]))
    return text if len(items) <= shown else f"{text} and {len(items) - shown} more"
