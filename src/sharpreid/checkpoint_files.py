"""Checkpoint files: names, checksums, and the choice of the newest undamaged one."""

import hashlib
import logging
import re
from pathlib import Path

log = logging.getLogger(__name__)

_STEP = re.compile(r"step=(\d+)\.ckpt")
_UNFINISHED = re.compile(r"\..+-[0-9a-f]{8}\.(ckpt|sha256)")


class DamagedCheckpointError(ValueError):
    """Error for a checkpoint file that is not as it was written."""


def digest_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's checksum file, which has the format of ``sha256sum``."""
    return checkpoint.with_name(checkpoint.name + ".sha256")


def step_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` optimizer steps.

    >>> step_path(Path("checkpoints"), 120).name
    'step=000120.ckpt'
    """
    return folder / f"step={step:06d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps in the name of a step checkpoint.

    Raises:
        ValueError: The name does not have the form of `step_path`.

    >>> step_of(Path("checkpoints/step=000120.ckpt"))
    120
    """
    if (match := _STEP.fullmatch(checkpoint.name)) is None:
        raise ValueError(f"{checkpoint}: expected the name of a step checkpoint, such as step=000120.ckpt")
    return int(match[1])


def step_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints in a folder, damaged ones included, newest first."""
    found = [path for path in folder.glob("step=*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint with its checksum.

    Raises:
        DamagedCheckpointError: They differ, or there is no checksum.
        OSError: The checkpoint cannot be read.
    """
    try:
        expected = digest_path(checkpoint).read_text(encoding="ascii").split(maxsplit=1)[0]
    except (FileNotFoundError, UnicodeDecodeError, IndexError):
        raise DamagedCheckpointError(
            f"{checkpoint}: its checksum file {digest_path(checkpoint).name} is missing or empty. The "
            "checkpoint was copied without it, or is damaged; resume=auto takes the previous checkpoint"
        ) from None
    actual = compute_sha256(checkpoint)
    if actual != expected:
        raise DamagedCheckpointError(
            f"{checkpoint}: damaged: its SHA-256 is {actual[:12]}..., but {digest_path(checkpoint).name} "
            f"says {expected[:12]}...; take another copy (resume=auto takes the previous one)"
        )


def newest_whole(folder: Path) -> Path | None:
    """Return the newest undamaged step checkpoint in a folder, or None if there is none.

    Damaged checkpoints are skipped with a warning.

    Raises:
        OSError: No checkpoint is known to be undamaged, and at least one cannot be read.
    """
    unreadable = None
    for path in step_checkpoints(folder):
        try:
            verify(path)
        except DamagedCheckpointError as error:
            log.warning("%s; falling back to the previous checkpoint", error)
            continue
        except OSError as error:
            log.warning("%s: cannot be read (%s); falling back to the previous one", path, error)
            unreadable = error
            continue
        return path
    if unreadable is not None:  # starting anew would move checkpoints aside that may be undamaged
        raise OSError(
            f"{folder}: no checkpoint can be read ({unreadable}); repair its permissions or its disk, or "
            "start from step 0 with resume=none"
        ) from unreadable
    return None


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files, and checksums without a checkpoint, that a killed process left in a folder.

    No other process may be writing to the folder.
    """
    for path in folder.glob("*"):
        alone = path.suffix == ".sha256" and not path.with_suffix("").exists()
        if alone or _UNFINISHED.fullmatch(path.name):
            path.unlink()
