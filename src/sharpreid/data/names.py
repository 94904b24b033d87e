"""Names of people and cameras as people write them: equal names are one, and look-alikes are refused."""

import logging
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from sharpreid.data.reid_data import DataError, summarize

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"([-+]?)0*(\d+)(\.0*)?")
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f]")
"""Characters that change how neighbouring letters and emoji are drawn. Some languages need them in names."""


def normalise_name(text: str) -> str:
    r"""Return a name in Unicode's composed form (NFC), without white space around it.

    >>> normalise_name("Jose\u0301 ") == "Jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text.strip())


def find_invisible(text: str) -> str | None:
    r"""Describe the first character that cannot be seen, such as a zero-width space; None if there is none.

    >>> find_invisible("anna\u200b"), find_invisible("Zo\u00eb K")
    ('U+200B (ZERO WIDTH SPACE) at position 5', None)
    """
    if text.isprintable():
        return None
    for position, character in enumerate(_JOINERS.sub("x", text), 1):
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
            name = unicodedata.name(character, "control character")
            return f"U+{ord(character):04X} ({name}) at position {position}"
    return None


def reject_look_alikes(kind: str, places: Mapping[str, str], source: Path) -> None:
    """Reject different names that look like one, and warn of names that differ in case only.

    Names look alike if they differ in the kind of white space, in characters that draw nothing, or as numbers
    do in spreadsheets: ``1``, ``01`` and ``1.0``.

    Args:
        kind: what the names are of, such as ``camera``.
        places: place of each name in ``source``, such as ``line 3``.
        source: file or folder that has the names.

    Raises:
        DataError: two names look alike; the message has the places of both.
    """
    seen: dict[str, str] = {}
    for name, place in places.items():
        other = seen.setdefault(_appearance(name), name)
        if other != name:
            raise DataError(
                f"{source}, {place}: {kind} {name!a} looks like {other!a} in {places[other]}, but is another "
                f"name. Write both in the same way if they are the same {kind}, or else rename one"
            )
    folded: dict[str, str] = {}
    pairs = [
        f"{other!r} ({places[other]}) and {name!r} ({place})"
        for name, place in places.items()
        if (other := folded.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)) != name
    ]
    if pairs:
        log.warning("%s: these names of a %s count as different: %s", source, kind, summarize(pairs))


def _appearance(name: str) -> str:
    text = " ".join(_JOINERS.sub("", normalise_name(name)).split())
    number = _NUMBER.fullmatch(text)
    return f"{number[1]}{number[2]}" if number else text
