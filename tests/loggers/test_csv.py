"""metrics.csv stays whole, whatever ends the process that writes it."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from sharpreid.callbacks.checkpoint import StepCheckpoints
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.loggers.csv import ContinuedCSVLogger
from sharpreid.run.build import build_data, build_module


def logger(folder: Path) -> ContinuedCSVLogger:
    return ContinuedCSVLogger(save_dir=str(folder), name="", version="csv")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_row_that_comes_again_is_written_once(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for value, step in ((0.5, 0), (0.5, 0), (0.5, 1), (0.25, 1)):
        log.log_metrics({"loss": value}, step)
        log.save()
    assert [(row["loss"], row["step"]) for row in rows(tmp_path)] == [
        ("0.5", "0"),
        ("0.5", "1"),
        ("0.25", "1"),
    ]


def test_a_new_column_replaces_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logger(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    log.save()
    log.log_metrics({"loss": 2.0, "mAP": 0.5}, 1)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupt)  # it ends before the new file takes the old one's place
        with pytest.raises(KeyboardInterrupt):
            log.save()
    assert rows(tmp_path) == [{"loss": "1.0", "step": "0"}]
    log.save()
    assert rows(tmp_path)[0] == {"loss": "1.0", "step": "0"}


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_row_of_a_step_is_there_before_its_checkpoint(
    composed: Any, tmp_path: Path, quiet: dict[str, Any]
) -> None:
    """A kill right after the checkpoint loses nothing."""
    cfg: DictConfig = composed()
    seen = []

    class Watching(SafeCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            seen.append([int(row["step"]) for row in rows(tmp_path) if "train/loss" in row])

    trainer = pl.Trainer(
        **{**quiet, "enable_checkpointing": True, "logger": logger(tmp_path)},
        max_epochs=2,
        limit_val_batches=0,
        log_every_n_steps=1,
        plugins=[Watching()],
        callbacks=[StepCheckpoints(folder=str(tmp_path), every_n_steps=1, keep=2)],
    )
    trainer.fit(build_module(cfg), build_data(cfg))
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert [int(row["step"]) for row in rows(tmp_path) if "train/loss" in row] == [0, 1, 2, 3]
