"""Compare the jobs of a sweep with each other and with their baseline."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from sharpreid.config.paths import parse_override, remove_whitespace
from sharpreid.report.runs import HARD_PAIRS, Job
from sharpreid.run.comparability import caveats, dataset_line
from sharpreid.run.console import protocol_line, score_of

METRICS = ("mAP", "mAP_trapezoid", "rank1", "rank5", "rank10", "rank20")
COMPARED = {"mAP": "mAP", "rank1": "rank-1"}
"""Metrics that are compared with the baseline, with their titles."""

REPLICATES = ("seed", "data.source.split")
"""Override keys of repetitions: jobs that differ in nothing else are averaged."""


@dataclass(frozen=True)
class Row:
    """A job compared with the other jobs of its sweep.

    Args:
        job: the job.
        settings: override key -> value of the keys that vary in the sweep, without `REPLICATES`; the value is
            empty where the job does not set the key.
        is_baseline: whether the job belongs to the baseline.
        delta: metric -> percentage points over the baseline.
    """

    job: Job
    settings: Mapping[str, str]
    is_baseline: bool
    delta: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Configuration:
    """Rows that differ only in their seed or test split."""

    label: str
    rows: tuple[Row, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the baseline."""
        return self.rows[0].is_baseline

    @property
    def done(self) -> tuple[Row, ...]:
        """Rows that have a score."""
        return tuple(row for row in self.rows if row.job.record is not None)

    def scores(self, metric: str) -> list[float]:
        """Return the trained scores, in [0, 1], of all finished rows."""
        return [score for row in self.rows if (score := row.job.score(metric)) is not None]

    def deviation(self, metric: str) -> float | None:
        """Return the sample standard deviation (n - 1) of the trained scores, or None for fewer than two."""
        scores = self.scores(metric)
        return stdev(scores) if len(scores) > 1 else None

    def untrained(self, metric: str) -> list[float]:
        """Return the scores before training, in [0, 1], of all rows that have one."""
        return [score for row in self.rows if (score := row.job.untrained(metric)) is not None]

    def held_out(self) -> dict[tuple[str, str], float]:
        """Return (seed, test split) -> mAP on held-out identities, in [0, 1]."""
        return {
            (row.job.seed, row.job.split): row.job.held_out
            for row in self.rows
            if row.job.held_out is not None
        }

    def deltas(self, metric: str) -> list[float]:
        """Return the differences to the baseline, in percentage points, of all rows that have one."""
        return [row.delta[metric] for row in self.rows if metric in row.delta]


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the override keys whose value differs between jobs, without `REPLICATES`."""
    settings = [job.settings for job in jobs]
    keys = dict.fromkeys(key for one in settings for key in one if key not in REPLICATES)
    return [key for key in keys if len({one.get(key, "") for one in settings}) > 1]


def compare_jobs(jobs: Sequence[Job], baseline: str | None) -> list[Row]:
    """Compare the jobs of a sweep with their baseline.

    The baseline of a job is the mean score of the jobs that set the baseline override and share the job's
    data set and protocol, over seeds and test splits. If the sweep varies another key too, so that it has
    several baselines, the baseline must agree with the job in all other keys.

    Args:
        jobs: jobs of one sweep, see `load_jobs`.
        baseline: override that marks the baseline, e.g. ``model.blocks=[]``; spaces do not matter.

    Returns:
        One row per job, in the same order. ``delta`` is empty if the job or its baseline has no score.

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


def _baseline_scores(row: Row, baselines: Sequence[Row], baseline_key: str, metric: str) -> list[float]:
    def other_settings(row: Row) -> dict[str, str]:
        return {key: value for key, value in row.settings.items() if key != baseline_key}

    only_one = all(other_settings(one) == other_settings(baselines[0]) for one in baselines)
    return [
        score
        for one in baselines
        if (only_one or other_settings(one) == other_settings(row))
        and one.job.scored_on == row.job.scored_on
        and (score := one.job.score(metric)) is not None
    ]


