"""The embedded data set: people drawn by a program, in Market-1501's own layout (docs/synthetic.md).

Scores on it show whether a method works at all; they say nothing about any real benchmark.
"""

import io
import json
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sharpreid.data.market1501 import load_market1501
from sharpreid.data.progress_bar import ProgressCallback, progress_bar
from sharpreid.data.reid_data import DataError, HardPair, ReIDData
from sharpreid.data.synthetic.cameras import Pixels
from sharpreid.data.synthetic.world import (
    DISTRACTOR,
    JUNK,
    QUERY,
    TEST,
    TRAIN,
    Plan,
    SyntheticWorld,
    draw_pictures,
    plan_world,
)

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other pixels than before."""

RECORD = "synthetic.json"
"""File beside the folders: generator version, seed, sizes, counts and hard pairs."""

_COUNTED = ("train_images", "query_images", "gallery_images", "junk_images", "distractor_images")
_JPEG_QUALITY = 90
_ADVICE = "name another root, or delete this one to have the data set made again"

_log = logging.getLogger(__name__)


def load_synthetic(
    *, root: str | Path, seed: int, name: str = "synthetic", progress: ProgressCallback | None = None
) -> ReIDData:
    """The default data set; made first if ``root`` does not hold it yet.

    Args:
        root: folder of the data set.
        seed: of the world, not of the training.
        name: as printed with scores.
        progress: see `generate`; None shows a bar.

    Returns:
        The data set, as `load_market1501` reads it.

    Raises:
        DataError: see `ensure`.
        OSError: ``root`` cannot be written.
    """
    if progress is not None:
        place = ensure(Path(root), seed=seed, progress=progress)
    else:
        with progress_bar("drawing the synthetic data set") as progress:
            place = ensure(Path(root), seed=seed, progress=progress)
    record = read_record(place)
    data = load_market1501(root=place, name=name, expected=record["counts"], synthetic=True)
    return replace(data, hard_pairs=_test_pairs(record))


def _test_pairs(record: Mapping[str, Any]) -> tuple[HardPair, ...]:
    """The hard pairs among the test people."""
    pairs = (pair for pair in record.get("hard_pairs", ()) if pair["split"] == "test")
    return tuple(HardPair(tuple(pair["pids"]), pair["detail"]) for pair in pairs)


def ensure(
    root: Path, *, seed: int, world: SyntheticWorld | None = None, progress: ProgressCallback | None = None
) -> Path:
    """Make the data set unless it is already there.

    Args:
        root: folder of the data set.
        seed: of the world.
        world: size and difficulty; None takes the defaults.
        progress: see `generate`.

    Returns:
        The folder, absolute.

    Raises:
        DataError: ``root`` holds something else: another seed, size or generator version, an incomplete copy,
            or files that are not this data set's.
        OSError: ``root`` cannot be written.
    """
    world = world or SyntheticWorld()
    root = root.expanduser().resolve()
    if _is_taken(root):
        _check(root, seed, world)
        return root
    return generate(root, seed=seed, world=world, progress=progress)


def generate(
    root: Path, *, seed: int, world: SyntheticWorld | None = None, progress: ProgressCallback | None = None
) -> Path:
    """Draw the data set.

    It is written into a hidden folder beside ``root`` that is renamed when complete, so an interrupted run
    leaves no ``root``. Where several processes start at once, the first to finish wins and the others use its
    copy.

    Args:
        root: folder to make; it must not exist yet, or be empty.
        seed: every pixel follows from it, from ``world`` and from `GENERATOR_VERSION`.
        world: size and difficulty; None takes the defaults.
        progress: called with (pictures written, pictures in all), after each one.

    Returns:
        The folder, absolute.

    Raises:
        DataError: ``root`` is taken.
        OSError: it cannot be written; says what to do.
        ValueError: ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    world = world or SyntheticWorld()
    root = root.expanduser().resolve()
    if _is_taken(root):
        raise DataError(f"{root}: exists already; {_ADVICE}")
    draft = root.with_name(f".{root.name}.{os.getpid()}-{secrets.token_hex(4)}")
    _log.info("making the synthetic data set in %s", root)
    try:
        _write(draft, seed, world, progress)
        _publish(draft, root, seed, world)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{root}: the synthetic data set cannot be written ({error.strerror or error}); name a root "
            "on a disk that you may write to and that has room",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def encode(pixels: Pixels) -> bytes:
    """A picture, (H, W, 3) RGB, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _write(draft: Path, seed: int, world: SyntheticWorld, progress: ProgressCallback | None) -> None:
    for folder in (TRAIN, QUERY, TEST):
        (draft / folder).mkdir(parents=True)
    plan = plan_world(seed, world)
    for done, picture in enumerate(draw_pictures(seed, world, plan), start=1):
        (draft / picture.shot.folder / picture.shot.name).write_bytes(encode(picture.pixels))
        if progress is not None:
            progress(done, len(plan.shots))
    record = {
        **_recipe(seed, world),
        "counts": _count(plan),
        "hard_pairs": [pair._asdict() for pair in plan.hard_pairs],
    }
    (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _publish(draft: Path, root: Path, seed: int, world: SyntheticWorld) -> None:
    try:
        draft.rename(root)
    except OSError:
        if not _is_taken(root):
            raise
        _check(root, seed, world)


def _is_taken(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def _recipe(seed: int, world: SyntheticWorld) -> dict[str, Any]:
    sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in asdict(world).items()}
    return {"generator_version": GENERATOR_VERSION, "seed": seed, **sizes}


def _count(plan: Plan) -> dict[str, int]:
    images = Counter(shot.folder for shot in plan.shots)
    people = {folder: {shot.pid for shot in plan.shots if shot.folder == folder} for folder in images}
    special = Counter(shot.pid for shot in plan.shots if shot.pid <= 0)
    return {
        "train_images": images[TRAIN],
        "train_identities": len(people[TRAIN]),
        "query_images": images[QUERY],
        "query_identities": len(people[QUERY]),
        "gallery_images": images[TEST] - special[JUNK],
        "junk_images": special[JUNK],
        "distractor_images": special[DISTRACTOR],
    }


def read_record(root: Path) -> dict[str, Any]:
    path = root / RECORD
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) if root.is_dir() else "a file"
        raise DataError(f"{root}: no {RECORD}, so not a synthetic data set; found {found}: {_ADVICE}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(record["counts"][what], int) for what in _COUNTED):
            raise TypeError("counts must be integers")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); {_ADVICE}") from error
    return record


def _check(root: Path, seed: int, world: SyntheticWorld) -> None:
    record = read_record(root)
    differences = [
        f"{name} is {record.get(name)}, wanted {wanted}"
        for name, wanted in _recipe(seed, world).items()
        if record.get(name) != wanted
    ]
    if differences:
        raise DataError(f"{root}: another synthetic data set: {'; '.join(differences)}. Either {_ADVICE}")
    counts = record["counts"]
    wanted_in = {
        TRAIN: counts["train_images"],
        QUERY: counts["query_images"],
        TEST: counts["gallery_images"] + counts["junk_images"],
    }
    for folder, wanted in wanted_in.items():
        found = len(list((root / folder).glob("*.jpg")))
        if found != wanted:
            raise DataError(f"{root / folder}: {found} pictures, wanted {wanted}; it is damaged: {_ADVICE}")
