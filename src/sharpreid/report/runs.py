"""Read training jobs and finished runs from the folders that they wrote."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from sharpreid.config.early_runs import upgrade_config, upgrade_record
from sharpreid.config.paths import CONF_DIR, parse_override
from sharpreid.run.comparability import dataset_line, method_of
from sharpreid.run.console import score_of
from sharpreid.run.records import result_config

HARD_PAIRS = {"hard_pair_rank1": "rank-1 on hard pairs"}
"""Metric of data sets that name pairs of people who differ in one detail, with its title."""


@dataclass(frozen=True)
class Job:
    """A training job, as recorded in its ``job.json`` and ``scores.json``.

    Args:
        folder: output folder of the job.
        name: name of its experiment.
        status: ``done``, ``failed``, or ``running``, which is also the status of a job that was killed.
        started: start time in Unix seconds.
        overrides: Hydra overrides of the job.
        error: why there is no score; None if there is one.
        record: content of ``scores.json``; None unless the job is done.
        number: number of the job in its sweep.
        sweeps: ids of the sweeps that asked for the job.
        test_data: digest of the test images' names and labels; None if it is not known.
    """

    folder: Path
    name: str
    status: str
    started: float
    overrides: tuple[str, ...]
    error: str | None
    record: Mapping[str, Any] | None
    number: int | None = None
    sweeps: tuple[str, ...] = ()
    test_data: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Override key -> value; a repeated key has its last value, as in Hydra."""
        return dict(parse_override(override) for override in self.overrides)

    @property
    def seed(self) -> str:
        """Recorded seed, else the requested one; empty if neither is known."""
        if self.record and "seed" in self.record:
            return str(self.record["seed"])
        return self.settings.get("seed", "")

    @property
    def split(self) -> str:
        """Recorded test split, else the requested one; empty if the data set has only one split."""
        recorded = self.record and self.record.get("dataset", {}).get("split")
        return self.settings.get("data.source.split", "") if recorded is None else str(recorded)

    @property
    def held_out(self) -> float | None:
        """mAP on the held-out training identities, in [0, 1]; None if none were held out."""
        return score_of(self.record and self.record.get("held_out"), "mAP")

    @property
    def scored_on(self) -> tuple[str, str] | None:
        """Data set and protocol; scores can be compared only if both are equal. None without scores."""
        if self.record is None:
            return None
        protocol = self.record.get("protocol", {})
        rules = [str(protocol[key]) for key in ("name", "re_ranking", "cameras") if protocol.get(key)]
        return dataset_line(self.record.get("dataset", {})), ", ".join(rules)

    def score(self, metric: str) -> float | None:
        """Return a score of the trained network in [0, 1], or None if there is none."""
        if metric in HARD_PAIRS:
            return score_of(self.record and self.record.get("hard_pairs"), "rank1")
        return score_of(self.record and self.record.get("scores"), metric)

    def untrained(self, metric: str) -> float | None:
        """Return a score of the untrained network in [0, 1], or None if there is none."""
        return score_of(self.record and self.record.get("untrained"), metric)


@dataclass(frozen=True)
class Run:
    """A finished job with its config.

    Args:
        job: the job.
        record: content of ``scores.json``.
        config: content of ``config.yaml``.
        method: name of the method, see `sharpreid.run.comparability.method_of`.
    """

    job: Job
    record: Mapping[str, Any]
    config: DictConfig
    method: str

    @property
    def data(self) -> str:
        """Name of the data set."""
        return str(self.record["dataset"]["name"])

    @property
    def checkpoint(self) -> Path:
        """Path of the trained checkpoint, which may have been deleted."""
        return self.job.folder / str(self.record.get("checkpoint", "checkpoints/final.ckpt"))

    @property
    def content(self) -> str:
        """Everything that determines the scores, as text; equal for repetitions of a run."""
        config = {**result_config(self.config), "name": None}
        rules = {"protocol": self.record["protocol"], "dataset": self.record["dataset"]}
        return json.dumps([config, rules], sort_keys=True, default=str)


def load_jobs(folder: Path, sweep: str | None = None) -> list[Job]:
    """Load all jobs recorded below a folder, in the order of their sweep.

    Jobs of one sweep are sorted by their numbers, because parallel jobs start in any order. Jobs of several
    sweeps, or without a number, are sorted by their start times. A job with an unreadable file counts as
    failed. Jobs whose data set has changed between them have two variants of it, see `_name_variants`.

    Args:
        folder: output folder of a sweep, searched at any depth for ``job.json``. Folders named ``previous``,
            which hold the earlier attempts of a repeated run, are skipped.
        sweep: id of a sweep; jobs that it did not ask for are left out. None takes all jobs.
    """
    return _name_variants(_read_jobs(folder, sweep))


def _read_jobs(folder: Path, sweep: str | None = None) -> list[Job]:
    found = sorted(folder.rglob("job.json"))
    jobs = [_read_job(path) for path in found if "previous" not in path.relative_to(folder).parts]
    asked_for = (job for job in jobs if sweep is None or sweep in job.sweeps)
    kept = sorted(asked_for, key=lambda job: (job.started, job.folder))
    numbered = {job.number: job for job in kept if job.number is not None}
    return [job for _, job in sorted(numbered.items())] if len(numbered) == len(kept) else kept