def compared_metrics(rows: Sequence[Row]) -> dict[str, str]:
    """Return the compared metrics with their titles; hard pairs only if a row has them."""
    known = any(row.job.score(metric) is not None for row in rows for metric in HARD_PAIRS)
    return COMPARED | HARD_PAIRS if known else COMPARED


def hard_pair_chance(rows: Sequence[Row]) -> float | None:
    """Return the rank-1 of a random ranking on hard pairs, in [0, 1], or None without hard pairs."""
    chances = (score_of(row.job.record and row.job.record.get("hard_pairs"), "chance") for row in rows)
    return next((chance for chance in chances if chance is not None), None)


def group_by_data(rows: Sequence[Row]) -> list[list[Row]]:
    """Group the rows by data set and protocol, within which scores are comparable.

    The data set of a job without scores is unknown. Such a job joins the group with the most similar
    settings.
    """
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.job.scored_on is not None:
            parts.setdefault(row.job.scored_on, []).append(row)
    if not parts:
        return [list(rows)]

    def similarity(row: Row, part: Sequence[Row]) -> int:
        return sum(all(other.settings[key] == value for other in part) for key, value in row.settings.items())

    home = {
        id(row): row.job.scored_on or max(parts, key=lambda name: similarity(row, parts[name]))
        for row in rows
    }
    return [[row for row in rows if home[id(row)] == name] for name in parts]


def keys_within(rows: Sequence[Row]) -> list[str]:
    """Return the override keys whose value differs between these rows, without `REPLICATES`."""
    return [key for key in (rows[0].settings if rows else ()) if len({row.settings[key] for row in rows}) > 1]


def group_by_configuration(
    rows: Sequence[Row], labels: Mapping[str, str] | None = None
) -> list[Configuration]:
    """Group the rows of one data set and protocol over seeds and test splits, the baseline first.

    Args:
        rows: one group of `group_by_data`.
        labels: override value, or key=value, -> label; spaces do not matter.
    """
    known = {remove_whitespace(value): label for value, label in (labels or {}).items()}
    keys = keys_within(rows)
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.is_baseline):
        grouped.setdefault(tuple(row.settings[key] for key in keys), []).append(row)
    return [
        Configuration(_label(same[0].settings, keys, known, same[0].job.name), tuple(same))
        for same in grouped.values()
    ]


def _label(settings: Mapping[str, str], keys: Sequence[str], labels: Mapping[str, str], name: str) -> str:
    def label(key: str) -> str:
        value = settings[key]
        given = labels.get(f"{key}={value}", labels.get(value))
        if given is not None:
            return given
        if len(keys) == 1:
            return value or "default"
        return f"{key.rpartition('.')[2]}={value}" if value else ""

    return ", ".join(filter(None, map(label, keys))) or ("default" if keys else name)


@dataclass(frozen=True)
class Ranking:
    """Configurations ranked by their mAP on held-out identities.

    Args:
        replicates: the (seed, test split) pairs that all configurations with a held-out score have, over
            which they are compared; empty if there is no such pair.
        order: the configurations, the best first and those without a held-out score last. Without shared
            replicates they keep their order.
    """

    replicates: tuple[tuple[str, str], ...]
    order: tuple[Configuration, ...]

    def held_out(self, configuration: Configuration) -> list[float]:
        """Return the mAPs on held-out identities, in [0, 1], over the shared replicates."""
        scores = configuration.held_out()
        return [scores[one] for one in self.replicates if one in scores]

    def describe_replicates(self) -> str:
        """Return the shared seeds and test splits as text, such as ``seeds 0, 1``."""
        if not self.replicates:
            return "no shared seed"
        if any(split for _, split in self.replicates):
            return ", ".join(f"seed {seed} split {split}" for seed, split in self.replicates)
        seeds = [seed or "unknown" for seed, _ in self.replicates]
        return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def rank_by_held_out(configurations: Sequence[Configuration]) -> Ranking:
    """Rank configurations by their mean mAP on held-out identities over the seeds that they share.

    A seed changes the mAP of all configurations. Means over different seeds would therefore favour a
    configuration whose only finished job happens to have an easy seed.
    """
    scored = [found for one in configurations if (found := one.held_out())]
    shared = set.intersection(*(set(found) for found in scored)) if scored else set()
    by_number = sorted(shared, key=lambda one: [(len(text), text) for text in one])
    ranking = Ranking(tuple(by_number), tuple(configurations))
    if not shared:
        return ranking
    order = sorted(configurations, key=lambda one: -fmean(ranking.held_out(one) or [-1.0]))
    return Ranking(ranking.replicates, tuple(order))


