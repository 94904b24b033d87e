"""One job of `sharpreid.train`: train and score one network."""

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from sharpreid.checkpoint_files import step_of
from sharpreid.config.validation import check_config
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.distributed import is_first, naming_lost_processes
from sharpreid.loggers.csv import drop_rows_from
from sharpreid.module import ReIDModule
from sharpreid.run.build import build_data, build_module, build_trainer
from sharpreid.run.comparability import caveats, method_of, rules_of
from sharpreid.run.console import print_run_table, quieten, reason
from sharpreid.run.loading import score
from sharpreid.run.paper_recipe import PAPER_DATA
from sharpreid.run.records import (
    claim,
    describe_code,
    describe_config,
    describe_environment,
    describe_queries,
    describe_rules,
    describe_scores,
    finished_record,
    held_out_map,
    process_token,
    set_earlier_run_aside,
    set_later_checkpoints_aside,
    write_json,
    write_text,
)
from sharpreid.run.resume import agree_on_checkpoint, find_checkpoint
from sharpreid.signals import EXIT_RESUMABLE, StoppedAtStepError, stopping_on_sigterm

log = logging.getLogger(__name__)

_LASTING = ("started", "wandb_id", "resumed_at")
"""What a run keeps of its job.json each time it goes on."""


def run(cfg: DictConfig) -> float:
    """Run one job, with the exit status that its end asks for; what `sharpreid.train.main` returns."""
    quieten()
    _leave_printing_to_the_first()
    output_dir = Path(cfg.output_dir)
    try:
        with stopping_on_sigterm(), claim(output_dir):
            return run_job(cfg, output_dir)
    except StoppedAtStepError as stop:
        log.error("stopped by a signal, saved in %s; go on with resume=auto", stop.checkpoint)
        sys.exit(EXIT_RESUMABLE)
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        log.error("interrupted; what is done so far is in %s", output_dir)
        if isinstance(stop, SIGTERMException):
            sys.exit(EXIT_RESUMABLE if cfg.resume == "auto" else 143)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        log.error("%s\n(HYDRA_FULL_ERROR=1 shows where)", reason(error))
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(1)
        log.error("this job failed; the sweep goes on")
        return float("nan")


class Parts(NamedTuple):
    """What a config builds."""

    data: ReIDDataModule
    module: ReIDModule
    trainer: pl.Trainer


def run_job(cfg: DictConfig, output_dir: Path) -> float:
    """Train and score one network, with its state in job.json; what `main` returns.

    An earlier run's files are set aside only when data, network and trainer could be built.
    """
    job = {
        "status": "running",
        "started": time.time(),
        "name": cfg.name,
        "overrides": list(HydraConfig.get().overrides.task),
        "number": HydraConfig.get().job.num if _in_a_sweep() else None,
        "error": None,
        "process": process_token(),
        "wandb_id": secrets.token_hex(4),
        **describe_code(),
    }
    try:
        check_config(cfg)
        finished = finished_record(output_dir, cfg) if cfg.skip_finished or cfg.resume == "auto" else None
        if finished is not None:
            log.info(
                "%s: finished before, from the same config (commit %s); not run again",
                output_dir,
                finished.get("commit"),
            )
            return held_out_map(finished)
        checkpoint = find_checkpoint(cfg, output_dir)
        parts = build(cfg)
        with naming_lost_processes(cfg.trainer.get("timeout_minutes", 10)):
            agree_on_checkpoint(parts.trainer, checkpoint)
    except Exception as error:
        if _in_a_sweep():
            if cfg.resume == "none":
                set_earlier_run_aside(output_dir)
            else:  # what the job has to go on from stays
                job |= {key: value for key, value in _earlier_job(output_dir).items() if key in _LASTING}
            _record_failure(output_dir, {**job, "asked_for": time.time()}, error)
        raise
    if _goes_on(output_dir, checkpoint):
        assert checkpoint is not None
        job |= _go_on(output_dir, checkpoint)
    elif earlier := set_earlier_run_aside(output_dir):
        log.info("an earlier run of this output directory is now in %s", earlier)
    write_json(output_dir / "job.json", job)
    try:
        with _wandb_run(job["wandb_id"]), naming_lost_processes(cfg.trainer.get("timeout_minutes", 10)):
            record = train(cfg, output_dir, job, parts, checkpoint)
    except BaseException as error:
        _record_failure(output_dir, job, error)
        raise
    write_json(output_dir / "job.json", {**job, "status": "done"})
    return held_out_map(record)


