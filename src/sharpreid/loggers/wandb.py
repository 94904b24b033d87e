"""Weights & Biases logger that never prompts and survives the end of W&B's own process."""

import functools
import logging
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger

from sharpreid.distributed import rank_zero_only

log = logging.getLogger(__name__)


class FaultTolerantWandbLogger(WandbLogger):
    """Lightning's logger, which warns instead of failing if W&B does not start or its process has ended.

    A scheduler's signal to all processes of a job ends that of W&B at once
    (https://github.com/wandb/wandb/issues/9963), while the training completes its step and saves it.
    """

    required: bool = False
    """Whether a run of W&B that does not start is an error."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Run of W&B, started at the first use.

        Its id is that of ``WANDB_RUN_ID``. W&B itself reads the variable only once in a process, and would
        give all jobs of a sweep the first one's. Of a trial of W&B's own sweeps it accepts no other id.
        """
        if self._experiment is None and not os.environ.get("WANDB_SWEEP_ID"):
            self._wandb_init["id"] = os.environ.get("WANDB_RUN_ID") or None
        try:
            return super().experiment
        except Exception as error:
            if self.required or os.environ.get("WANDB_SWEEP_ID"):
                raise
            _warn_of_failure(error)
            self._experiment = _NoExperiment()  # type: ignore[assignment]
            return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to W&B if its process runs."""
        with _warning_if_ended():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log to W&B if its process runs."""
        if isinstance(self.experiment, _NoExperiment):  # W&B may not even be importable
            return
        with _warning_if_ended():
            super().log_image(key, images, step, **kwargs)


@contextmanager
def _warning_if_ended() -> Iterator[None]:
    """Turn the error about an ended process of W&B into a warning."""
    try:
        yield
    except ConnectionError:
        _warn_once()


class _NoExperiment:
    """Stand-in for a run of W&B that logs nothing. Unlike Lightning's it has attributes such as config."""

    def __getattr__(self, name: str) -> "_NoExperiment":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "_NoExperiment":
        return self


def _warn_of_failure(error: Exception) -> None:
    log.warning(
        "W&B does not start (%s); the training goes on without it. logger=csv leaves it out, and "
        "logger=wandb makes this an error",
        " ".join(str(error).split())[:300] or type(error).__name__,
    )


@functools.cache
def _warn_once() -> None:
    log.warning("W&B's process has ended; nothing more is logged there")


def build_wandb_logger(
    *, project: str, group: str, name: str, tags: Sequence[str], save_dir: str, required: bool = False
) -> WandbLogger | None:
    """Return a logger that is online if a key is configured and offline otherwise; it never prompts.

    ``WANDB_MODE`` takes precedence, but ``online`` without a key stays offline. Upload an offline run with
    ``wandb sync <save_dir>/wandb/offline-run-*``.

    Args:
        project: Project of W&B.
        group: Group of the runs of a sweep.
        name: Name of the run.
        tags: Tags of the run.
        save_dir: Folder of the run's files; created if missing.
        required: Raise an error if W&B cannot be imported or does not start. Otherwise a warning says so, and
            the training goes on without W&B. In W&B's own sweeps it is always an error.

    Returns:
        The logger; None if W&B cannot be imported.
    """
    if os.environ.get("WANDB_MODE") == "":
        del os.environ["WANDB_MODE"]  # W&B refuses it
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if mode == "online" and not has_key():
        log.warning(
            "WANDB_MODE=online, but no key is configured (wandb login, or WANDB_API_KEY): W&B stays offline; "
            "`wandb sync` uploads later"
        )
        mode = "offline"
    mode = {"dryrun": "offline"}.get(mode, mode)  # W&B's earlier name
    if mode == "offline":
        os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    log.info("W&B mode: %s; files are in %s/wandb", mode, save_dir)
    tags = [tag[:64] for tag in tags]  # W&B refuses longer ones
    # not offline=True: Lightning then sets WANDB_MODE=dryrun for all later jobs of this process
    try:
        logger = FaultTolerantWandbLogger(
            project=project, group=group, name=name, tags=tags, save_dir=save_dir, mode=mode
        )
    except Exception as error:  # a broken installation may raise anything
        if required or os.environ.get("WANDB_SWEEP_ID"):
            raise
        _warn_of_failure(error)
        return None
    logger.required = required
    logger._wandb_init.pop("anonymous", None)  # W&B warns about it, whatever its value
    return logger


def has_key() -> bool:
    """Tell whether ``WANDB_API_KEY`` or ``wandb login`` (a netrc file) configures an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
