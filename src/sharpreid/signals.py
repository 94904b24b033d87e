"""Stop commands cleanly at SIGTERM and SIGUSR1."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

EXIT_RESUMABLE = 75
"""Exit status (EX_TEMPFAIL) of a run that a signal stopped and that resume=auto continues.

A run that was started with resume=auto also exits with it if the signal came before or after the training.
"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals at which a training saves a checkpoint and stops."""

_WORKER_GRACE = 60  # seconds


class StoppedAtStepError(SystemExit):
    """Exit after a signal stopped the training and its state was saved.

    The exit status is `EXIT_RESUMABLE`.

    Args:
        step: Number of optimizer steps so far.
        checkpoint: File of the saved state.
    """

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(EXIT_RESUMABLE)
        self.step = step
        self.checkpoint = checkpoint


def outlive_stop_signals(worker: int) -> None:
    """Keep a data-loader worker alive for a minute after a signal that was sent to all processes.

    The training needs the worker's batches to finish its step. This is a ``worker_init_fn`` of a DataLoader.
    """

    def linger(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_WORKER_GRACE)

    for number in STOP_SIGNALS:
        signal.signal(number, linger)


def set_signal_handlers(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Set signal handlers and return the earlier ones.

    Outside of the main thread, where Python cannot set signal handlers, nothing changes and the result is
    empty: a training in a thread (W&B's agent, Ray, a notebook) does not save its state at a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise Lightning's SIGTERMException, a SystemExit, at the first SIGTERM or SIGUSR1 in the block.

    Further signals are ignored until the process ends, so that they do not change its exit status.

    Lightning's own handler sets a flag that the next evaluation or training loop clears. It would lose a
    signal that arrives while the untrained network is scored, and before the first loop there is no handler.
    """
    owner, stopping = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if os.getpid() != owner:  # a data-loader worker, which inherits this handler
            os._exit(128 + number)
        if not stopping:
            stopping = True
            raise SIGTERMException

    before = set_signal_handlers(dict.fromkeys(STOP_SIGNALS, stop))
    try:
        yield
    except SystemExit:
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        set_signal_handlers(before)
