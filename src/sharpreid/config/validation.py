"""Whether a composed config has the keys and the kinds of values that what it describes takes."""

import difflib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sharpreid.config.paths import CONF_DIR

_KINDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    types.NoneType: "null",
}
_AT_THE_TOP: Mapping[str, type] = {
    "name": str,
    "data_root": str,
    "output_dir": str,
    "resume": str,
    "channels_last": bool,
    "skip_finished": bool,
    "score_untrained": bool,
}
_PARTS: Mapping[str, tuple[str, ...]] = {
    "image": ("height", "width"),
    "schedule": ("temperature", "learning_rate_factor", "beta1", "noise_scale"),
}
"""What is read of the nodes that describe nothing by themselves."""
_OURS: Mapping[str, Collection[str]] = {
    "trainer": ("callbacks", "logger", "plugins", "enable_checkpointing", "limit_val_batches")
}
"""Parameters that the code gives, whatever the config says."""
_NOT_HANDED_ON: Mapping[str, Collection[str]] = {"trainer": ("timeout_minutes",)}
"""Keys of a node that are not for what it describes."""


class ConfigError(ValueError):
    """A value of the config does not fit; the message names its key."""


def check_config(cfg: DictConfig) -> None:
    """Check a training config before anything is read or built.

    A further key at the top is allowed where the config or Hydra's refers to it (``${key}``).

    Raises:
        ConfigError: what `check_node` raises for any node; a key outside of them that nothing reads, or whose
            value is of the wrong kind.
    """
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "train.yaml"))
    groups = {group for entry in base["defaults"] if isinstance(entry, dict) for group in entry}
    known = (base.keys() | groups) - {"defaults", "hydra", "method", "optional recipe"}  # none of a config
    hydras = HydraConfig.get() if HydraConfig.initialized() else OmegaConf.create()
    written = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(hydras)
    for key in map(str, cfg):
        if key not in known and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", written):
            raise ConfigError(_no_such_key(key, known) + f"; one of your own needs a value with ${{{key}}}")
    for key, kind in _AT_THE_TOP.items():
        check_value(key, cfg[key], kind)
    if not OmegaConf.is_list(cfg.allow_changed):
        raise ConfigError(f"allow_changed must be a list such as [seed], got {cfg.allow_changed!r}")
    for place, read in _PARTS.items():
        for key in map(str, cfg[place]):
            if key not in read:
                raise ConfigError(_no_such_key(f"{place}.{key}", read))
    for group in ("callbacks", "logger"):
        for key, node in (cfg.get(group) or {}).items():
            if node is not None and "_target_" not in node:
                raise ConfigError(f"{group}.{key} needs a _target_: the class that it describes")
    for key in map(str, cfg):
        check_node(cfg, key)


def check_node(cfg: DictConfig, place: str) -> None:
    """Check what the node at ``place`` of a config, and any node within it, hands to what it describes.

    Lists and what is in them are not looked at, nor what cannot be imported or has no signature.

    Raises:
        ConfigError: a key is no parameter of that class or function, or a value is not of the annotated kind
            (`check_value`).
    """
    _check(OmegaConf.select(cfg, place), place)


def _check(node: Any, place: str) -> None:
    if not OmegaConf.is_dict(node):
        return
    keys = [key for key in node if not str(key).startswith("_") and not OmegaConf.is_missing(node, key)]
    parameters = _parameters(node.get("_target_"))
    as_written: Any = OmegaConf.to_container(node)
    for key in keys:
        if parameters and key not in _NOT_HANDED_ON.get(place, ()):
            if key not in parameters or key in _OURS.get(place, ()):
                known = parameters.keys() - {*_OURS.get(place, ())} | {*_NOT_HANDED_ON.get(place, ())}
                raise ConfigError(_no_such_key(f"{place}.{key}", known))
            parameter = parameters[key]
            if node[key] != parameter.default:
                source = f" ({as_written[key]})" if OmegaConf.is_interpolation(node, key) else ""
                check_value(f"{place}.{key}{source}", node[key], parameter.annotation)
        _check(node[key], f"{place}.{key}")


def check_value(place: str, value: Any, annotation: Any) -> None:
    """Check a config's value against the annotation of the parameter that it is for.

    Only numbers, text, paths, switches and null are told apart: which of several words may be chosen, and
    ranges, are left to the class or function, and a parameter that may also be something else is passed over.

    Raises:
        ConfigError: the value is of another kind; names ``place``, the full key.

    >>> check_value("objective.margin", 1, float)
    >>> check_value("objective.margin", "wide", float)
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: objective.margin must be a number, got 'wide'
    >>> check_value("trainer.max_epochs", True, int | None)
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: trainer.max_epochs must be a whole number or null, got true
    >>> check_value("name", 2024, str)
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: name must be text, got 2024; as text it is '"2024"'
    """
    kinds = _kinds(annotation)
    if not kinds or OmegaConf.is_dict(value) or _is_of(value, kinds):
        return
    named = kinds - {str} if Path in kinds else kinds
    wanted = " or ".join(words for kind, words in _KINDS.items() if kind in named)
    got = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    quotable = str in kinds and isinstance(value, (int, float))
    hint = f"""; as text it is '"{got}"'""" if quotable else ""
    raise ConfigError(f"{place} must be {wanted}, got {got}{hint}")


def _is_of(value: Any, kinds: Collection[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, str):
        return bool({str, Path} & {*kinds})
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)


def _kinds(annotation: Any) -> set[type]:
    """Which of `_KINDS` a value may be; empty if it may be something else.

    >>> _kinds(typing.Literal["plain", "flip"] | None) == {str, types.NoneType}, _kinds(list[int] | str)
    (True, set())
    """
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds: set[type] = set()
    for member in members:
        if typing.get_origin(member) is typing.Literal:
            kinds |= {*map(type, typing.get_args(member))}
        elif getattr(member, "__name__", None) != "Tensor":  # as of Adam's learning rate; no YAML holds one
            kinds.add(member)
    return kinds if kinds <= _KINDS.keys() else set()


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _parameters(target: object) -> Mapping[str, inspect.Parameter]:
    """Parameters that a class or function has, with its annotations resolved; empty if that cannot be told.

    It cannot be told of what takes further keywords (``**``), cannot be imported (which is for the one to say
    who needs it) or is no Python function.
    """
    try:
        made = pkgutil.resolve_name(str(target))
        parameters = inspect.signature(made).parameters
    except Exception:  # an import may raise anything
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {}
    try:
        annotations = typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except Exception:  # they may be any expression, of names that are not there
        annotations = {}
    return {name: one.replace(annotation=annotations.get(name, Any)) for name, one in parameters.items()}


def _no_such_key(place: str, known: Collection[str]) -> str:
    """What to say of a key that nothing reads.

    >>> _no_such_key("objective.margn", ["margin", "mu", "reduction"])
    'objective.margn: no such key; did you mean margin? Known are margin, mu, reduction'
    """
    close = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
    hint = f"did you mean {close[0]}? Known" if close else "known"
    return f"{place}: no such key; {hint} are {', '.join(sorted(known))}"
