"""``hydra/sweeper=repeating``: a grid of jobs, some of which run again with another seed.

Hydra's basic sweeper runs a full grid only. Hydra imports this file in every program of the environment, so
it imports nothing slow.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from sharpreid.config.sweep_context import key_of, select_repeats


class RepeatingBasicSweeper(BasicSweeper):
    """Sweeper that runs the grid of Hydra's basic sweeper and then the jobs of ``repeats``.

    Args:
        max_batch_size: Number of jobs per call of the launcher; None passes all at once.
        params: Key -> values, as in Hydra's basic sweeper.
        repeats: Overrides (``key=value``) of each repeat. A repeat runs the grid again over the keys that it
            does not set, and is skipped if the command line sets one of its keys.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        repeats: Sequence[Sequence[str]] = (),
    ) -> None:
        # Hydra may have executed the base class's module twice; super() in its __init__ then raises TypeError
        vars(self).update(vars(basic_sweeper.BasicSweeper(max_batch_size, params)))
        self.repeats = [list(repeat) for repeat in repeats]
        self._arguments: list[str] = []

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs of the command line's overrides."""
        self._arguments = arguments
        return super().sweep(arguments)

    def split_arguments(  # type: ignore[override]  # a static method in the base class
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the overrides of each job, in batches."""
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        for repeat in select_repeats(self.repeats, self._arguments):
            keys = set(map(key_of, repeat))
            others = [override for override in overrides if key_of(override.get_key_element()) not in keys]
            jobs += [[*repeat, *job] for job in BasicSweeper.split_arguments(others, None)[0]]
        return [list(batch) for batch in BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]
