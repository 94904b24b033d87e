"""Recorded runs: what is there, which of the paper's methods each is, and which count as the same result."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.paths import CONF_DIR
from sharpreid.report.comparison import Job, load_jobs
from sharpreid.run.comparability import method_of
from sharpreid.run.records import result_config


@dataclass(frozen=True)
class Run:
    """A finished run: its record, where it is, and which of the paper's rows it is."""

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
        """Of the trained network; may be gone."""
        return self.job.folder / str(self.record.get("checkpoint", "checkpoints/final.ckpt"))

    @property
    def content(self) -> str:
        """What its scores depend on, as text: equal for runs that repeat one another."""
        config = {**result_config(self.config), "name": None}
        rules = {"protocol": self.record["protocol"], "dataset": self.record["dataset"]}
        return json.dumps([config, rules], sort_keys=True, default=str)


def gather(folders: Iterable[Path]) -> tuple[list[Run], list[Job]]:
    """All finished runs below the folders, and the jobs without a score or that cannot be read, and why.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    runs, others = [], []
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected one that runs wrote to (outputs)")
        for job in load_jobs(folder):
            if job.folder.resolve() in seen:
                continue
            seen.add(job.folder.resolve())
            if job.record is None:
                others.append(job)
                continue
            try:
                runs.append(_run(job, job.record))
            except (OSError, ValueError, YAMLError) as error:
                others.append(replace(job, status="unreadable", error=str(error), record=None))
    return runs, others


def _run(job: Job, record: Mapping[str, Any]) -> Run:
    """ValueError, with the file's name, for what a run of ours would not have written."""
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


def distinct(runs: Iterable[Run]) -> list[Run]:
    """One run per result: of those that repeat one another, as several experiments may, the newest."""
    newest = {run.content: run for run in sorted(runs, key=lambda run: run.job.started)}
    return list(newest.values())


def sweeps(runs: Sequence[Run], others: Sequence[Job]) -> dict[str, list[Job]]:
    """The jobs of each named experiment that has several, finished or not, in the order of their start."""
    found: dict[str, list[Job]] = {}
    for job in sorted([*(run.job for run in runs), *others], key=lambda job: job.started):
        found.setdefault(job.name, []).append(job)
    return {name: jobs for name, jobs in found.items() if len(jobs) > 1}


def summary_of(name: str) -> tuple[str | None, str]:
    """Baseline override and claim of an experiment file, by its name; (None, "") if there is none."""
    path = CONF_DIR / "experiment" / f"{name}.yaml"
    if not path.is_file():
        return None, ""
    lines = [
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    claim = " ".join(line for line in lines if not line.startswith("@package")).partition("Run:")[0]
    baseline = OmegaConf.select(OmegaConf.load(path), "hydra.callbacks.summary.baseline")
    return None if baseline is None else str(baseline), claim.strip()
