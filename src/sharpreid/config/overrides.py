"""Prepare the overrides of a command line: quote paths, and find misspelt keys and choices.

Hydra's grammar gives a meaning to commas, brackets and ``=``, and has no letters but those of ASCII, so paths
with such characters are quoted. Hydra advises to add a misspelt key with a plus sign, and ignores a misspelt
choice of an optional group. The search here runs before Hydra composes the config. It imports neither torch
nor the targets of the config.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sharpreid.config.early_runs import upgrade_config
from sharpreid.config.paths import CONF_DIR, PATH_KEYS

_NO_RUN = {"--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc", "--info", "-i"}
"""Hydra's flags that start no run."""


_EVALUATION_KEYS = ("checkpoint", "output", "recalibrate", "experiment", "re_ranking")
"""Arguments of `sharpreid.evaluate` that are not keys of a run's config, or whose keys depend on a choice."""


_SWEEPING = ("hydra.mode=MULTIRUN", "+experiment=", "experiment=", "+cluster=", "cluster=")
"""Starts of arguments that may start a sweep without --multirun."""

_NEVER_SWEPT = ("output_dir", "trainer.", "callbacks.", "logger.", "hydra.")
"""Starts of keys in `PATH_KEYS` that a sweep does not vary."""


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the paths among the arguments of `sharpreid.train` that Hydra would not take literally.

    A value that Hydra takes as it is written stays, and so does one with Hydra's quotes or escapes. ``~`` at
    the start is the home folder. In a sweep a comma separates two paths, unless it is part of a path that
    exists.

    >>> quote_paths(["seed=1", "data_root=a,b", "+resume=a/step=01.ckpt", "data.cache=/my cache"])
    ['seed=1', "data_root='a,b'", "+resume='a/step=01.ckpt'", 'data.cache=/my cache']
    >>> quote_paths(["--multirun", "data_root=[a],/c"])
    ['--multirun', "data_root='[a]',/c"]
    """
    sweep = any(one in ("-m", "--multirun") or one.startswith(_SWEEPING) for one in arguments)
    return [_quote_path(argument, sweep=sweep) for argument in arguments]


def _quote_path(argument: str, *, sweep: bool) -> str:
    name, _, text = argument.partition("=")
    key = name.lstrip("+")
    if key not in PATH_KEYS or text in ("", "null"):
        return argument
    quoted = quote_path(text)
    if not sweep or quoted == text or key.startswith(_NEVER_SWEPT):
        return f"{name}={quoted}"
    override = _parse(argument)
    swept = _values(override) if override is not None and override.is_sweep_override() else [None]
    paths = list(_split_paths(text))
    if all(isinstance(one, str) for one in swept) and not any("," in path for path in paths):
        return argument
    return f"{name}={','.join(map(quote_path, paths))}"


def _split_paths(text: str) -> Iterator[str]:
    """Yield the paths of a list; each is the longest one that exists, or reaches to the next comma."""
    parts = text.split(",")
    while parts:
        starts = range(len(parts), 0, -1)
        count = next((n for n in starts if os.path.exists(os.path.expanduser(",".join(parts[:n])))), 1)
        yield ",".join(parts[:count])
        del parts[:count]


def quote_path(text: str) -> str:
    r"""Return a path as a value in Hydra's grammar, in quotes if it needs them.

    >>> quote_path("it's [1]"), quote_path("runs/1"), quote_path("2024"), quote_path("'in quotes'")
    ("'it\\'s [1]'", 'runs/1', "'2024'", "'in quotes'")
    """
    if text.startswith("~"):
        text = os.path.expanduser(text)
    override = _parse(f"key={text}")
    value = None if override is None else override.value()
    is_quoted = re.fullmatch(r"""(["']).*\1|.*\\[][(){}:=, ].*""", text)
    if isinstance(value, str) and (value == text or is_quoted):
        return text
    return QuotedString(text, Quote.single).with_quotes()


def _parse(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def refuse_misspelt(arguments: Sequence[str]) -> None:
    """End the program if an argument of `sharpreid.train` has a misspelt key or choice.

    Raises:
        SystemExit: With the message and status 1.
        ValueError: With the message, if the environment variable HYDRA_FULL_ERROR is 1.
    """
    if problem := find_misspelt(arguments):
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise ValueError(problem)
        sys.exit(problem)


def find_misspelt(arguments: Sequence[str]) -> str | None:
    """Describe the first misspelt key or choice, or return None; Hydra reports all other errors.

    Args:
        arguments: Overrides and flags of `sharpreid.train`. Values may be those of a sweep.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp", default=str(CONF_DIR))
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn", default="train")
    flags, others = parser.parse_known_args([*arguments])
    given = [one for one in others if not one.startswith("-")]
    if not given or not _NO_RUN.isdisjoint(others) or any("hydra.searchpath" in one for one in given):
        return None
    try:
        with initialize_config_dir(str(Path(flags.config_path).absolute()), version_base="1.3"):
            return _Command(given, flags.config_name, flags.config_dir).find_misspelt()
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):  # Hydra will raise it again
        return None


def find_misspelt_of_evaluation(arguments: Sequence[str]) -> str | None:
    """Describe the first misspelt key or choice among the arguments of `sharpreid.evaluate`, or return None.

    The keys are those of the run's config.yaml. The evaluation itself reports a missing file.
    """
    pairs = dict(one.lstrip("+").split("=", 1) for one in arguments if "=" in one)
    for key, folder in (("experiment", "evaluation"), ("re_ranking", "re_ranking")):
        options = {path.stem for path in (CONF_DIR / folder).glob("*.yaml")}
        for choice in pairs[key].split(",") if key in pairs else ():
            if choice not in options:
                return f"{key}={choice}: no such choice; {_suggest(choice, options)}"
    path = Path(pairs.get("checkpoint", "")).resolve().parent.parent / "config.yaml"
    if not path.is_file():
        return None
    try:
        cfg = OmegaConf.load(path)
        content: Any = OmegaConf.to_container(upgrade_config(cfg) if isinstance(cfg, DictConfig) else cfg)
    except (YAMLError, OmegaConfBaseException):
        return None
    given = [key for key in pairs if key.partition(".")[0] not in _EVALUATION_KEYS]
    return next(filter(None, (_find_unknown(content, key, addable=False) for key in given)), None)


class _Command:
    """The overrides of a command and the configs that they refer to."""

    def __init__(self, given: Sequence[str], config_name: str, config_dir: str | None) -> None:
        self.overrides = OverridesParser.create().parse_overrides([*given])
        self.text = " ".join(given)
        self.config_name = config_name
        self.config_dir = None if config_dir is None else Path(config_dir).absolute()
        self.loader: ConfigLoader = GlobalHydra.instance().config_loader()

    def find_misspelt(self) -> str | None:
        if problem := self._find_choice(self.overrides):
            return problem
        cfg = self._compose(self.overrides)
        swept = [one for one in _sweeper_overrides(cfg) if one.key_or_group not in self._keys()]
        if problem := self._find_choice(swept):
            return problem
        if any(self._options(one.key_or_group) for one in swept):
            cfg = self._compose([*swept, *self.overrides])
        return self._find_key([*swept, *self.overrides], cfg)

    def _keys(self) -> set[str]:
        return {one.key_or_group for one in self.overrides}

    def _options(self, group: str) -> set[str]:
        """Return the choices of a group; empty if there is no such group."""
        if "." in group:
            return set()
        further = self.config_dir.joinpath(group).glob("*.yaml") if self.config_dir else ()
        return {*self.loader.get_group_options(group), *(path.stem for path in further)}

    def _find_choice(self, overrides: Iterable[Override]) -> str | None:
        for one in overrides:
            options = self._options(one.key_or_group)
            for choice in _values(one) if options else ():
                if isinstance(choice, str) and "/" not in choice and choice not in options:
                    return f"{one.key_or_group}={choice}: no such choice; {_suggest(choice, options)}"
        return None

    def _compose(self, overrides: Iterable[Override]) -> DictConfig:
        """Compose the config from the choices of groups alone; a swept group takes its first choice."""
        chosen = (
            []
            if self.config_dir is None
            else [f"hydra.searchpath=[{quote_path(f'file://{self.config_dir}')}]"]
        )
        for one in overrides:
            if self._options(one.key_or_group):
                first = next(iter(_values(one)), None)
                swept = one.is_sweep_override() and first is not None
                chosen.append(f"{one.get_key_element()}={first}" if swept else str(one.input_line))
        return compose(self.config_name, chosen, return_hydra_config=True)

    def _find_key(self, overrides: Sequence[Override], cfg: DictConfig) -> str | None:
        keyed = [one for one in overrides if not self._options(one.key_or_group) and not one.package]
        added = tuple(one.key_or_group for one in keyed if one.is_add() or one.is_force_add())
        top_level = [key.partition(".")[0] for key in added]
        if problem := find_unknown_top_level(
            [*map(str, cfg), *top_level], OmegaConf.to_yaml(cfg) + self.text
        ):
            return problem
        content: Any = OmegaConf.to_container(cfg)
        keys = [
            key
            for one in keyed
            for value in _values(one) or [None]
            for key in _keys_of(one.key_or_group, value)
        ]
        changed = [key for key in keys if not f"{key}.".startswith(tuple(f"{other}." for other in added))]
        return next(filter(None, (_find_unknown(content, key, addable=True) for key in changed)), None)


def _sweeper_overrides(cfg: DictConfig) -> list[Override]:
    """Return the overrides in the sweeper node of the composed config, which an experiment file may set."""
    sweeper = cfg.hydra.sweeper
    listed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    repeated = [one for repeat in sweeper.get("repeats") or () for one in repeat]
    return OverridesParser.create().parse_overrides([*listed, *repeated])


def _values(override: Override) -> list[Any]:
    """Return the explicit values of an override: a single one, or those of a list or a choice sweep."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        value = value.list
    elif isinstance(value, Sweep):
        return []
    values = value if isinstance(value, list) else [value]
    return [one.text if isinstance(one, QuotedString) else one for one in values]


def _keys_of(key: str, value: Any) -> Iterator[str]:
    """Yield the keys that an override sets.

    >>> list(_keys_of("model.trunk", {"strides": "v1"}))
    ['model.trunk', 'model.trunk.strides']
    """
    yield key
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _keys_of(f"{key}.{name}", one)


def _find_unknown(content: dict[str, Any], key: str, *, addable: bool) -> str | None:
    """Describe the first part of a dotted key that a config lacks, or return None.

    Args:
        content: The config.
        key: Dotted key.
        addable: Whether a plus sign can add a parameter that the config does not list.
    """
    node: Any = content
    place = ""
    for part in key.split("."):
        if not isinstance(node, dict):
            return None
        place = f"{place}.{part}".lstrip(".")
        if part not in node:
            break
        node = node[part]
    else:
        return None
    if difflib.get_close_matches(part, node):
        return describe_unknown_key(place, node)
    if place.startswith("hydra."):  # some nodes of Hydra take any key, with a plus sign
        return None
    if longer := [
        one for name in content for one in _keys_of(name, content[name]) if one.endswith(f".{key}")
    ]:
        return f"{key}: no such key; did you mean {longer[0]}?"
    target = node.get("_target_") if addable else None
    hint = f"; another parameter of {target} needs a plus sign: +{key}=..." if target else ""
    return describe_unknown_key(place, node) + hint


def find_unknown_top_level(keys: Iterable[str], written: str) -> str | None:
    """Describe the first key at the top level of a training config that nothing reads, or return None.

    Args:
        keys: Keys of the config.
        written: Text that may refer to a user-defined key as ``${key}``.
    """
    base: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "train.yaml"))
    groups = {group for entry in base["defaults"] if isinstance(entry, dict) for group in entry}
    known = (base.keys() | groups) - {"defaults", "hydra", "method", "optional recipe"}  # not config keys
    for key in keys:
        if key not in {*known, "hydra"} and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", written):
            advice = f"; a key of your own needs a value that refers to it, as ${{{key}}}"
            return describe_unknown_key(key, known | {"experiment", "cluster"} - {key}) + advice
    return None


def describe_unknown_key(place: str, known: Collection[str]) -> str:
    """Return the message about a key that nothing reads.

    >>> describe_unknown_key("objective.margn", ["margin", "mu", "reduction"])
    'objective.margn: no such key; did you mean margin? Known are margin, mu, reduction'
    """
    return f"{place}: no such key; {_suggest(place.rpartition('.')[2], known)}"


def _suggest(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    listed = ", ".join(sorted(one for one in known if not one.startswith("_")))
    return f"did you mean {close[0]}? Known are {listed}" if close else f"known are {listed}"
