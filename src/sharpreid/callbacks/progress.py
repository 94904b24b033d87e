"""One progress bar per run, with the time left of the run and of its sweep.

On a terminal the bar is redrawn in place. Elsewhere (CI, a pipe, a log file) it is a plain line now and then.
Rich draws it and measures the pace. Lightning's own bars start again at each epoch and ignore the sweep.
"""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours from one hour on.

    >>> clock(35.4), clock(250), clock(7384)
    ('0:35', '4:10', '2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class SweepClock:
    """Durations of a sweep's jobs in this process, each from its start to the start of the next, in seconds.

    Only jobs that trained to their end count: one that fails early would spoil the estimate.
    """

    finished: list[float] = field(default_factory=list)
    job: int = 0
    started: float = 0.0
    trained: bool = False

    def begin(self, job: int, now: float) -> None:
        """Record the start of a job. The current number changes nothing; a lower one starts a new sweep."""
        if job == self.job:
            return
        if job < self.job:
            self.finished.clear()
        elif self.trained:
            self.finished.append(now - self.started)
        self.job, self.started, self.trained = job, now, False

    def left(self, job_left: float, later_jobs: int, now: float) -> float:
        """Return the seconds left of the sweep; until a job has finished, all are assumed equally long.

        >>> SweepClock().left(10.0, later_jobs=2, now=50.0), SweepClock([80.0, 100.0]).left(10.0, 2, 50.0)
        (130.0, 190.0)
        """
        each = fmean(self.finished) if self.finished else now - self.started + job_left
        return job_left + later_jobs * each


_sweep = SweepClock()


class ProgressWithTimeLeft(ProgressBar):
    """Progress over all steps of a run, not of an epoch, and over a test or validation pass.

    It shows the loss, the last validation's mAP, and what the module logs with ``prog_bar=True``. The time
    left of a run is estimated from the pace of its last thousand steps, validations included, plus the time
    of a test pass if one was timed before. Only the process of rank 0 shows the bar.

    Args:
        label: Name of the run, e.g. ``blocks=[1,2]``.
        training: Whether the run trains; a test before its first step is then labelled "untrained test".
        job: Place of the run in its sweep, from 1; None outside a sweep.
        jobs: Number of the sweep's runs, one after the other in this process; None outside a sweep.
        console: Console of the bar; the standard output by default.

    Raises:
        ValueError: Only one of ``job`` and ``jobs`` is given, or ``job`` is not in 1..jobs.
    """

    def __init__(
        self,
        *,
        label: str = "",
        training: bool = True,
        job: int | None = None,
        jobs: int | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        if (job, jobs) != (None, None) and not 1 <= (job or 0) <= (jobs or 0):
            raise ValueError(f"job must be in 1..jobs, or both be None, got job={job} and jobs={jobs}")
        self.label = " ".join(part for part in (f"[{job}/{jobs}]" if job else "", label) if part)
        self.training, self.job, self.jobs = training, job, jobs
        self._console = console
        self._enabled = True
        self._progress: Progress | None = None
        self._unit, self._figures = "", dict[str, str]()
        self._shown_at, self._shown_done, self._test_seconds = 0.0, 0.0, 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; ``LightningModule.print`` reads it."""
        return self._enabled

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False
        self._close()

    def enable(self) -> None:
        """Show the passes that begin from now on."""
        self._enabled = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Record the start of the job."""
        super().setup(trainer, pl_module, stage)
        if self.job is not None:
            _sweep.begin(self.job, time.monotonic())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar of the run; a resumed run starts at its step."""
        self._open("step", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count optimizer steps, not batches: with accumulated gradients a step has several batches."""
        if self._progress is not None and self._count(self._progress, trainer.global_step):
            self._figures = self._read_figures(trainer, pl_module, outputs)
            self._show(self._progress)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the final state of the run with its duration."""
        _sweep.trained = True
        if self._progress is not None:
            self._figures = self._read_figures(trainer, pl_module, None)
            self._show(self._progress, last=True)
        self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar of a test, or of a validation outside of training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validation", sum(trainer.num_val_batches), 0)
        elif trainer.state.fn == TrainerFn.TESTING:
            untrained = self.training and not trainer.global_step
            self._open("untrained test" if untrained else "test", sum(trainer.num_test_batches), 0)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Count the batch; a validation during training only updates the clock."""
        if self._progress is not None:
            done = self._progress.tasks[0].completed + (trainer.state.fn != TrainerFn.FITTING)
            if self._count(self._progress, done):
                self._show(self._progress)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the duration of a test, or of a validation outside of training."""
        if self._progress is not None and trainer.state.fn != TrainerFn.FITTING:
            if trainer.state.fn == TrainerFn.TESTING:
                self._test_seconds = self._progress.tasks[0].elapsed or 0.0
            self._show(self._progress, last=True)
            self._close()

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Restore the terminal, also before an error is printed."""
        self._close()

    on_exception = teardown

    def _open(self, unit: str, total: float, done: int) -> None:
        self._close()
        if not self._enabled:
            return
        on_terminal = sys.stdout.isatty()  # FORCE_COLOR asks for colours in a log, not for a moving bar
        console = self._console or Console(force_terminal=None if on_terminal else False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[counted]}", markup=False),
            TextColumn("{task.fields[times]}", style="cyan", table_column=Column(no_wrap=True)),
            TextColumn(
                "{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=2)
            ),
            console=console,
            auto_refresh=False,  # a thread may hold a lock while workers of the data loader are forked
            expand=True,
            speed_estimate_period=math.inf,
        )
        known = total if math.isfinite(total) and total > 0 else None
        self._progress.add_task(
            self.label or unit, total=known, completed=done, counted="", times="", figures=""
        )
        self._unit, self._figures, self._shown_done = unit, {}, done
        self._shown_at = self._progress.get_time()
        if console.is_terminal and console.is_interactive:
            self._shown_at = -math.inf
            self._progress.start()

    def _count(self, progress: Progress, done: float) -> bool:
        """Advance to ``done``; return whether to show it.

        A bar is drawn at most four times a second. A line is printed after ten seconds, or after a tenth of
        the steps and at least one second.
        """
        task = progress.tasks[0]
        progress.update(task.id, completed=done)
        seconds = progress.get_time() - self._shown_at
        tenth = task.total is not None and done - self._shown_done >= task.total / 10
        return seconds >= (0.25 if progress.live.is_started else 1 if tenth else 10)

    def _show(self, progress: Progress, *, last: bool = False) -> None:
        task = progress.tasks[0]
        self._shown_at, self._shown_done = progress.get_time(), task.completed
        times, left = "", None if last else task.time_remaining
        if left is not None:
            left += self._test_seconds if self._unit == "step" else 0.0
            times = f"left {clock(left)}"
            if self._unit == "step" and self.job and self.jobs:
                times += f", sweep {clock(_sweep.left(left, self.jobs - self.job, time.monotonic()))}"
        elapsed = clock(task.elapsed or 0.0)
        counted = f"{self._unit} {task.completed:.0f}" + ("" if task.total is None else f"/{task.total:.0f}")
        figures = [f"{name} {value}" for name, value in self._figures.items()]
        if progress.live.is_started:
            shown: dict[str, Any] = {"counted": counted, "times": f"{elapsed}  {times}".rstrip()}
            progress.update(task.id, refresh=True, figures="  ".join(figures), **shown)
        else:
            share = [] if task.total is None else [f"{math.floor(task.percentage)} %"]
            line = " ".join([counted, *share, *figures, times or f"took {elapsed}"])
            progress.console.print(Text(f"{self.label}: {line}" if self.label else line), soft_wrap=True)

    def _close(self) -> None:
        if self._progress is not None and self._progress.live.is_started:
            self._progress.stop()
        self._progress = None

    def _read_figures(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any
    ) -> dict[str, str]:
        logged = trainer.callback_metrics
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        figures = {
            "loss": logged.get("train/loss") if loss is None else loss,
            "held-out mAP": logged.get("val/mAP"),
        }
        for name, value in self.get_metrics(trainer, pl_module).items():
            figures.setdefault(name.rpartition("/")[2], value)
        return {
            name: _format(name, value)
            for name, value in figures.items()
            if name != "v_num" and value is not None
        }


def _format(name: str, value: Any) -> str:
    value = value.item() if isinstance(value, torch.Tensor) else value
    if not isinstance(value, float):
        return str(value)
    return f"{100 * value:.1f} %" if name.endswith("mAP") else f"{value:.3g}"
