"""Command lines of the benchmarks: checked options, and errors in one line."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.exceptions import SIGTERMException

from benchmarks.rows import Row, print_rows, write_rows
from sharpreid.signals import stop_on_sigterm


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Create the argument parser of ``python -m benchmarks.<name>``, with the option ``--output``.

    Args:
        name: name of the module; empty for the package itself.
        about: description, usually the docstring of the module.
    """
    program = f"python -m benchmarks{name and f'.{name}'}"
    made = argparse.ArgumentParser(
        prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--output", type=output_file, metavar="FILE.json", help="also write the rows to this file"
    )
    return made


def report_rows(rows: Sequence[Row], about: dict[str, Any], title: str, output: Path | None) -> None:
    """Print rows, warn if the machine was busy before, and write them to a file.

    Args:
        rows: rows of the benchmark.
        about: result of `describe_machine` before the benchmark.
        title: title of the table.
        output: JSON file; None writes none.
    """
    print_rows(rows, title)
    if about["load_before"] > 0.5 * (about["cores"] or 1):
        print(
            f"the machine was busy before (load {about['load_before']} on {about['cores']} cores): programs "
            "that use all cores appear slower than they are"
        )
    if output:
        write_rows(rows, about, output)


def integer_at_least(least: int, *, multiple_of: int = 1) -> Callable[[str], int]:
    """Return an argument type for integers of at least ``least`` that are multiples of ``multiple_of``."""
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


def fraction(text: str) -> float:
    """Parse a number that is at least 0 and less than 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than 1; got {text}")
    return value


def existing_folder(text: str) -> Path:
    """Parse the path of an existing folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def output_file(text: str) -> Path:
    """Parse the path of a file in an existing folder."""
    if Path(text).is_dir() or not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be a file in an existing folder")
    return Path(text)


def checkout_containing(file: str, advice: str) -> Callable[[str], str]:
    """Return an argument type for a checkout of another toolbox that contains a file.

    Args:
        file: glob pattern relative to the checkout.
        advice: what to do if the file is missing, for the error message.
    """

    def checkout(text: str) -> str:
        if not any(existing_folder(text).glob(file)):
            raise argparse.ArgumentTypeError(f"{text} has no {file}: {advice}")
        return text

    return checkout


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with one line instead of a traceback on an interrupt (130), SIGTERM (143) or an error (1).

    Temporary folders are removed and child processes are stopped.
    """
    try:
        with stop_on_sigterm():
            yield
    except SIGTERMException:
        sys.exit(_print_error("terminated", 143))
    except KeyboardInterrupt:
        sys.exit(_print_error("interrupted", 130))
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(_print_error(f"{type(error).__name__}: {error}", 1))


def _print_error(what: str, status: int) -> int:
    print(what, file=sys.stderr)
    return status