def _name_variants(jobs: Sequence[Job]) -> list[Job]:
    """Name the variants of a data set whose test images or labels have changed between the jobs.

    Scores on several variants are not averaged or compared, and not put beside the paper's.
    """
    found: dict[tuple[object, str], set[str]] = {}
    known = [job for job in jobs if job.test_data and job.record and "dataset" in job.record]
    for job in known:
        found.setdefault((job.scored_on, job.split), set()).add(str(job.test_data))
    named = {id(job): _name_variant(job) for job in known if len(found[job.scored_on, job.split]) > 1}
    return [named.get(id(job), job) for job in jobs]


def _name_variant(job: Job) -> Job:
    assert job.record is not None
    data = job.record["dataset"]
    parts = (data.get("variant"), f"state {job.test_data} of its images and labels")
    return replace(job, record={**job.record, "dataset": {**data, "variant": "; ".join(filter(None, parts))}})


def _read_job(path: Path) -> Job:
    folder = path.parent
    try:
        content = _read_object(path)
        started = float(content.get("asked_for", content["started"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        unreadable = f"job.json cannot be read: {error!r}"
        return Job(folder, folder.name, "failed", path.stat().st_mtime, (), unreadable, None)
    status: str = str(content.get("status"))
    reason: str | None = content.get("error")
    record: dict[str, Any] | None = None
    if status == "done":
        try:
            record = _read_object(folder / "scores.json")
        except (OSError, ValueError) as error:
            status, reason = "failed", f"scores.json cannot be read: {error!r}"
    elif status == "running":
        reason = reason or "still marked as running: it has not ended, or its process died"
    overrides = tuple(str(override) for override in content.get("overrides") or ())
    name, number = str(content.get("name", folder.name)), content.get("number")
    number = number if isinstance(number, int) else None
    sweeps = tuple(str(sweep) for sweep in content.get("sweeps") or ())
    data = _digest_test_data(content.get("data"))
    return Job(folder, name, status, started, overrides, reason, record, number, sweeps, data)


def _digest_test_data(fingerprint: Any) -> str | None:
    """Return a short digest of what a run's fingerprint says of query and gallery; None without one."""
    try:
        parts = [fingerprint[split][key] for split in ("query", "gallery") for key in ("files", "labels")]
    except (TypeError, KeyError):
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return upgrade_record(content)


def unfinished_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs without a score, which failed or have not ended."""
    return [job for job in jobs if job.status != "done"]


def load_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Job]]:
    """Load all finished runs below the folders; return them and the jobs without a readable score.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    jobs: dict[Path, Job] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected an output folder of runs (outputs)")
        for job in _read_jobs(folder):
            jobs.setdefault(job.folder.resolve(), job)
    runs, others = [], []
    for job in _name_variants([*jobs.values()]):
        if job.record is None:
            others.append(job)
            continue
        try:
            runs.append(_load_run(job, job.record))
        except (OSError, ValueError, YAMLError) as error:
            others.append(replace(job, status="unreadable", error=str(error), record=None))
    return runs, others


def _load_run(job: Job, record: Mapping[str, Any]) -> Run:
    """Load a finished job with its config; raise ValueError with the file's path if a key is missing."""
    for key in ("scores", "dataset", "protocol"):
        if not isinstance(record.get(key), Mapping):
            raise ValueError(f"{job.folder / 'scores.json'}: no {key}; expected the record of a run")
    if "name" not in record["dataset"]:
        raise ValueError(f"{job.folder / 'scores.json'}: its dataset has no name")
    path = job.folder / "config.yaml"
    config = OmegaConf.load(path)
    for key in ("model.blocks", "model.sampler", "objective.mu"):
        if not isinstance(config, DictConfig) or OmegaConf.select(config, key) is None:
            raise ValueError(f"{path}: no {key}; expected the config of a run")
    assert isinstance(config, DictConfig)
    config = upgrade_config(config)
    return Run(job, record, config, method_of(config))


def distinct_runs(runs: Iterable[Run]) -> list[Run]:
    """Drop repetitions: of runs with the same config, protocol and data set, keep the newest."""
    newest = {run.content: run for run in sorted(runs, key=lambda run: run.job.started)}
    return list(newest.values())


def group_sweeps(runs: Sequence[Run], others: Sequence[Job]) -> dict[str, list[Job]]:
    """Return experiment -> its jobs, sorted by start time, for the experiments with several jobs.

    Of repetitions with the same config the newest counts: they are not several seeds.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.job.name, []).append(run)
    finished = [run.job for alike in by_name.values() for run in distinct_runs(alike)]
    found: dict[str, list[Job]] = {}
    for job in sorted([*finished, *others], key=lambda job: job.started):
        found.setdefault(job.name, []).append(job)
    return {name: jobs for name, jobs in found.items() if len(jobs) > 1}


def read_experiment(name: str) -> tuple[str | None, str]:
    """Read the baseline override and the opening comment of an experiment file.

    Args:
        name: name of a file in conf/experiment. An unknown name gives ``(None, "")``.
    """
    path = CONF_DIR / "experiment" / f"{name}.yaml"
    if not path.is_file():
        return None, ""
    lines = [
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    claim = " ".join(line for line in lines if not line.startswith("@package")).partition("Run:")[0]
    baseline = OmegaConf.select(OmegaConf.load(path), "hydra.callbacks.summary.baseline")
    return None if baseline is None else str(baseline), claim.strip()
