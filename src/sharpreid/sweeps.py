"""A Hydra sweep as a whole: what varies in it, and its table at the end."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sharpreid.repeats import key_of, wanted_repeats


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


_choices: dict[str, int] | None = None
_repeats = 0
_swept: set[str] = set()


def planned_jobs() -> int | None:
    """How many jobs the sweep that runs in this process has; None in a job's own process, or if unknown."""
    return None if _choices is None else math.prod(_choices.values()) + _repeats


def swept_keys() -> set[str]:
    """The keys that vary in the sweep that this process belongs to; empty where that is not known."""
    return _swept


class SweepSummary(Callback):
    """Hydra callback: at the end of a multirun, the sweep's table and figure, and its exit status.

    Hydra turns an exception of a callback into a warning. So a failure leaves as SystemExit, which
    passes; it also ends the callbacks that Hydra would have called after this one. Hydra calls no
    callback at all after a sweep whose task raised: the task has to record its own failure in
    ``job.json`` and return.
    """

    def __init__(
        self,
        *,
        baseline: str | None,
        title: str = "",
        labels: Mapping[str, str] | None = None,
        by_held_out: bool = False,
    ) -> None:
        """
        Args:
            baseline: the override that marks the baseline, e.g. ``model.blocks=[]``; None for none.
            title: heading of the page and the figure; the jobs' name by default.
            labels: override value, or key=value, -> what to call it.
            by_held_out: whether the tables show, and are in the order of, the mAP on held-out identities.
        """
        self.baseline = baseline
        self.title = title
        self.labels = {str(value): str(label) for value, label in (labels or {}).items()}
        self.by_held_out = by_held_out
        self.since = 0.0
        self.swept: set[str] = set()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time: jobs that started earlier belong to another sweep."""
        global _choices, _repeats, _swept
        self.since = time.time()
        _choices = count_choices(config)
        repeats = repeats_of(config)
        _repeats = count_repeats(repeats, _choices or {})
        _swept = self.swept = {key.lstrip("+") for key, count in (_choices or {}).items() if count > 1}
        _swept |= {key_of(override) for repeat in repeats for override in repeat}

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make known what varies in a job's own process too, to which its launcher sends this callback."""
        global _swept
        _swept = self.swept

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on the jobs below ``hydra.sweep.dir``, wherever their processes ran."""
        global _choices, _swept
        planned, _choices, _swept = planned_jobs(), None, set()
        folder = Path(str(config.hydra.runtime.cwd)) / str(config.hydra.sweep.dir)
        try:
            from sharpreid.report.sweep import report  # slow, and needed here alone

            report(
                folder,
                since=self.since,
                baseline=self.baseline,
                title=self.title,
                labels=self.labels,
                by_held_out=self.by_held_out,
                planned=planned,
            )
        except Exception as error:
            again = f"python -m sharpreid.report.sweep {folder}"
            raise SystemExit(f"no summary of the sweep ({error!r}); to try again: {again}") from error
