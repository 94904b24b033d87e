"""Preflight checks of a run: what config and data lists show is refused before any work starts."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.config.sweep_context import key_of
from sharpreid.config.validation import ConfigError
from sharpreid.data.datamodule import ReIDDataModule, check_has_images
from sharpreid.data.datasets import EvalImages
from sharpreid.data.reid_data import DataError
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import check_labels
from sharpreid.models.weights import check_fits
from sharpreid.module import ReIDModule
from sharpreid.run.paper_recipe import compose_config

log = logging.getLogger(__name__)

_MOST_EPOCHS = 10_000  # whose schedules are checked

_SCHEDULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("> 0", lambda value: value > 0),
    "learning_rate_factor": (">= 0", lambda value: value >= 0),
    "beta1": ("in [0, 1)", lambda value: 0 <= value < 1),
    "noise_scale": (">= 0", lambda value: value >= 0),
}
"""Schedule -> range of its values, in words and as a function."""


def choose_small_batches(cfg: DictConfig, data: ReIDDataModule, overrides: Sequence[str]) -> DictConfig:
    """Take the batches of ``recipe=small`` for fewer identities than a batch has, unless one was chosen.

    Args:
        cfg: Composed config, from which ``data`` was built.
        data: Data; if it has changed batches, so has this module.
        overrides: Overrides of the command line. ``recipe=``, ``+experiment=`` and
            ``data.identities_per_batch=`` are a choice.

    Returns:
        The config with the batches that are used.
    """
    if {key_of(one) for one in overrides} & {"recipe", "experiment", "data.identities_per_batch"}:
        return cfg
    try:
        data.setup("fit")
    except (OSError, DataError):
        return cfg  # the caller reads the data too, or does without them
    if (count := len(set(data.train.labels))) >= data.identities_per_batch:
        return cfg
    small = compose_config("recipe=small").data.identities_per_batch
    log.warning(
        "%d training identities are fewer than the %d of a batch, so this training takes recipe=small: "
        "data.identities_per_batch=%d",
        *(count, data.identities_per_batch, small),
    )
    chosen: DictConfig = cfg.copy()
    chosen.data.identities_per_batch = data.identities_per_batch = small
    return chosen


def check_training(
    cfg: DictConfig, trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule, checkpoint: Path | None
) -> None:
    """Check a training before the first step and before an earlier run is moved aside.

    Args:
        cfg: Composed config, from which the other arguments were built.
        trainer: Trainer.
        module: Module.
        data: Data, after ``setup("fit")``.
        checkpoint: Checkpoint that the training resumes from; None if it starts anew.

    Raises:
        ValueError: A batch or a score cannot be made from these data, an option excludes another, or the
            checkpoint is of another network.
        ConfigError: A schedule leaves its range.
    """
    reject_incompatible_options(cfg, trainer)
    batches = len(data.train_batches(world_size=trainer.world_size))
    _check_batch_norm(cfg, data, trainer.world_size)
    _check_schedules(cfg, module)
    if _limited(trainer.limit_train_batches, batches) < 1:
        raise ValueError(
            f"trainer.limit_train_batches={trainer.limit_train_batches} leaves none of {batches} batches; "
            "give a number of batches"
        )
    if data.validation_identities:
        _check_scores("validation", trainer, data.validation, data, module.validation_metric.protocol)
        interval = trainer.val_check_interval
        if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and interval > batches:
            raise ValueError(
                f"trainer.val_check_interval={interval} must be at most {batches}, the batches of an epoch; "
                "trainer.check_val_every_n_epoch counts whole epochs"
            )
    check_test(trainer, module, data)
    if checkpoint is not None and any(key.startswith("model") for key in cfg.allow_changed):
        check_fits(SafeCheckpointIO().load_checkpoint(checkpoint)["state_dict"], module, str(checkpoint))


def check_test(trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule) -> None:
    """Check that the test set can be scored, before its images are embedded.

    Raises:
        ValueError: There are no queries or no gallery, some test images would not be embedded, no query has a
            valid match, or a process has no image.
    """
    data.setup("test")
    check_has_images(data.data, "query", "gallery")
    _check_scores("test", trainer, data.test, data, module.test_metric.protocol)


def _check_scores(
    stage: str, trainer: pl.Trainer, images: EvalImages, data: ReIDDataModule, protocol: Protocol
) -> None:
    if data.eval_batch_size < 1 or data.num_workers < 0:
        raise ValueError(
            "data.eval_batch_size must be at least 1 and data.num_workers at least 0; got "
            f"{data.eval_batch_size} and {data.num_workers}"
        )
    if len(images) < trainer.world_size:
        raise ValueError(f"{trainer.world_size} processes, but only {len(images)} {stage} images; use fewer")
    batches = math.ceil(math.ceil(len(images) / trainer.world_size) / data.eval_batch_size)
    limits = [trainer.limit_test_batches]
    if stage == "validation":
        limits = [trainer.limit_val_batches, trainer.num_sanity_val_steps or batches]
    if any(_limited(limit, batches) < batches for limit in limits):
        raise ValueError(
            f"a score needs all {batches} {stage} batches; remove trainer.limit_test_batches, fast_dev_run, "
            "overfit_batches and num_sanity_val_steps. A quick trial is trainer.max_epochs=1 "
            "+trainer.limit_train_batches=2"
        )
    labels = torch.tensor([(sample.pid, sample.camid) for sample in images.samples]).view(-1, 2)
    end = len(images.samples) if images.query_group is None else int(images.query_group.max()) + 1
    query, gallery = labels[: images.num_query], labels[images.num_query : end]
    check_labels(query[:, 0], query[:, 1], gallery[:, 0], gallery[:, 1], protocol=protocol)


def _limited(limit: float, batches: int) -> float:
    """Return how many batches a limit of Lightning leaves; a float is a share, except for infinity."""
    share = isinstance(limit, float) and math.isfinite(limit)
    return int(limit * batches) if share else min(limit, batches)


def _check_batch_norm(cfg: DictConfig, data: ReIDDataModule, world_size: int) -> None:
    group = cfg.get("batch_norm", "process")
    images = data.identities_per_batch // world_size * data.images_per_identity
    if isinstance(group, int) and images % group:
        raise ValueError(
            f"batch_norm={group} must divide the {images} images of a process's batch, which are "
            "data.identities_per_batch x data.images_per_identity / number of processes"
        )


def _check_schedules(cfg: DictConfig, module: ReIDModule) -> None:
    """Evaluate each schedule in every epoch, and warn about a decay that never starts."""
    epochs = cfg.trainer.max_epochs
    for name, (wanted, fits) in _SCHEDULES.items():
        schedule = getattr(module, name)
        for epoch in range(min(epochs, _MOST_EPOCHS)) if schedule is not None else ():
            value = schedule(epoch)
            if not (math.isfinite(value) and fits(value)):
                raise ConfigError(f"schedule.{name} must be {wanted}, but is {value} in epoch {epoch}")
    start = OmegaConf.select(cfg, "schedule.learning_rate_factor.start")
    if isinstance(start, int) and start >= epochs:
        log.warning(
            "the learning rate does not decay: schedule.learning_rate_factor.start=%d is not reached with "
            "trainer.max_epochs=%d",
            *(start, epochs),
        )


def reject_incompatible_options(cfg: DictConfig, trainer: pl.Trainer) -> None:
    """Reject incompatible options before any work starts.

    Raises:
        ValueError: Two options exclude each other, or the processes do not fit a sweep.
    """
    if OmegaConf.select(cfg, "optimizer.fused") and str(cfg.trainer.precision) in ("16", "16-mixed"):
        # the fused step unscales the gradients itself, after their norm is logged and checked
        raise ValueError(
            f"optimizer.fused=true is incompatible with trainer.precision={cfg.trainer.precision}; use "
            "bf16-mixed, or optimizer.fused=null"
        )
    eps = OmegaConf.select(cfg, "optimizer.eps") or 1e-8
    if str(cfg.trainer.precision) == "16-true" and "Adam" in str(cfg.optimizer._target_) and eps < 6e-8:
        raise ValueError(
            f"trainer.precision=16-true: Adam's eps of {eps} is 0 in half precision, and the loss NaN. "
            "Take 16-mixed or bf16-mixed"
        )
    expected = OmegaConf.select(cfg, "model.sampler.gradient") == "expected"
    if expected and OmegaConf.select(cfg, "schedule.noise_scale") is not None:
        raise ValueError(
            "model.sampler.gradient=expected is the mean over the noise at its full scale, which "
            "schedule.noise_scale changes; use another gradient, or schedule.noise_scale=null"
        )
    device = trainer.strategy.root_device
    if OmegaConf.select(cfg, "model.sampler.implementation") == "triton" and device.type != "cuda":
        raise ValueError(
            f"model.sampler.implementation=triton needs a GPU, but the training would run on {device}; use "
            "recompute"
        )
    if trainer.world_size > 1 and _runs_sweep_in_process():
        raise ValueError(
            f"a sweep runs its jobs in one process, but trainer.devices={trainer.num_devices} "
            f"needs {trainer.world_size}; use hydra/launcher=local without torchrun, or start "
            f"each job separately: torchrun --nproc-per-node={trainer.num_devices} -m sharpreid.train "
            "... hydra.mode=RUN"
        )


def _runs_sweep_in_process() -> bool:
    """Return whether this process runs all jobs of a sweep, as it does for Hydra's basic launcher."""
    hydra_cfg = HydraConfig.get()
    return hydra_cfg.mode == RunMode.MULTIRUN and hydra_cfg.launcher._target_.endswith(".BasicLauncher")
