"""From a composed config to what it describes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import DDPStrategy

from sharpreid.callbacks.progress import ProgressWithTimeLeft
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.config.validation import ConfigError
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.models.batch_norm import set_statistics
from sharpreid.module import ReIDModule


def seed_everything(cfg: DictConfig) -> None:
    """Seed Python, NumPy and torch with ``cfg.seed``; ValueError unless it is in [0, 2^32)."""
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1, got {cfg.seed!r}")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)


def build_data(cfg: DictConfig) -> ReIDDataModule:
    """The LightningDataModule of a composed config; ConfigError names a key whose value does not fit."""
    data: ReIDDataModule = _built(cfg, "data")
    return data


def _built(cfg: DictConfig, key: str, *trial: Any) -> Any:
    """What ``key`` of the config describes; a function to be called later is called once with ``trial``.

    Raises:
        ConfigError: it cannot be built; names the key.
    """
    node = OmegaConf.select(cfg, key)  # re_ranking is not in the configs of early runs
    with _naming(cfg, key):
        part = hydra.utils.instantiate(node)
        if trial and part is not None:
            part(*trial)
    return part


@contextmanager
def _naming(cfg: DictConfig, key: str) -> Iterator[None]:
    """Turn what a constructor raises, which may be anything, into a ConfigError with the config's key."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
        place = inner[1] if inner and inner[1].startswith(key) else key
        wrong = "a value is of the wrong type: " if isinstance(cause, TypeError) else ""
        values = ", ".join(f"{name}={value}" for name, value in _plain_values(cfg, place))
        raise ConfigError(
            f"{place}: {wrong}{cause}" + (f" (it was given {values})" if values else "")
        ) from error


def _plain_values(cfg: DictConfig, key: str) -> list[tuple[str, Any]]:
    node = OmegaConf.select(cfg, key)
    if not OmegaConf.is_dict(node):
        return [] if node is None else [(key.rpartition(".")[2], node)]
    return [
        (str(name), node[name])
        for name in node
        if not str(name).startswith("_") and not OmegaConf.is_dict(node[name])
    ]


def build_module(cfg: DictConfig) -> ReIDModule:
    """The LightningModule of a composed config; ConfigError names a key whose value does not fit."""
    network = _built(cfg, "model")
    set_statistics(network, cfg.get("batch_norm", "process"))  # not in the configs of early runs
    return ReIDModule(
        objective=_built(cfg, "objective"),
        optimizer=_built(cfg, "optimizer", [torch.nn.Parameter(torch.zeros(1))]),
        temperature=_built(cfg, "schedule.temperature", 0),
        learning_rate_factor=_built(cfg, "schedule.learning_rate_factor", 0),
        beta1=_built(cfg, "schedule.beta1", 0),
        noise_scale=_built(cfg, "schedule.noise_scale", 0),  # not in the configs of early runs
        protocol=_built(cfg, "protocol"),
        re_ranking=_built(cfg, "re_ranking"),
        network=network,
        channels_last=cfg.channels_last,
        seed=cfg.seed,
    )


def build_trainer(cfg: DictConfig, *, training: bool) -> pl.Trainer:
    """The Trainer of a composed config; for evaluation alone without its loggers and callbacks."""
    if training:
        callbacks, loggers = (
            [part for name in cfg.get(group) or () if (part := _built(cfg, f"{group}.{name}")) is not None]
            for group in ("callbacks", "logger")
        )
    else:
        callbacks, loggers = [ProgressWithTimeLeft(training=False)], []
    settings = cfg.trainer.copy()
    OmegaConf.set_struct(settings, False)
    minutes = settings.pop("timeout_minutes", 10)  # not in the configs of early runs
    with _naming(cfg, "trainer"):
        trainer: pl.Trainer = hydra.utils.instantiate(
            settings,
            callbacks=callbacks,
            logger=loggers,
            plugins=[SafeCheckpointIO(), *_slurm()],
            enable_checkpointing=training,
            limit_val_batches=1.0 if cfg.data.validation_identities else 0,
        )
    epochs = cfg.trainer.get("max_epochs")
    if training and (not isinstance(epochs, int) or epochs < 1):
        raise ValueError(f"trainer.max_epochs must be a whole number, at least 1; got {epochs!r}")
    _check_processes(trainer)
    _set_timeout(trainer, minutes)
    return trainer


