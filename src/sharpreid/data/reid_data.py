"""What every data set is to the rest of the suite: lists of image files with identity and camera."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

_SHOWN = 5

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels; right and lower are the first that are outside."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class DataError(ValueError):
    """A data set's files are missing, incomplete, unreadable or not what they claim to be."""


class Sample(NamedTuple):
    """One image file."""

    path: Path
    pid: int
    """Identity; 0 is a distractor, which counts as a negative in any ranking."""
    camid: int
    """Camera, 1-based; where cameras are unknown 0 for training and query images, 1 for the gallery."""
    box: Box | None = None
    """The person's place in the file; None is the whole image."""


class HardPair(NamedTuple):
    """Two test identities that differ in one small detail only."""

    pids: tuple[int, int]
    detail: str
    """Such as ``knapsack``."""


@dataclass(frozen=True)
class ReIDData:
    """A data set: training images, and the query and gallery images of one test split.

    Attributes:
        name: as printed with scores.
        train: training images; their identities never appear in ``query`` or ``gallery``.
        query: probe images.
        gallery: images to be ranked, distractors included, junk left out.
        junk: number of junk images (identity -1) left out of ``gallery``; they never enter a ranking.
        synthetic: made by a program: scores say nothing about a real benchmark.
        subset: how the images differ from the published data set, or None if they do not.
        split: number of the test split, for data sets that have several.
        variant: which choice about the data set, other than the usual one, its scores depend on.
        cameras_known: False if the images come without camera ids: then no ranking leaves anything out.
        multi_query: for each of ``query`` the further images that its embedding is the mean of, itself not
            among them; None is single-query.
        hard_pairs: test identities that differ in one detail, for data sets that know them.
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
        """Numbers of images and identities, as recorded with scores."""
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
    """The different identities of ``samples``."""
    return {sample.pid for sample in samples}


def hold_out(
    train: Sequence[Sample], count: int, seed: int, *, cameras_known: bool = True
) -> tuple[ReIDData, tuple[Sample, ...]]:
    """Set training identities aside for validation, so that no choice is made on the test set.

    Args:
        train: training images.
        count: identities to hold out, of those seen by at least two cameras.
        seed: of the choice.
        cameras_known: False holds out identities with two images, see `split_without_cameras`.

    Returns:
        The held-out identities as a data set without training images (per identity and camera the first image
        is a query, the others are gallery; an identity's only image in a camera serves as both: the ranking
        rule of its camera keeps it from meeting itself), and the remaining training images.

    Raises:
        ValueError: fewer than 2 training identities would remain, or too few are seen by two cameras.
    """
    seen: dict[int, set[object]] = {}
    for sample in train:
        seen.setdefault(sample.pid, set()).add(sample.camid if cameras_known else sample)
    eligible = sorted(pid for pid, views in seen.items() if len(views) > 1)
    if count < 1 or count > len(eligible) or len(seen) - count < 2:
        what = "seen by two cameras" if cameras_known else "with two images"
        raise ValueError(
            f"validation_identities must be at least 1, at most the {len(eligible)} identities {what}, and "
            f"leave 2 of the {len(seen)} for training; got {count}"
        )
    chosen = set(random_stream("hold-out", seed).permutation(eligible)[:count].tolist())
    held = sorted((sample for sample in train if sample.pid in chosen), key=_file_order)
    query, gallery = (_split_by_camera if cameras_known else split_without_cameras)(held)
    validation = ReIDData("held-out training identities", (), query, gallery, 0, cameras_known=cameras_known)
    return validation, tuple(sample for sample in train if sample.pid not in chosen)


def draw_identities(data: ReIDData, count: int, seed: int) -> ReIDData:
    """Keep some training identities, drawn by ``seed``; the test images stay as they are.

    Args:
        data: the whole data set.
        count: training identities to keep, at least 2.
        seed: of the draw.

    Raises:
        ValueError: ``count`` is below 2 or above the number of training identities.
    """
    known = sorted(identities(data.train))
    if not 2 <= count <= len(known):
        raise ValueError(
            f"training_identities must be from 2 to the {len(known)} training identities of {data.name}, "
            f"got {count}"
        )
    kept = set(random_stream("training-subset", seed).permutation(known)[:count].tolist())
    return replace(data, train=tuple(sample for sample in data.train if sample.pid in kept))


def _file_order(sample: Sample) -> tuple[object, ...]:
    return (*sample[:3], sample.box or ())


def _split_by_camera(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    first: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        first.setdefault((sample.pid, sample.camid), sample)
    sizes = Counter((sample.pid, sample.camid) for sample in samples)
    chosen = set(first.values())
    gallery = tuple(s for s in samples if s not in chosen or sizes[s.pid, s.camid] == 1)
    return tuple(first.values()), gallery


def split_without_cameras(samples: Sequence[Sample]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Query and gallery of images whose cameras are not known.

    The first image of each identity that has two or more is a query, as if from camera 0, and all others are
    gallery, as if from camera 1: no image is in both, so nothing has to leave a ranking.
    """
    sizes = Counter(sample.pid for sample in samples)
    first: dict[int, Sample] = {}
    for sample in samples:
        if sizes[sample.pid] > 1:
            first.setdefault(sample.pid, sample)
    chosen = set(first.values())
    query = tuple(sample._replace(camid=0) for sample in first.values())
    return query, tuple(sample._replace(camid=1) for sample in samples if sample not in chosen)


