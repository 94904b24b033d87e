"""Curves of how sharp the masks are."""

from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.utils.hooks import RemovableHandle

from sharpreid.attention.block import Attended, SharpAttentionBlock
from sharpreid.attention.sharpness import mean_entropy, share_decided


class SharpnessCurves(pl.Callback):
    """Logs how sharp each block's masks are in the first training batch of each epoch.

    ``train/decided_block<i>`` is the share of mask values below 0.1 or above 0.9, ``train/entropy_block<i>``
    their mean entropy in bits. Nothing is logged of a network without attention.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the masks of an epoch's first batch."""
        if batch_idx != 0:
            return
        for name, module in pl_module.named_modules():
            if isinstance(module, SharpAttentionBlock):
                self._handles.append(
                    module.register_forward_hook(_logger(pl_module, name.rpartition(".")[2]))
                )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop listening."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening."""
        self._stop()

    def _stop(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _logger(pl_module: pl.LightningModule, block: str) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Attended) -> None:
        mask = output.mask.detach()
        size = len(mask)
        pl_module.log(f"train/decided_block{block}", share_decided(mask), batch_size=size)
        pl_module.log(f"train/entropy_block{block}", mean_entropy(mask), batch_size=size)

    return hook
