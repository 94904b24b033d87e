"""What a training is doing, for the soak to know what it killed."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

START, STEP, SAVE, VALIDATION, SCORING = "start-up", "step", "save", "validation", "scoring"


class PhaseMarker(pl.Callback):
    """Writes the phase and the optimizer steps so far to a file."""

    def __init__(self, *, file: str) -> None:
        self.file = Path(file)

    def _mark(self, phase: str, trainer: pl.Trainer) -> None:
        self.file.write_text(f"{phase} {trainer.global_step}", encoding="ascii")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._mark(STEP, trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._mark(VALIDATION, trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._mark(STEP, trainer)

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._mark(SCORING, trainer)


def read_phase(file: Path) -> tuple[str, int]:
    """Phase and steps; start-up and -1 before there are any."""
    try:
        phase, steps = file.read_text(encoding="ascii").split()
    except (FileNotFoundError, ValueError):  # ValueError: it is being written
        return START, -1
    return phase, int(steps)
