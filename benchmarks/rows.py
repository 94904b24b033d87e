"""What a measurement leaves: rows, each a ratio of two figures of one run."""

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
    """Two figures of one run, and their ratio.

    Args:
        name: what was measured, the same in every run: recorded rows are found by it.
        ours: our figure; None if it failed, which the note tells.
        unit: of both figures.
        other: what ours is compared with.
        theirs: its figure; None if it was not there to be run.
        better: whether a ``higher`` or a ``lower`` ratio is the better one.
        limit: what the ratio is to reach; None if nothing was set.
        note: whatever a reader has to know.
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
        """Times better (``higher``: theirs / ours), or times as much (``lower``: ours / theirs)."""
        if not self.theirs or not self.ours:
            return None
        return self.theirs / self.ours if self.better == "higher" else self.ours / self.theirs

    @property
    def holds(self) -> bool | None:
        """Whether the ratio keeps its limit; None without either."""
        if self.ratio is None or self.limit is None:
            return None
        return self.ratio >= self.limit if self.better == "higher" else self.ratio <= self.limit


def beside(
    name: str,
    ours: float,
    unit: str,
    others: Mapping[str, tuple[float | None, str]],
    limits: Mapping[str, float],
) -> list[Row]:
    """A row for each of others that did the same, whose figure is to be higher.

    Args:
        name: what was done.
        ours: our figure.
        unit: of all.
        others: name -> figure, None if it failed, and note.
        limits: name -> how many times higher its figure is to be.
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


def machine() -> dict[str, Any]:
    """Processor, device, versions and commit that a measurement belongs to."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "numpy", "numba")},
        **describe_code(),
    }


def processor() -> str:
    """Name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    return version(name) if importlib.util.find_spec(name) else None


def write(rows: Sequence[Row], about: dict[str, Any], file: Path) -> None:
    """Write rows as JSON."""
    content = {"machine": about, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show(rows: Sequence[Row], title: str) -> None:
    """Print rows as one table."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for heading in ("ours", "other", "ratio", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("compared with; note")
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        verdict = {None: "", True: " kept", False: " MISSED"}[row.holds]
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
    console.print("ratio: with + times better than the other, with - times as much as the other")


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


class Comparison(NamedTuple):
    """Rows beside those on record."""

    worse: list[str]
    """Those whose ratio is worse by more than the tolerance, with both ratios."""
    not_compared: list[str]
    """Names of those that are, or have a ratio, only here or only there."""


def compared_with(recorded: Path, rows: Sequence[Row], tolerance: float) -> Comparison:
    """Ratios beside those on record.

    Args:
        recorded: a file of `write`.
        rows: of this run.
        tolerance: share of a ratio, > 0: machines and their load differ.
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
