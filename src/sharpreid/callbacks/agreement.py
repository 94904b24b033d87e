"""Refuses processes that would go on from different checkpoints."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from sharpreid.checkpoints import digest_path


class AgreeOnCheckpoint(pl.Callback):
    """Before anything is restored or scored, all processes have to have found the same checkpoint.

    Each looks for it by itself: where the output folder is not one that all of them see, they would go on
    with different weights without a word.

    Args:
        checkpoint: that this process found; None if there is none.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self._agreed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare name and checksum over the processes, once.

        Raises:
            ValueError: they differ; lists them by process. Raised in all processes.
        """
        if self._agreed or trainer.world_size == 1:
            return
        self._agreed = True
        mine, found = self._describe(), [""] * trainer.world_size
        torch.distributed.all_gather_object(found, mine)
        if len(set(found)) > 1:
            lines = "".join(f"\n  process {rank}: {what}" for rank, what in enumerate(found))
            raise ValueError(
                f"the processes would go on from different checkpoints:{lines}\nAll of them need the same "
                "output folder, which every machine sees; remove what is left in the wrong ones"
            )

    def _describe(self) -> str:
        if self.checkpoint is None:
            return "none"
        digest = digest_path(self.checkpoint).read_text(encoding="ascii")
        return f"{self.checkpoint.name}, SHA-256 {digest[:12]}..."
