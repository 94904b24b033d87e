"""The processes of one training, which torchrun or SLURM starts."""

import functools
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from lightning_utilities.core import rank_zero

_CONNECTION = re.compile(
    r"pair closure|connection (closed|reset|refused)|timed out|broken pipe|no route to host|gloo|nccl",
    re.IGNORECASE,
)
"""Words of gloo's and NCCL's errors about a process that does not answer; some have the type RuntimeError."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class LostProcessError(RuntimeError):
    """Another process of the training ended, or did not answer in time."""


def get_rank() -> int:
    """Return the rank that Lightning has given this process; 0 in a command that does not use Lightning."""
    return int(getattr(rank_zero.rank_zero_only, "rank", 0))


def is_rank_zero() -> bool:
    """Return whether this process has rank 0; a single process always has."""
    return get_rank() == 0


def rank_zero_only(function: Callable[Parameters, Result]) -> Callable[Parameters, Result | None]:
    """Make a function do nothing and return None on every rank but 0.

    It is equivalent to Lightning's decorator of the same name, but does not import torch.
    """

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result | None:
        return function(*args, **kwargs) if is_rank_zero() else None

    return wrapped


@contextmanager
def explain_lost_processes(minutes: float) -> Iterator[None]:
    """Replace errors of torch's communication backends by an error that says what to do.

    Args:
        minutes: trainer.timeout_minutes of the training.

    Raises:
        LostProcessError: Another process ended, or did not answer within ``minutes``.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_connection_error(error):
            raise
        raise LostProcessError(
            f"another process of this run ended, or did not answer for trainer.timeout_minutes={minutes:g} "
            f"({error}); this is rank {get_rank()}, on {socket.gethostname()}. If the other process ended by "
            "itself, its output says why; otherwise check that its host is up and reachable. Then start all "
            "processes again with resume=auto: they continue from the newest checkpoint"
        ) from error


def is_connection_error(error: RuntimeError) -> bool:
    """Return whether ``error`` is torch.distributed's report that another process does not answer."""
    import torch  # slow

    if not torch.distributed.is_available():
        return False
    named = torch.distributed.is_initialized() and _CONNECTION.search(str(error))
    return isinstance(error, torch.distributed.DistError) or bool(named)
