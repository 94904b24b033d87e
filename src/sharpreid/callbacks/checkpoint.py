"""Save checkpoints of a training, and stop it at a signal without losing a step."""

import logging
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from pytorch_lightning.callbacks import Checkpoint

from sharpreid.checkpoint_files import remove_unfinished, step_checkpoints, step_path
from sharpreid.loggers.csv import AppendingCSVLogger
from sharpreid.signals import STOP_SIGNALS, StoppedAtStepError

log = logging.getLogger(__name__)


class StepCheckpoints(Checkpoint):
    """Callback that saves a checkpoint every few steps and keeps the newest ones.

    A training that resumes from such a checkpoint continues exactly. Within an epoch a checkpoint is written
    after a step, at its end after the validation. There is always one after the last step. SIGTERM and
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
        self._handlers: dict[signal.Signals, Any] = {}
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random states of a resumed training, and install the signal handlers."""
        self._restore_random_states(trainer)
        if trainer.is_global_zero:
            remove_unfinished(self.folder)

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        self._handlers = {number: signal.signal(number, note) for number in STOP_SIGNALS}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop if the processes have agreed to, now that the last step is logged."""
        self._finish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due, except at an epoch's last batch, whose validation is still to come."""
        self._due = self._due or trainer.global_step % self.every_n_steps == 0
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_stop(trainer, row=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if a checkpoint is due or this was the last epoch."""
        self._due = self._due or trainer.current_epoch + 1 == trainer.max_epochs
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the random states until the training starts; building the data loaders changes them."""
        self._random = state_dict

    def _restore_random_states(self, trainer: pl.Trainer) -> None:
        states, self._random = (self._random or {}).get("random", []), None
        if len(states) == trainer.world_size:
            _set_random_states(states[trainer.global_rank])

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _save_and_stop(self, trainer: pl.Trainer, *, row: int) -> None:
        """Save if a checkpoint is due or a signal came.

        Args:
            trainer: The trainer.
            row: Step under which Lightning will log the pending metrics.
        """
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if not (self._due or stop):
            return
        self._due = False
        path = step_path(self.folder, trainer.global_step)
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
