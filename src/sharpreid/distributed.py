"""One of several processes: those that torchrun or SLURM start for one run."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

__all__ = ["LostProcessError", "explain_lost_processes", "is_rank_zero", "rank_zero_only"]

_CONNECTION = re.compile(
    r"pair closure|connection (closed|reset|refused)|timed out|broken pipe|no route to host|gloo|nccl",
    re.IGNORECASE,
)
"""What gloo and NCCL say, some of it as plain RuntimeErrors, when another process does not answer."""


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


def is_rank_zero() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def explain_lost_processes(minutes: float) -> Iterator[None]:
    """Turn the errors of torch's backends into one that says what to do.

    Args:
        minutes: trainer.timeout_minutes of the run.

    Raises:
        LostProcessError: another process ended, or did not answer for so long.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_connection_error(error):
            raise
        raise LostProcessError(
            f"another process of this run ended, or did not answer for trainer.timeout_minutes={minutes:g} "
            f"({error}); this is rank {getattr(rank_zero_only, 'rank', 0)}, on {socket.gethostname()}. If it "
            "ended by itself, its output says why; else see that its host is up and can be reached. Then "
            "start all processes again with resume=auto: they go on from the newest checkpoint"
        ) from error


def is_connection_error(error: RuntimeError) -> bool:
    """Whether ``error`` is one of torch.distributed about another process."""
    if not torch.distributed.is_available():
        return False
    said = torch.distributed.is_initialized() and _CONNECTION.search(str(error))
    return isinstance(error, torch.distributed.DistError) or bool(said)
