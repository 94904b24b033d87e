"""Measure the share of the training time that is spent waiting for data."""

import time
from typing import Any

import pytorch_lightning as pl

from sharpreid.data.datamodule import TimedLoader


class DataWait(pl.Callback):
    """Callback that logs ``train/data_wait`` per epoch: seconds of waiting / seconds of training.

    The numerator is the time that the training process blocks in its data loader. It excludes copying the
    batch to the device and augmenting it there. Both exclude validation. A GPU may still compute while the
    process waits, so the ratio is an upper bound of the GPU's idle time. Several processes log their mean.
    """

    def __init__(self) -> None:
        self._mark = self._waited = self._seconds = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock when a run resumes within an epoch, where `on_train_epoch_start` is not called."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._mark, self._seconds, self._waited = time.perf_counter(), 0.0, _waited(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the time since the previous batch or validation."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock after the validation."""
        self._mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the ratio of the epoch."""
        if isinstance(trainer.train_dataloader, TimedLoader) and self._seconds > 0:
            share = (_waited(trainer) - self._waited) / self._seconds
            pl_module.log("train/data_wait", share, sync_dist=trainer.world_size > 1)


def _waited(trainer: pl.Trainer) -> float:
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, TimedLoader) else 0.0
