"""One of several processes: those that torchrun or SLURM start for one run."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

__all__ = ["LostProcessError", "is_first", "naming_lost_processes", "rank_zero_only"]

_CONNECTION = re.compile(
    r"pair closure|connection (closed|reset|refused)|timed out|broken pipe|no route to host|gloo|nccl",
    re.IGNORECASE,
)
"""What torch's backends say, as plain RuntimeErrors, when another process does not answer."""


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


def is_first() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def naming_lost_processes(minutes: float) -> Iterator[None]:
    """Turn the errors of torch's backends into one that says what to do.

    Args:
        minutes: trainer.timeout_minutes of the run.

    Raises:
        LostProcessError: another process ended, or did not answer for so long.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.distributed.is_initialized() or not is_of_a_connection(error):
            raise
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        raise LostProcessError(
            f"another process of this run ended, or did not answer for trainer.timeout_minutes={minutes:g} "
            f"({error}); this is rank {rank} of {world_size}, on {socket.gethostname()}. If it ended by "
            "itself, its output says why; else see that its host is up and can be reached. Then start all "
            "processes again with resume=auto: they go on from the newest checkpoint"
        ) from error


def is_of_a_connection(error: RuntimeError) -> bool:
    """Whether ``error`` is one of torch's backends about another process.

    >>> is_of_a_connection(RuntimeError("Application timeout caused pair closure"))
    True
    >>> is_of_a_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, torch.distributed.DistError) or bool(_CONNECTION.search(str(error)))
