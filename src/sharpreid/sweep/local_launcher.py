"""``hydra/launcher=local``: the jobs of a sweep in processes of their own, several at once on one machine.

Hydra's joblib launcher starts one process per job, all on the same GPUs. Submitit's local launcher starts
all jobs at once on the first GPUs. This launcher limits how many jobs run at once, gives each job the least
used GPUs, starts torchrun for a job of several devices, writes a console log per job, and stops the jobs at
a signal so that they save their state.
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from sharpreid.config.overrides import quote_path
from sharpreid.config.paths import parse_override
from sharpreid.config.resolvers import run_label
from sharpreid.config.sweep_context import sweep_environment
from sharpreid.run.records import (
    CONSOLE_LOG,
    asking_sweep,
    held_out_map,
    lock_run_dir,
    move_earlier_run_aside,
    write_json,
)
from sharpreid.signals import EXIT_RESUMABLE, STOP_SIGNALS, set_signal_handlers

log = logging.getLogger(__name__)

_POLL = 0.2  # seconds
_SHUTDOWN = 600  # seconds for torchrun's processes to finish a running validation and save their state
_SWEEP_KEYS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")

_CONFIG_FLAGS = {"main": "--config-path", "command-line": "--config-dir"}
"""Hydra's provider of a config source -> flag that sets the source."""


class Job(NamedTuple):
    """A job of the sweep."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig  # composed, with its hydra node
    output_dir: Path  # absolute
    devices: int
    label: str  # in log messages

    def command(self) -> list[str]:
        """Return the command line of the job; ``hydra.job.num`` marks it as the job of a sweep."""
        start = [sys.executable, "-m"]
        if self.devices > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={self.devices}"]
            start += [f"--shutdown-timeout={_SHUTDOWN}", "-m"]
        kept = [one for one in self.config.hydra.overrides.hydra if not _concerns_sweep(one)]
        own = ["hydra.mode=RUN", f"hydra.run.dir={quote_path(str(self.output_dir))}"]
        return [
            *start,
            "sharpreid.train",
            *_config_flags(self.config),
            *self.overrides,
            *kept,
            *own,
            f"hydra.job.num={self.number}",
            f"hydra.job.id={self.number}",
        ]


class Running(NamedTuple):
    """A started job."""

    job: Job
    process: subprocess.Popen[bytes]
    gpus: tuple[str, ...]
    started: float  # Unix seconds


def launch(
    config: DictConfig,
    hydra_context: HydraContext,
    job_overrides: Sequence[Sequence[str]],
    *,
    first: int,
    jobs_at_once: int | None,
) -> list[JobReturn]:
    """Run every job in processes of its own, several at once, and log when each starts and ends.

    The output of a job goes to console.log in its output directory. A failed job is recorded in its job.json,
    and the others continue.

    Args:
        config: Composed config of the sweep, with its hydra node.
        hydra_context: Hydra's context of the sweep.
        job_overrides: Overrides of each job.
        first: Number of the first job.
        jobs_at_once: Number of jobs that run at once, > 0. None runs as many as the GPUs allow, or 1 on the
            CPU.

    Returns:
        Result of `sharpreid.train.main` for each job; NaN for a failed one.

    Raises:
        SystemExit: With `EXIT_RESUMABLE` after SIGTERM, SIGINT, SIGHUP or SIGUSR1, once all running jobs have
            saved their state and ended.
        CompactHydraException: The jobs do not fit the machine or share an output directory; none was started.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise CompactHydraException(
            "hydra/launcher=local starts the processes itself: start it without torchrun"
        )
    jobs = [_compose(config, hydra_context, one, first + n) for n, one in enumerate(job_overrides)]
    _refuse_shared_directories(jobs)
    accelerator = jobs[0].config.trainer.accelerator
    gpus = visible_gpus() if accelerator in ("auto", "gpu", "cuda") else []
    at_once = _jobs_at_once(jobs, len(gpus), jobs_at_once)
    devices = f"GPU {','.join(gpus)}" if gpus else "the CPU"
    log.info("jobs: %d, at once: %d, on %s", len(jobs), at_once, devices)
    values = _run_all(jobs, gpus, at_once)
    return [_returned(job, values[job.number]) for job in jobs]


