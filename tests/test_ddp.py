"""Several processes train the network of one on the same global batch, and score it like one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from sharpreid.config.resolvers import register_resolvers
from sharpreid.data.datasets import EvalBatch, TrainBatch
from sharpreid.module import ReIDModule
from sharpreid.run.build import build_data, build_module

STEPS = 3


class LocalMining(ReIDModule):
    """The negative control: every process looks for its triplets in its own images."""

    def _gather(self, x: Tensor) -> Tensor:
        return x


class LocalScores(ReIDModule):
    """The negative control: every process scores its own share of the test set."""

    def on_test_epoch_start(self) -> None:
        self.test_metric.reset()
        self.test_metric.distributed_available_fn = lambda: False


class Embeddings(pl.Callback):
    """The embeddings that a process computes for the score."""

    def __init__(self) -> None:
        self.embeddings: list[Tensor] = []
        self.index: list[Tensor] = []

    def on_test_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: EvalBatch, batch_idx: int, loader: int = 0
    ) -> None:
        self.embeddings.append(module.embed_views(batch.views))
        self.index.append(batch.indices)


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


def score(cfg: DictConfig, processes: int, gathering: str = "gathered") -> dict[str, Any]:
    """Scores of an untrained network, and this process's embeddings with the indices of their images."""
    pl.seed_everything(0, verbose=False)
    module, data = build_module(cfg), build_data(cfg)
    if gathering == "alone":
        module.__class__ = LocalScores
    seen = Embeddings()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[seen],
    )
    trainer.test(module, data, verbose=False)
    scores = module.last_scores("test")
    return {
        "scores": {**scores.as_dict(), "cmc": list(scores.cmc)},
        "embeddings": torch.cat(seen.embeddings),
        "index": torch.cat(seen.index),
    }


def on_processes(folder: Path, cfg: DictConfig, processes: int, mining: str = "global") -> dict[str, Tensor]:
    """`train` on real processes; what the first saw, but the images of all, in the order of the ranks."""
    results = results_of_processes(folder, cfg, processes, "train", mining)
    return {**results[0], "images": torch.cat([result["images"] for result in results], 1)}


def results_of_processes(
    folder: Path, cfg: DictConfig, processes: int, what: str, how: str
) -> list[dict[str, Any]]:
    """What `train` or `score` return on each of several real processes."""
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
    command = [sys.executable, __file__, str(folder), what, how]
    started = [
        subprocess.Popen(command, env={**environment, "LOCAL_RANK": str(rank), "NODE_RANK": "0"})
        for rank in range(processes)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * processes
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture
def cfg(composed: Callable[..., DictConfig], market_of_16: Path) -> DictConfig:
    """Batches of 16 x 4, an attention block, total variation, batch norm over all processes.

    The margin is one that no triplet satisfies: every image has a gradient.
    """
    cfg = composed(
        f"data.source.root={market_of_16}",
        "data.identities_per_batch=16",
        "data.images_per_identity=4",
        "model.blocks=[1]",
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


@pytest.fixture
def odd_test_set(cfg: DictConfig, market_of_16: Path, tmp_path: Path) -> DictConfig:
    """17 test images, one by one: shares of 9 and 8, or of 6, 6 and 5; the people are hard to tell apart."""
    root = tmp_path / "odd"
    rng = np.random.default_rng(0)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
    for path in sorted((market_of_16 / "bounding_box_train").iterdir()):
        (root / "bounding_box_train" / path.name).symlink_to(path)
    for number in range(17):
        folder, camera = ("query", 1) if number < 5 else ("bounding_box_test", 2 + number % 2)
        pixels = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
        name = f"{20 + number % 5:04d}_c{camera}s1_{number:06d}_00.jpg"
        Image.fromarray(pixels).save(root / folder / name)
    cfg.data.source.root = str(root)
    cfg.data.eval_batch_size = 1  # kernels may round otherwise for another number of images
    return cfg


@pytest.mark.slow
@pytest.mark.ddp
def test_scores_of_uneven_shares_are_those_of_one_process(odd_test_set: DictConfig, tmp_path: Path) -> None:
    """To the last bit, on every process; and not so if each scores its own share."""
    alone = score(odd_test_set, 1)
    assert alone["index"].tolist() == list(range(17))
    assert 0.1 < alone["scores"]["mAP"] < 0.9
    for processes in (2, 3):
        results = results_of_processes(
            tmp_path / str(processes), odd_test_set, processes, "score", "gathered"
        )
        shares = [result["index"].tolist() for result in results]
        assert sorted(chain(*shares)) == list(range(17))
        assert {len(share) for share in shares} == ({9, 8} if processes == 2 else {6, 5})
        assert [result["scores"] for result in results] == [alone["scores"]] * processes
        for result in results:
            assert torch.equal(result["embeddings"], alone["embeddings"][result["index"]])
    apart = results_of_processes(tmp_path / "apart", odd_test_set, 2, "score", "alone")
    assert all(result["scores"] != alone["scores"] for result in apart)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    register_resolvers()
    loaded = OmegaConf.load(place / "cfg.yaml")
    assert isinstance(loaded, DictConfig)
    job = {"train": train, "score": score}[sys.argv[2]]
    torch.save(
        job(loaded, int(os.environ["WORLD_SIZE"]), sys.argv[3]), place / f"{os.environ['LOCAL_RANK']}.pt"
    )
