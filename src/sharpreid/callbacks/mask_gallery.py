"""Images of the masks during training."""

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
    """Callback that draws each block's masks of a few test images every n epochs and at the end.

    The image is saved as ``<folder>/epoch<n>.png`` and sent as ``masks`` to loggers that take images (W&B). A
    network without attention has none. If drawing fails, a warning is logged and the training continues.

    Args:
        folder: Folder of the images.
        upload_photos: Whether loggers get masks drawn over photos of real people, which the licence of the
            data set may forbid. If False, these masks are drawn on grey.
        every_n_epochs: Epochs between two images, at least 1.
        images: Number of test images, the first queries; 0 draws nothing.
        channels: Number of single channels to draw, see `draw_masks`.

    Raises:
        ValueError: A number is out of range.
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
        """Draw at every n-th epoch and at the last."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if trainer.is_global_zero and self.images and (last or epoch % self.every_n_epochs == 0):
            try:
                self._draw(trainer, pl_module, epoch)
            except (OSError, ValueError, RuntimeError) as error:
                log.warning("no image of the masks after epoch %d: %s", epoch, error)

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        network, data = pl_module.network, getattr(trainer, "datamodule", None)
        if not isinstance(network, SharpAttentionNetwork) or not isinstance(data, ReIDDataModule):
            return
        if not network.attention:
            return
        if self._views is None:
            count = min(self.images, data.test.num_query)
            views = [data.test[index].views for index in range(count)]
            self._views = torch.stack([each[-2:][0] for each in views])  # the last one is mirrored
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
