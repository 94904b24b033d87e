"""What a run leaves behind beside checkpoints and logs: job.json, scores.json, config.yaml."""

import functools
import json
import logging
import math
import platform
import secrets
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
from sharpreid.data.reid_data import ReIDData, Sample
from sharpreid.distributed import is_rank_zero, rank_zero_only
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.scores import RankingScores
from sharpreid.run.paper_recipe import recipe_deviations

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
"""What a job prints that `sharpreid.sweep.local_launcher` started."""

_KEPT = ("previous", "train.log", CONSOLE_LOG, ".lock")
_NOT_OF_THE_RESULT = (
    *("callbacks", "logger", "output_dir", "data_root", "skip_finished", "resume", "allow_changed"),
    *("data.num_workers", "data.cache", "data.augment_on"),
    *("trainer.accelerator", "trainer.timeout_minutes"),
)


@functools.cache
def process_token() -> str:
    """Return a random name of this process, which stands in every job.json that it writes."""
    return secrets.token_hex(8)


@rank_zero_only
def write_json(path: Path, content: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON file whole or not at all; of several processes the first does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@rank_zero_only
def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; of several processes the first does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def lock_run_dir(output_dir: Path) -> Iterator[None]:
    """Have ``output_dir``, which is made if missing, to oneself; of several processes the first claims it.

    Raises:
        RuntimeError: another run is writing there, or an earlier job of this sweep did.
    """
    if not is_rank_zero():
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".lock")
    try:
        lock.acquire(timeout=1)  # seconds; `is_run_dir_locked` of another run may have it for a moment
    except Timeout:
        raise RuntimeError(f"{output_dir}: another run is writing there; wait for it, or stop it") from None
    try:
        _refuse_same_sweep(output_dir)
        yield
    finally:
        lock.release()


