"""Curves of the masks' sharpness."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.sharpness import mean_entropy, share_decided


class SharpnessCurves(pl.Callback):
    """Callback that logs the sharpness of each block's masks in the first training batch of each epoch.

    ``train/decided_block<i>`` is the share of mask values below 0.1 or above 0.9, ``train/entropy_block<i>``
    their mean entropy in bits. A network without attention has no such curves.
    """

    def __init__(self) -> None:
        self._blocks: list[SharpAttentionBlock] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Attach a listener to every block in the first batch of an epoch."""
        if batch_idx != 0:
            return
        for name, module in pl_module.named_modules():
            if isinstance(module, SharpAttentionBlock):
                module.mask_listener = _logger(pl_module, name.rpartition(".")[2])
                self._blocks.append(module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Detach the listeners."""
        self._detach()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Detach the listeners."""
        self._detach()

    def _detach(self) -> None:
        while self._blocks:
            self._blocks.pop().mask_listener = None


def _logger(pl_module: pl.LightningModule, block: str) -> Callable[[Tensor], None]:
    def log(mask: Tensor) -> None:
        size = len(mask)
        pl_module.log(f"train/decided_block{block}", share_decided(mask), batch_size=size)
        pl_module.log(f"train/entropy_block{block}", mean_entropy(mask), batch_size=size)

    return log