def _set_timeout(trainer: pl.Trainer, minutes: float) -> None:
    """Bound how long a process waits for the others."""
    if not isinstance(minutes, (int, float)) or not minutes > 0:
        raise ValueError(f"trainer.timeout_minutes must be a number > 0, got {minutes!r}")
    if isinstance(trainer.strategy, DDPStrategy):  # which Lightning itself chose, with torch's 30 minutes
        trainer.strategy._timeout = timedelta(minutes=minutes)


def _slurm() -> list[ClusterEnvironment]:
    """SLURM's processes, without Lightning's own saving and requeueing; nothing where SLURM started none."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def _check_processes(trainer: pl.Trainer) -> None:
    """Refuse processes that Lightning would start by running the command again, or that do not add up."""
    starter, variable = ("SLURM", "SLURM_STEP_NUM_TASKS") if _slurm() else ("torchrun", "WORLD_SIZE")
    started = int(os.environ.get(variable, 1))
    environment = getattr(trainer.strategy, "cluster_environment", None)
    outside = environment is not None and environment.creates_processes_externally
    wanted = f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    if trainer.world_size > 1 and not outside:
        raise ValueError(
            f"{wanted} needs {trainer.world_size} processes, one per device; start them from outside: "
            f"torchrun --nproc-per-node={trainer.num_devices} -m sharpreid.train ... {wanted}; "
            "or a whole sweep with hydra/launcher=local"
        )
    if started > 1 and trainer.world_size != started:
        raise ValueError(
            f"{starter} started {started} processes, but {wanted} are {trainer.world_size}: each would train "
            "the same network on its own. Give trainer.devices (per node) and trainer.num_nodes to match"
        )


def reject_incompatible_options(cfg: DictConfig, trainer: pl.Trainer) -> None:
    """Reject incompatible options before any work starts.

    Raises:
        ValueError: two options exclude each other, or the processes do not fit a sweep.
    """
    if OmegaConf.select(cfg, "optimizer.fused") and str(cfg.trainer.precision) in ("16", "16-mixed"):
        # its step takes the scale out of the gradients: their norm would be logged, and looked at, with it
        raise ValueError(
            f"optimizer.fused=true does not go with trainer.precision={cfg.trainer.precision}; take "
            "bf16-mixed, or optimizer.fused=null"
        )
    expected = OmegaConf.select(cfg, "model.sampler.gradient") == "expected"
    if expected and OmegaConf.select(cfg, "schedule.noise_scale") is not None:
        raise ValueError(
            "model.sampler.gradient=expected is the mean over the whole noise, which schedule.noise_scale "
            "changes; take another gradient, or schedule.noise_scale=null"
        )
    device = trainer.strategy.root_device
    if OmegaConf.select(cfg, "model.sampler.implementation") == "triton" and device.type != "cuda":
        raise ValueError(
            f"model.sampler.implementation=triton needs a GPU, and the training would run on {device}; take "
            "recompute"
        )
    if trainer.world_size > 1 and _runs_sweep_in_process():
        raise ValueError(
            f"a sweep goes through its jobs in one process, but trainer.devices={trainer.num_devices} "
            f"needs {trainer.world_size}; leave torchrun out and give hydra/launcher=local, or start "
            f"each job by itself: torchrun --nproc-per-node={trainer.num_devices} -m sharpreid.train "
            "... hydra.mode=RUN"
        )


def _runs_sweep_in_process() -> bool:
    """Return whether this process runs all jobs of a sweep, as it does for Hydra's basic launcher."""
    hydra_cfg = HydraConfig.get()
    return hydra_cfg.mode == RunMode.MULTIRUN and hydra_cfg.launcher._target_.endswith(".BasicLauncher")
