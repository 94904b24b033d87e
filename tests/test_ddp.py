"""A step on two processes is the step of one process on the same batch."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sharpreid.config import build_data, build_module, register_resolvers
from sharpreid.module import ReIDModule


class FrozenStatistics(pl.Callback):
    """Batch norm sees 8 images in one process and 4 in each of two: leave it out of the comparison."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.eval()


class LocalMining(ReIDModule):
    """The negative control: every process looks for its triplets in its own images."""

    def _gather(self, x: Tensor) -> Tensor:
        return x


def step(cfg: DictConfig, processes: int, mining: str) -> dict[str, Tensor]:
    """Parameters after one step of plain gradient descent."""
    pl.seed_everything(0, verbose=False)
    module, data = build_module(cfg), build_data(cfg)
    if mining == "local":
        module.__class__ = LocalMining
    module.optimizer_builder = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[FrozenStatistics()],
    )
    trainer.fit(module, data)
    return {name: value.detach().clone() for name, value in module.network.named_parameters()}


def on_two_processes(folder: Path, cfg: DictConfig, mining: str) -> dict[str, Tensor]:
    OmegaConf.save(cfg, folder / "cfg.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, __file__, str(folder), mining]
    processes = [
        subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank), "NODE_RANK": "0"})
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    weights: dict[str, Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return weights


@pytest.fixture
def cfg(composed: Callable[..., DictConfig]) -> DictConfig:
    """The tiny baseline, with a margin that no triplet satisfies: every image has a gradient."""
    cfg = composed("model.blocks=[]", "objective.margin=20", "optimizer.weight_decay=0")
    resolved = OmegaConf.to_container(cfg.copy(), resolve=False)
    assert isinstance(resolved, dict)
    kept = {key: value for key, value in resolved.items() if key not in ("callbacks", "logger", "output_dir")}
    return OmegaConf.create(kept)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_take_the_step_of_one(cfg: DictConfig, tmp_path: Path) -> None:
    alone = step(cfg, 1, "global")
    start = dict(build(cfg).named_parameters())
    moved = largest_difference(alone, start)
    assert largest_difference(alone, on_two_processes(tmp_path, cfg, "global")) < 1e-4 * moved
    assert largest_difference(alone, on_two_processes(tmp_path, cfg, "local")) > 1e-2 * moved


def build(cfg: DictConfig) -> torch.nn.Module:
    pl.seed_everything(0, verbose=False)
    return build_module(cfg).network


if __name__ == "__main__":
    place = Path(sys.argv[1])
    register_resolvers()
    loaded = OmegaConf.load(place / "cfg.yaml")
    assert isinstance(loaded, DictConfig)
    weights = step(loaded, 2, sys.argv[2])
    if os.environ["LOCAL_RANK"] == "0":
        torch.save(weights, place / "weights.pt")