def describe_data(rows: Sequence[Row]) -> str:
    """Describe the data set and protocol that the rows share, in one line."""
    records = [row.job.record for row in rows if row.job.record is not None]
    if not records:
        return "no job finished, so no data set and no protocol"
    protocol = protocol_line(_merge(record.get("protocol", {}) for record in records))
    return f"data set {dataset_line(records[0].get('dataset', {}))}; protocol {protocol}"


def _merge(protocols: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for protocol in protocols:
        for key, value in protocol.items():
            values.setdefault(key, {})[str(value)] = None
    return {key: " / ".join(distinct) for key, distinct in values.items()}


def collect_caveats(rows: Sequence[Row]) -> list[str]:
    """Return the reasons why some of these rows are not comparable with the paper, see `merge_caveats`."""
    return merge_caveats([row.job.record for row in rows if row.job.record is not None])


def merge_caveats(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the distinct reasons why runs are not comparable with the paper.

    The deviations from the paper's recipe become one reason, which names those of all runs and then those of
    some of them.

    >>> merge_caveats([{"deviations": "epochs 5 (150), P 8 (64)"}, {"deviations": "epochs 5 (150)"}])
    ["Not the paper's recipe (epochs 5 (150); in some runs P 8 (64)): not comparable with the paper."]
    """
    deviations = [split_deviations(record) for record in records]
    shared = [one for one in (deviations or [[]])[0] if all(one in some for some in deviations)]
    partial = dict.fromkeys(one for some in deviations for one in some if one not in shared)
    parts = [", ".join(shared), f"in some runs {', '.join(partial)}" if partial else ""]
    merged = caveats({"deviations": "; ".join(filter(None, parts))})
    others = (caveat for record in records for caveat in caveats({**record, "deviations": ""}))
    return [*dict.fromkeys(others), *merged]


def split_deviations(record: Mapping[str, Any]) -> list[str]:
    """Return the deviations of a run from the paper's recipe as a list, see `recipe_deviations`."""
    return list(filter(None, str(record.get("deviations") or "").strip().rstrip(".").split(", ")))


def shorten_brackets(text: str, longest: int = 120) -> str:
    """Replace the list in the brackets of a long caveat or data set by the number of its entries.

    >>> shorten_brackets("Not the paper's recipe (epochs 5 (150), P 8 (64)): not comparable.", longest=20)
    "Not the paper's recipe (2 differences): not comparable."
    """
    start, end = text.find("("), text.rfind(")")
    if len(text) <= longest or start < 0:
        return text
    count = len(re.split(r"[,;] ", text[start:end]))
    return f"{text[: start + 1]}{count} differences{text[end:]}"


def short_data(rows: Sequence[Row]) -> str:
    """Return `describe_data` with the number of a subset's differences instead of their list."""
    data, *protocol = describe_data(rows).split("; protocol ")
    return "; protocol ".join([shorten_brackets(data, 80), *protocol])


def job_names(rows: Sequence[Row]) -> str:
    """Return the distinct names of the rows' jobs, in one line."""
    return ", ".join(dict.fromkeys(row.job.name for row in rows)) or "sweep"
