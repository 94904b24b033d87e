"""Hydra callback that writes a sweep's table and figure when all jobs have ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sharpreid.config.sweep_context import enter_sweep, join_sweep, leave_sweep, planned_jobs


class SweepSummary(Callback):
    """Hydra callback that writes a sweep's table and figure and sets its exit status.

    Hydra turns an exception of a callback into a warning, so a failure is raised as SystemExit. Hydra calls
    no callback after a sweep whose task raised, so a task records its failure in ``job.json`` and returns.

    Args:
        baseline: Override that marks the baseline, e.g. ``model.blocks=[]``; None for none.
        title: Heading of the page and the figure; by default the name of the jobs.
        labels: Override value, or key=value -> label in the tables.
        by_held_out: Whether the tables show, and are sorted by, the mAP on held-out identities.
    """

    def __init__(
        self,
        *,
        baseline: str | None,
        title: str = "",
        labels: Mapping[str, str] | None = None,
        by_held_out: bool = False,
    ) -> None:
        self.baseline = baseline
        self.title = title
        self.labels = {str(value): str(label) for value, label in (labels or {}).items()}
        self.by_held_out = by_held_out
        self.sweep: str | None = None
        self.swept: frozenset[str] = frozenset()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Store the id of the sweep and the varying keys, and link ``outputs/latest`` to its folder."""
        from sharpreid.run.records import link_latest  # slow

        self.sweep, self.swept = enter_sweep(config)
        link_latest(Path(str(config.hydra.sweep.dir)))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Set id and varying keys in the process of a job, to which a launcher sends this callback."""
        join_sweep(self.sweep, self.swept)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on the jobs below ``hydra.sweep.dir``.

        Raises:
            SystemExit: The report cannot be written, or a job failed.
        """
        planned = planned_jobs()
        leave_sweep()
        folder = Path(str(config.hydra.runtime.cwd)) / str(config.hydra.sweep.dir)
        try:
            from sharpreid.report.sweep_summary import write_summary  # slow

            write_summary(
                folder,
                sweep=self.sweep,
                baseline=self.baseline,
                title=self.title,
                labels=self.labels,
                by_held_out=self.by_held_out,
                planned=planned,
            )
        except Exception as error:
            again = f"python -m sharpreid.report.sweep {folder}"
            raise SystemExit(f"no summary of the sweep ({error!r}); retry with: {again}") from error
