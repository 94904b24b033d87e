"""What a command imports before it needs it."""

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric"),
    *("wandb", "matplotlib", "scipy", "optuna", "submitit"),
}
"""Seconds altogether; torch brings torch._dynamo and torch._inductor."""


def imported(folder: Path, *command: str) -> tuple[set[str], int]:
    """The packages that ``python -m`` imports, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert lines, done.stderr
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}, done.returncode


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--cfg", "job"], 0), (["sed=1"], 1), (["--multirun", "sed=1,2"], 1)],
)
def test_what_trains_is_imported_by_a_job_alone(tmp_path: Path, arguments: list[str], status: int) -> None:
    packages, found = imported(tmp_path, "sharpreid.train", *arguments)
    assert found == status
    assert "hydra" in packages
    assert packages & SLOW == set()


@pytest.mark.parametrize("command", ["evaluate", "prepare"])
def test_help_needs_nothing(tmp_path: Path, command: str) -> None:
    packages, found = imported(tmp_path, f"sharpreid.{command}", "--help")
    assert found == 0
    assert packages & {"hydra", *SLOW} == set()
