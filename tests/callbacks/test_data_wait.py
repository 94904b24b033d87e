"""The logged share of the training's time in which it waits for data."""

import time
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sharpreid.callbacks.data_wait import DataWait
from sharpreid.data.datamodule import TimedLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
]


class Slow(Dataset[Tensor]):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return torch.ones(2)

    def __len__(self) -> int:
        return 4


class SlowModule(pl.LightningModule):
    """Each step takes 0.03 s, each validation 0.2 s."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.shares: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(0.03)
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(0.05)

    def on_train_epoch_end(self) -> None:
        share = self.trainer.callback_metrics.get("train/data_wait")
        if share is not None:
            self.shares.append(float(share))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def shares(loader: Any, quiet: dict[str, Any]) -> list[float]:
    module = SlowModule()
    trainer = pl.Trainer(
        **quiet, max_epochs=2, callbacks=[DataWait()], num_sanity_val_steps=0, val_check_interval=0.5
    )
    trainer.fit(module, loader, DataLoader(Slow(0.0)))
    return module.shares + [
        float(value) for name, value in trainer.callback_metrics.items() if name == "train/data_wait"
    ]


@pytest.mark.parametrize(("seconds", "low", "high"), [(0.0, 0.0, 0.1), (0.03, 0.35, 0.55)])
def test_the_share_is_that_of_the_loader_without_the_validation(
    quiet: dict[str, Any], seconds: float, low: float, high: float
) -> None:
    found = shares(TimedLoader(Slow(seconds)), quiet)
    assert found
    assert all(low <= share <= high for share in found), found


def test_nothing_is_logged_of_a_loader_that_does_not_know(quiet: dict[str, Any]) -> None:
    assert shares(DataLoader(Slow(0.0)), quiet) == []
