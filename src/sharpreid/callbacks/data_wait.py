"""How much of the training's time goes by in waiting for data."""

import time
from typing import Any

import pytorch_lightning as pl

from sharpreid.data.timed_loader import TimedLoader


class DataWait(pl.Callback):
    """Logs ``train/data_wait`` per epoch: seconds waiting for the next batch / seconds of training.

    The wait is the time in which the training's process stood still in its loader. Copying the batch to the
    device and augmenting it there are not part of it; validation is part of neither. Meanwhile a GPU may
    still be at work on what was queued before, so its own wait for data is at most this. With several
    processes it is the mean over them.
    """

    def __init__(self) -> None:
        self._mark = self._waited = self._seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As `on_train_epoch_start`, which Lightning leaves out when a run goes on within an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._mark, self._seconds, self._waited = time.perf_counter(), 0.0, _waited(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the batch before, or the validation."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the validation's time out."""
        self._mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the share."""
        if isinstance(trainer.train_dataloader, TimedLoader) and self._seconds > 0:
            share = (_waited(trainer) - self._waited) / self._seconds
            pl_module.log("train/data_wait", share, sync_dist=trainer.world_size > 1)


def _waited(trainer: pl.Trainer) -> float:
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, TimedLoader) else 0.0
