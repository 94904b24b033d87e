"""The Hydra sweep that this process goes through: how many jobs it has, and which keys vary in it."""

import math
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig

from sharpreid.config.paths import parse_override


def count_choices(config: DictConfig) -> dict[str, int] | None:
    """Count the values of each key in the basic sweeper's grid; None for other sweepers and for globs.

    Repeats (`hydra/sweeper=repeating`) are not counted.

    Args:
        config: the sweep's composed config, with its ``hydra`` node.
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
    """The overrides of each repeat of a sweep by `hydra/sweeper=repeating`; empty for other sweepers."""
    return wanted_repeats(config.hydra.sweeper.get("repeats") or (), config.hydra.overrides.task)


def count_repeats(repeats: Sequence[Sequence[str]], choices: Mapping[str, int]) -> int:
    """Count the jobs of repeats: each goes through the grid over the keys that it does not set itself.

    >>> count_repeats([["model.blocks=[]", "seed=1"]], {"model.blocks": 8, "optimizer.lr": 2})
    2
    """
    set_by = [set(map(key_of, repeat)) for repeat in repeats]
    return sum(
        math.prod(count for key, count in choices.items() if key_of(key) not in keys) for keys in set_by
    )


_planned: int | None = None
_swept: frozenset[str] = frozenset()


def enter_sweep(config: DictConfig) -> frozenset[str]:
    """Note the sweep that this process goes through.

    Args:
        config: the sweep's composed config, with its ``hydra`` node.

    Returns:
        The keys that vary in it, for `join_sweep` in the process of a job.
    """
    global _planned, _swept
    choices, repeats = count_choices(config), repeats_of(config)
    _planned = None if choices is None else math.prod(choices.values()) + count_repeats(repeats, choices)
    varying = {key.lstrip("+") for key, count in (choices or {}).items() if count > 1}
    _swept = frozenset(varying | {key_of(override) for repeat in repeats for override in repeat})
    return _swept


def join_sweep(swept: frozenset[str]) -> None:
    """Note which keys vary in the sweep that this job, in a process of its own, belongs to."""
    global _swept
    _swept = swept


def leave_sweep() -> None:
    """Forget the sweep, which has ended."""
    global _planned, _swept
    _planned, _swept = None, frozenset()


def planned_jobs() -> int | None:
    """Return how many jobs the sweep of this process has; None in a job's own process, or if unknown."""
    return _planned


def swept_keys() -> frozenset[str]:
    """Return the keys that vary in the sweep of this process; empty where that is not known."""
    return _swept


def key_of(override: str) -> str:
    """Return the key of an override, without its sign.

    >>> key_of("model.blocks=[1]"), key_of("+experiment=fig5")
    ('model.blocks', 'experiment')
    """
    return parse_override(override)[0]


def wanted_repeats(repeats: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[list[str]]:
    """Return the repeats of which the command line sets no key.

    Args:
        repeats: the overrides of each repeat.
        arguments: the overrides of the command line.

    >>> wanted_repeats([["model.blocks=[]", "seed=1"]], ["logger=csv"])
    [['model.blocks=[]', 'seed=1']]
    >>> wanted_repeats([["model.blocks=[]", "seed=1"]], ["seed=0,1,2"])
    []
    """
    given = set(map(key_of, arguments))
    return [list(repeat) for repeat in repeats if given.isdisjoint(map(key_of, repeat))]
