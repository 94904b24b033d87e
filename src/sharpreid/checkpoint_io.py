"""The checkpoint plugin of the Trainer: atomic writing, a checksum, and safe reading.

Lightning's own plugin holds the whole checkpoint in memory a second time, does not flush it to the disk
before the rename, and has no checksum by which a damaged file is found.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sharpreid.atomic_io import replacing
from sharpreid.checkpoint_files import DamagedCheckpointError, compute_sha256, digest_path, verify
from sharpreid.models.weights import read_tensors


class SafeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints completely or not at all, and read only tensors and plain values.

    A checkpoint is written to a temporary file in the same folder, flushed to the disk and renamed; its
    checksum is written before the rename. A failed write raises and leaves earlier checkpoints unchanged.
    Reading verifies the checksum, if there is one, and never runs code from the file (``weights_only=True``).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: The file cannot be written; the message says what to do.
        """
        path = Path(path)
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:  # torch would not close its own file after an error
                    torch.save(checkpoint, file)
                digest = compute_sha256(temporary)
                with replacing(digest_path(path)) as beside:
                    beside.write_text(f"{digest}  {path.name}\n", encoding="ascii")
        except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError on top of the OSError
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(
                f"the checkpoint {path} could not be written ({cause}). Free space or repair the folder's "
                "permissions, then continue with resume=auto: earlier checkpoints are unchanged"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, with all tensors on the CPU.

        Raises:
            DamagedCheckpointError: The file differs from what was written.
            WeightsError: The file holds more than tensors, numbers and text.
        """
        if digest_path(Path(path)).exists():
            verify(Path(path))
        content = read_tensors(Path(path))
        if not isinstance(content, dict):
            raise DamagedCheckpointError(f"{path}: expected a dictionary, got {type(content).__name__}")
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint, then its checksum."""
        Path(path).unlink(missing_ok=True)
        digest_path(Path(path)).unlink(missing_ok=True)
