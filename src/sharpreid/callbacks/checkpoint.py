"""Save checkpoints of a training, and stop it at a signal without losing a step."""

import logging
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.trainer.states import TrainerFn

from sharpreid.checkpoint_files import remove_unfinished, step_checkpoints, step_path
from sharpreid.loggers.csv import AppendingCSVLogger
from sharpreid.signals import STOP_SIGNALS, StoppedAtStepError, set_signal_handlers

log = logging.getLogger(__name__)


class StepCheckpoints(Checkpoint):
    """Callback that saves a checkpoint every few steps and keeps the newest ones.

    A training that resumes from such a checkpoint continues exactly. Within an epoch a checkpoint is written
    after an optimizer step, at its end after the validation. Between two steps, where accumulated gradients
    would be lost, nothing is saved. There is always a checkpoint after the last step, also if early stopping
    or a time limit ends the training; ``trainer.should_stop`` takes effect at the next step. SIGTERM and
    SIGUSR1 set a flag. At the next of these points all processes agree to stop, save, and raise
    `StoppedAtStepError`.

    Args:
        folder: Folder of the checkpoints.
        every_n_steps: Optimizer steps between two checkpoints, > 0.
        keep: Number of checkpoints to keep, > 0. More than one is safer, because a disk may damage one.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, *, folder: str, every_n_steps: int, keep: int) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"every_n_steps and keep must be > 0, got {every_n_steps} and {keep}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._signal: int | None = None
        self._due = False
        self._stop: Path | None = None
        self._unflushed = False
        self._saved_at: int | None = None
        self._steps = 0
        self._accumulating = False
        self._ends_at_next_step = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random states of a resumed training, and install the signal handlers."""
        self._restore_random_states(trainer)
        self._steps = trainer.global_step
        _begin_next_epoch(trainer)
        # a training that early stopping had ended is over, if it resumes to be scored
        if any(one.wait_count >= max(one.patience, 1) for one in trainer.early_stopping_callbacks):
            trainer.should_stop = True
        if trainer.is_global_zero:
            remove_unfinished(self.folder)

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        self._handlers = set_signal_handlers(dict.fromkeys(STOP_SIGNALS, note))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the processes have agreed to, now that the last step is logged."""
        self._finish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step if a checkpoint is due.

        At an epoch's last batch the validation is still to come, so `on_train_epoch_end` saves.
        """
        self._accumulating, self._steps = trainer.global_step == self._steps, trainer.global_step
        if self._accumulating:
            self._postpone_end(trainer)
            return
        if self._ends_at_next_step:
            trainer.should_stop, self._ends_at_next_step = True, False
        self._due = self._due or trainer.global_step % self.every_n_steps == 0
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save_and_stop(trainer, row=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if a validation within an epoch ends the training, as early stopping may."""
        within_epoch = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if trainer.state.fn == TrainerFn.FITTING and within_epoch and _is_over(trainer):
            if self._accumulating:
                self._postpone_end(trainer)
            elif self._saved_at != trainer.global_step:
                self._save_and_stop(trainer, row=None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if a checkpoint is due or this was the last epoch.

        Lightning also ends an epoch that was cut short. Its last step is saved already, and a checkpoint
        written here would count the rest of the epoch as trained.
        """
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save_and_stop(trainer, row=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the signal handlers, and stop if a signal came, even during the last save."""
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if stop and self._saved_at == trainer.global_step:
            self._stop = step_path(self.folder, trainer.global_step)
        self._finish(trainer)
        self._restore_handlers()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the signal handlers; after a stop by a signal, ignore further signals."""
        if isinstance(exception, StoppedAtStepError):
            self._handlers = dict.fromkeys(self._handlers, signal.SIG_IGN)
        self._restore_handlers()

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all processes, in the order of their ranks."""
        mine = _random_states()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"random": [mine]}
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, mine)
        return {"random": states}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the patience of this run's early stopping; Lightning would restore that of the checkpoint."""
        for callback in trainer.early_stopping_callbacks:
            if state := checkpoint.get("callbacks", {}).get(callback.state_key):
                state["patience"] = callback.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the random states until the training starts; building the data loaders changes them."""
        self._random = state_dict

    def _restore_random_states(self, trainer: pl.Trainer) -> None:
        states, self._random = (self._random or {}).get("random", []), None
        if len(states) == trainer.world_size:
            _set_random_states(states[trainer.global_rank])

    def _restore_handlers(self) -> None:
        set_signal_handlers(self._handlers)
        self._handlers = {}

    def _postpone_end(self, trainer: pl.Trainer) -> None:
        """Let the training end after the next step: a checkpoint holds no accumulated gradients."""
        self._ends_at_next_step = self._ends_at_next_step or trainer.should_stop
        trainer.should_stop = False

    def _save_and_stop(self, trainer: pl.Trainer, *, row: int | None) -> None:
        """Save if a checkpoint is due, the training is over or a signal came.

        Args:
            trainer: The trainer.
            row: Step under which Lightning will log the pending metrics; None if it has logged them.
        """
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if not (self._due or stop or _is_over(trainer)):
            return
        self._due = False
        path = step_path(self.folder, trainer.global_step)
        if row is not None:
            _write_pending_row(trainer, row)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for old in step_checkpoints(self.folder)[self.keep :]:
                trainer.strategy.checkpoint_io.remove_checkpoint(old)
        self._unflushed = True
        self._saved_at = trainer.global_step
        self._stop = path if stop else None

    def _finish(self, trainer: pl.Trainer) -> None:
        """Flush the loggers once Lightning has logged the step of a checkpoint, and stop if agreed."""
        if self._unflushed:
            self._unflushed = False
            for logger in trainer.loggers:
                logger.save()
        if self._stop is not None:
            raise StoppedAtStepError(trainer.global_step, self._stop)


def _begin_next_epoch(trainer: pl.Trainer) -> None:
    """Begin the next epoch where a training with ``max_steps`` resumes from the end of an epoch.

    Lightning would skip that epoch: it takes each resume of such a training for one within an epoch.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # the setter of _FitLoop keeps it True


def _is_over(trainer: pl.Trainer) -> bool:
    """Return whether Lightning ends the training here, after a step or at the end of an epoch."""
    loop, epochs = trainer.fit_loop, cast(Any, trainer.fit_loop.epoch_progress.current).processed
    return bool(
        (trainer.should_stop and loop._can_stop_early)
        or trainer.global_step == trainer.max_steps
        or epochs == trainer.max_epochs
    )


def _write_pending_row(trainer: pl.Trainer, step: int) -> None:
    """Write the current step's metrics to the CSV log; Lightning would do so only after the callbacks."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return
    row = convert_tensors_to_scalars(connector.metrics["log"])
    for logger in trainer.loggers:
        if row and isinstance(logger, AppendingCSVLogger):
            logger.log_metrics({**row, "epoch": trainer.current_epoch}, step)
            logger.save()


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries may use the global generator
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
