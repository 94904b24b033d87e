"""Files of a run directory beside checkpoints and logs: job.json, scores.json, config.yaml, queries.csv."""

import csv
import functools
import io
import json
import logging
import math
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

import sharpreid
from sharpreid.atomic_io import replacing
from sharpreid.checkpoint_files import digest_path, step_checkpoints, step_of
from sharpreid.config.early_runs import upgrade_config, upgrade_record
from sharpreid.config.paths import make_paths_absolute
from sharpreid.config.sweep_context import sweep_id
from sharpreid.data.reid_data import ReIDData, Sample
from sharpreid.distributed import is_rank_zero, rank_zero_only
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.scores import RankingScores
from sharpreid.run.paper_recipe import recipe_deviations

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
"""File with the output of a job that `sharpreid.sweep.local_launcher` started."""

_NEVER_MOVED = ("previous", "train.log", CONSOLE_LOG, ".lock")
_WITHOUT_EFFECT_ON_SCORES = (
    *("callbacks", "logger", "output_dir", "data_root", "skip_finished", "resume", "allow_changed"),
    "score_untrained",
    *("data.num_workers", "data.cache", "data.augment_on"),
    *("trainer.accelerator", "trainer.timeout_minutes"),
)


@functools.cache
def process_token() -> str:
    """Return a random token of this process, which is written to each of its job.json files."""
    return secrets.token_hex(8)


