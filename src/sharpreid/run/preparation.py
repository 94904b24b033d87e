"""Check a data set and decode its images before a training."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra.utils
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import SIGTERMException

from sharpreid.atomic_io import replacing, write_rows
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.config.validation import ConfigError, check_node
from sharpreid.data.pixel_cache import BuildResult, CachedFile, build_cache, cache_folder
from sharpreid.data.progress_bar import progress_bar
from sharpreid.data.reid_data import IMAGE_SUFFIXES, DataError, ReIDData, Sample, summarize
from sharpreid.data.transforms import read_image
from sharpreid.signals import stop_on_sigterm

READY, PROBLEMS, WRONG_CALL, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

_SMALLEST_SIDE = 16
_IMAGE_LIKE = (*IMAGE_SUFFIXES, ".webp", ".tif", ".tiff", ".gif", ".ppm", ".avif", ".heic")


def run(arguments: Sequence[str], usage: str) -> NoReturn:
    """Run the command and exit with its status."""
    as_json = "--json" in arguments
    overrides = [argument for argument in arguments if argument != "--json"]
    try:
        with stop_on_sigterm():
            report = prepare(overrides)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        print(f"error: {error}\n\n{usage}", file=sys.stderr)
        _fail(error, WRONG_CALL, as_json)
    except (KeyboardInterrupt, SIGTERMException) as stop:
        message = "interrupted; the same command continues from here"
        print(message, file=sys.stderr)
        _fail(message, TERMINATED if isinstance(stop, SIGTERMException) else INTERRUPTED, as_json)
    except (OSError, ValueError, TypeError) as error:
        report = {"ready": False, "problems": [_reason(error)]}
    print(json.dumps(report, indent=2) if as_json else describe(report))
    sys.exit(READY if report["ready"] else PROBLEMS)


def _fail(why: Exception | str, status: int, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"ready": False, "problems": [_reason(why)]}, indent=2))
    sys.exit(status)


def prepare(overrides: Sequence[str]) -> dict[str, Any]:
    """Check a data set and store its decoded pixels in the cache.

    Args:
        overrides: Overrides of the training config, among them ``data=NAME``.

    Returns:
        The report as plain values for JSON: whether the data set is ready, its counts, problems, remarks and
        image sizes, the folder of the cache, and a digest of all files.

    Raises:
        HydraException, OmegaConfBaseException, ConfigError: An override is wrong, or data=NAME is missing.
        DataError: The data set is incomplete or unreadable.
        OSError: A file cannot be read, or the cache cannot be written.
    """
    if not any(override.startswith("data=") for override in overrides):
        raise HydraException("data=NAME is missing: which data set?")
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            cfg = compose("train", [*overrides])
        except (ValueError, TypeError) as error:  # raised by Hydra itself, for instance for data=null
            raise HydraException(str(error)) from error
    if not OmegaConf.is_config(OmegaConf.select(cfg, "data.source")):
        raise HydraException("data and data.source must not be null")
    if cfg.data.cache is None:
        raise ValueError("data.cache is null; name a folder for the decoded pixels: data.cache=/path")
    check_node(cfg, "data")
    (cache_folder(cfg.data.cache, cfg.data.source.name) / "report.json").unlink(missing_ok=True)
    data: ReIDData = hydra.utils.instantiate(cfg.data.source)()
    folder = cache_folder(cfg.data.cache, data.name)
    further = tuple(sample for group in data.multi_query or () for sample in group)
    roles = {"train": data.train, "query": data.query, "gallery": data.gallery, "multi_query": further}
    paths = sorted({sample.path for samples in roles.values() for sample in samples})
    built = _build_cache(paths, folder, data.name)
    report = {
        "ready": not built.unreadable,
        "data": data.name,
        "subset": data.subset,
        "counts": data.counts(),
        "files": len(paths),
        "problems": list(built.unreadable),
        "remarks": [*_remarks(built.files, roles), *_unused_images(paths, data.junk)],
        "image_sizes": _describe_sizes(built.files),
        "cache": str(folder),
    }
    if report["ready"]:
        digests = "".join(file.sha256 for file in built.files)
        report["sha256"] = hashlib.sha256(digests.encode()).hexdigest()
        _write_files(folder / "files.csv", roles, built.files)
    with replacing(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def describe(report: dict[str, Any]) -> str:
    """Return the report as text.

    >>> print(describe({"ready": False, "problems": ["a.jpg: cannot be read as an image"]}))
    not ready: 1 problem
      a.jpg: cannot be read as an image
    """
    problems = report["problems"]
    lines = [f"not ready: {len(problems)} problem{'s' * (len(problems) != 1)}", *(f"  {p}" for p in problems)]
    if report["ready"]:
        subset = f" (subset: {report['subset']})" if report["subset"] else ""
        lines = [f"ready: {report['data']}{subset}, {report['files']:,} files, decoded in {report['cache']}"]
    lines += [f"  {count:8,d} {what.replace('_', ' ')}" for what, count in report.get("counts", {}).items()]
    lines += [f"  {what}: {value}" for what, value in report.get("image_sizes", {}).items()]
    lines += [f"  remark: {remark}" for remark in report.get("remarks", ())]
    if report["ready"]:
        lines.append(f"  SHA-256 of all files: {report['sha256']}")
    return "\n".join(lines)


def _build_cache(paths: Sequence[Path], folder: Path, name: str) -> BuildResult:
    with progress_bar(f"decoding {name}") as progress:
        try:
            return build_cache(paths, folder, progress)
        except OSError as error:
            raise OSError(
                f"{folder}: decoded images cannot be written ({error.strerror or error}); free space, or "
                "choose another folder: data.cache=/path"
            ) from error


def _remarks(files: Sequence[CachedFile], roles: dict[str, tuple[Sample, ...]]) -> list[str]:
    """Describe what is unusual in a data set but does not prevent a training."""
    seen: dict[str, set[tuple[bool, int]]] = {}
    for role, samples in roles.items():
        for sample in samples:
            seen.setdefault(_path_of(sample), set()).add((role == "train", sample.pid))
    copies: dict[str, list[str]] = {}
    for file in files:
        copies.setdefault(file.sha256, []).append(file.path)
    equal = [same for same in copies.values() if len(same) > 1]
    remarks = []
    if equal:
        remarks.append(f"{len(equal)} images occur more than once: {summarize(map(_names, equal))}")
    views = [(same, set().union(*(seen[path] for path in same))) for same in equal]
    for what, chosen in (
        ("are in training and in test", [same for same, found in views if len({t for t, _ in found}) > 1]),
        ("have different identities", [same for same, found in views if len({p for _, p in found}) > 1]),
    ):
        if chosen:
            remarks.append(f"{len(chosen)} of these {what}: {summarize(map(_names, chosen))}")
    small = [Path(file.path).name for file in files if min(file.width, file.height) < _SMALLEST_SIDE]
    if small:
        remarks.append(f"{len(small)} images have a side below {_SMALLEST_SIDE} pixels: {summarize(small)}")
    return remarks


def _unused_images(paths: Sequence[Path], junk: int) -> list[str]:
    """Return a remark on unused images in the folders of the used images and in the folders above.

    Args:
        paths: images that are used.
        junk: number of junk images, which are counted already: unused images are named only if they are more.
    """
    used = {path.absolute() for path in paths}
    beside = {path.parent for path in used}
    folders = sorted(beside | {folder.parent for folder in beside})
    others = [entry for folder in folders for entry in _list_images(folder) if entry not in used]
    if not others:
        return []
    besides = f", {junk:,} of them junk" if junk else ""
    remark = f"{len(others):,} images in the data set's folders are not used{besides}: "
    remark += summarize(_in_folder(others))
    damaged = [entry for entry in others if not _is_readable(entry)]
    if len(others) == junk and not damaged:
        return []
    if damaged:
        remark += f"; {len(damaged):,} of them cannot be read: {summarize(_in_folder(damaged))}"
    return [remark]


def _list_images(folder: Path) -> list[Path]:
    """List the images of a folder, sorted; none if it cannot be read, because a remark must not fail."""
    try:
        return [
            entry
            for entry in sorted(folder.iterdir())
            if entry.suffix.lower() in _IMAGE_LIKE and not entry.name.startswith(".") and entry.is_file()
        ]
    except OSError:
        return []


def _in_folder(paths: Sequence[Path]) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in paths]


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except DataError:
        return False
    return True


def _names(paths: Sequence[str]) -> str:
    return " = ".join(Path(path).name for path in paths)


def _describe_sizes(files: Sequence[CachedFile]) -> dict[str, str]:
    if not files:
        return {}
    sizes = Counter((file.width, file.height) for file in files)
    (width, height), count = sizes.most_common(1)[0]
    widths, heights = ([getattr(file, side) for file in files] for side in ("width", "height"))
    return {
        "width": f"{min(widths)} to {max(widths)}",
        "height": f"{min(heights)} to {max(heights)}",
        "most common size": f"{width} x {height} ({count:,} of {len(files):,})",
    }


def _write_files(path: Path, roles: dict[str, tuple[Sample, ...]], files: Sequence[CachedFile]) -> None:
    digest = {file.path: file.sha256 for file in files}
    write_rows(
        path,
        ("path", "identity", "camera", "split", "box", "sha256"),
        (
            (
                sample.path.absolute(),
                sample.pid,
                sample.camid,
                role,
                _box(sample),
                digest[_path_of(sample)],
            )
            for role, samples in roles.items()
            for sample in samples
        ),
    )


def _box(sample: Sample) -> str:
    return " ".join(map(str, sample.box or ()))


def _path_of(sample: Sample) -> str:
    return str(sample.path.absolute())


def _reason(error: Exception | str) -> str:
    return " ".join(str(error).split())
