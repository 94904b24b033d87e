"""A sweep's summary as CSV, one row per job, and as Markdown, one row per configuration."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sharpreid.atomic_io import replacing
from sharpreid.report.comparison import (
    HARD_PAIRS,
    METRICS,
    Configuration,
    Row,
    all_caveats,
    chance_on_hard_pairs,
    compared_metrics,
    configurations,
    describe_data,
    names,
    ranked,
    split_by_data,
    unfinished,
)
from sharpreid.run.console import mean_and_range, percent

HARD_PAIR_NOTE = (
    "Hard pairs are two people who differ in one detail. Rank-1 on them: how often a query is nearer to an "
    "image of its own identity than to any of its twin, among these two people's images by other cameras."
)

_NUMBER = re.compile(r"[+-]?\d|-?$")


def _csv_row(
    row: Row, configuration: Configuration, place: Path, compared: Mapping[str, str]
) -> dict[str, Any]:
    job, record = row.job, row.job.record or {}
    dataset, protocol = record.get("dataset", {}), record.get("protocol", {})
    return {
        "name": job.name,
        "status": job.status,
        "baseline": row.is_baseline,
        **{metric: job.score(metric) for metric in METRICS},
        **{metric: job.score(metric) for metric in HARD_PAIRS if metric in compared},
        "untrained_mAP": job.untrained("mAP"),
        "untrained_rank1": job.untrained("rank1"),
        "held_out_mAP": job.held_out,
        **{f"delta_{metric}_points": _rounded(row.delta.get(metric)) for metric in compared},
        **_mean_and_deviation(configuration, compared),
        "dataset": dataset.get("name"),
        "synthetic": dataset.get("synthetic"),
        "subset": dataset.get("subset"),
        "split": job.split,
        "protocol": protocol.get("name"),
        "crops": protocol.get("crops"),
        "test_mask": protocol.get("test_mask"),
        "re_ranking": protocol.get("re_ranking"),
        "reduced": record.get("reduced"),
        "seed": job.seed,
        "epochs": record.get("epochs"),
        "iterations": record.get("iterations"),
        "commit": record.get("commit"),
        "dirty": record.get("dirty"),
        "device": record.get("device"),
        "minutes": record.get("minutes"),
        "folder": os.path.relpath(job.folder, place),
        "error": job.error,
    }


def _mean_and_deviation(configuration: Configuration, compared: Mapping[str, str]) -> dict[str, float | None]:
    cells: dict[str, float | None] = {}
    for metric in compared:
        scores = configuration.scores(metric)
        cells[f"{metric}_mean"] = _rounded(fmean(scores)) if scores else None
        cells[f"{metric}_std"] = _rounded(configuration.deviation(metric))
    return cells


def _rounded(points: float | None) -> float | None:
    return None if points is None else round(points, 4)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per job, failed ones too: what varies in the sweep, then scores, data, circumstances.

    Scores are in [0, 1], as in ``scores.json``; ``delta_...points`` are percentage points over the
    baseline; ``..._mean`` and ``..._std`` are over the seeds and test splits of the job's configuration, the
    same in all its lines. An empty cell is a value the job does not have; ``folder`` is relative to the
    file's.
    """
    home = {
        id(row): one
        for part in (split_by_data(rows) if rows else ())
        for one in configurations(part)
        for row in one.rows
    }
    compared = compared_metrics(rows)
    lines = [_csv_row(row, home[id(row)], path.parent, compared) for row in rows]
    fixed = list(lines[0]) if lines else []
    settings = list(rows[0].settings) if rows else []
    titles = [f"{key} (override)" if key in fixed else key for key in settings]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles + fixed)
    for row, line in zip(rows, lines, strict=True):
        writer.writerow([row.settings[key] for key in settings] + list(line.values()))
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def points(value: float) -> str:
    """A difference in percentage points, with its sign and one decimal."""
    return f"{round(value, 1) + 0.0:+.1f}"  # adding 0.0 turns -0.0 into 0.0


def _summary_cells(
    configuration: Configuration, compared: Mapping[str, str], *, repeated: bool, held_out: bool
) -> dict[str, str]:
    """Column title -> text of one line of the Markdown table; with deviations if jobs were repeated."""
    done = configuration.done
    minutes = [
        float(row.job.record["minutes"]) for row in done if row.job.record and "minutes" in row.job.record
    ]
    cells = {
        "configuration": configuration.label + (" (baseline)" if configuration.is_baseline else ""),
        "jobs": f"{len(done)} of {len(configuration.rows)}",
    }
    if held_out:
        cells["held-out mAP %"] = mean_and_range(configuration.held_out(), percent)
    for metric, title in compared.items():
        cells[f"{title} %"] = mean_and_range(configuration.scores(metric), percent)
        cells[f"{title} gain"] = mean_and_range(configuration.deltas(metric), points)
        if repeated:
            cells[f"{title} std"] = percent(configuration.deviation(metric))
    for metric in ("rank5", "rank10"):
        cells[f"rank-{metric[4:]} %"] = mean_and_range(configuration.scores(metric), percent)
    cells["untrained mAP %"] = mean_and_range(configuration.untrained("mAP"), percent)
    cells["minutes"] = mean_and_range(minutes, "{:.1f}".format)
    return cells


def markdown_table(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table: one per mapping of column title to text; all have the same keys.

    Columns of numbers are aligned to the right.
    """

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    numbers = {title for title in lines[0] if all(_NUMBER.match(cells[title]) for cells in lines)}
    alignment = ["---:" if title in numbers else "---" for title in lines[0]]
    return [line(lines[0]), line(alignment), *(line(cells.values()) for cells in lines)]


def write_markdown(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "",
    labels: Mapping[str, str] | None = None,
    by_held_out: bool = False,
) -> None:
    """The sweep as a page: what it was scored on, whether the paper compares, a table, the failures.

    With ``by_held_out`` the table has the mAP on held-out identities and is in its order.
    """
    page = [f"# {title or names(rows)}"]
    for part in split_by_data(rows) if rows else ():
        page += ["", f"Scored on {describe_data(part)}.", ""]
        page += [f"- **{caveat}**" for caveat in all_caveats(part)]
        gathered = configurations(part, labels)
        gathered = ranked(gathered) if by_held_out else gathered
        repeated = any(len(one.done) > 1 for one in gathered)
        metrics = compared_metrics(part)
        lines = [_summary_cells(one, metrics, repeated=repeated, held_out=by_held_out) for one in gathered]
        page += ["", *markdown_table(lines)]
        if (chance := chance_on_hard_pairs(part)) is not None:
            page += ["", f"{HARD_PAIR_NOTE} A random ranking reaches {percent(chance)} %."]
    page += [
        "",
        "Several seeds or test splits: mean (lowest to highest); std: standard deviation of the sample. "
        "Gain: percentage points over the baseline's mean.",
    ]
    if failed := unfinished([row.job for row in rows]):
        page += ["", "Jobs without a score:", ""]
        page += [
            f"- `{' '.join(job.overrides)}` ({job.status}): {job.error} - `{job.folder}`" for job in failed
        ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(page) + "\n", encoding="utf-8")
