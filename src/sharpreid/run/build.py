"""Instantiate the objects that a composed config describes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
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
    """Build the LightningDataModule of a composed config; a ConfigError names the key of a wrong value."""
    data: ReIDDataModule = _instantiate(cfg, "data")
    return data


def _instantiate(cfg: DictConfig, key: str, *trial: Any) -> Any:
    """Instantiate one node of the config.

    Args:
        cfg: Composed config.
        key: Dotted key of the node.
        trial: Arguments for a trial call of the result, if that is a function to be called later.

    Raises:
        ConfigError: The node cannot be instantiated; the message names its key.
    """
    node = OmegaConf.select(cfg, key)  # early runs have no re_ranking
    with _name_key_in_errors(cfg, key):
        part = hydra.utils.instantiate(node)
        if trial and part is not None:
            part(*trial)
    return part


def _instantiate_all(cfg: DictConfig, group: str) -> list[Any]:
    parts = [_instantiate(cfg, f"{group}.{name}") for name in cfg.get(group) or ()]
    return [part for part in parts if part is not None]


@contextmanager
def _name_key_in_errors(cfg: DictConfig, key: str) -> Iterator[None]:
    """Replace any error of a constructor by a ConfigError that names the config's key."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
        place = inner[1] if inner and inner[1].startswith(key) else key
        wrong = "a value is of the wrong type: " if isinstance(cause, TypeError) else ""
        given = _plain_values(cfg, place)
        words = set(re.findall(r"[\w.-]+", str(cause)))
        meant = [(name, value) for name, value in given if {name, str(value)} & words]
        values = ", ".join(f"{name}={value}" for name, value in meant or given)
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
    """Build the LightningModule of a composed config; a ConfigError names the key of a wrong value."""
    if cfg.model.get("weights", "none") != "none":  # those of the trunk would be replaced
        cfg = cfg.copy()
        cfg.model.trunk.weights = "none"
    network = _instantiate(cfg, "model")
    set_statistics(network, cfg.get("batch_norm", "process"))  # early runs lack it
    return ReIDModule(
        objective=_instantiate(cfg, "objective"),
        optimizer=_instantiate(cfg, "optimizer", [torch.nn.Parameter(torch.zeros(1))]),
        temperature=_instantiate(cfg, "schedule.temperature", 0),
        learning_rate_factor=_instantiate(cfg, "schedule.learning_rate_factor", 0),
        beta1=_instantiate(cfg, "schedule.beta1", 0),
        noise_scale=_instantiate(cfg, "schedule.noise_scale", 0),  # early runs lack it
        protocol=_instantiate(cfg, "protocol"),
        re_ranking=_instantiate(cfg, "re_ranking"),
        network=network,
        channels_last=cfg.channels_last,
        seed=cfg.seed,
    )


def build_trainer(cfg: DictConfig, *, training: bool) -> pl.Trainer:
    """Build the Trainer of a composed config; without ``training`` it has no loggers and no callbacks."""
    if training:
        callbacks, loggers = (_instantiate_all(cfg, group) for group in ("callbacks", "logger"))
    else:
        callbacks, loggers = [ProgressWithTimeLeft(training=False)], []
    settings = cfg.trainer.copy()
    OmegaConf.set_struct(settings, False)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator}, but torch {torch.__version__} finds no GPU; use "
            "trainer.accelerator=cpu, or auto"
        )
    minutes = settings.pop("timeout_minutes", 10)  # early runs lack it
    with _name_key_in_errors(cfg, "trainer"):
        trainer: pl.Trainer = hydra.utils.instantiate(
            settings,
            callbacks=callbacks,
            logger=loggers,
            plugins=[SafeCheckpointIO(), *_cluster_plugins()],
            enable_checkpointing=training,
            limit_val_batches=1.0 if cfg.data.validation_identities else 0,
        )
    if training:
        _check_lengths(cfg)
    _check_processes(trainer)
    _set_timeout(trainer, minutes)
    return trainer


def _check_lengths(cfg: DictConfig) -> None:
    """Refuse numbers with which Lightning trains nothing, or fails in the midst of a training."""
    of_validation = ("check_val_every_n_epoch",) if cfg.data.validation_identities else ()
    for key in ("max_epochs", "accumulate_grad_batches", "max_steps", *of_validation):
        value = cfg.trainer.get(key, 1)
        unlimited = (key, value) in (("max_steps", -1), ("check_val_every_n_epoch", None))
        if not unlimited and (not isinstance(value, int) or value < 1):
            raise ValueError(f"trainer.{key} must be a whole number, at least 1; got {value!r}")
    if (cfg.trainer.get("gradient_clip_val") or 0) < 0:
        raise ValueError(
            f"trainer.gradient_clip_val must be > 0 or null, got {cfg.trainer.gradient_clip_val}"
        )


def _set_timeout(trainer: pl.Trainer, minutes: float) -> None:
    """Set the timeout of collective operations."""
    if not isinstance(minutes, (int, float)) or not minutes > 0:
        raise ValueError(f"trainer.timeout_minutes must be a number > 0, got {minutes!r}")
    if isinstance(trainer.strategy, DDPStrategy):  # Lightning chose it, with torch's timeout of 30 minutes
        trainer.strategy._timeout = timedelta(minutes=minutes)


def _cluster_plugins() -> list[ClusterEnvironment]:
    """Return the plugin of the processes that SLURM started, or of a single process in a SLURM allocation.

    It is empty outside of SLURM and for torchrun, which Lightning finds itself. Lightning takes SLURM_NTASKS
    for the number of processes. In a batch script, and in the shell of salloc or ``srun --pty``, that is the
    number of tasks that may be started.
    """
    if TorchElasticEnvironment.detect() or "SLURM_JOB_ID" not in os.environ:
        return []
    # without Lightning's own requeueing
    return [SLURMEnvironment(auto_requeue=False)] if _slurm_processes() > 1 else [LightningEnvironment()]


def _slurm_processes() -> int:
    """Return the number of processes that srun started with this one; 1 if srun did not start it."""
    if "SLURM_PTY_PORT" in os.environ and _has_terminal():
        return 1  # in the shell of `srun --pty`, whose other tasks ended at once
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal. A task of srun without --pty has none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


def _check_processes(trainer: pl.Trainer) -> None:
    """Refuse several devices without torchrun or SLURM, and a number of processes that does not match."""
    by_slurm = bool(_cluster_plugins())
    starter = "SLURM" if by_slurm else "torchrun"
    started = _slurm_processes() if by_slurm else int(os.environ.get("WORLD_SIZE", 1))
    environment = getattr(trainer.strategy, "cluster_environment", None)
    outside = environment is not None and environment.creates_processes_externally
    wanted = f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    if trainer.world_size > 1 and not outside:
        srun = f"srun --ntasks-per-node={trainer.num_devices} python ...; " if by_slurm else ""
        raise ValueError(
            f"{wanted} needs {trainer.world_size} processes, one per device; start them from outside: "
            f"{srun}torchrun --nproc-per-node={trainer.num_devices} -m sharpreid.train ... {wanted}; "
            "or a whole sweep with hydra/launcher=local"
        )
    if started > 1 and trainer.world_size != started:
        raise ValueError(
            f"{starter} started {started} processes, but {wanted} are {trainer.world_size}: each would train "
            "the same network on its own. Give trainer.devices (per node) and trainer.num_nodes to match"
        )
