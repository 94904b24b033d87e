"""Four steps of a seeded tiny network: a change that should not alter the maths leaves these losses alone.

In float64, so that neither the machine nor its number of threads matters.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from sharpreid.data.datasets import TrainBatch
from sharpreid.run.build import build_module

GOLDEN = Path(__file__).parent / "golden" / "loss.json"
STEPS = 4


def batches() -> list[TrainBatch]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(2)
    colours = torch.randn(4, 3, 1, 1, generator=generator)[labels]
    return [
        TrainBatch(colours + torch.randn(8, 3, 64, 32, generator=generator), labels, torch.arange(8))
        for _ in range(STEPS)
    ]


def losses(cfg: DictConfig) -> dict[str, list[float]]:
    logged: dict[str, list[float]] = {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            for name in ("train/loss", "train/triplet"):
                logged.setdefault(name, []).append(trainer.callback_metrics[name].item())

    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[Keep()],
    )
    trainer.fit(build_module(cfg), torch.utils.data.DataLoader(batches(), batch_size=None))
    return logged


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("blocks", ["[]", "[1,2,3,4]"])
def test_the_first_steps_are_those_on_record(blocks: str, composed: Callable[..., DictConfig]) -> None:
    full_width = ("model.trunk.width=64", "model.head.in_features=2048")
    overrides = (*full_width, "objective=tv", f"model.context_blocks={'[1]' if blocks != '[]' else '[]'}")
    found = losses(composed(f"model.blocks={blocks}", *overrides))
    for name, values in json.loads(GOLDEN.read_text())[blocks].items():
        assert found[name] == pytest.approx(values, rel=1e-6), name
