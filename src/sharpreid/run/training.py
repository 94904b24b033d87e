"""Train and score one network, from its config to its scores."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import SIGTERMException

from sharpreid.checkpoint_files import step_checkpoints, step_of
from sharpreid.config.sweep_context import planned_jobs
from sharpreid.config.validation import check_config
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.data.reid_data import DataError
from sharpreid.distributed import explain_lost_processes, is_rank_zero
from sharpreid.module import ReIDModule
from sharpreid.run.build import (
    build_data,
    build_module,
    build_trainer,
    seed_everything,
)
from sharpreid.run.comparability import logged_settings
from sharpreid.run.console import error_message, print_run_table, suppress_lightning_warnings
from sharpreid.run.fingerprint import describe_change, read_fingerprint, take_fingerprint
from sharpreid.run.job import Job
from sharpreid.run.loading import score
from sharpreid.run.model_folder import write_model
from sharpreid.run.preflight import check_training, choose_small_batches
from sharpreid.run.records import (
    describe_config,
    describe_environment,
    describe_queries,
    describe_rules,
    describe_scores,
    held_out_map,
    load_finished_record,
    lock_run_dir,
    write_json,
    write_text,
)
from sharpreid.run.resume import agree_on_checkpoint, find_checkpoint, reject_changed_data
from sharpreid.signals import EXIT_RESUMABLE, StoppedAtStepError, stop_on_sigterm

log = logging.getLogger(__name__)

FINAL_CHECKPOINT = Path("checkpoints", "final.ckpt")
"""Weights of the trained network, in the output directory."""


def run(cfg: DictConfig) -> float:
    """Run one job; exit with a status that says how it ended, unless it succeeded.

    Returns:
        Result of `run_job`; NaN for a failed job of a sweep.
    """
    suppress_lightning_warnings()
    _silence_other_ranks()
    output_dir = Path(cfg.output_dir)
    try:
        with stop_on_sigterm(), lock_run_dir(output_dir):
            return run_job(cfg, output_dir)
    except StoppedAtStepError as stop:
        log.error("stopped by a signal, saved in %s; go on with resume=auto", stop.checkpoint)
        sys.exit(EXIT_RESUMABLE)
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        log.error("interrupted; %s", _describe_saved(output_dir))
        if isinstance(stop, SIGTERMException):
            sys.exit(EXIT_RESUMABLE if cfg.resume == "auto" else 143)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        log.error("%s\n(HYDRA_FULL_ERROR=1 shows the traceback)", error_message(error))
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(1)
        log.error("this job failed; the sweep goes on")
        return float("nan")


def _describe_saved(output_dir: Path) -> str:
    """Say how to go on with an interrupted run."""
    saved = step_checkpoints(output_dir / "checkpoints")
    if not saved:
        return f"no step was saved yet, so the same command starts anew; the log is in {output_dir}"
    return f"go on from the last saved step, {step_of(saved[0])}, by the same command with resume=auto"


def run_job(cfg: DictConfig, output_dir: Path) -> float:
    """Train and score one network.

    Returns:
        mAP of the held-out identities, in [0, 1]; NaN if none were held out.
    """
    job = Job(cfg, output_dir)
    with job.preparing():
        check_config(cfg)
        data = build_data(cfg)
        cfg = choose_small_batches(cfg, data, job.fields["overrides"])
        if cfg.skip_finished or cfg.resume == "auto":
            finished = _find_finished(cfg, output_dir, data)
            if finished is not None:
                return held_out_map(finished)
        checkpoint = find_checkpoint(cfg, output_dir)
        seed_everything(cfg)
        data.setup("fit")
        job.fields["data"] = take_fingerprint(cfg, data)
        if checkpoint is not None:
            reject_changed_data(cfg, checkpoint, job.fields["data"])
        module = build_module(cfg)
        trainer = build_trainer(cfg, training=True)
        check_training(cfg, trainer, module, data, checkpoint)
        with explain_lost_processes(cfg.trainer.get("timeout_minutes", 10)):
            agree_on_checkpoint(trainer, checkpoint)
    checkpoint = job.start(checkpoint)
    with job.running(), explain_lost_processes(cfg.trainer.get("timeout_minutes", 10)):
        trainer.strategy.barrier()  # rank 0 has moved files
        start = time.monotonic()
        write_text(output_dir / "config.yaml", describe_config(cfg))
        with _loggers(cfg, trainer, module, data):
            untrained = None
            if cfg.score_untrained:
                known = output_dir / "untrained.json" if job.resumes(checkpoint) else None
                untrained = _score_untrained(trainer, module, data, known=known, output_dir=output_dir)
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
            trainer.save_checkpoint(output_dir / FINAL_CHECKPOINT, weights_only=True)
            held_out = _score_held_out(trainer, module, data)
            scores = score(trainer, module, data)
        epochs = whole_epochs(trainer)
        record = {
            "name": cfg.name,
            "overrides": job.fields["overrides"],
            **describe_scores(cfg, module.test_metric.protocol, data.data, scores),
            "untrained": untrained,
            "held_out": held_out,
            "validation_identities": data.validation_identities,
            "epochs": epochs,
            "iterations": trainer.global_step,
            **describe_environment(trainer),
            "commit": job.fields["commit"],
            "dirty": job.fields["dirty"],
            "minutes": round((time.monotonic() - start) / 60, 2),
            "resumed_at": job.fields.get("resumed_at", []),
            "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
            "checkpoint": str(FINAL_CHECKPOINT),
        }
        if epochs < cfg.trainer.max_epochs:
            record["deviations"] = ", ".join(filter(None, [record["deviations"], "ended early"]))
        write_text(output_dir / "queries.csv", describe_queries(data.data.query, scores))
        try:
            write_model(output_dir / "model", cfg, module, mean=data.eval_transform.mean, record=record)
        except Exception as error:  # a network of other parts; the scores do not need the folder
            log.warning("%s is not written: %s", output_dir / "model", error_message(error))
        write_json(output_dir / "scores.json", record)
        print_run_table(record, in_sweep=planned_jobs() is not None)
    return held_out_map(record)


def whole_epochs(trainer: pl.Trainer) -> int:
    """Return the number of epochs that were trained to their end; Lightning counts one that was cut, too."""
    loop, counts = trainer.fit_loop.epoch_loop, cast(Any, trainer.fit_loop.epoch_progress.current)
    return int(
        counts.processed - (counts.ready == counts.processed and not loop._num_ready_batches_reached())
    )


def _find_finished(cfg: DictConfig, output_dir: Path, data: ReIDDataModule) -> dict[str, Any] | None:
    """Return the finished record of the same config on the same data; None if there is none.

    The data are not compared if they cannot be read any more: the scores are still those of this config.
    """
    finished = load_finished_record(output_dir, cfg)
    if finished is None:
        return None
    before = read_fingerprint(output_dir)
    change = None
    if before is not None:
        try:
            data.setup("fit")
        except (OSError, DataError) as error:
            log.warning("the data set of the finished run cannot be compared: %s", error)
        else:
            change = describe_change(before, take_fingerprint(cfg, data))
    if change is not None:
        log.warning("%s: already finished, but on other data: %s", output_dir, change)
        return None
    commit = finished.get("commit")
    log.info("%s: already finished with the same config (commit %s); not run again", output_dir, commit)
    return finished


def _score_untrained(
    trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule, *, known: Path | None, output_dir: Path
) -> dict[str, float]:
    """Return the test scores of the untrained network; a resumed run reads them from ``known``."""
    if known is not None and known.is_file():
        scores: dict[str, float] = json.loads(known.read_text(encoding="utf-8"))
        return scores
    scores = score(trainer, module, data).as_dict()
    write_json(output_dir / "untrained.json", scores)
    return scores


def _score_held_out(trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule) -> dict[str, float] | None:
    """Score the trained network on the held-out identities; None if there are none.

    The last validation may be epochs old, or from before a resume, so the scores are computed anew.
    """
    if not data.validation_identities:
        return None
    trainer.validate(module, data, verbose=False)
    return module.last_scores("val").as_dict()


@contextmanager
def _loggers(
    cfg: DictConfig, trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule
) -> Iterator[None]:
    """Log the run's settings, and end the loggers' runs afterwards: a sweep's next job starts its own."""
    re_ranking = module.test_metric.re_ranking
    described = "none" if re_ranking is None else re_ranking.describe()
    rules = describe_rules(cfg, module.test_metric.protocol, data.data, described)
    for logger in trainer.loggers:
        logger.log_hyperparams(logged_settings(cfg, rules))
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        finish_loggers(trainer, succeeded=succeeded)


def finish_loggers(trainer: pl.Trainer, *, succeeded: bool) -> None:
    """End the run of each logger that has one, such as W&B's, with exit status 0 or 1."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            try:
                finish(exit_code=0 if succeeded else 1)
            except ConnectionError:  # a signal to all processes ends W&B's own process first
                pass
            except Exception as error:  # the scores do not need the log
                log.warning("the run of %s did not end well: %s", type(logger).__name__, error_message(error))


def _silence_other_ranks() -> None:
    """Let only rank 0 print and log; the other ranks log errors only."""
    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.ERROR)
