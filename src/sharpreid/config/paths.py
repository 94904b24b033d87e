"""Where the Hydra configs are, and overrides of them as text."""

from pathlib import Path

_PACKAGED = Path(__file__).parents[1] / "conf"

CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
"""The Hydra configs: inside the installed package, or conf/ of the checkout."""


def squeeze(text: str) -> str:
    """Without any white space: how override values are compared.

    >>> squeeze("[1, 2]")
    '[1,2]'
    """
    return "".join(text.split())


def parse_override(override: str) -> tuple[str, str]:
    """Key and value of a Hydra override, without spaces and without the signs that add or force a key.

    >>> parse_override("+model.blocks = [1, 2]"), parse_override("~model.context")
    (('model.blocks', '[1,2]'), ('model.context', 'deleted'))
    """
    key, _, value = squeeze(override).partition("=")
    return (key[1:], "deleted") if key.startswith("~") else (key.lstrip("+"), value)
