"""The Weights & Biases logger; nothing else in the suite imports wandb."""

import functools
import logging
import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import WandbLogger

from sharpreid.distributed import rank_zero_only

log = logging.getLogger(__name__)


class LastingWandbLogger(WandbLogger):
    """Lightning's, but the training outlives W&B's own process.

    A signal that a scheduler sends to all processes of a job ends W&B's at once
    (https://github.com/wandb/wandb/issues/9963), while the training still has a step to end and to save.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log to W&B if it is there."""
        with outliving_wandb():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log to W&B if it is there."""
        with outliving_wandb():
            super().log_image(key, images, step, **kwargs)


@contextmanager
def outliving_wandb() -> Iterator[None]:
    """Go on where W&B's process has ended."""
    try:
        yield
    except ConnectionError:
        _tell_that_wandb_ended()


@functools.cache
def _tell_that_wandb_ended() -> None:
    log.warning("W&B's process has ended; from here on nothing is logged there")


def build_wandb_logger(
    *, project: str, group: str, name: str, tags: Sequence[str], save_dir: str
) -> WandbLogger:
    """A logger that never asks: online where a key is configured, else offline.

    ``WANDB_MODE`` wins if it is set, except that ``online`` needs a key. An offline run is uploaded later by
    ``wandb sync <save_dir>/wandb/offline-run-*``.

    Args:
        project: W&B project.
        group: under which a sweep's runs are gathered.
        name: of the run.
        tags: of the run.
        save_dir: folder for the run's files.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if mode == "online" and not has_key():
        log.warning(
            "WANDB_MODE=online, but no key is configured (wandb login, or WANDB_API_KEY): W&B stays offline; "
            "`wandb sync` uploads later"
        )
        mode = "offline"
    offline = mode in {"offline", "dryrun"}
    if offline:
        os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    log.info("W&B mode: %s; files are in %s/wandb", mode, save_dir)
    return LastingWandbLogger(
        project=project, group=group, name=name, tags=list(tags), save_dir=save_dir, offline=offline
    )


def has_key() -> bool:
    """Whether an API key is configured, by ``WANDB_API_KEY`` or by ``wandb login`` (a netrc file)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False
