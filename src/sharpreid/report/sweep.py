"""The end of a sweep: one row per job, one table and one figure (as Fig. 5 a and b) of all of them.

`sharpreid.sweep.summary_callback` runs it at the end of a Hydra multirun; by hand over a folder:

    python -m sharpreid.report.sweep DIR --baseline 'model.blocks=[]'
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharpreid.report.bars import draw
from sharpreid.report.comparison import (
    COMPARED,
    HARD_PAIRS,
    Job,
    Row,
    all_caveats,
    chance_on_hard_pairs,
    compared_metrics,
    configurations,
    describe_data,
    load_jobs,
    names,
    ranked,
    split_by_data,
    summarise,
    unfinished,
)
from sharpreid.report.summary_files import HARD_PAIR_NOTE, points, write_csv, write_markdown
from sharpreid.run.console import percent


def _mean(values: Sequence[float], shown: Callable[[float], str], deviation: float | None = None) -> str:
    mean = shown(fmean(values)) if values else "-"
    return mean if deviation is None else f"{mean} \N{PLUS-MINUS SIGN} {shown(deviation)}"


def _screen_table(
    rows: Sequence[Row], title: str, labels: Mapping[str, str] | None, *, by_held_out: bool
) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("scores in %", overflow="fold")
    chosen_by = ["held-out mAP"] if by_held_out else []
    pairs = compared_metrics(rows).keys() & HARD_PAIRS
    untrained = any(one.untrained("mAP") for one in configurations(rows, labels))
    headings = [heading for title in COMPARED.values() for heading in (title, "gain")]
    headings += (["hard pairs"] if pairs else []) + (["untrained mAP"] if untrained else [])
    for heading in (*chosen_by, *headings, "jobs"):
        table.add_column(heading, justify="right")
    found = configurations(rows, labels)
    for one in ranked(found) if by_held_out else found:
        compared = [
            cell
            for metric in COMPARED
            for cell in (
                _mean(one.scores(metric), percent, one.deviation(metric)),
                _mean(one.deltas(metric), points),
            )
        ]
        table.add_row(
            Text(one.label + (" (baseline)" if one.is_baseline else "")),
            *([_mean(one.held_out(), percent)] if by_held_out else []),
            *compared,
            *(_mean(one.scores(metric), percent, one.deviation(metric)) for metric in pairs),
            *([_mean(one.untrained("mAP"), percent)] if untrained else []),
            f"{len(one.done)}/{len(one.rows)}",
            style=None if len(one.done) == len(one.rows) else "red",
        )
    return table


def report(
    folder: Path,
    *,
    since: float = 0.0,
    baseline: str | None = None,
    title: str = "",
    labels: Mapping[str, str] | None = None,
    by_held_out: bool = False,
    planned: int | None = None,
    console: Console | None = None,
) -> None:
    """Write ``summary.csv``, ``summary.md`` and ``summary.png`` of a sweep into its folder and print them.

    Args:
        folder: where the sweep wrote to. If all its jobs are in one data set's folder below, the files go
            there.
        since: see `load_jobs`.
        baseline: see `summarise`.
        title: heading of the page and the figure; the jobs' name by default.
        labels: see `configurations`.
        by_held_out: see `write_markdown`.
        planned: how many jobs there should be; None does not check.
        console: where to print; the standard output by default.

    Raises:
        SystemExit: status 1, after everything is written, if a job has no score or is missing; or there is no
            job.
        ValueError: the baseline is not of the form key=value.
    """
    console = console or Console()
    jobs = load_jobs(folder, since)
    if not folder.is_dir():
        raise SystemExit(
            f"{folder}: no such folder; expected one that a sweep wrote to, as outputs/NAME/DATA"
        )
    if not jobs:
        raise SystemExit(f"{folder}: no job.json of this sweep below this folder; did any job start?")
    rows = summarise(jobs, baseline)
    folder = _folder_of_data(folder, jobs)
    files = {name: folder / name for name in ("summary.csv", "summary.md", "summary.png")}
    write_csv(rows, files["summary.csv"])
    write_markdown(rows, files["summary.md"], title=title, labels=labels, by_held_out=by_held_out)
    draw(rows, files["summary.png"], title=title, labels=labels)
    for part in split_by_data(rows):
        console.print(_screen_table(part, title or names(rows), labels, by_held_out=by_held_out))
        console.print(Text(describe_data(part)), soft_wrap=True)
        if (chance := chance_on_hard_pairs(part)) is not None:
            console.print(
                Text(f"{HARD_PAIR_NOTE} A random ranking reaches {percent(chance)} %."), soft_wrap=True
            )
        for caveat in all_caveats(part):
            console.print(Text(caveat, style="bold yellow"), soft_wrap=True)
    for path in files.values():
        console.print(Text(str(path)), soft_wrap=True)
    failed = unfinished(jobs)
    for job in failed:
        line = f"{job.status}: {' '.join(job.overrides)}\n  {job.folder}\n  {job.error}"
        console.print(Text(line, style="bold red"), soft_wrap=True)
    if failed:
        console.print(Text(f"{len(failed)} of {len(jobs)} jobs have no score.", style="bold red"))
    missing = 0 if planned is None else planned - len(jobs)
    if missing:
        line = f"{missing} of {planned} jobs left nothing below {folder}: see their errors above."
        console.print(Text(line, style="bold red"))
    if failed or missing:
        raise SystemExit(1)


def _folder_of_data(folder: Path, jobs: Sequence[Job]) -> Path:
    """The folder of all jobs' data set in <folder>/<data set>/<overrides>/seed=<seed>; else ``folder``."""
    places = [job.folder.relative_to(folder).parts for job in jobs]
    first = {place[:1] for place in places}
    return folder.joinpath(*first.pop()) if len(first) == 1 and min(map(len, places)) > 2 else folder


def _has(folder: Path, baseline: str) -> bool:
    rows = summarise(load_jobs(folder, 0.0), baseline)
    return not rows or any(row.is_baseline for row in rows)


def _one_label(text: str) -> tuple[str, str]:
    value, equals, label = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected VALUE=LABEL, got {text!r}")
    return value, label


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: report on every job below a folder, however old."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.report.sweep", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the sweep wrote to")
    parser.add_argument("--baseline", help="override that marks the baseline, e.g. 'model.blocks=[]'")
    parser.add_argument("--title", default="", help="heading of the page and the figure")
    parser.add_argument("--label", type=_one_label, action="append", default=[], metavar="VALUE=LABEL")
    parser.add_argument("--by-held-out", action="store_true", help="rank by mAP on held-out identities")
    given = parser.parse_args(arguments)
    if given.baseline and not _has(given.folder, given.baseline):
        parser.error(
            f"--baseline {given.baseline}: no job below {given.folder} has this override; nothing is written"
        )
    report(
        given.folder,
        baseline=given.baseline,
        title=given.title,
        labels=dict(given.label),
        by_held_out=given.by_held_out,
    )


if __name__ == "__main__":
    main()
