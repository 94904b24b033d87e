"""What the commands do when they are told to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pytorch_lightning.utilities.exceptions import SIGTERMException


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the command wherever it stands, as an interrupt from the keyboard does.

    It raises Lightning's SIGTERMException, a SystemExit, once; further ones are ignored while that clears up.
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

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
