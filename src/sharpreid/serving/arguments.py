"""Arguments of the commands for trained models: ``key=value``, taken as they are written."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

_Choice = TypeVar("_Choice", bound=str)


class UsageError(ValueError):
    """Error for arguments that are wrong; commands print their usage after it."""


def parse_pairs(arguments: Sequence[str], known: Sequence[str], *, required: Sequence[str]) -> dict[str, str]:
    """Return key -> value.

    Args:
        arguments: ``key=value`` each; a value may contain any character, also ``=``.
        known: keys that the command has.
        required: keys that must be given.

    Raises:
        UsageError: an argument has no value, is given twice, or is not known; or a required one is missing.

    >>> parse_pairs(["images=a b=c.jpg"], ["images"], required=["images"])
    {'images': 'a b=c.jpg'}
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UsageError(f"{argument}: arguments are key=value")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise UsageError(f"{key}: no such argument; {hint}")
        if key in given:
            raise UsageError(f"{key} is given twice")
        given[key] = value
    if missing := [key for key in required if key not in given]:
        raise UsageError(f"{', '.join(f'{key}=...' for key in missing)} is missing")
    return given


def join_options(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which ``--key value`` and ``--key=value`` are written as ``key=value``.

    >>> join_options(["--format", "onnx", "--output=a", "model=b"])
    ['format=onnx', 'output=a', 'model=b']
    """
    joined: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        option = argument.removeprefix("--")
        joined.append(option if option == argument or "=" in option else f"{option}={next(waiting, '')}")
    return joined


def parse_count(given: Mapping[str, str], key: str, default: int) -> int:
    """Return a whole number > 0.

    Raises:
        UsageError: the value is no such number.
    """
    text = given.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{key} must be a whole number > 0, got {text!r}")
    return int(text)


def parse_number(given: Mapping[str, str], key: str) -> float | None:
    """Return a finite number; None if it is not given.

    Raises:
        UsageError: the value is no such number.
    """
    if key not in given:
        return None
    try:
        number = float(given[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{key} must be a number, got {given[key]!r}")
    return number


def parse_yes(given: Mapping[str, str], key: str) -> bool:
    """Return whether a value is yes; without one it is no.

    Raises:
        UsageError: the value is neither yes nor no.
    """
    return parse_choice(given, key, ("no", "yes")) == "yes"


def parse_choice(given: Mapping[str, str], key: str, known: Sequence[_Choice]) -> _Choice:
    """Return a value that is one of ``known``; without one the first of them.

    Raises:
        UsageError: the value is none of them.
    """
    text = given.get(key, known[0])
    for one in known:
        if text == one:
            return one
    raise UsageError(f"{key} must be one of {', '.join(known)}; got {text!r}")


def parse_port(given: Mapping[str, str], default: int) -> int:
    """Return the number of a port; 0 stands for a free one.

    Raises:
        UsageError: the value is no whole number from 0 to 65535.
    """
    text = given.get("port", str(default))
    if not text.isdecimal() or int(text) > 65535:
        raise UsageError(f"port must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def parse_names(text: str, key: str) -> tuple[str, ...]:
    """Return names with commas between them, or those of a JSON list, in which a name may have commas.

    Raises:
        UsageError: the text begins like a list and is none of texts.

    >>> parse_names("1,2", "camera"), parse_names('["north, gate"]', "camera")
    (('1', '2'), ('north, gate',))
    """
    if not text.startswith("["):
        return tuple(text.split(","))
    try:
        names = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f'{key} must be names with commas between them, or ["a, b", "c"]; got {text!r}')
    return tuple(names)