def _in_a_sweep() -> bool:
    """Whether this is a job of a sweep: only those have a number, in whatever process they run."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def _record_failure(output_dir: Path, job: dict[str, Any], error: BaseException) -> None:
    if isinstance(error, OSError):
        logging.raiseExceptions = False  # the log may be on the full disk: a traceback for each of its lines
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
    failure = "interrupted; go on with resume=auto" if stopped else f"{type(error).__name__}: {reason(error)}"
    try:
        write_json(output_dir / "job.json", {**job, "status": "failed", "error": failure})
    except OSError as second:  # a full disk, and the error itself is the one to tell
        log.warning("%s could not be written (%s)", output_dir / "job.json", second)


def build(cfg: DictConfig) -> Parts:
    """Read the data set, then make network and trainer; nothing is written but a data set that is made."""
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1, got {cfg.seed!r}")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    data.setup("fit")
    parts = Parts(data, build_module(cfg), build_trainer(cfg, training=True))
    _refuse_what_does_not_go_together(cfg, parts.trainer)
    if parts.trainer.world_size > 1 and _goes_through_a_sweep():
        raise ValueError(
            f"a sweep goes through its jobs in one process, but trainer.devices={parts.trainer.num_devices} "
            f"needs {parts.trainer.world_size}; leave torchrun out and give hydra/launcher=local, or start "
            f"each job by itself: torchrun --nproc-per-node={parts.trainer.num_devices} -m sharpreid.train "
            "... hydra.mode=RUN"
        )
    return parts


def _refuse_what_does_not_go_together(cfg: DictConfig, trainer: pl.Trainer) -> None:
    """Raise ValueError where it would come out only when the untrained network has been scored, or never."""
    if OmegaConf.select(cfg, "optimizer.fused") and str(cfg.trainer.precision) in ("16", "16-mixed"):
        # its step takes the scale out of the gradients: their norm would be logged, and looked at, with it
        raise ValueError(
            f"optimizer.fused=true does not go with trainer.precision={cfg.trainer.precision}; take "
            "bf16-mixed, or optimizer.fused=null"
        )
    expected = OmegaConf.select(cfg, "model.sampler.gradient") == "expected"
    if expected and OmegaConf.select(cfg, "schedule.noise_scale") is not None:
        raise ValueError(
            "model.sampler.gradient=expected is the mean over the whole noise, which schedule.noise_scale "
            "changes; take another gradient, or schedule.noise_scale=null"
        )
    device = trainer.strategy.root_device
    if OmegaConf.select(cfg, "model.sampler.implementation") == "triton" and device.type != "cuda":
        raise ValueError(
            f"model.sampler.implementation=triton needs a GPU, and the training would run on {device}; take "
            "recompute"
        )


def _goes_through_a_sweep() -> bool:
    """Whether this process runs all jobs of a sweep; only Hydra's basic launcher starts none for each."""
    hydra_cfg = HydraConfig.get()
    return hydra_cfg.mode == RunMode.MULTIRUN and hydra_cfg.launcher._target_.endswith(".BasicLauncher")


def _goes_on(output_dir: Path, checkpoint: Path | None) -> bool:
    """Whether it is this directory's own run that goes on; from another's checkpoint a new run starts."""
    return checkpoint is not None and checkpoint.resolve().parents[1] == output_dir.resolve()


def _go_on(output_dir: Path, checkpoint: Path) -> dict[str, Any]:
    """Ready a run's directory for going on from ``checkpoint``; what stays of its job.json."""
    step = step_of(checkpoint)
    log.info("going on from step %d, %s", step, checkpoint)
    if is_first():
        drop_rows_from(output_dir / "csv" / "metrics.csv", step)
        set_later_checkpoints_aside(output_dir, step)
    earlier, here = _earlier_job(output_dir), describe_code()["commit"]
    if earlier.get("commit", here) != here:
        log.warning("the run was started by the code of commit %s, this is %s", earlier["commit"], here)
    kept = {key: value for key, value in earlier.items() if key in _LASTING}
    return {**kept, "asked_for": time.time(), "resumed_at": [*earlier.get("resumed_at", []), step]}


