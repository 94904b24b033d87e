"""A Hydra sweep as a whole: what varies in it, and its table at the end."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sharpreid.config.sweep_context import enter_sweep, join_sweep, leave_sweep, planned_jobs


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
        self.swept: frozenset[str] = frozenset()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the time: jobs that started earlier belong to another sweep."""
        self.since = time.time()
        self.swept = enter_sweep(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make known what varies in a job's own process too, to which its launcher sends this callback."""
        join_sweep(self.swept)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on the jobs below ``hydra.sweep.dir``, wherever their processes ran."""
        planned = planned_jobs()
        leave_sweep()
        folder = Path(str(config.hydra.runtime.cwd)) / str(config.hydra.sweep.dir)
        try:
            from sharpreid.report.sweep_summary import write_summary  # slow, and needed here alone

            write_summary(
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
