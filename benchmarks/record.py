"""Measurements as rows, with what they mean nothing without."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sharpreid.records import describe_code

Row = dict[str, Any]


def described(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with machine, versions and commit."""
    packages = ("torch", "numpy", "pillow", "pytorch-lightning", "hydra-core")
    origin = {
        "machine": f"{processor()}, {os.cpu_count()} logical CPUs, {platform.system()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        **describe_code(),
    }
    return [{**row, **origin} for row in rows]


def show(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print the rows as a table; ``columns`` are format strings by the rows' keys."""
    table = Table(title=title, title_justify="left")
    for key in columns:
        table.add_column(key.replace("_", " "), justify="left" if key == "what" else "right")
    for row in rows:
        table.add_row(*(form.format(row[key]) for key, form in columns.items()))
    Console(width=120).print(table)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """Name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
