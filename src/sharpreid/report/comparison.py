"""The jobs of a sweep beside each other and beside their baseline."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sharpreid.config.paths import parse_override, squeeze
from sharpreid.run.comparability import caveats, dataset_line
from sharpreid.run.console import protocol_line, score_of

METRICS = ("mAP", "mAP_trapezoid", "rank1", "rank5", "rank10", "rank20")
COMPARED = {"mAP": "mAP", "rank1": "rank-1"}
HARD_PAIRS = {"hard_pair_rank1": "rank-1 on hard pairs"}
"""Compared besides where the data set names pairs of people who differ in one detail."""
REPLICATES = ("seed", "data.source.split")
"""Override keys that make no configuration of their own: jobs that differ in nothing else are averaged."""


@dataclass(frozen=True)
class Job:
    """One training run of a sweep, as its ``job.json`` and ``scores.json`` tell it."""

    folder: Path
    name: str
    status: str  # "done", "running" (or died without a word) or "failed"
    started: float  # Unix seconds
    overrides: tuple[str, ...]
    error: str | None
    record: Mapping[str, Any] | None  # scores.json; None unless done
    number: int | None = None  # in its sweep

    @property
    def settings(self) -> dict[str, str]:
        """Override key -> value; a key given twice has its last value, as in Hydra."""
        return dict(parse_override(override) for override in self.overrides)

    @property
    def seed(self) -> str:
        """The run's seed, as recorded or else as asked for; empty if neither is known."""
        return (
            str(self.record["seed"])
            if self.record and "seed" in self.record
            else self.settings.get("seed", "")
        )

    @property
    def split(self) -> str:
        """The test split, as recorded or else as asked for; empty if the data set has only one."""
        recorded = self.record and self.record.get("dataset", {}).get("split")
        return self.settings.get("data.source.split", "") if recorded is None else str(recorded)

    @property
    def held_out(self) -> float | None:
        """mAP on the training identities that were held out, in [0, 1]; None if there were none."""
        return score_of(self.record and self.record.get("held_out"), "mAP")

    @property
    def scored_on(self) -> tuple[str, str] | None:
        """What scores must share to be compared: data set with its part and variant, and protocol."""
        if self.record is None:
            return None
        protocol = self.record.get("protocol", {})
        rules = [str(protocol[key]) for key in ("name", "re_ranking", "cameras") if protocol.get(key)]
        return dataset_line(self.record.get("dataset", {})), ", ".join(rules)

    def score(self, metric: str) -> float | None:
        """A trained score in [0, 1]; None if the job has none."""
        if metric in HARD_PAIRS:
            return score_of(self.record and self.record.get("hard_pairs"), "rank1")
        return score_of(self.record and self.record.get("scores"), metric)

    def untrained(self, metric: str) -> float | None:
        """A score of the network before training, in [0, 1]; None if the job has none."""
        return score_of(self.record and self.record.get("untrained"), metric)


@dataclass(frozen=True)
class Row:
    """A job beside the other jobs of its sweep."""

    job: Job
    settings: Mapping[str, str]  # what varies in this sweep, replicates aside; "" where this job sets nothing
    is_baseline: bool
    delta: Mapping[str, float] = field(default_factory=dict)  # metric -> percentage points over the baseline


