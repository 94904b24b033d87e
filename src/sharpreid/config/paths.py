"""Folder of the Hydra configs, and parsing of overrides as text."""

from pathlib import Path

_PACKAGED = Path(__file__).parents[1] / "conf"

CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""Folder of the Hydra configs: in the installed package, or conf/ of a checkout."""


def remove_whitespace(text: str) -> str:
    """Return a text without white space; override values are compared in this form.

    >>> remove_whitespace("[1, 2]")
    '[1,2]'
    """
    return "".join(text.split())


def parse_override(override: str) -> tuple[str, str]:
    """Return key and value of a Hydra override, without white space and without the sign before the key.

    >>> parse_override("+model.blocks = [1, 2]"), parse_override("~model.context")
    (('model.blocks', '[1,2]'), ('model.context', 'deleted'))
    """
    key, _, value = remove_whitespace(override).partition("=")
    return (key[1:], "deleted") if key.startswith("~") else (key.lstrip("+"), value)
