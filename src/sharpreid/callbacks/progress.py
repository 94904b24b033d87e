"""One progress bar per run, with the time left of the run and, in a sweep, of the sweep.

On a terminal a bar that is redrawn in place; anywhere else (CI, a pipe, a log file) a plain line now
and then, without control characters.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


def clock(seconds: float) -> str:
    """Seconds as a person reads them: minutes and seconds, with hours from one hour on.

    >>> clock(35.4), clock(250), clock(7384)
    ('0:35', '4:10', '2:03:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sweep_left(job_left: float, job_elapsed: float, later_jobs: int, finished: Sequence[float]) -> float:
    """Seconds left of a sweep whose jobs run one after the other.

    Args:
        job_left: seconds left of the running job.
        job_elapsed: seconds the running job has taken so far.
        later_jobs: how many jobs follow it.
        finished: seconds that each finished job took. Empty: the later jobs are taken to last as long
            as the running one.

    >>> sweep_left(10.0, 50.0, later_jobs=2, finished=[]), sweep_left(10.0, 50.0, 2, finished=[80.0, 100.0])
    (130.0, 190.0)
    """
    return job_left + later_jobs * (fmean(finished) if finished else job_elapsed + job_left)


@dataclass
class SweepClock:
    """How long the jobs of the sweep in this process took, each from its start to the next one's.

    A job counts once it has trained to its end, so that one that fails early spoils no estimate.
    """

    finished: list[float] = field(default_factory=list)
    job: int = 0
    started: float = 0.0
    trained: bool = False

    def begin(self, job: int, now: float) -> None:
        """Note that a job starts; the number of an earlier job starts a new sweep, the same is ignored."""
        if job == self.job:
            return
        if job < self.job:
            self.finished.clear()
        elif self.trained:
            self.finished.append(now - self.started)
        self.job, self.started, self.trained = job, now, False


_sweep = SweepClock()


@dataclass(frozen=True)
class Pass:
    """Where a pass over data stands; times in seconds, None where unknown."""

    label: str
    unit: str  # what is counted: "step" of the optimizer, "test" or "validation" batches
    total: int | None
    done: int = 0
    elapsed: float = 0.0
    left: float | None = None
    sweep_left: float | None = None
    figures: Mapping[str, str] = field(default_factory=dict)


def plain_line(now: Pass) -> str:
    """The pass as one line of text.

    >>> plain_line(Pass("[3/8] blocks=[1,2]", "step", 460, 120, 12.0, 34.6, figures={"loss": "0.41"}))
    '[3/8] blocks=[1,2]: step 120/460 26 % loss 0.41 left 0:35'
    >>> plain_line(Pass("", "test", None, 7, 12.0))
    'test 7 took 0:12'
    """
    counted = f"{now.unit} {now.done}"
    if now.total is not None:
        counted += f"/{now.total} {100 * now.done // max(now.total, 1)} %"
    words = [counted, *(f"{name} {value}" for name, value in now.figures.items()), _time_left(now)]
    return (f"{now.label}: " if now.label else "") + " ".join(words)


def _time_left(now: Pass) -> str:
    if now.left is None:
        return f"took {clock(now.elapsed)}"
    sweep = "" if now.sweep_left is None else f", sweep {clock(now.sweep_left)}"
    return f"left {clock(now.left)}{sweep}"


class Display(Protocol):
    """Shows one pass to a person."""

    def due(self, now: Pass) -> bool:
        """Whether it is time to show the pass again; asked at every batch, so it has to be cheap."""

    def show(self, now: Pass) -> None:
        """Show the pass as it stands."""

    def close(self) -> None:
        """Leave the output as it is, ready for other text."""


class Lines:
    """A line after ten seconds or a tenth of the way, and never two within a second."""

    def __init__(self, *, console: Console) -> None:
        self.console = console
        self.shown_at = time.monotonic()
        self.shown_done: int | None = None

    def due(self, now: Pass) -> bool:
        """See Display."""
        seconds = time.monotonic() - self.shown_at
        self.shown_done = now.done if self.shown_done is None else self.shown_done
        tenth = now.total is not None and now.done - self.shown_done >= now.total / 10
        return seconds >= 10 or (tenth and seconds >= 1)

    def show(self, now: Pass) -> None:
        """See Display."""
        self.shown_at, self.shown_done = time.monotonic(), now.done
        self.console.print(Text(plain_line(now)), soft_wrap=True)

    def close(self) -> None:
        """See Display."""


class _TimeColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        now: Pass = task.fields["now"]
        return Text(
            clock(now.elapsed) + (f"  {_time_left(now)}" if now.left is not None else ""), style="cyan"
        )


class _FiguresColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        now: Pass = task.fields["now"]
        shown = "  ".join(f"{name} {value}" for name, value in now.figures.items())
        return Text(shown, no_wrap=True, overflow="ellipsis")


class Bar:
    """A bar on a terminal, redrawn at most four times a second.

    It draws from the training loop, not from a thread of its own: data loader workers may be forked
    at any moment, and a fork must not copy a lock that such a thread holds.
    """

    def __init__(self, *, console: Console, now: Pass) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=40)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[counted]}", markup=False),
            _TimeColumn(Column(no_wrap=True)),
            _FiguresColumn(),  # what a narrow terminal cuts short first
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self.task = self.progress.add_task(now.label or now.unit, total=now.total, **self._fields(now))
        self.shown_at = -math.inf
        self.progress.start()

    @staticmethod
    def _fields(now: Pass) -> dict[str, Any]:
        counted = f"{now.unit} {now.done}" + ("" if now.total is None else f"/{now.total}")
        return {"counted": counted, "now": now}

    def due(self, now: Pass) -> bool:
        """See Display."""
        return time.monotonic() - self.shown_at >= 0.25

    def show(self, now: Pass) -> None:
        """See Display."""
        self.shown_at = time.monotonic()
        self.progress.update(self.task, completed=now.done, refresh=True, **self._fields(now))

    def close(self) -> None:
        """See Display."""
        self.progress.stop()


