"""Validate a config against the signatures of the classes and functions that it describes.

The keys of a node are bound to the signature of its ``_target_``, and pydantic checks each value against the
annotation of its parameter. It checks them as JSON in its strict mode: a list fits a tuple and a whole number
fits a float, but text does not fit a number, and a number does not fit a bool.
"""

import inspect
import json
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from sharpreid.config.overrides import describe_unknown_key, find_unknown_top_level

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_WORDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "too_short": "longer",
    "too_long": "shorter",
    "missing": "given",
}
"""Type of a pydantic error -> words of our message; other types keep pydantic's words."""
_TOP_LEVEL: Mapping[str, Any] = {
    "name": str,
    "data_root": str,
    "output_dir": str,
    "resume": str,
    "channels_last": bool,
    "skip_finished": bool,
    "score_untrained": bool,
    "allow_changed": list[str],
}
"""Annotations of the plain values at the top level of a config."""
_PARTS: Mapping[str, tuple[str, ...]] = {
    "image": ("height", "width"),
    "schedule": ("temperature", "learning_rate_factor", "beta1", "noise_scale"),
}
"""Keys of the nodes that have no ``_target_``."""
_SET_BY_CODE: Mapping[str, Sequence[str]] = {
    "trainer": ("callbacks", "logger", "plugins", "enable_checkpointing", "limit_val_batches")
}
"""Parameters of a target that `sharpreid.run.build` sets."""
_FURTHER: Mapping[str, Mapping[str, Any]] = {"trainer": {"timeout_minutes": float}}
"""Keys of a node that `sharpreid.run.build` reads and does not pass to the target, with their annotations."""


class ConfigError(ValueError):
    """An invalid key or value of a config; the message names the key."""


def check_config(cfg: DictConfig) -> None:
    """Check every key and value of a training config before any work starts.

    A user-defined key is allowed at the top level if an interpolation refers to it (``${key}``).

    Raises:
        ConfigError: A key is unknown, or a value does not fit the annotation of its parameter.
    """
    hydra_cfg = HydraConfig.get() if HydraConfig.initialized() else OmegaConf.create()
    written = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(hydra_cfg)
    if problem := find_unknown_top_level(map(str, cfg), written):
        raise ConfigError(problem)
    for key, annotation in _TOP_LEVEL.items():
        check_value(key, _plain(cfg, key), annotation)
    for place, known in _PARTS.items():
        for key in map(str, cfg[place]):
            if key not in known:
                raise ConfigError(describe_unknown_key(f"{place}.{key}", known))
    for group in ("callbacks", "logger"):
        for key, node in (cfg.get(group) or {}).items():
            if node is not None and "_target_" not in node:
                raise ConfigError(f"{group}.{key} needs a _target_: the class that it describes")
    for key in map(str, cfg):
        check_node(cfg, key)


def check_node(cfg: DictConfig, place: str) -> None:
    """Check the node at ``place`` of a config and all nodes within it, also those in lists.

    Targets that cannot be imported are left to Hydra's ``instantiate``, which names the reason.

    Raises:
        ConfigError: A key is not a parameter of its node's target, a required parameter is missing, or a
            value does not fit the parameter's annotation (`check_value`).
    """
    _check(OmegaConf.select(cfg, place), place)


def _check(node: Any, place: str) -> None:
    if OmegaConf.is_list(node):
        for index in range(len(node)):
            if not OmegaConf.is_missing(node, index):
                _check(node[index], f"{place}[{index}]")
    if not OmegaConf.is_dict(node):
        return
    if signature := _signature(node.get("_target_"), place):
        _check_arguments(node, signature, place)
    for key in node:
        if not OmegaConf.is_missing(node, key):
            _check(node[key], f"{place}.{key}")


def _signature(target: object, place: str) -> inspect.Signature | None:
    """Return the signature that the keys of a node must fit, or None if the target has none."""
    try:
        made = pkgutil.resolve_name(str(target))
        try:
            signature = inspect.signature(made, eval_str=True)
        except Exception:  # the annotations name something that is not imported
            signature = inspect.signature(made)
    except Exception:  # an import may raise any error; some builtins have no signature
        return None
    kept = [one for name, one in signature.parameters.items() if name not in _SET_BY_CODE.get(place, ())]
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
        for name, annotation in _FURTHER.get(place, {}).items()
    ]
    return signature.replace(parameters=[*kept, *further])


