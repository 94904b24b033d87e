"""Standard output and error that never end a command: showing a result must not fail the work."""

import errno
import io
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

_READER_IS_GONE = (errno.EPIPE, errno.EIO)
"""Errors of a pipe whose reader has ended, and of a terminal that was closed."""


def tolerate_write_errors() -> None:
    r"""Let standard output and error accept every text, with a reader or without.

    Each command calls this first.
    A character that the stream's encoding lacks (ASCII, Latin-1, a code page of Windows) is written as an
    escape such as ``\xb1``. Once the reader of a pipe has ended, or the terminal was closed, all output is
    discarded. Other errors, such as that of a full disk, are raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if type(stream) is io.TextIOWrapper:  # not one of pytest or of a notebook
            stream.reconfigure(errors="backslashreplace")
            for name in ("write", "flush"):
                setattr(stream, name, _discarding_without_reader(stream, getattr(stream, name)))


def _discarding_without_reader(stream: io.TextIOWrapper, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def wrapped(*args: Any) -> Any:
        try:
            return call(*args)
        except OSError as error:
            if error.errno not in _READER_IS_GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            return call(*args)

    return wrapped