def visible_gpus() -> list[str]:
    """Return the visible GPUs by their names in CUDA_VISIBLE_DEVICES."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


def _compose(config: DictConfig, context: HydraContext, overrides: Sequence[str], number: int) -> Job:
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
        composed.hydra.job.id = str(number)
    earlier = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)  # for ${hydra:...}
    try:
        place = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir)).absolute()
        label = f"#{number} {run_label(str(composed.name))}"
    finally:
        HydraConfig.instance().cfg = earlier
    devices, nodes = composed.trainer.devices, composed.trainer.get("num_nodes", 1)
    if not isinstance(devices, int) or devices < 1 or nodes != 1:
        raise CompactHydraException(
            "hydra/launcher=local needs a whole number, > 0, as trainer.devices, and trainer.num_nodes=1; "
            f"got trainer.devices={devices} and trainer.num_nodes={nodes}"
        )
    return Job(number, tuple(overrides), composed, place, devices, label)


def _config_flags(config: DictConfig) -> list[str]:
    """Return --config-name, --config-path and --config-dir of the sweep."""
    flags = [f"--config-name={config.hydra.job.config_name}"]
    for source in config.hydra.runtime.config_sources:
        if source.schema == "file" and source.provider in _CONFIG_FLAGS:
            flags.append(f"{_CONFIG_FLAGS[source.provider]}={source.path}")
    return flags


def _concerns_sweep(override: str) -> bool:
    key, _ = parse_override(override)
    return key.startswith(_SWEEP_KEYS) or key in ("hydra.mode", "hydra.run.dir")


def _refuse_shared_directories(jobs: Sequence[Job]) -> None:
    places: dict[Path, Job] = {}
    for job in jobs:
        other = places.setdefault(job.output_dir, job)
        if other is not job:
            raise CompactHydraException(
                f"{job.output_dir}: the output directory of two jobs, {other.label} and {job.label}. "
                "Jobs share it if they differ only in keys that change no result "
                "(hydra.job.config.override_dirname.exclude_keys of conf/train.yaml)"
            )


def _jobs_at_once(jobs: Sequence[Job], gpus: int, wanted: int | None) -> int:
    most = max(job.devices for job in jobs)
    if gpus and most > gpus:
        raise CompactHydraException(f"trainer.devices={most}, but {gpus} GPUs are visible")
    if wanted is None:
        return gpus // most if gpus else 1
    if wanted < 1:
        raise CompactHydraException(f"hydra.launcher.jobs_at_once must be at least 1, got {wanted}")
    return wanted


@contextmanager
def _collecting_stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect stop signals instead of ending; signals that the process ignores stay ignored."""
    received: list[signal.Signals] = []

    def collect(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    collected = (*STOP_SIGNALS, signal.SIGINT, signal.SIGHUP)
    handled = [number for number in collected if signal.getsignal(number) != signal.SIG_IGN]
    before = set_signal_handlers(dict.fromkeys(handled, collect))
    try:
        yield received
    finally:
        set_signal_handlers(before)


def _run_all(jobs: Sequence[Job], gpus: Sequence[str], at_once: int) -> dict[int, float]:
    """Run all jobs and return their results by job number."""
    values: dict[int, float] = {}
    waiting, running = [*jobs], list[Running]()
    with _collecting_stop_signals() as signals:
        try:
            while (waiting or running) and not signals:
                while waiting and len(running) < at_once:
                    running.append(_start(waiting.pop(0), running, gpus, at_once))
                time.sleep(_POLL)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    values[one.job.number] = _end(one)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
        if signals:
            for one in running:
                _end(one)
            name = signals[0].name
            log.error("stopped by %s; %d jobs not started; go on with resume=auto", name, len(waiting))
            sys.exit(EXIT_RESUMABLE)
    return values


def _start(job: Job, running: Sequence[Running], gpus: Sequence[str], at_once: int) -> Running:
    started = time.time()
    job.output_dir.mkdir(parents=True, exist_ok=True)
    in_use = [gpu for one in running for gpu in one.gpus]
    mine = tuple(sorted(gpus, key=in_use.count)[: job.devices])
    unbuffered = {"PYTHONUNBUFFERED": "1"}  # output is written to the file at once
    environment = {**os.environ, **unbuffered, **sweep_environment()}
    if mine:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    else:
        threads = max(1, torch.get_num_threads() // (at_once * job.devices))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    place = f" on GPU {','.join(mine)}" if mine else ""
    log.info("%s: starts%s, %s", job.label, place, job.output_dir / CONSOLE_LOG)
    with (job.output_dir / CONSOLE_LOG).open("ab") as console:
        process = subprocess.Popen(
            job.command(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt from the keyboard comes through the launcher only
        )
    return Running(job, process, mine, started)


def _end(ended: Running) -> float:
    """Log how a job ended and return its result; NaN if it failed."""
    job, status = ended.job, ended.process.returncode
    minutes = (time.time() - ended.started) / 60
    if status == 0:
        value = held_out_map(json.loads((job.output_dir / "scores.json").read_text(encoding="utf-8")))
        log.info("%s: done in %.1f min", job.label, minutes)
        return value
    log.error("%s: failed: %s\n  see %s", job.label, _record_failure(ended), job.output_dir / CONSOLE_LOG)
    return math.nan


def _record_failure(ended: Running) -> str:
    """Return the error in a failed job's job.json; if its process wrote none, write how the process ended."""
    job, status = ended.job, ended.process.returncode
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    error = f"its process was ended {how}"
    path = job.output_dir / "job.json"
    try:
        with lock_run_dir(job.output_dir):
            told = _read_job(path)
            if path.is_file() and path.stat().st_mtime >= ended.started:
                if told.get("status") == "failed":
                    return str(told["error"])
            elif job.config.resume == "none":  # else keep the checkpoints that a resumed job needs
                move_earlier_run_aside(job.output_dir)
                told = {}
            now = {"started": ended.started, "name": job.config.name, "overrides": _task_overrides(job)}
            told["sweeps"] = list(dict.fromkeys([*told.get("sweeps", []), *asking_sweep()]))
            write_json(path, {**now, **told, "asked_for": ended.started, "status": "failed", "error": error})
    except RuntimeError as taken:
        return str(taken)
    return error


def _read_job(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told


def _task_overrides(job: Job) -> list[str]:
    return [str(one) for one in job.config.hydra.overrides.task]


def _returned(job: Job, value: float) -> JobReturn:
    returned = JobReturn(
        overrides=_task_overrides(job),
        cfg=OmegaConf.masked_copy(job.config, [str(key) for key in job.config if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(job.config, "hydra"),
        working_dir=os.getcwd(),
        task_name="train",
        status=JobStatus.COMPLETED,
    )
    returned.return_value = value
    return returned
