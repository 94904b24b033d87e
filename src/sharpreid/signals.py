"""What the commands do when they are told to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

EXIT_RESUMABLE = 75
"""Exit status after a signal at which the run was saved: start it again with resume=auto (EX_TEMPFAIL).

With resume=auto also outside of the training, where there is nothing to save.
"""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""At which a training saves and stops."""

_WORKER_GRACE = 60  # seconds


class StoppedAtStepError(SystemExit):
    """A signal came; the run was saved after ``step`` in ``checkpoint`` and ends with `EXIT_RESUMABLE`."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(EXIT_RESUMABLE)
        self.step = step
        self.checkpoint = checkpoint


def outlive_stop_signals(worker: int) -> None:
    """Keep a data loader's process alive for a minute after a signal that was sent to all processes.

    The training still needs its batches to reach the step's end. For ``worker_init_fn`` of a DataLoader.
    """

    def linger(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_WORKER_GRACE)

    for number in STOP_SIGNALS:
        signal.signal(number, linger)


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 stop the command wherever it stands, as an interrupt from the keyboard does.

    It raises Lightning's SIGTERMException, a SystemExit, once; further ones are ignored while that clears up,
    and until the process has ended: they do not change its exit status.
    Outside of the main thread, where no handler can be set, nothing changes.

    Lightning alone notes the signal in a flag that the next pass clears: one that comes while the untrained
    network is scored would be forgotten, and one before the first pass would end the process without a word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, stopping = os.getpid(), False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if os.getpid() != owner:  # a data loader's process, which inherits this handler
            os._exit(128 + number)
        if not stopping:
            stopping = True
            raise SIGTERMException

    before: dict[signal.Signals, Any] = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    except SystemExit:
        before = dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
