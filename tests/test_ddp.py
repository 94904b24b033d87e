"""1, 2 and 4 processes that share a batch of 64 images train one and the same network."""

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
from sharpreid.data.datamodule import TrainBatch
from sharpreid.module import ReIDModule

STEPS = 3


class LocalMining(ReIDModule):
    """The negative control: every process looks for its triplets in its own images."""

    def _gather(self, x: Tensor) -> Tensor:
        return x


class Losses(pl.Callback):
    """The losses, and the images of each step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.images: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        self.images.append(batch.indices)


def train(cfg: DictConfig, processes: int, mining: str = "global") -> dict[str, Tensor]:
    """Losses, parameters and running statistics after `STEPS` steps of plain gradient descent in float64."""
    pl.seed_everything(0, verbose=False)
    module, data = build_module(cfg), build_data(cfg)
    if mining == "local":
        module.__class__ = LocalMining
    module.optimizer_builder = lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    seen = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=STEPS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[seen],
    )
    trainer.fit(module, data)
    assert trainer.global_step == STEPS
    state = {f"state.{name}": value.detach().clone() for name, value in module.network.state_dict().items()}
    return {"losses": torch.stack(seen.losses), "images": torch.stack(seen.images), **state}


def on_processes(folder: Path, cfg: DictConfig, processes: int, mining: str = "global") -> dict[str, Tensor]:
    """`train` on real processes; what the first saw, but the images of all, in the order of the ranks."""
    folder.mkdir()
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
        "WORLD_SIZE": str(processes),
    }
    command = [sys.executable, __file__, str(folder), mining]
    started = [
        subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank), "NODE_RANK": "0"})
        for rank in range(processes)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * processes
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    return {**results[0], "images": torch.cat([result["images"] for result in results], 1)}


@pytest.fixture
def cfg(composed: Callable[..., DictConfig], market_of_16: Path) -> DictConfig:
    """Batches of 16 x 4, an attention block without noise, total variation, batch norm over all processes.

    The margin is one that no triplet satisfies: every image has a gradient.
    """
    cfg = composed(
        f"data.source.root={market_of_16}",
        "data.identities_per_batch=16",
        "data.images_per_identity=4",
        "model.blocks=[1]",
        "model.sampler.train_mask=noise_free",
        "objective.margin=20",
        "objective.mu=0.1",
        "batch_norm=global",
    )
    resolved = OmegaConf.to_container(cfg.copy(), resolve=False)
    assert isinstance(resolved, dict)
    kept = {key: value for key, value in resolved.items() if key not in ("callbacks", "logger", "output_dir")}
    return OmegaConf.create(kept)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over losses, parameters and running statistics."""
    return max((one[name] - other[name]).abs().max().item() for name in one if name != "images")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_batch_on_one_two_and_four_processes(cfg: DictConfig, tmp_path: Path) -> None:
    """The same losses, gradients and trajectory; and not so if mining or batch norm stay within a process."""
    alone = train(cfg, 1)
    assert alone["losses"].shape == (STEPS,)
    for processes in (2, 4):
        together = on_processes(tmp_path / str(processes), cfg, processes)
        assert torch.equal(together["images"], alone["images"])  # disjoint shares of one batch
        assert largest_difference(alone, together) < 1e-10
    local = on_processes(tmp_path / "local", cfg, 2, mining="local")
    assert largest_difference(alone, local) > 1e-3
    cfg.batch_norm = "process"
    apart = on_processes(tmp_path / "apart", cfg, 2)
    assert largest_difference(alone, apart) > 1e-3


@pytest.mark.slow
@pytest.mark.ddp
def test_groups_on_one_process_are_batch_norm_within_four(cfg: DictConfig, tmp_path: Path) -> None:
    """One big device reproduces the recipe of four small ones: parameters, and losses but for their place."""
    cfg.batch_norm = "process"
    four = on_processes(tmp_path / "four", cfg, 4)
    cfg.batch_norm = 16
    alone = train(cfg, 1)
    parameters = [name for name in alone if not name.endswith(("running_mean", "running_var", "images"))]
    assert len(parameters) > 10
    assert max((alone[name] - four[name]).abs().max().item() for name in parameters) < 1e-10
    statistics = [name for name in alone if name.endswith("running_mean")]  # the first of four sees its own
    assert max((alone[name] - four[name]).abs().max().item() for name in statistics) > 1e-6


if __name__ == "__main__":
    place = Path(sys.argv[1])
    register_resolvers()
    loaded = OmegaConf.load(place / "cfg.yaml")
    assert isinstance(loaded, DictConfig)
    torch.save(
        train(loaded, int(os.environ["WORLD_SIZE"]), sys.argv[2]), place / f"{os.environ['LOCAL_RANK']}.pt"
    )
