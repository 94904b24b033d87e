"""``hydra/sweeper=repeating``: a grid of jobs, and some of its jobs once more with another seed.

Hydra imports this file in every program that runs in this environment, so nothing heavy is imported here.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from sharpreid.config.sweep_context import key_of, wanted_repeats


class RepeatingBasicSweeper(BasicSweeper):
    """Runs the grid of Hydra's basic sweeper and then the jobs of ``repeats``.

    Args:
        max_batch_size: jobs that the launcher is given at a time; None is all of them.
        params: key -> values, as in Hydra's basic sweeper.
        repeats: overrides (``key=value``) of each further job. They replace the grid's values of the same
            keys; over all other keys the grid is gone through once more. A repeat of which the command line
            sets a key is left out: then the command line says what is to be run.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        repeats: Sequence[Sequence[str]] = (),
    ) -> None:
        # Hydra may execute the module of its sweeper anew, and then super() is refused there
        vars(self).update(vars(basic_sweeper.BasicSweeper(max_batch_size, params)))
        self.repeats = [list(repeat) for repeat in repeats]
        self._arguments: list[str] = []

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; ``arguments`` are the overrides of the command line."""
        self._arguments = arguments
        return super().sweep(arguments)

    def split_arguments(  # type: ignore[override]  # a static method there, called on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The overrides of each job, in batches."""
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        for repeat in wanted_repeats(self.repeats, self._arguments):
            keys = set(map(key_of, repeat))
            others = [override for override in overrides if key_of(override.get_key_element()) not in keys]
            jobs += [[*repeat, *job] for job in BasicSweeper.split_arguments(others, None)[0]]
        return [list(batch) for batch in BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]
