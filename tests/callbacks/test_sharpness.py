from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.callbacks.sharpness import SharpnessCurves
from sharpreid.run.build import build_data, build_module


def fit(cfg: DictConfig, quiet: dict[str, Any]) -> tuple[pl.Trainer, pl.LightningModule]:
    trainer = pl.Trainer(**quiet, max_epochs=2, limit_val_batches=0, callbacks=[SharpnessCurves()])
    module = build_module(cfg)
    trainer.fit(module, build_data(cfg))
    return trainer, module


def listeners(module: pl.LightningModule) -> int:
    blocks = [m for m in module.modules() if isinstance(m, SharpAttentionBlock)]
    return sum(block.mask_listener is not None for block in blocks)


def test_each_block_has_its_curves_and_no_listener_stays(
    composed: Callable[..., DictConfig], quiet: dict[str, Any]
) -> None:
    trainer, module = fit(composed("model.blocks=[1,4]"), quiet)
    logged = {name for name in trainer.callback_metrics if "_block" in name and "tv" not in name}
    assert logged == {f"train/{what}_block{block}" for what in ("decided", "entropy") for block in (1, 4)}
    assert all(0 <= trainer.callback_metrics[name] <= 1 for name in logged)
    assert listeners(module) == 0


def test_a_network_without_attention_logs_nothing_of_masks(
    composed: Callable[..., DictConfig], quiet: dict[str, Any]
) -> None:
    trainer, _ = fit(composed("model.blocks=[]"), quiet)
    assert not any("_block" in name for name in trainer.callback_metrics)


def test_no_listener_stays_after_an_error(composed: Callable[..., DictConfig], quiet: dict[str, Any]) -> None:
    class Fail(pl.Callback):
        def on_before_backward(self, *_: Any) -> None:
            raise RuntimeError("stop")

    cfg = composed("model.blocks=[1]")
    trainer = pl.Trainer(**quiet, max_epochs=1, limit_val_batches=0, callbacks=[SharpnessCurves(), Fail()])
    module = build_module(cfg)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(module, build_data(cfg))
    assert listeners(module) == 0
