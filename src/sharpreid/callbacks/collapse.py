"""Warn of the usual failures of a training by triplet loss."""

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class CollapseAlarm(pl.Callback):
    """Callback that warns once of a collapsed embedding, and once of a dominating total variation.

    If all embeddings are equal, the triplet loss equals the margin. The embedding counts as collapsed if,
    for ``patience`` consecutive steps, the triplet loss differs from the margin by less than
    ``spread`` * margin and the mean distance to the hardest negative is below ``spread`` * margin. The total
    variation dominates if, for as many steps, its term of Eq. 8 exceeds ``drowning`` times the triplet loss.

    Args:
        margin: Margin of the triplet loss, > 0.
        patience: Number of consecutive steps before a warning.
        spread: Tolerance as a share of the margin, in (0, 1).
        drowning: Ratio of mu times the total variation to the triplet loss.
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
        """Check the losses that the step logged."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if "train/triplet" not in logged:
            return
        triplet = logged["train/triplet"]
        stuck = abs(triplet - self.margin) < self.tolerance
        near = logged["train/negative_distance"] < self.tolerance
        self.steps_collapsed = self._count(self.steps_collapsed, stuck and near)
        if self.steps_collapsed == self.patience:
            log.warning(
                "the embedding has collapsed: for %d steps the triplet loss has equalled the margin (%.2f), "
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
                "the total variation dominates the triplet loss: for %d steps it has been more than %g times "
                "as large (%.3g against %.3g in step %d), so the network learns smooth masks instead of "
                "identities. Lower objective.mu, or use objective.reduction=mean",
                self.patience,
                self.drowning,
                variation,
                triplet,
                trainer.global_step,
            )

    def _count(self, steps: int, again: bool) -> int:
        """Return the number of consecutive steps; it never resets after ``patience``, to warn only once."""
        return steps + 1 if again or steps >= self.patience else 0