def _check_arguments(node: DictConfig, signature: inspect.Signature, place: str) -> None:
    """Bind the keys of a node to a signature and check each value against its parameter's annotation."""
    keys = [str(key) for key in node if not str(key).startswith("_")]
    bind = signature.bind_partial if node.get("_partial_") or "_args_" in node else signature.bind
    try:
        bind(**dict.fromkeys(keys))
    except TypeError as error:
        for key in keys:
            if key not in signature.parameters:
                raise ConfigError(describe_unknown_key(f"{place}.{key}", signature.parameters)) from error
        raise ConfigError(f"{place}: {error}") from error
    for key in keys:
        parameter = signature.parameters.get(key)
        if parameter is None or OmegaConf.is_missing(node, key) or node[key] == parameter.default:
            continue
        reference = ""
        if OmegaConf.is_interpolation(node, key):
            as_written: Any = OmegaConf.to_container(node)
            reference = f" ({as_written[key]})"
        check_value(f"{place}.{key}{reference}", _plain(node, key), parameter.annotation)


def _plain(node: DictConfig, key: str) -> Any:
    """Return a value of a node with containers as lists and dicts, and interpolations resolved."""
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def check_value(place: str, value: Any, annotation: Any) -> None:
    """Check a value of a config, or what it contains, against the annotation of its parameter.

    A value is not checked if pydantic cannot use the annotation, if only an instance of a class would fit
    (YAML has none), or if the value contains a node with a ``_target_``, which `check_node` checks.

    Args:
        place: Full key, for the message.
        value: Plain value: number, text, bool, None, path, list or dict.
        annotation: Type, union, ``Literal``, or generic such as ``Sequence[int]``.

    Raises:
        ConfigError: The value does not fit.

    >>> check_value("objective.margin", 1, float)
    >>> check_value("objective.margin", "wide", float)
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: objective.margin must be a number, got 'wide'
    >>> check_value("trainer.max_epochs", True, int | None)
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: trainer.max_epochs must be a whole number or null, got true
    >>> check_value("model.blocks", [1, "two"], list[int])
    Traceback (most recent call last):
    sharpreid.config.validation.ConfigError: model.blocks[1] must be a whole number, got 'two'
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str) or _has_target(value):
        return
    try:
        adapter = TypeAdapter[Any](annotation, config=_STRICT)
    except Exception:  # an annotation may be any expression
        return
    try:
        adapter.validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        errors = [one for one in error.errors() if one["type"] != "needs_python_object"]
        if errors:
            raise ConfigError(_describe(place, value, errors, annotation)) from error


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _describe(place: str, value: Any, errors: Sequence[ErrorDetails], annotation: Any) -> str:
    """Describe the innermost errors of a value; for a union pydantic reports errors of each member."""
    places = [_place_within(value, error["loc"]) for error in errors]
    inner = max(places, key=len)
    found = [error for error, where in zip(errors, places, strict=True) if where == inner]
    given = found[0]["input"]
    got = repr(given) if isinstance(given, str) else json.dumps(given)
    types = () if inner else (annotation, *get_args(annotation))
    names = {**_WORDS, "string_type": "a path" if Path in types else "text"}
    messages = [names.get(error["type"], error["msg"]).removeprefix("Input should be ") for error in found]
    wanted = " or ".join(dict.fromkeys([*messages, "null"] if type(None) in types else messages))
    quotable = isinstance(given, (int, float)) and any(error["type"] == "string_type" for error in found)
    hint = f"""; as text it is '"{got}"'""" if quotable else ""
    return f"{place}{inner} must be {wanted}, got {got}{hint}"


def _place_within(value: Any, location: Sequence[int | str]) -> str:
    """Return the place of an error within a value, without pydantic's names of union members.

    >>> _place_within({"a": [1, "x"]}, ("dict[str,list[int]]", "a", 1))
    '.a[1]'
    """
    place = ""
    for step in location:
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            value, place = value[step], f"{place}[{step}]"
        elif isinstance(value, dict) and step in value:
            value, place = value[step], f"{place}.{step}"
    return place
