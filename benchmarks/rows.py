"""Rows of the benchmarks, each a ratio of two figures of the same run."""

import importlib.util
import json
import operator
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from sharpreid.run.records import describe_code


@dataclass(frozen=True, kw_only=True)
class Row:
    """Two figures of the same run, and their ratio.

    Args:
        name: name of the measurement, by which recorded rows are found.
        ours: sharpreid's figure; None if the measurement failed, see ``note``.
        unit: unit of both figures.
        other: name of the program or quantity that ours is compared with.
        theirs: figure of that program or quantity; None if it was not available.
        better: ``higher`` or ``lower``, whichever ratio is better.
        limit: bound that the ratio should keep; None for none.
        note: remark for the reader.
    """

    name: str
    ours: float | None
    unit: str
    other: str
    theirs: float | None
    better: str
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ratio of the figures: theirs / ours if ``higher`` is better, else ours / theirs."""
        if not self.theirs or not self.ours:
            return None
        return self.theirs / self.ours if self.better == "higher" else self.ours / self.theirs

    @property
    def within_limit(self) -> bool | None:
        """Whether the ratio keeps its limit; None if one of them is missing."""
        if self.ratio is None or self.limit is None:
            return None
        return self.ratio >= self.limit if self.better == "higher" else self.ratio <= self.limit


def rows_against(
    name: str,
    ours: float,
    unit: str,
    others: Mapping[str, tuple[float | None, str]],
    limits: Mapping[str, float],
) -> list[Row]:
    """Return a row for each other program, whose figure should be higher than ours.

    Args:
        name: name of the measurement.
        ours: sharpreid's figure.
        unit: unit of all figures.
        others: figure (None if the program failed) and note of each program.
        limits: smallest ratio for each program; programs without an entry have no limit.
    """
    if not others:
        others = {"": (None, "no other toolbox was named")}
    return [
        Row(
            name=f"{name} against {other}" if other else name,
            ours=ours,
            unit=unit,
            other=other,
            theirs=theirs,
            better="higher",
            limit=limits.get(other),
            note=note,
        )
        for other, (theirs, note) in others.items()
    ]


def describe_machine() -> dict[str, Any]:
    """Return processor, GPU, load, versions and commit, to be written with the rows."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "numpy", "numba")},
        **describe_code(),
    }


def processor_name() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    return version(name) if importlib.util.find_spec(name) else None


def write_rows(rows: Sequence[Row], about: dict[str, Any], file: Path) -> None:
    """Write rows to a JSON file.

    Args:
        rows: rows of a benchmark.
        about: result of `describe_machine`.
        file: file to write.
    """
    content = {"machine": about, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print rows as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for heading in ("ours", "other", "ratio", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("compared with; note")
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        verdict = {None: "", True: " kept", False: " MISSED"}[row.within_limit]
        table.add_row(
            row.name,
            _figure(row.ours, row.unit),
            _figure(row.theirs, row.unit),
            "-" if row.ratio is None else f"{row.ratio:.2f}{'+' if row.better == 'higher' else '-'}",
            "" if row.limit is None else f"{sign} {row.limit:.3g}{verdict}",
            "; ".join(filter(None, (row.other, row.note))),
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print("ratio: + means so many times better than the other, - so many times as much as the other")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


class Comparison(NamedTuple):
    """Comparison of rows with recorded rows."""

    worse: list[str]
    """Rows whose ratio is worse by more than the tolerance, with both ratios."""
    not_compared: list[str]
    """Names of rows without a ratio in this run or in the record."""


def compare_with_record(recorded: Path, rows: Sequence[Row], tolerance: float) -> Comparison:
    """Compare the ratios of this run with the recorded ones.

    Args:
        recorded: file written by `write_rows`.
        rows: rows of this run.
        tolerance: share by which a ratio may be worse, because machines and their load differ.
    """
    before = {row["name"]: row["ratio"] for row in json.loads(recorded.read_text(encoding="utf-8"))["rows"]}
    worse, not_compared = [], [name for name in before if name not in {row.name for row in rows}]
    for row in rows:
        was = before.get(row.name)
        if was is None or row.ratio is None:
            if row.name not in before or was != row.ratio:
                not_compared.append(row.name)
            continue
        is_worse = operator.lt if row.better == "higher" else operator.gt
        factor = 1 - tolerance if row.better == "higher" else 1 + tolerance
        if is_worse(row.ratio, was * factor):
            worse.append(f"{row.name}: {row.ratio:.2f}, recorded {was:.2f}")
    return Comparison(worse, not_compared)