@rank_zero_only
def write_json(path: Path, content: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON file completely or not at all; only rank 0 writes."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@rank_zero_only
def write_text(path: Path, text: str) -> None:
    r"""Write a text file completely or not at all; only rank 0 writes.

    A byte of a file name that is not UTF-8 is written as an escape such as ``\udcfc``.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def lock_run_dir(output_dir: Path) -> Iterator[None]:
    """Lock the directory of a run, created if missing, against other runs; only rank 0 takes the lock.

    Raises:
        RuntimeError: Another run is writing there, or an earlier job of this sweep wrote there.
    """
    if not is_rank_zero():
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=1)  # seconds: another run's `is_run_dir_locked` may hold it for a moment
    except Timeout:
        raise RuntimeError(f"{output_dir}: another run is writing there; wait for it, or stop it") from None
    try:
        _refuse_same_sweep(output_dir)
        yield
    finally:
        lock.release()


def is_run_dir_locked(output_dir: Path) -> bool:
    """Return whether a run, on this or another machine, is writing in ``output_dir``."""
    if not (output_dir / ".lock").exists():
        return False
    try:
        with FileLock(output_dir / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # the folder of somebody else: nobody writes there as far as one can see
        return False


def _refuse_same_sweep(output_dir: Path) -> None:
    path = output_dir / "job.json"
    if path.is_file() and f'"process": "{process_token()}"' in path.read_text(encoding="utf-8"):
        raise RuntimeError(
            f"{output_dir}: an earlier job of this sweep wrote there. Jobs share it if they differ only in "
            "keys that change no result (hydra.job.config.override_dirname.exclude_keys of conf/train.yaml)"
        )


@rank_zero_only
def move_earlier_run_aside(output_dir: Path) -> Path | None:
    """Move the files of an earlier run to ``previous/<n>`` in its directory.

    Returns:
        The folder that they were moved to; None if there were none.
    """
    left = [entry for entry in sorted(output_dir.iterdir()) if entry.name not in _NEVER_MOVED]
    if not left:
        return None
    return _move_aside(output_dir, left)


def previous_runs(output_dir: Path) -> Path:
    """Return the folder of the earlier runs of a run's directory, as an absolute path."""
    return output_dir.resolve() / "previous"


def bring_back(output_dir: Path, checkpoint: Path) -> Path:
    """Move the files of an earlier run from ``previous/<n>`` back to its directory, which has no other run.

    Returns:
        The new path of its ``checkpoint``.
    """
    earlier = checkpoint.resolve().parents[1]
    if is_rank_zero():
        for entry in sorted(earlier.iterdir()):
            shutil.move(entry, output_dir / entry.name)
        earlier.rmdir()
    return output_dir / checkpoint.resolve().relative_to(earlier)


def move_later_checkpoints_aside(output_dir: Path, step: int) -> None:
    """Move checkpoints of later steps than ``step`` to ``previous/<n>``, damaged ones included.

    A run that resumes from ``step`` writes these steps again. The next ``resume=auto`` must not find the old
    ones, and they must not count among the checkpoints that are kept.
    """
    later = [path for path in step_checkpoints(output_dir / "checkpoints") if step_of(path) > step]
    files = [file for path in later for file in (path, digest_path(path)) if file.exists()]
    if files:
        log.warning("checkpoints of later steps are now in %s", _move_aside(output_dir, files))


def _move_aside(output_dir: Path, entries: Sequence[Path]) -> Path:
    number = 1
    while (place := previous_runs(output_dir) / str(number)).exists():
        number += 1
    place.mkdir(parents=True)
    for entry in entries:
        shutil.move(entry, place / entry.name)
    return place


def load_finished_record(output_dir: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """Return the finished record of the same config, and note in job.json that it was asked for again.

    Returns:
        Content of scores.json; None if the directory has no finished run, or one whose config differs in a
        key that scores depend on.
    """
    try:
        job = json.loads((output_dir / "job.json").read_text(encoding="utf-8"))
        record = json.loads((output_dir / "scores.json").read_text(encoding="utf-8"))
        differs = config_diff(cfg, output_dir / "config.yaml")
        if job["status"] != "done" or differs or not isinstance(record, dict):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sweeps = [*job.get("sweeps", []), *asking_sweep()]
    write_json(output_dir / "job.json", {**job, "asked_for": time.time(), "sweeps": sweeps})
    return upgrade_record(record)


def asking_sweep() -> list[str]:
    """Return the id of the sweep that this process works for, as a list; empty for a single run."""
    found = sweep_id()
    return [] if found is None else [found]


@rank_zero_only
def link_latest(folder: Path) -> None:
    """Make ``outputs/latest`` a link to the folder of a run or sweep that starts.

    Nothing happens for a folder outside of ``outputs``, and where links cannot be made.
    """
    root, folder = Path("outputs").resolve(), folder.resolve()  # the folder may be given as outputs/latest
    if not folder.is_relative_to(root) or folder == root:
        return
    temporary = root / f".latest-{secrets.token_hex(4)}"
    try:
        temporary.symlink_to(os.path.relpath(folder, root), target_is_directory=True)
        os.replace(temporary, root / "latest")
    except OSError as error:
        log.debug("no link outputs/latest: %s", error)
        temporary.unlink(missing_ok=True)


def held_out_map(record: Mapping[str, Any]) -> float:
    """Return the mAP of the held-out identities, in [0, 1], from a scores.json; NaN if none were held out.

    >>> held_out_map({"held_out": {"mAP": 0.5}, "scores": {"mAP": 0.4}})
    0.5
    >>> held_out_map({"held_out": None, "scores": {"mAP": 0.4}})
    nan
    """
    return float((record.get("held_out") or {}).get("mAP", math.nan))


def config_diff(cfg: DictConfig, earlier: Path) -> dict[str, tuple[Any, Any]]:
    """Compare a config with a run's config.yaml, in the keys that scores depend on.

    Both are upgraded by `sharpreid.config.early_runs` first. A key that one of them lacks counts as null.
    Paths are equal if they lead to the same place; records of early versions may have relative ones.

    Returns:
        Dotted key -> its value in ``earlier`` and its value in ``cfg``, for each key that differs.
    """
    before, now = (
        flatten_config(
            result_config(make_paths_absolute(upgrade_config(cast(DictConfig, config)), resolve_links=True))
        )
        for config in (OmegaConf.load(earlier), OmegaConf.create(describe_config(cfg)))
    )
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to dotted keys.

    >>> flatten_config({"a": {"b": 1, "c": []}, "d": None})
    {'a.b': 1, 'a.c': [], 'd': None}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flatten_config(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def result_config(config: Any) -> dict[str, Any]:
    """Return the part of a run's config that its scores depend on.

    Of the callbacks it keeps those that are not the package's: one may stop the training early. Their paths
    below the run's directory are relative to it, so that a run that was moved is the same.
    """
    content: Any = OmegaConf.to_container(config)
    callbacks = (content.get("callbacks") or {}).items()
    others = {name: one for name, one in callbacks if one and not _is_own(one)}
    if others and (place := content.get("output_dir")):
        others = json.loads(json.dumps(others).replace(json.dumps(f"{place}/")[1:-1], "${output_dir}/"))
    for key in _WITHOUT_EFFECT_ON_SCORES:
        *path, last = key.split(".")
        node = content
        for part in path:
            node = node.get(part, {})
        node.pop(last, None)
    return {**content, **({"callbacks": others} if others else {})}


def _is_own(node: Any) -> bool:
    return isinstance(node, dict) and str(node.get("_target_")).startswith("sharpreid.")


def describe_scores(
    cfg: DictConfig, protocol: Protocol, data: ReIDData, scores: RankingScores
) -> dict[str, Any]:
    """Describe scores together with their protocol, data set, deviations from the paper and seed.

    ``not_re_ranked`` holds the scores before re-ranking; None without re-ranking. ``hard_pairs`` is present
    only if the data set names hard pairs.
    """
    return {
        "scores": scores.as_dict(),
        "not_re_ranked": scores.plain and scores.plain.as_dict(),
        **({"hard_pairs": scores.hard_pairs.as_dict()} if scores.hard_pairs else {}),
        **describe_rules(cfg, protocol, data, scores.re_ranking),
        "seed": cfg.seed,
    }


def resume_command(overrides: Sequence[str], output_dir: Path, resume: str | Path = "auto") -> str:
    """Return the command that goes on with a run in its directory, also with one job of a sweep.

    >>> resume_command(["seed=1", "resume=none"], Path("outputs/a b"))
    "python -m sharpreid.train seed=1 hydra.mode=RUN 'hydra.run.dir=outputs/a b' resume=auto"
    """
    own = [one for one in overrides if not one.startswith("resume=")]
    place = ["hydra.mode=RUN", f"hydra.run.dir={output_dir}", f"resume={resume}"]
    return shlex.join(["python", "-m", "sharpreid.train", *own, *place])


def describe_queries(samples: Sequence[Sample], scores: RankingScores) -> str:
    """Describe each query's contribution to the scores as CSV: image, identity, camera, ap, rank1.

    ap and rank1 are in [0, 1], and empty for a query without a match.

    Args:
        samples: Queries in the order in which they were scored.
        scores: Scores with values per query.

    Raises:
        ValueError: The scores have no values per query.
    """
    if scores.queries is None:
        raise ValueError("scores.queries is None; pass scores that evaluate_ranking returned")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "identity", "camera", "ap", "rank1"])
    for sample, ap, rank1 in zip(samples, *scores.queries, strict=True):
        values = ("", "") if math.isnan(ap) else (f"{ap:.6f}", f"{rank1:g}")
        writer.writerow([sample.path.name, sample.pid, sample.camid, *values])
    return text.getvalue()


def describe_rules(cfg: DictConfig, protocol: Protocol, data: ReIDData, re_ranking: str) -> dict[str, Any]:
    """Describe the rules of a run's scores: protocol, data set and deviations from the paper's recipe.

    Args:
        cfg: Config of the run.
        protocol: Protocol of the ranking.
        data: Data set that is scored.
        re_ranking: Name of the re-ranking with its parameters; ``none`` without.
    """
    return {
        "protocol": describe_protocol(
            protocol,
            crops=cfg.data.eval_transform.crops,
            test_mask=_test_mask(cfg),
            re_ranking=re_ranking,
        )
        | _rules_of_data(protocol, data),
        "dataset": {
            "name": data.name,
            "synthetic": data.synthetic,
            "subset": data.subset,
            "split": data.split,
            "variant": data.variant,
            "counts": data.counts(),
        },
        "deviations": recipe_deviations(cfg),
    }


def _test_mask(cfg: DictConfig) -> str:
    """Return the name of the test-time mask that is printed with a score."""
    if not cfg.model.blocks:
        return "none"
    sampler = cfg.model.sampler
    mask = str(sampler.get("test_mask", "sigmoid"))  # the soft gates have one mask only
    noise = ", noise per view" if sampler.get("sample_noise") == "per_view" else ""
    return f"sample ({sampler.draws} draws, seed {sampler.seed}{noise})" if mask == "sample" else mask


def describe_protocol(protocol: Protocol, *, crops: str, test_mask: str, re_ranking: str) -> dict[str, Any]:
    """Describe the rules of a score: those of the ranking, and those of the ranked embeddings."""
    rules = {**protocol.as_dict(), "ap": "step"}
    return {**rules, "crops": crops, "test_mask": test_mask, "re_ranking": re_ranking}


def describe_config(cfg: DictConfig) -> str:
    """Return the config of a run as YAML that can be loaded and overridden outside of Hydra.

    References between keys (image size, seed, data folder) stay references. Values that only Hydra can
    resolve are resolved.
    """
    written = make_paths_absolute(cfg)  # the run can be evaluated from any directory
    for key in ("output_dir", "data_root", "callbacks", "logger"):
        value = written[key]
        written[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return OmegaConf.to_yaml(written)


def _rules_of_data(protocol: Protocol, data: ReIDData) -> dict[str, Any]:
    rules = {}
    if data.multi_query is not None:
        rules["name"] = f"{protocol.name} multi-query (mean)"
    if not data.cameras_known:
        rules["cameras"] = "unknown: matches from the query's own camera count"
    return rules


def describe_environment(trainer: "pl.Trainer") -> dict[str, Any]:
    """Return the versions and the device of a run."""
    import torch  # slow; reading records does not need it
    import torchvision

    device = trainer.strategy.root_device
    return {
        "versions": {
            "sharpreid": sharpreid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pytorch_lightning": version("pytorch-lightning"),
        },
        "device": (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device.type} ({torch.get_num_threads()} threads)"
        ),
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
    }


@functools.cache
def describe_code() -> dict[str, Any]:
    """Return the commit of the checkout that the code runs from, and whether files differ from it.

    Both are None outside of a checkout. The result is cached, because the checkout may change later, but the
    loaded code does not.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return {"commit": None, "dirty": None}
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip() or None, "dirty": bool(status.stdout.strip())}
