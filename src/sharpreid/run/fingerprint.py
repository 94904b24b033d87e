"""Fingerprint of what a run reads: images, labels and initial weights. It shows a change."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sharpreid.checkpoint_files import compute_sha256
from sharpreid.config.paths import NO_PATHS
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.pixel_cache import PixelCache
from sharpreid.data.reid_data import ReIDData, Sample, identities

Fingerprint = Mapping[str, Any]
"""Split -> counts and digests, and ``weights`` -> SHA-256 of the file of initial weights."""

SPLITS = ("train", "query", "gallery")


def take_fingerprint(cfg: DictConfig, data: ReIDDataModule) -> Fingerprint:
    """Return the fingerprint of a run's data, which must be set up, and of its initial weights.

    For each split it has the numbers of images and identities, and digests of the images' names (relative to
    the folder that contains all images) and boxes, of their identities and cameras, and of their files'
    content if `sharpreid.prepare` has read all of them.
    """
    samples = {split: _samples(data.data, split) for split in SPLITS}
    folders = {sample.path.parent for some in samples.values() for sample in some}
    root = os.path.commonpath([folder.absolute() for folder in folders]) if folders else ""
    read = data.test.read
    cache = read if isinstance(read, PixelCache) else None
    found: dict[str, Any] = {split: _describe(some, root, cache) for split, some in samples.items()}
    whole = str(cfg.model.get("weights", "none"))
    weights = str(cfg.model.trunk.weights) if whole == "none" else whole
    if weights not in NO_PATHS and (path := Path(weights).expanduser()).is_file():
        found["weights"] = compute_sha256(path)
    return found


def read_fingerprint(run: Path) -> Fingerprint | None:
    """Read the fingerprint in a run's job.json; None if it has none, as in early versions."""
    try:
        content = json.loads((run / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = content.get("data") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def describe_change(before: Fingerprint | None, now: Fingerprint) -> str | None:
    """Describe in one line what differs between two fingerprints; None if nothing known differs.

    >>> one = {"images": 8, "identities": 2, "files": "a", "labels": "b", "content": None}
    >>> describe_change({"train": one, "query": one}, {"train": {**one, "labels": "c"}, "query": one})
    'train: the same images with other labels; query: unchanged'
    """
    if before is None:
        return None
    parts = {
        split: _describe_split(before[split], now[split])
        for split in SPLITS
        if split in before and split in now
    }
    if "weights" in before and "weights" in now and before["weights"] != now["weights"]:
        parts["initial weights"] = "another file"
    if not any(parts.values()):
        return None
    return "; ".join(f"{name}: {part or 'unchanged'}" for name, part in parts.items())


def _describe_split(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    counts = [f"{one['images']:,} images of {one['identities']:,} identities" for one in (before, now)]
    if counts[0] != counts[1]:
        return f"{counts[0]} then, {counts[1]} now"
    if before["files"] != now["files"]:
        return "other images"
    if before["labels"] != now["labels"]:
        return "the same images with other labels"
    if None not in (before["content"], now["content"]) and before["content"] != now["content"]:
        return "files of the same names with another content"
    return None


def _samples(data: ReIDData, split: str) -> list[Sample]:
    found: list[Sample] = list(getattr(data, split))
    if split == "query":
        found += [sample for some in data.multi_query or () for sample in some]
    return found


def _describe(samples: Sequence[Sample], root: str, cache: PixelCache | None) -> dict[str, Any]:
    return {
        "images": len(samples),
        "identities": len(identities(samples) - {0}),
        "files": _digest((os.path.relpath(one.path.absolute(), root), one.box) for one in samples),
        "labels": _digest((one.pid, one.camid) for one in samples),
        "content": cache and cache.digest([one.path for one in samples]),
    }


def _digest(parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:16]
