import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharpreid.callbacks.collapse import CollapseAlarm

PATIENCE = 5


class Run:
    """What the alarm sees of a training run."""

    def __init__(self) -> None:
        self.alarm = CollapseAlarm(margin=0.5, patience=PATIENCE, spread=0.02, drowning=10)
        self.trainer: Any = SimpleNamespace(callback_metrics={}, global_step=0)

    def step(self, times: int = 1, **logged: float) -> None:
        for _ in range(times):
            self.trainer.global_step += 1
            self.trainer.callback_metrics = {
                f"train/{name}": torch.tensor(value) for name, value in logged.items()
            }
            module: Any = None
            self.alarm.on_train_batch_end(self.trainer, module, None, None, self.trainer.global_step - 1)

    def collapsed(self, times: int) -> None:
        self.step(times, triplet=0.5, negative_distance=1e-6)


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Run:
    caplog.set_level(logging.WARNING)
    return Run()


def test_collapsed_run_is_warned_of_once_with_advice(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.collapsed(10 * PATIENCE)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert caplog.records[0].levelno == logging.WARNING
    for words in ("collapsed", "for 5 steps", "margin (0.50)", "step 5", "objective.mu", "optimizer.lr"):
        assert words in message


def test_warning_waits_for_its_patience(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.collapsed(PATIENCE - 1)
    assert not caplog.records
    run.collapsed(1)
    assert len(caplog.records) == 1


def test_one_good_step_starts_the_count_anew(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.collapsed(PATIENCE - 1)
    run.step(triplet=0.3, negative_distance=0.8)
    run.collapsed(PATIENCE - 1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("triplet", "negative_distance"),
    [
        (0.1, 2.0),  # a healthy run
        (0.5, 2.0),  # hardest positive and negative equally far: hard, but alive
        (0.7, 0.0),  # near negatives, but the positives are far
        (0.0, 0.0),
        (0.48, 0.0),  # off the margin by more than the spread
    ],
)
def test_healthy_run_is_left_alone(
    run: Run, caplog: pytest.LogCaptureFixture, triplet: float, negative_distance: float
) -> None:
    run.step(20 * PATIENCE, triplet=triplet, negative_distance=negative_distance)
    assert not caplog.records


def test_total_variation_that_drowns_the_triplet_loss_is_warned_of_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.step(PATIENCE - 1, loss=8.0, triplet=0.7, negative_distance=3.0)
    assert not caplog.records
    run.step(3 * PATIENCE, loss=8.0, triplet=0.7, negative_distance=3.0)
    (record,) = caplog.records
    assert "more than 10 times as large (7.3 against 0.7 in step 5)" in record.getMessage()
    assert "objective.mu" in record.getMessage()


def test_total_variation_of_the_size_of_the_triplet_loss_is_left_alone(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.step(10 * PATIENCE, loss=7.0, triplet=0.7, negative_distance=3.0)
    assert not caplog.records


def test_run_that_logs_no_triplet_loss_is_left_alone(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.step(2 * PATIENCE, loss=0.5)
    assert not caplog.records


def test_run_whose_loss_is_not_a_number_is_no_collapse(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.step(2 * PATIENCE, triplet=float("nan"), negative_distance=float("nan"))
    assert not caplog.records
