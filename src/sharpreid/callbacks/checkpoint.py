"""Saves what a run needs to go on, and lets a signal stop it where nothing is lost."""

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

from sharpreid.checkpoint_io import remove_unfinished, step_checkpoints, step_path
from sharpreid.loggers.csv import AppendingCSVLogger
from sharpreid.signals import STOP_SIGNALS, StoppedAtStepError

log = logging.getLogger(__name__)


class StepCheckpoints(Checkpoint):
    """Every so many steps a checkpoint from which the run goes on exactly; the last few are kept.

    Within an epoch it is written after a step; at an epoch's end after its validation. SIGTERM and SIGUSR1
    are noted, and at the next of these places all processes agree, save, and raise `StoppedAtStepError`.
    The last step of the training is always saved.

    Args:
        folder: of the checkpoints.
        every_n_steps: optimizer steps between two, > 0.
        keep: how many stay, > 0; more than one, since a disk may damage one.

    Raises:
        ValueError: an argument is out of range.
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
        """Set the random states a resumed run goes on with, and note signals from here on."""
        self._restore_random_states(trainer)
        if trainer.is_global_zero:
            remove_unfinished(self.folder)

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        self._handlers = {number: signal.signal(number, note) for number in STOP_SIGNALS}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if that was agreed, now that the last step is logged too."""
        self._finish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time; at an epoch's last batch only after its validation."""
        self._due = self._due or trainer.global_step % self.every_n_steps == 0
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_and_stop(trainer, row=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, if it is time or the training is at its end."""
        self._due = self._due or trainer.current_epoch + 1 == trainer.max_epochs
        self._save_and_stop(trainer, row=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give signals back their meaning; stop, if that was agreed or a signal came during the last save."""
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if stop and self._saved_at == trainer.global_step:
            self._stop = step_path(self.folder, trainer.global_step)
        self._finish(trainer)
        self._restore_handlers()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give signals back their meaning; of a run that a signal stopped further ones change nothing."""
        if isinstance(exception, StoppedAtStepError):
            self._handlers = dict.fromkeys(self._handlers, signal.SIG_IGN)
        self._restore_handlers()

    def state_dict(self) -> dict[str, Any]:
        """Random states of all processes, in the order of their ranks."""
        mine = _random_states()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"random": [mine]}
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, mine)
        return {"random": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states until the training starts: building the data loaders draws too."""
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
        """Save, if it is time; ``row`` is the step that Lightning will log what is pending under."""
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
        """Flush the logs of the steps before a checkpoint, which Lightning completes after it; then stop."""
        if self._unflushed:
            self._unflushed = False
            for logger in trainer.loggers:
                logger.save()
        if self._stop is not None:
            raise StoppedAtStepError(trainer.global_step, self._stop)


def _write_pending_row(trainer: pl.Trainer, step: int) -> None:
    """Give the CSV log the row of a step, which Lightning writes only after the callbacks, and then again."""
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
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - it exists, so it is kept
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
