"""One progress bar per run, with the time left of the run and of its sweep.

On a terminal the bar is redrawn in place. Elsewhere (CI, a pipe, a log file) it is a plain line now and then.
Rich draws it and measures the pace. Lightning's own bars start again at each epoch and ignore the sweep.
"""

import math
import sys
import time
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

_trained_jobs: list[float] = []
"""Durations in seconds of this sweep's earlier jobs that this process trained to their end."""


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours from one hour on.

    >>> clock(35.4), clock(250), clock(7384)
    ('0:35', '4:10', '2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressWithTimeLeft(ProgressBar):
    """Progress over all steps of a run, not of an epoch, and over a test or validation pass.

    It shows the loss, the last validation's mAP, and what the module logs with ``prog_bar=True``. The time
    left of a run is estimated from the pace of its last thousand steps, validations included, plus the time
    of a test pass if one was timed before. Later jobs of a sweep are assumed to take as long as the mean of
    those trained so far, or as long as this one. Only the process of rank 0 shows the bar.

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
        self.training, self.job, self.later_jobs = training, job, (jobs or 0) - (job or 0)
        self.is_enabled = True
        self._console = console
        self._progress: Progress | None = None
        self._shown_at, self._shown_done = 0.0, 0.0
        self._started = time.monotonic()
        self._test_seconds = 0.0

    def disable(self) -> None:
        """Show nothing from now on."""
        self.is_enabled = False
        self._close()

    def enable(self) -> None:
        """Show the passes that begin from now on."""
        self.is_enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar of the run; a resumed run starts at its step."""
        self._open("step", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Count optimizer steps, not batches: with accumulated gradients a step has several batches."""
        self._advance(trainer, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the final state of the run with its duration."""
        if self.job == 1:
            _trained_jobs.clear()
        _trained_jobs.append(time.monotonic() - self._started + self._test_seconds)
        self._end(trainer)

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
            fitting = trainer.state.fn == TrainerFn.FITTING
            self._advance(trainer, self._progress.tasks[0].completed + (not fitting))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the duration of a test, or of a validation outside of training."""
        if self._progress is not None and trainer.state.fn != TrainerFn.FITTING:
            if trainer.state.fn == TrainerFn.TESTING:
                self._test_seconds = self._progress.tasks[0].elapsed or 0.0
            self._end(trainer)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Restore the terminal, also before an error is printed."""
        self._close()

    on_exception = teardown

    def _open(self, unit: str, total: float, done: int) -> None:
        self._close()
        if not self.is_enabled:
            return
        on_terminal = sys.stdout.isatty()  # FORCE_COLOR asks for colours in a log, not for a moving bar
        text = Column(no_wrap=True, overflow="ellipsis", ratio=4)
        self._progress = progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=36)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[text]}", markup=False, table_column=text),
            console=self._console or Console(force_terminal=None if on_terminal else False),
            auto_refresh=False,  # a thread may hold a lock while workers of the data loader are forked
            expand=True,
            speed_estimate_period=math.inf,
        )
        known = total if math.isfinite(total) and total > 0 else None
        progress.add_task(self.label or unit, total=known, completed=done, unit=unit, text="")
        self._shown_at, self._shown_done = progress.get_time(), done
        if progress.console.is_terminal and progress.console.is_interactive:
            self._shown_at = -math.inf
            progress.start()

    def _advance(self, trainer: pl.Trainer, done: float) -> None:
        """Advance to ``done``. The bar is drawn at most four times a second.

        A line is printed after ten seconds, or after a tenth of the steps and at least one second.
        """
        if (progress := self._progress) is None:
            return
        task = progress.tasks[0]
        progress.update(task.id, completed=done)
        tenth = task.total is not None and done - self._shown_done >= task.total / 10
        wait = 0.25 if progress.live.is_started else 1 if tenth else 10  # seconds
        if progress.get_time() - self._shown_at >= wait:
            self._show(trainer, progress, self._times_left(progress))

    def _times_left(self, progress: Progress) -> str:
        task = progress.tasks[0]
        if task.time_remaining is None:
            return ""
        training = task.fields["unit"] == "step"
        left = task.time_remaining + (self._test_seconds if training else 0.0)
        if not training or not self.job:
            return f"left {clock(left)}"
        each = fmean(_trained_jobs) if _trained_jobs else time.monotonic() - self._started + left
        return f"left {clock(left)}, sweep {clock(left + self.later_jobs * each)}"

    def _show(self, trainer: pl.Trainer, progress: Progress, times: str) -> None:
        task = progress.tasks[0]
        self._shown_at, self._shown_done = progress.get_time(), task.completed
        counted = f"{task.fields['unit']} {task.completed:.0f}"
        counted += "" if task.total is None else f"/{task.total:.0f}"
        elapsed = clock(task.elapsed or 0.0)
        figures = self._figures(trainer) if task.fields["unit"] == "step" else []
        if progress.live.is_started:
            text = "  ".join(filter(None, [counted, elapsed, times, *figures]))
            progress.update(task.id, refresh=True, text=text)
        else:
            share = [] if task.total is None else [f"{math.floor(task.percentage)} %"]
            line = " ".join([counted, *share, *figures, times or f"took {elapsed}"])
            line = f"{self.label}: {line}" if self.label else line
            progress.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _figures(self, trainer: pl.Trainer) -> list[str]:
        logged = trainer.callback_metrics
        shown: dict[str, Any] = {key: logged[key] for key in ("train/loss", "val/mAP") if key in logged}
        shown |= trainer.progress_bar_metrics
        figures = {key.rpartition("/")[2].replace("mAP", "held-out mAP"): float(shown[key]) for key in shown}
        return [f"{key} {100 * v:.1f} %" if "mAP" in key else f"{key} {v:.3g}" for key, v in figures.items()]

    def _end(self, trainer: pl.Trainer) -> None:
        if self._progress is not None:
            self._show(trainer, self._progress, "")
        self._close()

    def _close(self) -> None:
        if self._progress is not None and self._progress.live.is_started:
            self._progress.stop()
        self._progress = None