class ProgressWithTimeLeft(ProgressBar):
    """Progress over all steps of a run, not of an epoch, and over a test or validation pass.

    Shows the loss, the last validation's mAP, and whatever the module logs with ``prog_bar=True``.
    The time left of a run counts its remaining steps at the pace so far, validation included, and a
    test pass if one was timed before. Silent on every process but the first.
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
        """
        Args:
            label: names the run, e.g. ``blocks=[1,2]``.
            training: whether the run trains; a test before its first step is then called untrained.
            job: the run's place in its sweep, from 1; None outside a sweep.
            jobs: how many runs the sweep has, one after the other in this process. Leave job and jobs
                None where runs go on side by side, as under a cluster's launcher.
            console: where to show; the standard output by default.
        Raises:
            ValueError: only one of job and jobs is given, or job is not in 1..jobs.
        """
        super().__init__()
        if (job is None) != (jobs is None):
            raise ValueError(f"job and jobs go together, got job={job} and jobs={jobs}")
        if job is not None and jobs is not None and not 1 <= job <= jobs:
            raise ValueError(f"job must be in 1..jobs, got job={job} of jobs={jobs}")
        self.label = " ".join(part for part in (f"[{job}/{jobs}]" if job is not None else "", label) if part)
        self.training = training
        self.job, self.jobs = job, jobs
        self._console = console
        self._enabled = True
        self._display: Display | None = None
        self._now = Pass(self.label, "step", None)
        self._began = self._first_step_at = self._last_step_at = 0.0
        self._done_at_first_step = 0
        self._test_seconds = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether anything is shown; ``LightningModule.print`` asks."""
        return self._enabled

    def disable(self) -> None:
        """Show nothing from now on."""
        self._enabled = False
        self._close()

    def enable(self) -> None:
        """Show the passes that begin from now on."""
        self._enabled = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note that the job has begun."""
        super().setup(trainer, pl_module, stage)
        if self.job is not None:
            _sweep.begin(self.job, time.monotonic())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the run's bar, at the step a resumed run goes on from."""
        self._open("step", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count optimizer steps, not batches: with accumulated gradients a step is several batches."""
        self._count(trainer.global_step)
        if self._display is not None and self._display.due(self._now):
            self._show(self._figures(trainer, pl_module, outputs))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the run's last state, with how long it took."""
        _sweep.trained = True
        self._finish(self._figures(trainer, pl_module, None))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for a validation that is not part of training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._open("validation", sum(trainer.num_val_batches), 0)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Within training, keep the clock going; else count the batch."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._count(self._now.done + 1)
        if self._display is not None and self._display.due(self._now):
            self._show(self._now.figures)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar of a validation that is not part of training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish({})

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for the test pass."""
        untrained = self.training and not trainer.global_step
        self._open("untrained test" if untrained else "test", sum(trainer.num_test_batches), 0)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        self._count(self._now.done + 1)
        if self._display is not None and self._display.due(self._now):
            self._show({})

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the test pass's bar and remember how long it took."""
        self._test_seconds = time.monotonic() - self._began
        self._finish({})

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the error is printed on it."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the terminal back, however the pass ended."""
        self._close()

    def _open(self, unit: str, total: float, done: int) -> None:
        self._close()
        known = int(total) if math.isfinite(total) and total > 0 else None
        self._now = Pass(self.label, unit, known, done)
        self._began = time.monotonic()
        self._first_step_at = self._last_step_at = 0.0
        if not self._enabled:
            return
        on_terminal = sys.stdout.isatty()  # FORCE_COLOR asks for colours in a log, not for a moving bar
        console = self._console or Console(force_terminal=None if on_terminal else False)
        moving = console.is_terminal and console.is_interactive
        self._display = Bar(console=console, now=self._now) if moving else Lines(console=console)

    def _count(self, done: int) -> None:
        """Advance; the pace leaves out the first step, which also warms everything up."""
        if done == self._now.done:
            return
        self._last_step_at = time.monotonic()
        if not self._first_step_at:
            self._first_step_at, self._done_at_first_step = self._last_step_at, done
        self._now = replace(self._now, done=done)

    def _left(self) -> float | None:
        steps = self._now.done - self._done_at_first_step
        if self._now.total is None or not self._first_step_at or steps <= 0:
            return None
        pace = (self._last_step_at - self._first_step_at) / steps
        later = self._test_seconds if self._now.unit == "step" else 0.0
        return pace * max(self._now.total - self._now.done, 0) + later

    def _figures(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any) -> dict[str, str]:
        logged = trainer.callback_metrics
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        named = {
            "loss": logged.get("train/loss") if loss is None else loss,
            "held-out mAP": logged.get("val/mAP"),
        }
        found: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        for name, value in self.get_metrics(trainer, pl_module).items():
            if name != "v_num":
                found.setdefault(name.rpartition("/")[2], value)
        return {name: _shown(name, value) for name, value in found.items()}

    def _show(self, figures: Mapping[str, str], *, last: bool = False) -> None:
        if self._display is None:
            return
        now = time.monotonic()
        left = None if last else self._left()
        sweep = None
        in_training = self._now.unit == "step"  # a test before it does not know how long the training takes
        if left is not None and in_training and self.job is not None and self.jobs is not None:
            sweep = sweep_left(left, now - _sweep.started, self.jobs - self.job, _sweep.finished)
        self._now = replace(
            self._now, elapsed=now - self._began, left=left, sweep_left=sweep, figures=dict(figures)
        )
        self._display.show(self._now)

    def _finish(self, figures: Mapping[str, str]) -> None:
        self._show(figures, last=True)
        self._close()

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


def _shown(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        value = value.item()
    if not isinstance(value, float):
        return str(value)
    return f"{100 * value:.1f} %" if name.endswith("mAP") else f"{value:.3g}"
