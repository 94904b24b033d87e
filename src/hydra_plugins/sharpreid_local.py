"""``hydra/launcher=local``, where Hydra looks for plugins: it takes them from this namespace package only.

Hydra imports this file in every program that runs in this environment, so nothing heavy is imported here.
"""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep in processes of their own, several at once; see
    `sharpreid.sweep.local_launcher`.

    Args:
        jobs_at_once: how many; None is as many as there are devices for, and 1 on the CPU.
    """

    def __init__(self, *, jobs_at_once: int | None) -> None:
        self.jobs_at_once = jobs_at_once

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra knows of the sweep."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs; their return values in the same order."""
        from sharpreid.sweep.local_launcher import launch

        return launch(
            self.config,
            self.hydra_context,
            job_overrides,
            first=initial_job_idx,
            jobs_at_once=self.jobs_at_once,
        )
