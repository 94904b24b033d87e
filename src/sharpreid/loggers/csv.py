"""A CSV log that a resumed run goes on with."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from sharpreid.atomic_io import write_rows


class ContinuedCSVLogger(CSVLogger):
    """Lightning's, but what is in ``metrics.csv`` stays: Lightning's own deletes it when a run is resumed.

    A row that repeats the one before it is written once, so that a checkpoint's row can be there before it.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._last: tuple[Mapping[str, Any], int | None] | None = None

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row, unless it is the last one again."""
        if (metrics, step) != self._last:
            self._last = dict(metrics), step
            super().log_metrics(dict(metrics), step)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer of hparams.yaml and metrics.csv."""
        if self._experiment is None:
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                self.metrics_keys = next(csv.reader(lines), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """As in the base class, but a process that is killed meanwhile leaves the whole file."""
        file = Path(self.metrics_file_path)
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [*csv.DictReader(lines)]
        write_rows(file, fieldnames, [[row.get(name, "") for name in fieldnames] for row in rows])


def forget_from(metrics: Path, step: int) -> None:
    """Drop the rows of ``step`` and later from a ``metrics.csv``: the resumed run writes them again.

    A last line that was cut short goes too. Without such a file nothing happens.
    """
    if not metrics.is_file():
        return
    with metrics.open(newline="", encoding="utf-8") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    if "step" not in header:
        return
    column = header.index("step")
    kept = [row for row in rows if len(row) == len(header) and int(row[column]) < step]
    write_rows(metrics, header, kept)
