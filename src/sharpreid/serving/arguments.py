"""Arguments of the commands for trained models: ``key=value``, taken as they are written."""

import difflib
from collections.abc import Sequence


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


def parse_count(given: dict[str, str], key: str, default: int) -> int:
    """Return a whole number > 0.

    Raises:
        UsageError: the value is no such number.
    """
    text = given.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{key} must be a whole number > 0, got {text!r}")
    return int(text)
