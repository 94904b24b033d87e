"""Summarise a sweep: ``summary.csv``, ``summary.md``, ``summary.png`` and a table on the screen.

The CSV has a row per job. The tables and the figure have a row or bar per configuration, averaged over seeds
and test splits.
"""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharpreid.atomic_io import replacing
from sharpreid.report.comparison import (
    COMPARED,
    METRICS,
    Configuration,
    Ranking,
    Row,
    collect_caveats,
    compare_jobs,
    compared_metrics,
    describe_data,
    group_by_configuration,
    group_by_data,
    hard_pair_chance,
    job_names,
    rank_by_held_out,
)
from sharpreid.report.figures import draw_sweep
from sharpreid.report.markdown import format_points, markdown_table
from sharpreid.report.runs import HARD_PAIRS, Job, load_jobs, unfinished_jobs
from sharpreid.run.console import mean_and_range, percent

HARD_PAIR_NOTE = (
    "Hard pairs are two people who differ in one detail. Rank-1 on hard pairs is the share of queries that "
    "are nearer to an image of their own identity than to any image of the twin, among the images of these "
    "two people by other cameras."
)


def write_summary(
    folder: Path,
    *,
    sweep: str | None = None,
    baseline: str | None = None,
    title: str = "",
    labels: Mapping[str, str] | None = None,
    by_held_out: bool = False,
    planned: int | None = None,
    console: Console | None = None,
) -> None:
    """Write ``summary.csv``, ``summary.md`` and ``summary.png`` of a sweep into its folder and print them.

    Args:
        folder: output folder of the sweep. If all its jobs are in the folder of one data set below, the files
            go there.
        sweep: see `load_jobs`.
        baseline: see `compare_jobs`.
        title: heading of the page and the figure; by default the name of the jobs.
        labels: see `group_by_configuration`.
        by_held_out: see `write_markdown`.
        planned: expected number of jobs; None skips this check.
        console: where to print; by default the standard output.

    Raises:
        SystemExit: there is no job; or, with status 1 and after everything is written, a job has no score or
            is missing.
        ValueError: the baseline is not of the form key=value.
    """
    console = console or Console()
    jobs = load_jobs(folder, sweep)
    if not folder.is_dir():
        raise SystemExit(
            f"{folder}: no such folder; expected the output folder of a sweep, outputs/NAME/DATA"
        )
    if not jobs:
        raise SystemExit(f"{folder}: no job.json of this sweep below this folder; did any job start?")
    rows = compare_jobs(jobs, baseline)
    folder = _data_folder(folder, jobs)
    files = {name: folder / name for name in ("summary.csv", "summary.md", "summary.png")}
    write_csv(rows, files["summary.csv"])
    write_markdown(rows, files["summary.md"], title=title, labels=labels, by_held_out=by_held_out)
    draw_sweep(rows, files["summary.png"], title=title, labels=labels)
    for part in group_by_data(rows):
        console.print(_screen_table(part, title or job_names(rows), labels, by_held_out=by_held_out))
        console.print(Text(describe_data(part)), soft_wrap=True)
        if (chance := hard_pair_chance(part)) is not None:
            console.print(
                Text(f"{HARD_PAIR_NOTE} A random ranking reaches {percent(chance)} %."), soft_wrap=True
            )
        for caveat in collect_caveats(part):
            console.print(Text(caveat, style="bold yellow"), soft_wrap=True)
    for path in files.values():
        console.print(Text(str(path)), soft_wrap=True)
    failed = unfinished_jobs(jobs)
    for job in failed:
        line = f"{job.status}: {' '.join(job.overrides)}\n  {job.folder}\n  {job.error}"
        console.print(Text(line, style="bold red"), soft_wrap=True)
    if failed:
        console.print(Text(f"{len(failed)} of {len(jobs)} jobs have no score.", style="bold red"))
    missing = 0 if planned is None else planned - len(jobs)
    if missing:
        line = f"{missing} of {planned} jobs left no record below {folder}; see their errors above."
        console.print(Text(line, style="bold red"))
    if failed or missing:
        raise SystemExit(1)