def random_stream(
    purpose: Literal[
        "hold-out", "sampling", "augmentation", "noise", "test-half", "training-subset", "recalibration"
    ],
    *seeds: int,
) -> np.random.Generator:
    """A generator that is a function of ``purpose`` and ``seeds``, independent of every other one's.

    Without the purpose's own number, numpy would give (seed, epoch) and (seed, epoch, 0) the same stream.
    """
    numbers = {
        "hold-out": 1,
        "sampling": 2,
        "augmentation": 3,
        "noise": 4,
        "test-half": 5,
        "training-subset": 6,
        "recalibration": 7,
    }
    return np.random.default_rng((numbers[purpose], len(seeds), *seeds))


def check_counts(
    data: ReIDData,
    published: Mapping[str, int],
    *,
    place: Path,
    allow_subset: bool,
    found: Mapping[str, int] | None = None,
) -> ReIDData:
    """``data``, if it has the published numbers of images and identities.

    Args:
        data: as it was read.
        published: some or all keys of ``found``.
        place: the data set's folder, for the message.
        allow_subset: accept other counts; ``subset`` of the result then names the difference.
        found: the numbers that are checked; None takes `ReIDData.counts`.

    Raises:
        DataError: the counts differ and ``allow_subset`` is false; names every difference.
    """
    found = data.counts() if found is None else found
    check_flag("allow_subset", allow_subset)
    difference = ", ".join(
        f"{found[what]:,} {what.replace('_', ' ')} instead of {wanted:,}"
        for what, wanted in published.items()
        if found[what] != wanted
    )
    if not difference:
        return data
    if not allow_subset:
        raise DataError(
            f"{place}: not the published {data.name}: {difference}. Unpack it again, or set "
            "data.source.allow_subset=true to go on with a subset, which every score will then name"
        )
    return replace(data, subset=f"{data.subset}, {difference}" if data.subset else difference)


def check_flag(name: str, value: object) -> None:
    """ValueError unless ``value`` is a bool: ``no`` and ``off`` of a command line are text, hence true."""
    if not isinstance(value, bool):
        raise ValueError(f"data.source.{name} must be true or false, got {value!r}")


def match_names(folder: Path, pattern: re.Pattern[str], *, example: str, layout: str) -> list[re.Match[str]]:
    """Names of the images in ``folder``, sorted and taken apart by ``pattern``.

    Files with another suffix than ``example`` (such as ``Thumbs.db``) and hidden files are passed over.

    Raises:
        FileNotFoundError: there is no such folder; the message gives ``layout``.
        DataError: it holds no image, or a name that ``pattern`` does not match.
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
    """Each of ``texts`` taken apart by ``pattern``; DataError names ``place`` and ``what`` does not match."""
    matches = [pattern.fullmatch(text) for text in texts]
    strange = [text for text, match in zip(texts, matches, strict=True) if match is None]
    if strange:
        raise DataError(f"{place}: {len(strange)} {what} do not look like {example}: {some(strange)}")
    return [match for match in matches if match]


def image_files(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, of any usual format, sorted by name; none that is hidden.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with images")
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder}: no image; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return files


def samples_by_name(
    folder: Path, pattern: re.Pattern[str], *, example: str, layout: str
) -> tuple[Sample, ...]:
    """The images in ``folder``, whose names give ``pid`` and ``camera``; otherwise as `match_names`."""
    return tuple(
        Sample(folder / match.string, int(match["pid"]), int(match["camera"]))
        for match in match_names(folder, pattern, example=example, layout=layout)
    )


def check_disjoint(data: ReIDData, place: Path) -> None:
    """DataError if an identity is both in the training and in the test images."""
    shared = identities(data.train) & (identities(data.query) | identities(data.gallery))
    if shared:
        raise DataError(f"{place}: identities {some(sorted(shared))} are both in training and in test images")


def some(items: Iterable[object]) -> str:
    """The first few of ``items`` and how many there are besides.

    >>> some("abc"), some(range(9))
    ('a, b, c', '0, 1, 2, 3, 4 and 4 more')
    """
    items = list(items)
    shown = ", ".join(map(str, items[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
