"""An alarm for the usual deaths of a triplet network."""

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class CollapseAlarm(pl.Callback):
    """Warns once of a collapsed embedding, and once of a total variation that drowns the triplet loss.

    With all embeddings on one point every triplet costs exactly the margin. The first alarm sounds when, for
    ``patience`` steps in a row, the triplet loss is within ``spread`` * margin of the margin and the mean
    distance to the hardest negative is below ``spread`` * margin. The second sounds when, for as long, the
    rest of Eq. 8 (mu times the total variation) is above ``drowning`` times the triplet loss.

    Args:
        margin: of the triplet loss, > 0.
        patience: steps in a row.
        spread: share of the margin, in (0, 1).
        drowning: ratio of the terms of Eq. 8.
    """

    def __init__(self, *, margin: float, patience: int, spread: float, drowning: float) -> None:
        self.margin = margin
        self.patience = patience
        self.tolerance = spread * margin
        self.drowning = drowning
        self.steps_collapsed = 0
        self.steps_drowned = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what the step logged."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "train/triplet" not in logged:
            return
        triplet = logged["train/triplet"]
        stuck = abs(triplet - self.margin) < self.tolerance
        near = logged["train/negative_distance"] < self.tolerance
        self.steps_collapsed = self._count(self.steps_collapsed, stuck and near)
        if self.steps_collapsed == self.patience:
            log.warning(
                "the embedding has collapsed: for %d steps the triplet loss has stood at the margin (%.2f) "
                "with distances near 0, up to step %d. Lower objective.mu if it is above 0, lower "
                "optimizer.lr, or start from trained weights (model.trunk.weights)",
                self.patience,
                self.margin,
                trainer.global_step,
            )
        variation = logged.get("train/loss", triplet) - triplet
        self.steps_drowned = self._count(self.steps_drowned, variation > self.drowning * triplet)
        if self.steps_drowned == self.patience:
            log.warning(
                "the total variation drowns the triplet loss: for %d steps it has been more than %g times as "
                "large (%.3g against %.3g in step %d), so the network learns smoothness and no identities. "
                "Lower objective.mu, or take objective.reduction=mean",
                self.patience,
                self.drowning,
                variation,
                triplet,
                trainer.global_step,
            )

    def _count(self, steps: int, again: bool) -> int:
        """Steps in a row; past the alarm it stays, so that the alarm sounds once."""
        return steps + 1 if again or steps >= self.patience else 0
