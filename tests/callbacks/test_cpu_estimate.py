"""The estimate of a training on a CPU from its first steps."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sharpreid.callbacks import cpu_estimate
from sharpreid.callbacks.cpu_estimate import CPUEstimate

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]

CLOCK = SimpleNamespace(now=0.0, perf_counter=lambda: CLOCK.now)


class Slow(pl.LightningModule):
    """Each step takes 30 s, the first one 100 s."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        CLOCK.now += 30 if self.global_step else 100
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def told(
    quiet: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, steps: int
) -> list[tuple[int, str]]:
    monkeypatch.setattr(cpu_estimate, "time", CLOCK)
    caplog.set_level(logging.INFO, cpu_estimate.log.name)
    trainer = pl.Trainer(**quiet, max_epochs=1, callbacks=[CPUEstimate(hours=1, advice="use another")])
    trainer.fit(Slow(), DataLoader(TensorDataset(torch.ones(steps, 2))))
    return [(r.levelno, r.getMessage()) for r in caplog.records if r.name == cpu_estimate.log.name]


def test_a_long_training_is_a_warning_with_advice(
    quiet: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, first), (level, message) = told(quiet, caplog, monkeypatch, steps=203)
    assert "training 203 steps on the CPU" in first
    assert level == logging.WARNING
    assert "1:40:00 for 200 steps of 30 s" in message
    assert message.endswith("use another")


def test_a_short_training_is_told_its_time_only(
    quiet: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, _), (level, message) = told(quiet, caplog, monkeypatch, steps=13)
    assert level == logging.INFO
    assert "5:00 for 10 steps" in message


def test_a_training_of_two_steps_is_not_estimated(
    quiet: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(told(quiet, caplog, monkeypatch, steps=2)) == 1
