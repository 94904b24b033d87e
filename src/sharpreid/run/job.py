"""The state of a run on disk, job.json: started, resumed, failed or done."""

import json
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sharpreid.checkpoint_files import step_checkpoints, step_of
from sharpreid.distributed import is_rank_zero
from sharpreid.loggers.csv import drop_rows_from
from sharpreid.run.console import error_message
from sharpreid.run.records import (
    asking_sweep,
    bring_back,
    describe_code,
    link_latest,
    move_earlier_run_aside,
    move_later_checkpoints_aside,
    previous_runs,
    process_token,
    resume_command,
    write_json,
)

log = logging.getLogger(__name__)

_KEPT_ON_RESUME = ("started", "wandb_id", "resumed_at")
"""Fields of job.json that survive a resume; a W&B id given from outside replaces the recorded one."""

_WANDB_SWEEP = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""Variables by which W&B's agent makes the next W&B run a trial of its sweep."""


class Job:
    """One run in its output directory, with its state in ``job.json``.

    Args:
        cfg: composed config of the run.
        output_dir: directory of the run, which this process has locked.
    """

    def __init__(self, cfg: DictConfig, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._resume = str(cfg.resume)
        in_sweep = not OmegaConf.is_missing(HydraConfig.get().job, "num")
        self._is_of_sweep = in_sweep
        self._given_wandb_id = _given_wandb_id(in_sweep)
        self.fields: dict[str, Any] = {
            "status": "running",
            "started": time.time(),
            "name": cfg.name,
            "overrides": list(HydraConfig.get().overrides.task),
            "number": HydraConfig.get().job.num if in_sweep else None,
            "error": None,
            "process": process_token(),
            "sweeps": asking_sweep(),
            "wandb_id": self._given_wandb_id or secrets.token_hex(4),
            **describe_code(),
        }

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Record an error before the training starts, if the run is a job of a sweep.

        A single run leaves an earlier run in its directory untouched. A sweep needs the failure in its table,
        so the earlier run is moved aside; with ``resume=auto`` its files stay for the next attempt.
        """
        try:
            yield
        except Exception as error:
            if self._is_of_sweep:
                if self._resume == "none":
                    self._move_earlier_run_aside()
                else:
                    # the fingerprint stays that of the checkpoints, so that the next attempt is compared too
                    self.fields |= {"data": self._read().get("data"), **self._fields_to_keep()}
                self.fields["asked_for"] = time.time()
                self._record_failure(error)
            raise

    def start(self, checkpoint: Path | None) -> Path | None:
        """Write job.json for a run that starts anew, or for one that resumes from its own ``checkpoint``.

        A new run moves the files of an earlier one to ``previous/<n>``; a ``checkpoint`` in there brings them
        back. A resumed run drops the log's rows from the checkpoint's step on and moves later checkpoints
        aside.

        Returns:
            The checkpoint, which may have been moved.
        """
        if not self.resumes(checkpoint):
            self._move_earlier_run_aside()
            if checkpoint is not None and checkpoint.resolve().parents[2] == previous_runs(self.output_dir):
                checkpoint = bring_back(self.output_dir, checkpoint)
        if checkpoint is not None and self.resumes(checkpoint):
            self._continue_from(checkpoint)
        self._write()
        if not self._is_of_sweep:  # a sweep links its own folder
            link_latest(self.output_dir)
        return checkpoint

    def resumes(self, checkpoint: Path | None) -> bool:
        """Return whether ``checkpoint`` is of this directory's run; any other one starts a new run."""
        return checkpoint is not None and checkpoint.resolve().parents[1] == self.output_dir.resolve()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record whether the training failed or is done; until then W&B uses the run id in job.json."""
        try:
            with _wandb_run_id(self.fields["wandb_id"], own_sweep=self._is_of_sweep):
                yield
        except BaseException as error:
            self._record_failure(error)
            raise
        self.fields["status"] = "done"
        self._write()

    def _move_earlier_run_aside(self) -> None:
        """Move the files of an earlier run to ``previous/<n>``; say how to go on with an unfinished one."""
        saved = step_checkpoints(self.output_dir / "checkpoints")
        unfinished = bool(saved) and self._read().get("status") != "done"
        place = move_earlier_run_aside(self.output_dir)
        if place is None:
            return
        if not unfinished:
            log.info("an earlier run of this output directory is now in %s", place)
            return
        log.warning(
            "the earlier run of this output directory had stopped unfinished, at step %d, and is now in %s. "
            "To go on with it instead, stop this run and give %s",
            *(step_of(saved[0]), place, self._command_to_resume(place / "checkpoints" / saved[0].name)),
        )

    def _command_to_resume(self, checkpoint: Path) -> str:
        if not self._is_of_sweep:
            return f"the same command with {shlex.quote(f'resume={checkpoint}')}"
        return "for this job " + resume_command(self.fields["overrides"], self.output_dir, checkpoint)

    def _continue_from(self, checkpoint: Path) -> None:
        step = step_of(checkpoint)
        log.info("resuming from step %d, %s", step, checkpoint)
        if is_rank_zero():
            drop_rows_from(self.output_dir / "csv" / "metrics.csv", step)
            move_later_checkpoints_aside(self.output_dir, step)
        earlier, commit = self._read(), self.fields["commit"]
        if earlier.get("commit", commit) != commit:
            log.warning("the run was started by the code of commit %s, this is %s", earlier["commit"], commit)
        self.fields |= self._fields_to_keep()
        self.fields["asked_for"] = time.time()
        self.fields["resumed_at"] = [*earlier.get("resumed_at", []), step]

    def _fields_to_keep(self) -> dict[str, Any]:
        given = {"wandb_id"} if self._given_wandb_id else set[str]()
        earlier = self._read()
        kept = {key: value for key, value in earlier.items() if key in {*_KEPT_ON_RESUME} - given}
        return {**kept, "sweeps": [*earlier.get("sweeps", []), *asking_sweep()]}

    def _read(self) -> dict[str, Any]:
        """Return the fields on disk; empty if there is no readable job.json."""
        try:
            fields = json.loads((self.output_dir / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return fields if isinstance(fields, dict) else {}

    def _write(self) -> None:
        write_json(self.output_dir / "job.json", self.fields)

    def _record_failure(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            logging.raiseExceptions = False  # on a full disk each line of the log would print a traceback
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        failure = f"{type(error).__name__}: {error_message(error)}"
        self.fields["status"] = "failed"
        self.fields["error"] = "interrupted; go on with resume=auto" if stopped else failure
        try:
            self._write()
        except OSError as second:  # a full disk; the first error is the one to report
            log.warning("%s could not be written (%s)", self.output_dir / "job.json", second)


def _given_wandb_id(in_sweep: bool) -> str | None:
    """Return the id of the active W&B run or of ``WANDB_RUN_ID``; None in a sweep, which has several runs."""
    active = getattr(sys.modules.get("wandb"), "run", None)
    given = active.id if active else os.environ.get("WANDB_RUN_ID") or None
    if given and in_sweep:
        log.warning(
            "WANDB_RUN_ID=%s is ignored: each job of a sweep is a W&B run of its own. Start a single "
            "training to use it, for example as a trial of W&B's agent",
            given,
        )
        return None
    return given


@contextmanager
def _wandb_run_id(run_id: str, *, own_sweep: bool) -> Iterator[None]:
    """Give W&B's next run this id, so that a resumed run continues the same one.

    Args:
        run_id: The id.
        own_sweep: Whether the run is a job of a sweep of this package, and so no trial of one of W&B's.
    """
    names = ("WANDB_RUN_ID", *(_WANDB_SWEEP if own_sweep else ()))
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["WANDB_RUN_ID"] = run_id
    try:
        yield
    finally:
        del os.environ["WANDB_RUN_ID"]
        os.environ.update(before)
