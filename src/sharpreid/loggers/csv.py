"""A CSV log that a resumed run appends to.

Lightning's CSVLogger deletes an existing metrics.csv, and rewrites the file in place when a column is added.
"""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers.logger import Logger

from sharpreid.atomic_io import replacing, write_rows
from sharpreid.distributed import rank_zero_only


class AppendingCSVLogger(Logger):
    """Logger that appends each row to ``metrics.csv`` at once and keeps existing rows.

    A row equal to the one before it is written once, so that a checkpoint can write the row of its step
    before Lightning does. A new column is added to all rows by replacing the file. Only the process of rank 0
    writes.

    Args:
        folder: Folder of ``metrics.csv`` and ``hparams.yaml``.
    """

    def __init__(self, *, folder: str) -> None:
        super().__init__()
        self._file = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._last: dict[str, Any] = {}
        self._hparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the experiment, which is empty."""
        return ""

    @property
    def version(self) -> str:
        """Name of the log's folder."""
        return self._file.parent.name

    @property
    def save_dir(self) -> str:
        """Folder of the log."""
        return str(self._file.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row, unless it equals the last one."""
        row = {**metrics, "step": step}
        if row == self._last:
            return
        self._last = row
        if not self._columns and self._file.is_file():
            with self._file.open(newline="", encoding="utf-8") as lines:
                self._columns = next(csv.reader(lines), [])
        if not row.keys() <= {*self._columns}:
            self._add_columns(row)
        with self._file.open("a", newline="", encoding="utf-8") as lines:
            csv.DictWriter(lines, self._columns).writerow(row)

    def _add_columns(self, row: Mapping[str, Any]) -> None:
        """Replace the file atomically by one that also has the columns of ``row``."""
        rows: list[dict[str, str]] = []
        if self._file.is_file():
            with self._file.open(newline="", encoding="utf-8") as lines:
                rows = [*csv.DictReader(lines)]
        columns = sorted({*self._columns, *row})
        write_rows(self._file, columns, [[one.get(name, "") for name in columns] for one in rows])
        self._columns = columns

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Write the settings, with those logged before, to ``hparams.yaml``."""
        self._hparams |= vars(params) if isinstance(params, Namespace) else params
        with replacing(self._file.with_name("hparams.yaml")) as temporary:
            save_hparams_to_yaml(temporary, self._hparams)


def drop_rows_from(metrics: Path, step: int) -> None:
    """Drop the rows of ``step`` and later, which a resumed run writes again, and a truncated last line.

    Args:
        metrics: A ``metrics.csv``, which may not exist.
        step: Optimizer step, from 0.
    """
    if not metrics.is_file():
        return
    with metrics.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    if "step" not in header:
        return
    column = header.index("step")
    write_rows(metrics, header, [row for row in rows if len(row) == len(header) and int(row[column]) < step])
