"""Generation and loading of the embedded data set, in the layout of Market-1501 (docs/synthetic.md).

Scores on it show whether a method works at all; they say nothing about a real benchmark.
"""

import io
import json
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sharpreid.data.market1501 import load_market1501
from sharpreid.data.progress_bar import ProgressCallback, progress_bar
from sharpreid.data.reid_data import DataError, HardPair, ReIDData
from sharpreid.data.synthetic.cameras import Pixels
from sharpreid.data.synthetic.plan import (
    DISTRACTOR,
    JUNK,
    QUERY,
    TEST,
    TRAIN,
    Plan,
    SyntheticParams,
    plan_images,
    render_images,
)

GENERATOR_VERSION = 1
"""Version of the generator; increased when the same seed gives other pixels."""

RECORD = "synthetic.json"
"""File beside the folders with generator version, seed, parameters, counts and hard pairs."""

_COUNTED = ("train_images", "query_images", "gallery_images", "junk_images", "distractor_images")
_JPEG_QUALITY = 90
_ADVICE = "name another folder by data.source.root=/path, or delete this one to generate the data set again"

_log = logging.getLogger(__name__)


def load_synthetic(
    *, root: str | Path, seed: int, name: str = "synthetic", progress: ProgressCallback | None = None
) -> ReIDData:
    """Load the embedded data set, and first generate it if ``root`` does not have it.

    Args:
        root: folder of the data set.
        seed: seed of the generator, not of the training.
        name: name that is printed with scores.
        progress: see `generate`; None shows a progress bar.

    Returns:
        The data set, as `load_market1501` reads it.

    Raises:
        DataError: see `ensure`.
        OSError: ``root`` cannot be written.
    """
    title = "generating the synthetic data set"
    with progress_bar(title) if progress is None else nullcontext(progress) as callback:
        folder = ensure(Path(root), seed=seed, progress=callback)
    record = read_record(folder)
    data = load_market1501(root=folder, name=name, expected=record["counts"], synthetic=True)
    return replace(data, hard_pairs=_test_pairs(record))


def _test_pairs(record: Mapping[str, Any]) -> tuple[HardPair, ...]:
    """Return the hard pairs of the test identities."""
    pairs = (pair for pair in record.get("hard_pairs", ()) if pair["split"] == "test")
    return tuple(HardPair(tuple(pair["pids"]), pair["detail"]) for pair in pairs)


def ensure(
    root: Path, *, seed: int, params: SyntheticParams | None = None, progress: ProgressCallback | None = None
) -> Path:
    """Generate the data set unless it exists.

    Args:
        root: folder of the data set.
        seed: seed of the generator.
        params: size and difficulty; None takes the defaults.
        progress: see `generate`.

    Returns:
        The folder, absolute.

    Raises:
        DataError: ``root`` has something else: another seed, other parameters, another generator version, an
            incomplete copy, or other files.
        OSError: ``root`` cannot be written.
    """
    params = params or SyntheticParams()
    root = root.expanduser().resolve()
    if _exists(root):
        _check(root, seed, params)
        return root
    return generate(root, seed=seed, params=params, progress=progress)


def generate(
    root: Path, *, seed: int, params: SyntheticParams | None = None, progress: ProgressCallback | None = None
) -> Path:
    """Generate the data set.

    The images are written into a hidden folder beside ``root``, which is renamed when complete, so that an
    interrupted run leaves no ``root``. If several processes run at once, all use the copy of the first one
    that finishes.

    Args:
        root: folder of the data set; must not exist, or be empty.
        seed: seed of the generator. Seed, ``params`` and `GENERATOR_VERSION` determine every pixel.
        params: size and difficulty; None takes the defaults.
        progress: called with (finished images, all images) after each image.

    Returns:
        The folder, absolute.

    Raises:
        DataError: ``root`` exists and is not empty.
        OSError: ``root`` cannot be written; the message says what to do.
        ValueError: ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"data.source.seed must be at least 0, got {seed}")
    params = params or SyntheticParams()
    root = root.expanduser().resolve()
    if _exists(root):
        raise DataError(f"{root}: exists already; {_ADVICE}")
    draft = root.with_name(f".{root.name}.{os.getpid()}-{secrets.token_hex(4)}")
    _log.info("generating the synthetic data set in %s", root)
    try:
        _write(draft, seed, params, progress)
        _publish(draft, root, seed, params)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{root}: the synthetic data set cannot be written ({error.strerror or error}); name a "
            "writable folder with enough room by data.source.root=/path",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def encode(pixels: Pixels) -> bytes:
    """Encode an image, (H, W, 3), RGB, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def _write(draft: Path, seed: int, params: SyntheticParams, progress: ProgressCallback | None) -> None:
    for folder in (TRAIN, QUERY, TEST):
        (draft / folder).mkdir(parents=True)
    plan = plan_images(seed, params)
    for done, image in enumerate(render_images(seed, params, plan), start=1):
        (draft / image.shot.folder / image.shot.name).write_bytes(encode(image.pixels))
        if progress is not None:
            progress(done, len(plan.shots))
    record = {
        **_describe(seed, params),
        "counts": count_images(plan),
        "hard_pairs": [pair._asdict() for pair in plan.hard_pairs],
    }
    (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _publish(draft: Path, root: Path, seed: int, params: SyntheticParams) -> None:
    try:
        draft.rename(root)
    except OSError:
        if not _exists(root):
            raise
        _check(root, seed, params)


def _exists(root: Path) -> bool:
    return root.exists() and (not root.is_dir() or any(root.iterdir()))


def _describe(seed: int, params: SyntheticParams) -> dict[str, Any]:
    sizes = {name: list(size) if isinstance(size, tuple) else size for name, size in asdict(params).items()}
    return {"generator_version": GENERATOR_VERSION, "seed": seed, **sizes}


def count_images(plan: Plan) -> dict[str, int]:
    """Count the planned images and identities, by the names of `ReIDData.counts`."""
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
    """Read `RECORD` of the data set in ``root``; raise DataError if there is none or it is damaged."""
    path = root / RECORD
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:5]) if root.is_dir() else "a file"
        raise DataError(f"{root}: not a synthetic data set (no {RECORD}, found {found}); {_ADVICE}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(record["counts"][what], int) for what in _COUNTED):
            raise TypeError("counts must be integers")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); {_ADVICE}") from error
    return record


def _check(root: Path, seed: int, params: SyntheticParams) -> None:
    record = read_record(root)
    differences = [
        f"{name} is {record.get(name)}, wanted {wanted}"
        for name, wanted in _describe(seed, params).items()
        if record.get(name) != wanted
    ]
    if differences:
        raise DataError(f"{root}: another synthetic data set, {'; '.join(differences)}; {_ADVICE}")
    counts = record["counts"]
    wanted_in = {
        TRAIN: counts["train_images"],
        QUERY: counts["query_images"],
        TEST: counts["gallery_images"] + counts["junk_images"],
    }
    for folder, wanted in wanted_in.items():
        found = len(list((root / folder).glob("*.jpg")))
        if found != wanted:
            raise DataError(
                f"{root / folder}: {found} images instead of {wanted}, the copy is damaged; {_ADVICE}"
            )
