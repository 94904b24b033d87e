"""Parse the ``key=value`` arguments of the commands that read a checkpoint."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

PATH_KEYS = (
    *("checkpoint", "images", "output", "data_root"),
    *("data.source.root", "data.source.manifest", "data.source.within", "data.source.images"),
)


class UsageError(ValueError):
    """A command was called with arguments that it cannot read; its usage helps."""


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` arguments: values as YAML, but paths as they stand.

    Raises:
        UsageError: an argument has no key, no value, or a value that is not YAML.
    """
    wrong = [argument for argument in arguments if "=" not in argument]
    if wrong:
        raise UsageError(f"{' '.join(wrong)}: arguments are key=value")
    pairs = (argument.split("=", 1) for argument in arguments)
    return {key: _value(key, text) for key, text in pairs}


def _value(key: str, text: str) -> Any:
    if not text:
        raise UsageError(f"{key}= has no value")
    if key in PATH_KEYS:  # may look like YAML: "[run 1]/a.jpg", "0012"
        return text
    try:
        return OmegaConf.from_dotlist([f"value={text}"]).value
    except YAMLError as error:
        raise UsageError(f"{key}={text}: the value is not YAML") from error
