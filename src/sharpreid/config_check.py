"""Whether a composed config has the keys and the kinds of values that what it describes takes."""

import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from sharpreid.hydra_files import CONF_DIR

_KINDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
_NOT_HANDED_ON = {"trainer": {"timeout_minutes"}}
"""Keys of a node that are not for what it describes."""


class ConfigError(ValueError):
    """A value of the config does not fit; the message names its key."""


def check_config(cfg: DictConfig) -> None:
    """Check a training config before anything is read or built.

    Raises:
        ConfigError: what `check_node` raises for any node; a key at the top that nothing reads, unless
            another value refers to it (``${key}``); a switch there that is neither true nor false.
    """
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "train.yaml"))
    groups = {group for entry in base.pop("defaults") if isinstance(entry, dict) for group in entry}
    known = base.keys() | {group.removeprefix("optional ") for group in groups}
    written = OmegaConf.to_yaml(cfg)
    for key in map(str, cfg):
        if key not in known and f"${{{key}" not in written:
            raise ConfigError(_no_such_key(key, sorted(known & {*map(str, cfg)})))
        if isinstance(base.get(key), bool):
            check_value(key, cfg[key], bool)
        check_node(cfg, key)


def check_node(cfg: DictConfig, place: str) -> None:
    """Check what the node at ``place`` of a config, and any within it, hands to what it describes.

    Raises:
        ConfigError: a key is no parameter of that class or function, or a value is not of the annotated kind
            (`check_value`).
    """
    node = OmegaConf.select(cfg, place)
    if not OmegaConf.is_dict(node):
        return
    keys = [key for key in node if not str(key).startswith("_") and not OmegaConf.is_missing(node, key)]
    given = {str(key): node[key] for key in keys}
    if "_target_" in node:
        target = hydra.utils.get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        annotations = _annotations(target)
        as_written: Any = OmegaConf.to_container(node)
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for key in given.keys() - _NOT_HANDED_ON.get(place, set()):
            if key not in parameters and not anything:
                raise ConfigError(_no_such_key(f"{place}.{key}", sorted(parameters)))
            if key in annotations:
                source = f" ({as_written[key]})" if OmegaConf.is_interpolation(node, key) else ""
                check_value(f"{place}.{key}{source}", given[key], annotations[key])
    for key in given:
        check_node(cfg, f"{place}.{key}")


def check_value(place: str, value: Any, annotation: Any) -> None:
    """Check a config's value against the annotation of the parameter that it is for.

    Only numbers, text, paths, switches and null are told apart: which of several words may be chosen, and
    ranges, are left to the class or function, and a parameter that may also be something else is passed over.

    Raises:
        ConfigError: the value is of another kind; names ``place``, the full key.

    >>> check_value("objective.margin", 1, float)
    >>> check_value("objective.margin", "wide", float)
    Traceback (most recent call last):
    sharpreid.config_check.ConfigError: objective.margin must be a number, got 'wide'
    >>> check_value("trainer.max_epochs", True, int | None)
    Traceback (most recent call last):
    sharpreid.config_check.ConfigError: trainer.max_epochs must be a whole number or null, got true
    """
    kinds = _kinds(annotation)
    own = {float, int} if type(value) is int else {str, Path} if type(value) is str else {type(value)}
    if not kinds or own & {*kinds} or OmegaConf.is_dict(value):
        return
    got = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    raise ConfigError(f"{place} must be {' or '.join(_KINDS[kind] for kind in kinds)}, got {got}")


def _kinds(annotation: Any) -> list[type]:
    """Which of `_KINDS` a value may be; empty if that cannot be told.

    >>> _kinds(typing.Literal["plain", "flip"] | None), _kinds(list[int] | str)
    ([<class 'str'>, <class 'NoneType'>], [])
    """
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds: dict[type, None] = {}
    for member in members:
        if typing.get_origin(member) is typing.Literal:
            kinds |= dict.fromkeys(map(type, typing.get_args(member)))
        elif member in _KINDS:
            kinds[member] = None
        elif not inspect.isclass(member) or typing.get_origin(member) is not None:
            return []
    return [
        kind for kind in _KINDS if kind in kinds
    ]  # another class, a tensor say, is nothing that YAML holds


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _annotations(target: Any) -> dict[str, Any]:
    """Annotations of a function's or a class's parameters; none where they name what is not there."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:
        return {}


def _no_such_key(place: str, known: Sequence[str]) -> str:
    """What to say of a key that nothing reads.

    >>> _no_such_key("objective.margn", ["margin", "mu", "reduction"])
    'objective.margn: no such key; did you mean margin? Known are margin, mu, reduction'
    """
    close = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
    hint = f"did you mean {close[0]}? Known" if close else "known"
    return f"{place}: no such key; {hint} are {', '.join(known)}"
