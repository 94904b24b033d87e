"""metrics.csv stays whole, whatever ends the process that writes it."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from sharpreid.callbacks.checkpoint import StepCheckpoints
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.loggers.csv import AppendingCSVLogger, drop_rows_from
from sharpreid.run.build import build_data, build_module


def logger(folder: Path) -> AppendingCSVLogger:
    return AppendingCSVLogger(folder=str(folder / "csv"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_row_that_comes_again_is_written_once(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for value, step in ((0.5, 0), (0.5, 0), (0.5, 1), (0.25, 1)):
        log.log_metrics({"loss": value}, step)
    assert [(row["loss"], row["step"]) for row in rows(tmp_path)] == [
        ("0.5", "0"),
        ("0.5", "1"),
        ("0.25", "1"),
    ]


def test_a_new_column_keeps_the_rows_before_it(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    log.log_metrics({"loss": 2.0, "mAP": 0.5}, 1)
    log.log_metrics({"epoch": 3}, 1)
    assert rows(tmp_path) == [
        {"loss": "1.0", "step": "0"},
        {"loss": "2.0", "mAP": "0.5", "step": "1"},
        {"epoch": "3", "step": "1"},
    ]
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert header == "epoch,loss,mAP,step"


def test_a_process_killed_at_a_new_column_leaves_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logger(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupt)  # it ends before the new file takes the old one's place
        with pytest.raises(KeyboardInterrupt):
            log.log_metrics({"loss": 2.0, "mAP": 0.5}, 1)
    assert rows(tmp_path) == [{"loss": "1.0", "step": "0"}]


def test_a_row_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for step in range(3):
        log.log_metrics({"loss": 0.5}, step)
        assert len(rows(tmp_path)) == step + 1


def test_another_process_appends(tmp_path: Path) -> None:
    logger(tmp_path).log_metrics({"loss": 1.0, "mAP": 0.5}, 0)
    logger(tmp_path).log_metrics({"loss": 2.0}, 1)
    assert rows(tmp_path) == [{"loss": "1.0", "mAP": "0.5", "step": "0"}, {"loss": "2.0", "step": "1"}]


def test_a_resumed_run_drops_the_rows_that_it_writes_again(tmp_path: Path) -> None:
    log = logger(tmp_path)
    for step in range(5):
        log.log_metrics({"loss": 0.5}, step)
    file = tmp_path / "csv" / "metrics.csv"
    with file.open("a") as lines:
        lines.write("0.")  # cut short
    drop_rows_from(file, 3)
    logger(tmp_path).log_metrics({"loss": 0.25}, 3)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        *(("0", "0.5"), ("1", "0.5"), ("2", "0.5"), ("3", "0.25"))
    ]


def test_without_a_log_there_is_nothing_to_drop(tmp_path: Path) -> None:
    drop_rows_from(tmp_path / "metrics.csv", 3)
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log = logger(tmp_path)
    log.log_metrics({"loss": 1.0}, 0)
    log.log_hyperparams({"seed": 0})
    assert not list(tmp_path.iterdir())


def test_the_settings_are_in_a_file_beside_it(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log_hyperparams({"seed": 0, "model": {"blocks": [1]}})
    log.log_hyperparams(Namespace(rate=0.5))
    settings = OmegaConf.load(tmp_path / "csv" / "hparams.yaml")
    assert settings == {"seed": 0, "model": {"blocks": [1]}, "rate": 0.5}


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