def is_run_dir_locked(output_dir: Path) -> bool:
    """Whether a run is writing in ``output_dir``; on another machine too, where the file system locks."""
    if not (output_dir / ".lock").exists():
        return False
    try:
        with FileLock(output_dir / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def _refuse_same_sweep(output_dir: Path) -> None:
    path = output_dir / "job.json"
    if path.is_file() and f'"process": "{process_token()}"' in path.read_text(encoding="utf-8"):
        raise RuntimeError(
            f"{output_dir}: an earlier job of this sweep wrote there. Jobs that differ only in what changes "
            "no result (hydra.job.config.override_dirname.exclude_keys of conf/train.yaml) share one place"
        )


@rank_zero_only
def move_earlier_run_aside(output_dir: Path) -> Path | None:
    """Move what an earlier run left in ``output_dir`` to ``previous/<n>`` in it; the place, or None."""
    left = [entry for entry in sorted(output_dir.iterdir()) if entry.name not in _KEPT]
    if not left:
        return None
    return _move_aside(output_dir, left)


def move_later_checkpoints_aside(output_dir: Path, step: int) -> None:
    """Move checkpoints of later steps than the one a run goes on from, damaged or not, to ``previous/<n>``.

    They belong to what is not continued: the next resume=auto must not take them, nor count them as kept.
    """
    later = [path for path in step_checkpoints(output_dir / "checkpoints") if step_of(path) > step]
    files = [file for path in later for file in (path, digest_path(path)) if file.exists()]
    if files:
        log.warning("checkpoints of later steps are now in %s", _move_aside(output_dir, files))


def _move_aside(output_dir: Path, entries: Sequence[Path]) -> Path:
    number = 1
    while (place := output_dir / "previous" / str(number)).exists():
        number += 1
    place.mkdir(parents=True)
    for entry in entries:
        shutil.move(entry, place / entry.name)
    return place


def load_finished_record(output_dir: Path, cfg: DictConfig) -> dict[str, Any] | None:
    """The scores.json of a finished run of the same config in ``output_dir``, which then counts as asked for.

    None if there is no such run, it did not finish, or its config differs in more than how it is shown.
    """
    try:
        job = json.loads((output_dir / "job.json").read_text(encoding="utf-8"))
        record = json.loads((output_dir / "scores.json").read_text(encoding="utf-8"))
        differs = config_diff(cfg, output_dir / "config.yaml")
        if job["status"] != "done" or differs or not isinstance(record, dict):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    write_json(output_dir / "job.json", {**job, "asked_for": time.time()})
    return upgrade_record(record)


def held_out_map(record: Mapping[str, Any]) -> float:
    """mAP of the identities that were held out, in [0, 1], of a scores.json; NaN if none were.

    >>> held_out_map({"held_out": {"mAP": 0.5}, "scores": {"mAP": 0.4}})
    0.5
    >>> held_out_map({"held_out": None, "scores": {"mAP": 0.4}})
    nan
    """
    return float((record.get("held_out") or {}).get("mAP", math.nan))


def config_diff(cfg: DictConfig, earlier: Path) -> dict[str, tuple[Any, Any]]:
    """The keys of the result in which ``cfg`` differs from a run's config.yaml: value there, value here.

    A key that one lacks has the value of `sharpreid.config.early_runs`, or else counts as null: an early run
    has none for what came later.
    """
    before, now = (
        flatten_config(result_config(upgrade_config(cast(DictConfig, config))))
        for config in (OmegaConf.load(earlier), OmegaConf.create(describe_config(cfg)))
    )
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as one level of dotted keys.

    >>> flat({"a": {"b": 1, "c": []}, "d": None})
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
    """What of a run's config its scores depend on."""
    content: Any = OmegaConf.to_container(config)
    for key in _NOT_OF_THE_RESULT:
        *path, last = key.split(".")
        node = content
        for part in path:
            node = node.get(part, {})
        node.pop(last, None)
    return dict(content)


def describe_scores(
    cfg: DictConfig, protocol: Protocol, data: ReIDData, scores: RankingScores
) -> dict[str, Any]:
    """Scores with what they mean nothing without: protocol, test-time views, mask, data set, reductions.

    Re-ranked scores have those without re-ranking beside them. Data that names hard pairs has their rank-1.
    """
    return {
        "scores": scores.as_dict(),
        "not_re_ranked": scores.plain and scores.plain.as_dict(),
        **({"hard_pairs": scores.hard_pairs.as_dict()} if scores.hard_pairs else {}),
        **describe_rules(cfg, protocol, data, scores.re_ranking),
        "seed": cfg.seed,
    }


def describe_queries(samples: Sequence[Sample], scores: RankingScores) -> str:
    """What each query contributed to the scores, as CSV: image, identity, camera, ap and rank1 in [0, 1].

    Args:
        samples: the queries, in the order in which they were scored.
        scores: of their ranking; ap and rank1 are empty for a query without a match.

    Raises:
        ValueError: the scores hold none of single queries.
    """
    if scores.queries is None:
        raise ValueError("scores.queries is None; pass scores that evaluate_ranking returned")
    lines = ["image,identity,camera,ap,rank1"]
    for sample, ap, rank1 in zip(samples, *scores.queries, strict=True):
        values = "," if math.isnan(ap) else f"{ap:.6f},{rank1:g}"
        lines.append(f"{sample.path.name},{sample.pid},{sample.camid},{values}")
    return "\n".join(lines) + "\n"


def describe_rules(cfg: DictConfig, protocol: Protocol, data: ReIDData, re_ranking: str) -> dict[str, Any]:
    """What is known of a run's scores before there are any: protocol, data set, departures from the paper.

    Args:
        re_ranking: what it calls itself; ``none`` without.
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
    """The mask at test time, as it is printed with a score."""
    if not cfg.model.blocks:
        return "none"
    sampler = cfg.model.sampler
    mask = str(sampler.get("test_mask", "sigmoid"))  # of the soft attentions there is only one
    noise = ", noise per view" if sampler.get("sample_noise") == "per_view" else ""
    return f"sample ({sampler.draws} draws, seed {sampler.seed}{noise})" if mask == "sample" else mask


def describe_protocol(protocol: Protocol, *, crops: str, test_mask: str, re_ranking: str) -> dict[str, Any]:
    """The rules of a score: those of the ranking, and of the embeddings that are ranked."""
    rules = {**protocol.as_dict(), "ap": "step"}
    return {**rules, "crops": crops, "test_mask": test_mask, "re_ranking": re_ranking}


def describe_config(cfg: DictConfig) -> str:
    """The config of a run as YAML, ready to be loaded and overridden outside of Hydra.

    Values that others refer to (image size, seed, folder of the data) stay references; what only this run's
    Hydra can resolve is resolved.
    """
    written: DictConfig = cfg.copy()
    for key in ("output_dir", "data_root", "callbacks", "logger"):
        value = cfg[key]
        written[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    written.data_root = str(Path(cfg.data_root).expanduser().absolute())  # to be evaluated from anywhere
    return OmegaConf.to_yaml(written)


def _rules_of_data(protocol: Protocol, data: ReIDData) -> dict[str, Any]:
    rules = {}
    if data.multi_query is not None:
        rules["name"] = f"{protocol.name} multi-query (mean)"
    if not data.cameras_known:
        rules["cameras"] = "unknown: matches from the query's own camera count"
    return rules


def describe_environment(trainer: "pl.Trainer") -> dict[str, Any]:
    """Return versions and device of a run."""
    import torch  # slow, and not for reading records
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
    """Commit of the checkout that the code runs from, and whether it was changed; None outside of one.

    What it is when first asked: later the checkout may have moved on, but not the code that was loaded.
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
