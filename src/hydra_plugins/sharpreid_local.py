"""Plugin for ``hydra/launcher=local``; Hydra finds plugins in this namespace package only.

Hydra imports this file in every program of the environment, so it imports nothing slow.
"""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Launcher that runs each job in its own processes; see `sharpreid.sweep.local_launcher`.

    Args:
        jobs_at_once: Number of jobs that run at once, > 0. None runs as many as the visible GPUs allow,
            or 1 on the CPU.
    """

    def __init__(self, *, jobs_at_once: int | None) -> None:
        self.jobs_at_once = jobs_at_once

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the context and the config of the sweep."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs and return their results in the same order."""
        from sharpreid.sweep.local_launcher import launch

        return launch(
            self.config,
            self.hydra_context,
            job_overrides,
            first=initial_job_idx,
            jobs_at_once=self.jobs_at_once,
        )
