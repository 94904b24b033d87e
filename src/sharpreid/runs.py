"""List runs, or compare the configs of two runs: ``python -m sharpreid.runs [DIR ...] [--compare]``."""

import argparse
import csv
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharpreid.checkpoint_files import step_checkpoints, step_of
from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.resolvers import register_resolvers
from sharpreid.report.runs import Job, load_jobs
from sharpreid.run.console import percent
from sharpreid.run.records import flatten_config, is_run_dir_locked, result_config
from sharpreid.standard_streams import tolerate_write_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """List all runs below the folders, the newest last; or compare the configs of two runs."""
    parser = argparse.ArgumentParser(
        prog="python -m sharpreid.runs",
        description=main.__doc__,
        epilog="States: done; running; stopped (resume=auto continues it from the step); failed.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("outputs")],
        metavar="DIR",
        help="output folders of runs; by default outputs/",
    )
    parser.add_argument(
        "--compare", action="store_true", help="compare two runs: the config keys that scores depend on"
    )
    given = parser.parse_args(arguments)
    if given.compare and len(given.folders) != 2:
        parser.error(f"--compare needs the folders of two runs, got {len(given.folders)}")
    register_resolvers()
    try:
        table = compare_configs(*given.folders) if given.compare else list_runs(given.folders)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if table is None:
        print("no difference in the keys that scores depend on")
        return
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a table is as wide as its content, and a pipe has no width
    console.print(table)


def list_runs(folders: Sequence[Path]) -> Table:
    """Return a table of all runs below ``folders``, the newest last.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: None of the folders has a run.
    """
    table = Table("run", "state", "epochs", "mAP %", "rank-1 %", "age", box=box.SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    jobs: list[Job] = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected an output folder of runs")
        jobs += load_jobs(folder)
    if not jobs:
        raise ValueError(f"{', '.join(map(str, folders))}: no run is recorded there (job.json)")
    for job in sorted({job.folder.resolve(): job for job in jobs}.values(), key=lambda job: job.started):
        scores = (percent(job.score(metric)) for metric in ("mAP", "rank1"))
        table.add_row(Text(str(job.folder)), Text(_state(job)), _epochs(job), *scores, age(job.started))
    return table


def compare_configs(first: Path, second: Path) -> Table | None:
    """Return a table of the config keys that differ and that scores depend on; None if none differs.

    Args:
        first: Directory of a run, with config.yaml.
        second: Directory of another run.

    Raises:
        FileNotFoundError: A directory has no config.yaml.
    """
    values = [_read_config(folder) for folder in (first, second)]
    keys = [key for key in sorted(values[0] | values[1]) if values[0].get(key) != values[1].get(key)]
    if not keys:
        return None
    table = Table("key", box=box.SIMPLE_HEAD)
    for folder in (first, second):
        table.add_column(Text(str(folder)))
    for key in keys:
        table.add_row(key, *(Text(str(one.get(key, "-"))) for one in values))
    return table


def age(since: float, now: float | None = None) -> str:
    """Format the time from ``since`` to ``now``, both in Unix seconds, in its largest whole unit.

    >>> [age(0, now=seconds) for seconds in (40, 150, 7300, 260000)]
    ['40 s', '2 min', '2 h', '3 d']
    """
    seconds = (time.time() if now is None else now) - since
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _state(job: Job) -> str:
    if job.status == "done":
        return "done"
    if is_run_dir_locked(job.folder):
        return "running"
    if checkpoints := step_checkpoints(job.folder / "checkpoints"):
        return f"stopped at step {step_of(checkpoints[0])}"
    return textwrap.shorten(f"failed: {job.error}", 60, placeholder=" ...")


def _epochs(job: Job) -> str:
    if job.record is not None:
        return str(job.record.get("epochs", "-"))
    try:
        with (job.folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
            logged = [row["epoch"] for row in csv.DictReader(file) if row.get("epoch")]
    except (OSError, csv.Error):
        return "-"
    return logged[-1] if logged else "-"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    config = OmegaConf.load(path) if path.is_file() else None
    if not isinstance(config, DictConfig):
        raise FileNotFoundError(f"{path}: no config of a run; expected the directory of a run")
    return flatten_config(result_config(upgrade_config(config)))


if __name__ == "__main__":
    tolerate_write_errors()
    main()
