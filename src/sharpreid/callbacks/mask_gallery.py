"""Pictures of the masks as the training goes on."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from sharpreid.atomic_io import replacing
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.models.network import SharpAttentionNetwork
from sharpreid.visualization.attention import draw_masks, record_attention

log = logging.getLogger(__name__)


class MaskGallery(pl.Callback):
    """Draws each block's masks of a few test images, every so many epochs and at the end of the training.

    The picture is ``attention/epoch<n>.png`` of the run and, for a logger that takes images (W&B),
    ``masks``. Nothing is drawn of a network without attention, nothing of the training changes, and a picture
    that cannot be drawn is a warning.

    Args:
        folder: where the pictures go.
        upload_photos: whether a logger gets the masks over the photos, also of real people, whose data sets'
            licences may forbid it; else it gets the masks alone. Photos of synthetic data it always gets.
        every_n_epochs: at least 1.
        images: how many, the first queries of the test set; 0 draws nothing.
        channels: how many single channels, see `draw_masks`.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, *, folder: str, every_n_epochs: int, images: int, channels: int, upload_photos: bool = False
    ) -> None:
        if every_n_epochs < 1 or images < 0 or channels < 0:
            raise ValueError(
                "every_n_epochs must be at least 1, images and channels at least 0; got "
                f"{every_n_epochs}, {images} and {channels}"
            )
        self.folder = Path(folder)
        self.every_n_epochs = every_n_epochs
        self.images = images
        self.channels = channels
        self.upload_photos = upload_photos
        self._views: Tensor | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, if it is time to."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if trainer.is_global_zero and self.images and (last or epoch % self.every_n_epochs == 0):
            try:
                self._draw(trainer, pl_module, epoch)
            except (OSError, ValueError, RuntimeError) as error:
                log.warning("no picture of the masks after epoch %d: %s", epoch, error)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        network, data = pl_module.network, getattr(trainer, "datamodule", None)
        if not isinstance(network, SharpAttentionNetwork) or not isinstance(data, ReIDDataModule):
            return
        if not network.attention:
            return
        if self._views is None:
            count = min(self.images, data.test.num_query)
            views = [data.test[index].views for index in range(count)]
            self._views = torch.stack([each[-2:][0] for each in views])  # not the last: it is mirrored
        attention = record_attention(network, self._views.to(next(network.parameters())))
        sheet = draw_masks(self._views, attention, channels=self.channels)
        with replacing(self.folder / f"epoch{epoch:04d}.png") as temporary:
            sheet.save(temporary)
        sent = sheet
        if not (self.upload_photos or data.data.synthetic):
            grey = torch.zeros_like(self._views)  # ImageNet's mean colour
            sent = draw_masks(grey, attention, channels=self.channels)
        for logger in trainer.loggers:
            log_image: Any = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image("masks", [sent], step=trainer.global_step, caption=[f"after epoch {epoch}"])
