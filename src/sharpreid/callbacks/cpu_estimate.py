"""Say at the start of a training on a CPU how long it will take, and name the preset for a CPU."""

import logging
import time
from typing import Any

import pytorch_lightning as pl

from sharpreid.callbacks.progress import clock
from sharpreid.data.datamodule import ReIDDataModule

log = logging.getLogger(__name__)

_MEASURED = 2
"""Steps that are measured, after a first one that is not: it allocates memory and starts the workers."""


class CPUEstimate(pl.Callback):
    """Callback that estimates a training on a CPU from its first steps, and warns if it takes long.

    The estimate is the steps left times their mean duration, and for the test a third of a step per image:
    a training step computes a forward and a backward pass, which costs twice as much. On other devices the
    callback does nothing.

    Args:
        hours: hours from which the estimate is a warning.
        advice: what to do about a long training.
    """

    def __init__(self, *, hours: float, advice: str) -> None:
        self.hours = hours
        self.advice = advice
        self._steps = 0
        self._mark = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the number of steps."""
        self._steps = 0
        if trainer.strategy.root_device.type == "cpu" and trainer.is_global_zero:
            steps = trainer.estimated_stepping_batches - trainer.global_step
            log.info("training %s steps on the CPU; after %d of them the time is known", steps, _MEASURED + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the first steps, then log the estimate once."""
        if self._steps > _MEASURED or trainer.strategy.root_device.type != "cpu":
            return
        self._steps += 1
        if self._steps == 1:
            self._mark = time.perf_counter()
        elif self._steps == 1 + _MEASURED and trainer.is_global_zero:
            each = (time.perf_counter() - self._mark) / _MEASURED * trainer.accumulate_grad_batches
            self._report(trainer, each)

    def _report(self, trainer: pl.Trainer, each: float) -> None:
        """Log the estimate from the duration of a step, in seconds."""
        left = trainer.estimated_stepping_batches - trainer.global_step
        training, test = left * each, _test_steps(trainer) * each
        found = f"{clock(training)} for {left} steps of {each:.3g} s, and {clock(test)} for the test"
        if training + test > 3600 * self.hours:
            log.warning("this training takes long on a CPU: about %s. %s", found, self.advice)
        else:
            log.info("estimated time: %s", found)


def _test_steps(trainer: pl.Trainer) -> float:
    """Return the cost of the test in training steps."""
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, ReIDDataModule) or not len(data.test):
        return 0.0
    batch = data.identities_per_batch * data.images_per_identity
    return len(data.test) * data.test[0].views.shape[0] / (3 * batch)
