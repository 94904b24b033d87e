"""Train and score one network, or a sweep of them: ``python -m sharpreid.train --help``."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from sharpreid.config import build_data, build_module, build_trainer, register_resolvers
from sharpreid.data.datamodule import ReIDDataModule
from sharpreid.evaluation.ranking import RankingScores
from sharpreid.hydra_files import CONF_DIR
from sharpreid.module import ReIDModule
from sharpreid.recipe import PAPER_DATA
from sharpreid.records import (
    PROCESS,
    claim,
    describe_code,
    describe_config,
    describe_environment,
    describe_rules,
    describe_scores,
    finished_record,
    set_earlier_run_aside,
    write_json,
    write_text,
)
from sharpreid.report.gather import method_of, rules_of
from sharpreid.report.table import caveats, print_run_table
from sharpreid.signals import stopping_on_sigterm

log = logging.getLogger(__name__)

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job; in a sweep a failing job is recorded and the others go on."""
    quieten()
    output_dir = Path(cfg.output_dir)
    try:
        with stopping_on_sigterm(), claim(output_dir):
            return run_job(cfg, output_dir)
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns the first into the second
        log.error("interrupted; what is done so far is in %s", output_dir)
        sys.exit(143 if isinstance(stop, SIGTERMException) else 130)
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
    """Train and score one network, with its state in job.json; the mAP, in [0, 1].

    An earlier run's files are set aside only when data, network and trainer could be built.
    """
    job = {
        "status": "running",
        "started": time.time(),
        "name": cfg.name,
        "overrides": list(HydraConfig.get().overrides.task),
        "error": None,
        "process": PROCESS,
        **describe_code(),
    }
    if cfg.skip_finished and (finished := finished_record(output_dir, cfg)) is not None:
        commit = finished.get("commit")
        log.info("%s: finished before, from the same config (commit %s); not run again", output_dir, commit)
        return _searched(finished)
    try:
        parts = build(cfg)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            set_earlier_run_aside(output_dir)
            _record_failure(output_dir, job, error)
        raise
    earlier = set_earlier_run_aside(output_dir)
    if earlier:
        log.info("an earlier run of this output directory is now in %s", earlier)
    write_json(output_dir / "job.json", job)
    try:
        record = train(cfg, output_dir, job, parts)
    except BaseException as error:
        _record_failure(output_dir, job, error)
        raise
    write_json(output_dir / "job.json", {**job, "status": "done"})
    return _searched(record)


def _searched(record: dict[str, Any]) -> float:
    """What a sweeper may search by: never a re-ranked score."""
    return float((record.get("not_re_ranked") or record["scores"])["mAP"])


def _record_failure(output_dir: Path, job: dict[str, Any], error: BaseException) -> None:
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
    failure = "interrupted" if stopped else f"{type(error).__name__}: {reason(error)}"
    write_json(output_dir / "job.json", {**job, "status": "failed", "error": failure})


def build(cfg: DictConfig) -> Parts:
    """Read the data set, then make network and trainer; nothing is written but a data set that is made."""
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1, got {cfg.seed!r}")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    data.setup("fit")
    return Parts(data, build_module(cfg), build_trainer(cfg, training=True))


def train(cfg: DictConfig, output_dir: Path, job: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """Train and score one network; what is returned is what scores.json holds."""
    start = time.monotonic()
    data, module, trainer = parts
    write_text(output_dir / "config.yaml", describe_config(cfg))
    settings = logged_settings(cfg, _rules(cfg, parts))
    for logger in trainer.loggers:
        logger.log_hyperparams(settings)
    succeeded = False
    try:
        untrained = score(trainer, module, data) if cfg.score_untrained else None
        trainer.fit(module, data)
        checkpoint = Path("checkpoints", "final.ckpt")
        trainer.save_checkpoint(output_dir / checkpoint, weights_only=True)
        scores = score(trainer, module, data)
        succeeded = True
    finally:
        _finish(trainer, succeeded)
    record = {
        "name": cfg.name,
        "overrides": job["overrides"],
        **describe_scores(cfg, module.test_metric.protocol, data.data, scores),
        "untrained": untrained and untrained.as_dict(),
        "validation_identities": data.validation_identities,
        "epochs": trainer.current_epoch,
        "iterations": trainer.global_step,
        **describe_environment(trainer),
        "commit": job["commit"],
        "dirty": job["dirty"],
        "minutes": round((time.monotonic() - start) / 60, 2),
        "parameters": sum(parameter.numel() for parameter in module.network.parameters()),
        "checkpoint": str(checkpoint),
    }
    write_json(output_dir / "scores.json", record)
    print_run_table(record)
    return record


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
            finish(exit_code=0 if succeeded else 1)


def reason(error: BaseException) -> str:
    """What went wrong, without the traceback that a data loader's process puts in front of it."""
    if "Original Traceback" in str(error):
        return str(error).rstrip().rpartition("\n")[2].partition(": ")[2]
    return str(error) or f"{type(error).__name__} without a message"


def quieten() -> None:
    """Leave out what Lightning says in every run and nobody can act on."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec", category=FutureWarning)


def score(trainer: pl.Trainer, module: ReIDModule, data: ReIDDataModule) -> RankingScores:
    """Scores of ``module`` on the test set, in [0, 1]."""
    trainer.test(module, data, verbose=False)
    if module.test_scores is None:
        raise RuntimeError("the test pass left no scores")
    return module.test_scores


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with --multirun in front: Hydra takes overrides on one side of it only.

    >>> flags_first(["seed=1", "--multirun", "model.blocks=[],[1]"])
    ['--multirun', 'seed=1', 'model.blocks=[],[1]']
    """
    return sorted(arguments, key=lambda argument: argument not in ("--multirun", "-m"))


if __name__ == "__main__":
    sys.argv[1:] = flags_first(sys.argv[1:])
    main()