@dataclass(frozen=True)
class Configuration:
    """The rows that differ in nothing but their seed or test split."""

    label: str
    rows: tuple[Row, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether the other bars are differences to this one."""
        return self.rows[0].is_baseline

    @property
    def done(self) -> tuple[Row, ...]:
        """The rows that have a score."""
        return tuple(row for row in self.rows if row.job.record is not None)

    def scores(self, metric: str) -> list[float]:
        """The trained scores, in [0, 1], of every finished row."""
        return [score for row in self.rows if (score := row.job.score(metric)) is not None]

    def deviation(self, metric: str) -> float | None:
        """Standard deviation (of the sample, n - 1) of the trained scores; None of fewer than two."""
        scores = self.scores(metric)
        return stdev(scores) if len(scores) > 1 else None

    def untrained(self, metric: str) -> list[float]:
        """The scores before training, in [0, 1], of every row that has one."""
        return [score for row in self.rows if (score := row.job.untrained(metric)) is not None]

    def held_out(self) -> list[float]:
        """The mAP on held-out identities, in [0, 1], of every row that has one."""
        return [score for row in self.rows if (score := row.job.held_out) is not None]

    def deltas(self, metric: str) -> list[float]:
        """The differences to the baseline, in percentage points, of every row that has one."""
        return [row.delta[metric] for row in self.rows if metric in row.delta]


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got {type(content).__name__}")
    return content


def _read_job(path: Path) -> Job:
    folder = path.parent
    try:
        told = _read_object(path)
        started = float(told.get("asked_for", told["started"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        unreadable = f"job.json cannot be read: {error!r}"
        return Job(folder, folder.name, "failed", path.stat().st_mtime, (), unreadable, None)
    status: str = str(told.get("status"))
    reason: str | None = told.get("error")
    record: dict[str, Any] | None = None
    if status == "done":
        try:
            record = _read_object(folder / "scores.json")
        except (OSError, ValueError) as error:
            status, reason = "failed", f"scores.json cannot be read: {error!r}"
    elif status == "running":
        reason = reason or "still marked as running: it has not ended, or its process died"
    overrides = tuple(str(override) for override in told.get("overrides") or ())
    name, number = str(told.get("name", folder.name)), told.get("number")
    number = number if isinstance(number, int) else None
    return Job(folder, name, status, started, overrides, reason, record, number)


def load_jobs(folder: Path, since: float = 0.0) -> list[Job]:
    """Load all jobs recorded below a folder, in the order of their sweep.

    Args:
        folder: where a sweep wrote to; searched at any depth for ``job.json``, but not in folders named
            ``previous``, where a repeated run sets its earlier self aside.
        since: Unix seconds; jobs started earlier, of an older sweep in the same folder, are left out.
    Returns:
        One Job per ``job.json``, by their numbers, since jobs that run at the same time start in any order;
        jobs of several sweeps, or without a number, by the time at which they started. A file that cannot be
        read is a failed job, not an absent one.
    """
    found = sorted(folder.rglob("job.json"))
    jobs = [_read_job(path) for path in found if "previous" not in path.relative_to(folder).parts]
    kept = sorted((job for job in jobs if job.started >= since), key=lambda job: (job.started, job.folder))
    numbered = {job.number: job for job in kept if job.number is not None}
    return [job for _, job in sorted(numbered.items())] if len(numbered) == len(kept) else kept


def unfinished(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that have no score: failed, or never seen to end."""
    return [job for job in jobs if job.status != "done"]


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """The override keys whose value is not the same in all jobs, replicates aside, as they first appear."""
    settings = [job.settings for job in jobs]
    keys = dict.fromkeys(key for one in settings for key in one if key not in REPLICATES)
    return [key for key in keys if len({one.get(key, "") for one in settings}) > 1]


def _baseline_scores(row: Row, baselines: Sequence[Row], baseline_key: str, metric: str) -> list[float]:
    def other_settings(of: Row) -> dict[str, str]:
        return {key: value for key, value in of.settings.items() if key != baseline_key}

    only_one = all(other_settings(one) == other_settings(baselines[0]) for one in baselines)
    return [
        score
        for one in baselines
        if (only_one or other_settings(one) == other_settings(row))
        and one.job.scored_on == row.job.scored_on
        and (score := one.job.score(metric)) is not None
    ]


def summarise(jobs: Sequence[Job], baseline: str | None) -> list[Row]:
    """Put the jobs of a sweep beside each other and beside their baseline.

    A job's baseline is the mean over the seeds and test splits of the jobs that set the baseline override,
    share the job's data set and protocol and, where the sweep has several baselines (one per value of
    another key), agree with the job in everything else.

    Args:
        jobs: as of ``load_jobs``.
        baseline: the override that marks the baseline, e.g. ``model.blocks=[]``; spaces do not matter.
    Returns:
        One Row per job, in the same order. ``delta`` is empty where the job or its baseline has no score.
    Raises:
        ValueError: the baseline is not of the form key=value.
    """
    if baseline is not None and "=" not in baseline:
        raise ValueError(f"baseline must be an override such as 'model.blocks=[]', got {baseline!r}")
    key, value = parse_override(baseline) if baseline is not None else ("", "")
    keys = varying_keys(jobs)
    rows = [
        Row(
            job=job,
            settings={name: job.settings.get(name, "") for name in keys},
            is_baseline=baseline is not None and job.settings.get(key) == value,
        )
        for job in jobs
    ]
    baselines = [row for row in rows if row.is_baseline]

    def delta(row: Row) -> dict[str, float]:
        found = {}
        for metric in COMPARED | HARD_PAIRS:
            score, reference = row.job.score(metric), _baseline_scores(row, baselines, key, metric)
            if score is not None and reference:
                found[metric] = 100 * (score - fmean(reference))
        return found

    return [Row(row.job, row.settings, row.is_baseline, delta(row)) for row in rows]


def compared_metrics(rows: Sequence[Row]) -> dict[str, str]:
    """The metrics that these rows are compared by, and what to call them."""
    known = any(row.job.score(metric) is not None for row in rows for metric in HARD_PAIRS)
    return COMPARED | HARD_PAIRS if known else COMPARED


def chance_on_hard_pairs(rows: Sequence[Row]) -> float | None:
    """Rank-1 on hard pairs of a random ranking, in [0, 1]; None where no row has hard pairs."""
    chances = (score_of(row.job.record and row.job.record.get("hard_pairs"), "chance") for row in rows)
    return next((chance for chance in chances if chance is not None), None)


def split_by_data(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose scores may share an axis: one list per data set and protocol.

    A job without scores has no data set either; it joins the list whose settings are most like its own.
    """
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.job.scored_on is not None:
            parts.setdefault(row.job.scored_on, []).append(row)
    if not parts:
        return [list(rows)]

    def likeness(row: Row, part: Sequence[Row]) -> int:
        return sum(all(other.settings[key] == value for other in part) for key, value in row.settings.items())

    home = {
        id(row): row.job.scored_on or max(parts, key=lambda name: likeness(row, parts[name])) for row in rows
    }
    return [[row for row in rows if home[id(row)] == name] for name in parts]


def _label(settings: Mapping[str, str], keys: Sequence[str], labels: Mapping[str, str], name: str) -> str:
    def of_one(key: str) -> str:
        value = settings[key]
        given = labels.get(f"{key}={value}", labels.get(value))
        shown = value or "default"
        return (
            given if given is not None else shown if len(keys) == 1 else f"{key.rpartition('.')[2]}={shown}"
        )

    return ", ".join(of_one(key) for key in keys) or name


def keys_within(rows: Sequence[Row]) -> list[str]:
    """The override keys whose value is not the same in all of these rows, replicates aside."""
    return [key for key in (rows[0].settings if rows else ()) if len({row.settings[key] for row in rows}) > 1]


def configurations(rows: Sequence[Row], labels: Mapping[str, str] | None = None) -> list[Configuration]:
    """The rows of one data set and protocol, gathered over seeds and test splits, the baseline first.

    Args:
        rows: one list of ``split_by_data``.
        labels: override value, or key=value, -> what to call it; spaces do not matter.
    """
    known = {squeeze(value): label for value, label in (labels or {}).items()}
    keys = keys_within(rows)
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.is_baseline):
        gathered.setdefault(tuple(row.settings[key] for key in keys), []).append(row)
    return [
        Configuration(_label(same[0].settings, keys, known, same[0].job.name), tuple(same))
        for same in gathered.values()
    ]


def ranked(compared: Iterable[Configuration]) -> list[Configuration]:
    """The configurations by their mean mAP on held-out identities, the best first, those without one last."""
    return sorted(compared, key=lambda one: -fmean(one.held_out() or [-1.0]))


def _merged(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for protocol in protocols:
        for key, value in protocol.items():
            values.setdefault(key, {})[str(value)] = None
    return {key: " / ".join(distinct) for key, distinct in values.items()}


def describe_data(rows: Sequence[Row]) -> str:
    """Data set and protocol of rows that share them, in one line."""
    records = [row.job.record for row in rows if row.job.record is not None]
    if not records:
        return "no job finished, so no data set and no protocol"
    protocol = protocol_line(_merged(record.get("protocol", {}) for record in records))
    return f"data set {dataset_line(records[0].get('dataset', {}))}; protocol {protocol}"


def all_caveats(rows: Sequence[Row]) -> list[str]:
    """Every reason, once, why some of these rows may not stand beside the paper's numbers."""
    records = [row.job.record for row in rows if row.job.record is not None]
    return list(dict.fromkeys(caveat for record in records for caveat in caveats(record)))


def names(rows: Sequence[Row]) -> str:
    """The different names of the rows' jobs, in one line."""
    return ", ".join(dict.fromkeys(row.job.name for row in rows)) or "sweep"
