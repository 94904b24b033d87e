"""The Hydra sweep that this process runs: its id, its number of jobs and the keys that vary in it."""

import math
import os
import secrets
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig

from sharpreid.config.paths import parse_override


def count_choices(config: DictConfig) -> dict[str, int] | None:
    """Count the values of each key in the grid of Hydra's basic sweeper.

    Args:
        config: Composed config of the sweep, with its ``hydra`` node.

    Returns:
        Key -> number of values, without the repeats of `hydra/sweeper=repeating`. None for other sweepers and
        for values given as a glob.
    """
    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return None
    wanted = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    wanted += list(config.hydra.overrides.task)
    choices: dict[str, int] = {}
    for override in OverridesParser.create().parse_overrides(wanted):
        if not override.is_sweep_override():
            choices[override.get_key_element()] = 1
        elif override.is_discrete_sweep() and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            choices[override.get_key_element()] = len(list(override.sweep_string_iterator()))
        else:
            return None
    return choices


def repeats_of(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each repeat of `hydra/sweeper=repeating`; empty for other sweepers."""
    return select_repeats(config.hydra.sweeper.get("repeats") or (), config.hydra.overrides.task)


def count_repeats(repeats: Sequence[Sequence[str]], choices: Mapping[str, int]) -> int:
    """Count the jobs of repeats: each runs the grid over the keys that it does not set.

    >>> count_repeats([["model.blocks=[]", "seed=1"]], {"model.blocks": 8, "optimizer.lr": 2})
    2
    """
    set_by = [set(map(key_of, repeat)) for repeat in repeats]
    return sum(
        math.prod(count for key, count in choices.items() if key_of(key) not in keys) for keys in set_by
    )


_ID_VARIABLE, _KEYS_VARIABLE = "SHARPREID_SWEEP", "SHARPREID_SWEPT_KEYS"

_planned: int | None = None
_swept: frozenset[str] = frozenset()
_id: str | None = None


def enter_sweep(config: DictConfig) -> tuple[str, frozenset[str]]:
    """Set the sweep that this process runs.

    Args:
        config: Composed config of the sweep, with its ``hydra`` node.

    Returns:
        New id of the sweep, which is written to job.json of each of its jobs, and the keys that vary in it. A
        job in a process of its own passes both to `join_sweep`.
    """
    global _planned, _swept, _id
    _id = secrets.token_hex(8)
    choices, repeats = count_choices(config), repeats_of(config)
    _planned = None if choices is None else math.prod(choices.values()) + count_repeats(repeats, choices)
    varying = {key.lstrip("+") for key, count in (choices or {}).items() if count > 1}
    _swept = frozenset(varying | {key_of(override) for repeat in repeats for override in repeat})
    return _id, _swept


def join_sweep(identifier: str | None, swept: frozenset[str]) -> None:
    """Set the id and the varying keys of a sweep of which this process runs one job."""
    global _swept, _id
    _id, _swept = identifier, swept


def leave_sweep() -> None:
    """Unset the sweep of this process."""
    global _planned, _swept, _id
    _planned, _swept, _id = None, frozenset(), None


def sweep_environment() -> dict[str, str]:
    """Return the environment variables that tell the process of a job its sweep; empty outside of a sweep."""
    return {_ID_VARIABLE: _id, _KEYS_VARIABLE: ",".join(sorted(_swept))} if _id else {}


def sweep_id() -> str | None:
    """Return the id of the sweep that this process runs, or of which it runs a job; None for a single run."""
    return _id or os.environ.get(_ID_VARIABLE)


def planned_jobs() -> int | None:
    """Return the number of jobs of the sweep; None if unknown or if this process runs one job only."""
    return _planned


def swept_keys() -> frozenset[str]:
    """Return the keys that vary in the sweep of this process; empty if unknown."""
    return _swept or frozenset(filter(None, os.environ.get(_KEYS_VARIABLE, "").split(",")))


def key_of(override: str) -> str:
    """Return the key of an override, without its sign.

    >>> key_of("model.blocks=[1]"), key_of("+experiment=fig5")
    ('model.blocks', 'experiment')
    """
    return parse_override(override)[0]


def select_repeats(repeats: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[list[str]]:
    """Return the repeats that share no key with the command line.

    Args:
        repeats: Overrides of each repeat.
        arguments: Overrides of the command line.

    >>> select_repeats([["model.blocks=[]", "seed=1"]], ["logger=csv"])
    [['model.blocks=[]', 'seed=1']]
    >>> select_repeats([["model.blocks=[]", "seed=1"]], ["seed=0,1,2"])
    []
    """
    given = set(map(key_of, arguments))
    return [list(repeat) for repeat in repeats if given.isdisjoint(map(key_of, repeat))]