def _earlier_job(output_dir: Path) -> dict[str, Any]:
    """The job.json of a run that is to go on; empty if there is none that can be read."""
    try:
        earlier = json.loads((output_dir / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return earlier if isinstance(earlier, dict) else {}


@contextmanager
def _wandb_run(name: str) -> Iterator[None]:
    """Let W&B's next run be ``name``: the same as before where a run goes on."""
    before = os.environ.get("WANDB_RUN_ID")
    os.environ["WANDB_RUN_ID"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_RUN_ID"]
        else:
            os.environ["WANDB_RUN_ID"] = before


def train(
    cfg: DictConfig, output_dir: Path, job: dict[str, Any], parts: Parts, checkpoint: Path | None
) -> dict[str, Any]:
    """Train and score one network, from ``checkpoint`` on if there is one; what scores.json holds."""
    start = time.monotonic()
    data, module, trainer = parts
    write_text(output_dir / "config.yaml", describe_config(cfg))
    settings = logged_settings(cfg, _rules(cfg, parts))
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    succeeded = False
    try:
        known = output_dir / "untrained.json"
        # if not, the first process may be moving an earlier run's file just now
        goes_on = _goes_on(output_dir, checkpoint)
        untrained = _score_untrained(parts, known, goes_on=goes_on) if cfg.score_untrained else None
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        final = Path("checkpoints", "final.ckpt")
        trainer.save_checkpoint(output_dir / final, weights_only=True)
        held_out = _score_held_out(parts)
        scores = score(trainer, module, data)
        succeeded = True
    finally:
        _finish(trainer, succeeded)
    record = {
        "name": cfg.name,
        "overrides": job["overrides"],
        **describe_scores(cfg, module.test_metric.protocol, data.data, scores),
        "untrained": untrained,
        "held_out": held_out,
        "validation_identities": data.validation_identities,
        "epochs": trainer.current_epoch,
        "iterations": trainer.global_step,
        **describe_environment(trainer),
        "commit": job["commit"],
        "dirty": job["dirty"],
        "minutes": round((time.monotonic() - start) / 60, 2),
        "resumed_at": job.get("resumed_at", []),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "checkpoint": str(final),
    }
    write_json(output_dir / "scores.json", record)
    write_text(output_dir / "queries.csv", describe_queries(data.data.query, scores))
    print_run_table(record)
    return record


def _score_held_out(parts: Parts) -> dict[str, float] | None:
    """Scores of the trained network on the identities that were held out; None if there are none.

    They are taken anew: the last validation may have been epochs ago, or before the run was resumed.
    """
    if not parts.data.validation_identities:
        return None
    parts.trainer.validate(parts.module, parts.data, verbose=False)
    if parts.module.validation_scores is None:
        raise RuntimeError("the validation left no scores")
    return parts.module.validation_scores.as_dict()


def _score_untrained(parts: Parts, path: Path, *, goes_on: bool) -> dict[str, float]:
    """Scores of the network before training; of a run that goes on those it had."""
    if goes_on and path.is_file():
        scores: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return scores
    scores = score(parts.trainer, parts.module, parts.data).as_dict()
    write_json(path, scores)
    return scores


def _rules(cfg: DictConfig, parts: Parts) -> dict[str, Any]:
    metric = parts.module.test_metric
    re_ranking = "none" if metric.re_ranking is None else metric.re_ranking.describe()
    return describe_rules(cfg, metric.protocol, parts.data.data, re_ranking)


def logged_settings(cfg: DictConfig, rules: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config for its loggers, with what dashboards group and filter by.

    Args:
        cfg: of the run.
        rules: of `describe_rules`.

    Returns:
        The config's values and: ``method``; ``departures`` from the paper's recipe, or ``none``; ``rules`` of
        the scores, all that runs have to share to be averaged; ``comparable``, whether they may stand beside
        the paper's numbers on this data.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        **settings,
        "method": method_of(cfg),
        "departures": rules["reduced"] or "none",
        "rules": ", ".join(rules_of(rules, cfg)),
        "comparable": cfg.data.source.name in PAPER_DATA and not caveats(rules),
    }


def _finish(trainer: pl.Trainer, succeeded: bool) -> None:
    """End the loggers' runs: the next job of a sweep is a run of its own."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)  # W&B's
        if finish is not None:
            with suppress(ConnectionError):  # a signal to all processes ends W&B's first
                finish(exit_code=0 if succeeded else 1)


def _leave_printing_to_the_first() -> None:
    """Of several processes only the first shows and logs what goes on; errors are everyone's."""
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.ERROR)
