"""What the commands of this folder have in common: options that are checked first, and ends in one line."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

from benchmarks.rows import Row, show, write
from sharpreid.signals import stopping_on_sigterm


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Of ``python -m benchmarks.<name>``, with ``--output``.

    Args:
        name: of the module in this folder; empty for the folder itself.
        about: its docstring.
    """
    program = f"python -m benchmarks{name and f'.{name}'}"
    made = argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--output", type=new_file, metavar="FILE.json", help="write the rows there too; by default nothing is"
    )
    return made


def report(rows: Sequence[Row], about: dict[str, Any], title: str, output: Path | None) -> None:
    """Print rows, with a warning where the machine was busy, and write them if that was asked for.

    Args:
        rows: of the measurement.
        about: of `machine`, before it.
        title: of the table.
        output: file.
    """
    show(rows, title)
    if about["load_before"] > 0.5 * (about["cores"] or 1):
        print(
            f"the machine was busy before (load {about['load_before']} on {about['cores']} cores): what "
            "needs all cores then looks slower than it is"
        )
    if output:
        write(rows, about, output)


def at_least(least: int, *, multiple_of: int = 1) -> Callable[[str], int]:
    """Type of an option: a whole number."""
    wanted = f"a whole number, at least {least}" + (
        f", a multiple of {multiple_of}" if multiple_of > 1 else ""
    )

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or value % multiple_of:
            raise argparse.ArgumentTypeError(f"must be {wanted}; got {text}")
        return value

    return number


def share(text: str) -> float:
    """Type of an option: at least 0 and less than 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1; got {text}")
    return value


def folder(text: str) -> Path:
    """Type of an option: a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return Path(text)


def new_file(text: str) -> Path:
    """Type of an option: a file that can be written, in a folder that is there."""
    if Path(text).is_dir() or not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that is there")
    return Path(text)


def checkout_with(file: str, advice: str) -> Callable[[str], str]:
    """Type of an option: a checkout of another toolbox that has a file.

    Args:
        file: pattern, relative to the checkout.
        advice: how it comes to be there.
    """

    def checkout(text: str) -> str:
        if not any(folder(text).glob(file)):
            raise argparse.ArgumentTypeError(f"{text} has no {file}: {advice}")
        return text

    return checkout


@contextmanager
def one_line_at_the_end() -> Iterator[None]:
    """Turn an interrupt (130), SIGTERM (143) and what could not be measured (1) into one line and a status.

    Temporary folders are cleared, and processes that were started are ended.
    """
    try:
        with stopping_on_sigterm():
            yield
    except SIGTERMException:
        sys.exit(_said("terminated", 143))
    except KeyboardInterrupt:
        sys.exit(_said("interrupted", 130))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(_said(f"{type(error).__name__}: {error}", 1))


def _said(what: str, status: int) -> int:
    print(what, file=sys.stderr)
    return status
