"""Checkpoints that are whole or not there: flushed, checksummed, renamed into place, verified when read."""

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sharpreid.atomic_io import replacing
from sharpreid.models.weights import read_tensors

log = logging.getLogger(__name__)

_STEP = re.compile(r"step=(\d+)\.ckpt")
_UNFINISHED = re.compile(r"\..+-[0-9a-f]{8}\.(ckpt|sha256)")


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written."""


def digest_path(checkpoint: Path) -> Path:
    """Where a checkpoint's checksum is: beside it, in the format of ``sha256sum``."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def step_path(folder: Path, step: int) -> Path:
    """Name of the checkpoint after ``step`` optimizer steps.

    >>> step_path(Path("checkpoints"), 120).name
    'step=000120.ckpt'
    """
    return folder / f"step={step:06d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """The optimizer steps before a checkpoint of `step_path`.

    Raises:
        ValueError: it has another name.

    >>> step_of(Path("checkpoints/step=000120.ckpt"))
    120
    """
    if (match := _STEP.fullmatch(checkpoint.name)) is None:
        raise ValueError(f"{checkpoint}: expected the name of a step checkpoint, such as step=000120.ckpt")
    return int(match[1])


def step_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of `step_path` in ``folder``, whole or not, newest first."""
    found = [path for path in folder.glob("step=*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint with its checksum.

    Raises:
        DamagedCheckpointError: they differ, or there is no checksum.
        OSError: the checkpoint cannot be read.
    """
    try:
        wanted = digest_path(checkpoint).read_text(encoding="ascii").split(maxsplit=1)[0]
    except (FileNotFoundError, UnicodeDecodeError, IndexError):
        raise DamagedCheckpointError(
            f"{checkpoint}: its checksum {digest_path(checkpoint).name} is missing or empty: it was copied "
            "without, or damaged; resume=auto takes the one before"
        ) from None
    came = _sha256(checkpoint)
    if came != wanted:
        raise DamagedCheckpointError(
            f"{checkpoint}: damaged: its SHA-256 is {came[:12]}..., but {digest_path(checkpoint).name} says "
            f"{wanted[:12]}...; take another copy (resume=auto takes the one before)"
        )


def newest_whole(folder: Path) -> Path | None:
    """The newest step checkpoint in ``folder`` that is what was written; None without any.

    Each damaged one that is passed over is warned of.

    Raises:
        OSError: there is none, but there are some that cannot be read.
    """
    unreadable = None
    for path in step_checkpoints(folder):
        try:
            verify(path)
        except DamagedCheckpointError as error:
            log.warning("%s; falling back to the one before", error)
            continue
        except OSError as error:
            log.warning("%s: cannot be read (%s); falling back to the one before", path, error)
            unreadable = error
            continue
        return path
    if unreadable is not None:  # they may be whole: to start anew would set them aside
        raise OSError(
            f"{folder}: no checkpoint can be read ({unreadable}); mend its permissions or its disk, or start "
            "anew with resume=none"
        ) from unreadable
    return None


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left in ``folder``: files it was writing, checksums without a checkpoint.

    Nobody else may be writing there.
    """
    for path in folder.glob("*"):
        alone = path.suffix == ".sha256" and not path.with_suffix("").exists()
        if alone or _UNFINISHED.fullmatch(path.name):
            path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to and from the disk, made safe.

    A file is written to a temporary one in the same folder, flushed to the disk and renamed; its checksum is
    there before it is. What goes wrong is raised, and leaves earlier checkpoints as they were. Reading checks
    the checksum, where there is one, and never runs code from the file (``weights_only=True``).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: it cannot be written; says what to do.
        """
        path = Path(path)
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:  # torch's own file would stay open, and keep its space
                    torch.save(checkpoint, file)
                digest = _sha256(temporary)
                with replacing(digest_path(path)) as beside:
                    beside.write_text(f"{digest}  {path.name}\n", encoding="ascii")
        except (OSError, RuntimeError) as error:  # the second is raised by torch's writer on top of the first
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            raise OSError(
                f"the checkpoint {path} could not be written ({cause}). Free space or mend the folder's "
                "permissions, then go on with resume=auto: earlier checkpoints are as they were"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; all tensors are on the CPU.

        Raises:
            DamagedCheckpointError: it is not what was written.
            WeightsError: it holds more than tensors, numbers and text.
        """
        if digest_path(Path(path)).exists():
            verify(Path(path))
        content = read_tensors(Path(path))
        if not isinstance(content, dict):
            raise DamagedCheckpointError(f"{path}: expected a dictionary, got {type(content).__name__}")
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint and its checksum, in this order."""
        Path(path).unlink(missing_ok=True)
        digest_path(Path(path)).unlink(missing_ok=True)