def _data_folder(folder: Path, jobs: Sequence[Job]) -> Path:
    """Return the folder of the only data set in FOLDER/DATA/OVERRIDES/seed=SEED, else ``folder``."""
    places = [job.folder.relative_to(folder).parts for job in jobs]
    first = {place[:1] for place in places}
    return folder.joinpath(*first.pop()) if len(first) == 1 and min(map(len, places)) > 2 else folder


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write a row per job: the settings that vary in the sweep, scores, data set and circumstances.

    Scores are in [0, 1], as in ``scores.json``. ``delta_..._points`` are percentage points over the baseline.
    ``..._mean`` and ``..._std`` are taken over the seeds and test splits of a configuration and repeated in
    all its rows. A cell is empty if the job lacks the value. ``folder`` is relative to the folder of the CSV
    file.
    """
    configuration = {
        id(row): one
        for part in (group_by_data(rows) if rows else ())
        for one in group_by_configuration(part)
        for row in one.rows
    }
    metrics = compared_metrics(rows)
    cells = [_csv_row(row, configuration[id(row)], path.parent, metrics) for row in rows]
    fixed = list(cells[0]) if cells else []
    settings = list(rows[0].settings) if rows else []
    titles = [f"{key} (override)" if key in fixed else key for key in settings]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles + fixed)
    for row, values in zip(rows, cells, strict=True):
        writer.writerow([row.settings[key] for key in settings] + list(values.values()))
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _csv_row(
    row: Row, configuration: Configuration, place: Path, metrics: Mapping[str, str]
) -> dict[str, Any]:
    job, record = row.job, row.job.record or {}
    dataset, protocol = record.get("dataset", {}), record.get("protocol", {})
    return {
        "name": job.name,
        "status": job.status,
        "baseline": row.is_baseline,
        **{metric: job.score(metric) for metric in METRICS},
        **{metric: job.score(metric) for metric in HARD_PAIRS if metric in metrics},
        "untrained_mAP": job.untrained("mAP"),
        "untrained_rank1": job.untrained("rank1"),
        "held_out_mAP": job.held_out,
        **{f"delta_{metric}_points": _round(row.delta.get(metric)) for metric in metrics},
        **_mean_and_deviation(configuration, metrics),
        "dataset": dataset.get("name"),
        "synthetic": dataset.get("synthetic"),
        "subset": dataset.get("subset"),
        "split": job.split,
        "protocol": protocol.get("name"),
        "crops": protocol.get("crops"),
        "test_mask": protocol.get("test_mask"),
        "re_ranking": protocol.get("re_ranking"),
        "deviations": record.get("deviations"),
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


def _mean_and_deviation(configuration: Configuration, metrics: Mapping[str, str]) -> dict[str, float | None]:
    cells: dict[str, float | None] = {}
    for metric in metrics:
        scores = configuration.scores(metric)
        cells[f"{metric}_mean"] = _round(fmean(scores)) if scores else None
        cells[f"{metric}_std"] = _round(configuration.deviation(metric))
    return cells


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def write_markdown(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str = "",
    labels: Mapping[str, str] | None = None,
    by_held_out: bool = False,
) -> None:
    """Write the sweep as a page: data set, caveats, a table of the configurations, and the failed jobs.

    With ``by_held_out`` the table is ranked by the mAP on held-out identities, see `rank_by_held_out`, and
    names the seeds over which this mAP is the mean.
    """
    page = [f"# {title or job_names(rows)}"]
    for part in group_by_data(rows) if rows else ():
        page += ["", f"Scored on {describe_data(part)}.", ""]
        page += [f"- **{caveat}**" for caveat in collect_caveats(part)]
        page += ["", *markdown_table(_summary_rows(part, labels, by_held_out=by_held_out))]
        if (chance := hard_pair_chance(part)) is not None:
            page += ["", f"{HARD_PAIR_NOTE} A random ranking reaches {percent(chance)} %."]
    page += [
        "",
        "Cells over several seeds or test splits are means (lowest to highest); std is the sample standard "
        "deviation. A gain is in percentage points over the mean of the baseline.",
    ]
    if failed := unfinished_jobs([row.job for row in rows]):
        page += ["", "Jobs without a score:", ""]
        page += [
            f"- `{' '.join(job.overrides)}` ({job.status}): {job.error} - `{job.folder}`" for job in failed
        ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(page) + "\n", encoding="utf-8")


def _summary_rows(
    part: Sequence[Row], labels: Mapping[str, str] | None, *, by_held_out: bool
) -> list[dict[str, str]]:
    configurations = group_by_configuration(part, labels)
    ranking = rank_by_held_out(configurations) if by_held_out else None
    repeated = any(len(one.done) > 1 for one in configurations)
    metrics = compared_metrics(part)
    return [
        _summary_cells(one, metrics, ranking, repeated=repeated)
        for one in (ranking.order if ranking else configurations)
    ]


def _summary_cells(
    configuration: Configuration, metrics: Mapping[str, str], ranking: Ranking | None, *, repeated: bool
) -> dict[str, str]:
    """Return column title -> text; standard deviations only if jobs were repeated."""
    done = configuration.done
    minutes = [
        float(row.job.record["minutes"]) for row in done if row.job.record and "minutes" in row.job.record
    ]
    cells = {
        "configuration": configuration.label + (" (baseline)" if configuration.is_baseline else ""),
        "jobs": f"{len(done)} of {len(configuration.rows)}",
    }
    if ranking:
        title = f"held-out mAP % ({ranking.describe_replicates()})"
        cells[title] = mean_and_range(ranking.held_out(configuration), percent)
    for metric, title in metrics.items():
        cells[f"{title} %"] = mean_and_range(configuration.scores(metric), percent)
        cells[f"{title} gain"] = mean_and_range(configuration.deltas(metric), format_points)
        if repeated:
            cells[f"{title} std"] = percent(configuration.deviation(metric))
    for metric in ("rank5", "rank10"):
        cells[f"rank-{metric[4:]} %"] = mean_and_range(configuration.scores(metric), percent)
    cells["untrained mAP %"] = mean_and_range(configuration.untrained("mAP"), percent)
    cells["minutes"] = mean_and_range(minutes, "{:.1f}".format)
    return cells


def _screen_table(
    rows: Sequence[Row], title: str, labels: Mapping[str, str] | None, *, by_held_out: bool
) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("scores in %", overflow="fold")
    configurations = group_by_configuration(rows, labels)
    ranking = rank_by_held_out(configurations) if by_held_out else None
    pairs = compared_metrics(rows).keys() & HARD_PAIRS
    untrained = any(one.untrained("mAP") for one in configurations)
    headings = [f"held-out mAP ({ranking.describe_replicates()})"] if ranking else []
    headings += [heading for title in COMPARED.values() for heading in (title, "gain")]
    headings += (["hard pairs"] if pairs else []) + (["untrained mAP"] if untrained else [])
    for heading in (*headings, "jobs"):
        table.add_column(heading, justify="right")
    for one in ranking.order if ranking else configurations:
        compared = [
            cell
            for metric in COMPARED
            for cell in (
                _mean(one.scores(metric), percent, one.deviation(metric)),
                _mean(one.deltas(metric), format_points),
            )
        ]
        table.add_row(
            Text(one.label + (" (baseline)" if one.is_baseline else "")),
            *([_mean(ranking.held_out(one), percent)] if ranking else []),
            *compared,
            *(_mean(one.scores(metric), percent, one.deviation(metric)) for metric in pairs),
            *([_mean(one.untrained("mAP"), percent)] if untrained else []),
            f"{len(one.done)}/{len(one.rows)}",
            style=None if len(one.done) == len(one.rows) else "red",
        )
    return table


def _mean(values: Sequence[float], shown: Callable[[float], str], deviation: float | None = None) -> str:
    mean = shown(fmean(values)) if values else "-"
    return mean if deviation is None else f"{mean} \N{PLUS-MINUS SIGN} {shown(deviation)}"
