"""A run that was stopped anywhere ends as the one that was not, bit for bit."""

import contextlib
import csv
import json
import logging
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, Timer

from sharpreid.callbacks.checkpoint import StepCheckpoints
from sharpreid.checkpoint_files import newest_whole, step_checkpoints, step_of, step_path, verify
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.config.paths import CONF_DIR
from sharpreid.data.pixel_cache import build_cache
from sharpreid.models.weights import WeightsError
from sharpreid.run.build import build_data, build_module
from sharpreid.run.console import suppress_lightning_warnings
from sharpreid.run.job import Job
from sharpreid.run.records import describe_config, lock_run_dir, move_later_checkpoints_aside
from sharpreid.run.resume import ChangedConfigError, find_checkpoint
from sharpreid.signals import EXIT_RESUMABLE, stop_on_sigterm
from tests.forked import processes_in
from tests.soak.phase import SAVE, SCORING, START, STEP, VALIDATION, read_phase


class CutError(Exception):
    """Ends a training."""


class Cut(pl.Callback):
    """Ends the training after ``step`` optimizer steps and a number of batches of the next one."""

    def __init__(self, step: int, batches: int = 0) -> None:
        self.step = step
        self.batches = batches

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if not self.batches:
                raise CutError
            self.batches -= 1


def fit(
    cfg: DictConfig,
    folder: Path,
    quiet: dict[str, Any],
    cut: int | Cut | None = None,
    resume: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    every_n_steps: int = 1,
) -> dict[str, Any]:
    """The last checkpoint of a training over 3 epochs of 2 batches."""
    suppress_lightning_warnings()
    pl.seed_everything(0, verbose=False)
    cuts = [] if cut is None else [Cut(cut) if isinstance(cut, int) else cut]
    trainer = pl.Trainer(
        **{"max_epochs": 3, "limit_val_batches": 0, **quiet, "enable_checkpointing": True},
        plugins=[SafeCheckpointIO()],
        callbacks=[
            StepCheckpoints(folder=str(folder), every_n_steps=every_n_steps, keep=2),
            *cuts,
            *callbacks,
        ],
    )
    with contextlib.suppress(CutError):
        trainer.fit(build_module(cfg), build_data(cfg), ckpt_path=resume, weights_only=True)
    newest = newest_whole(folder)
    assert newest is not None, "no checkpoint"
    return SafeCheckpointIO().load_checkpoint(newest)


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ."""
    if isinstance(one, dict):
        keys = one.keys() ^ other.keys()
        return [f"{place}.{key}" for key in keys] + [
            difference
            for key in one.keys() & other.keys()
            for difference in differing(one[key], other[key], f"{place}.{key}")
        ]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, (a, b) in pairs for found in differing(a, b, f"{place}[{n}]")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [place]


@pytest.fixture
def cfg(composed: Callable[..., DictConfig]) -> DictConfig:
    """The tiny network with all that changes from step to step: noise, tau, learning rate, beta1."""
    return composed("objective.margin=2", "schedule=beta1_drop", "schedule.learning_rate_factor.start=0")


@pytest.mark.parametrize(
    ("workers", "steps"),
    [
        (0, [1, 2]),
        pytest.param(0, [3, 4, 5], marks=pytest.mark.slow),
        pytest.param(2, [1, 2, 3, 4, 5], marks=pytest.mark.slow),
    ],
)
def test_a_cut_training_ends_as_an_uncut_one(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any], workers: int, steps: list[int]
) -> None:
    """In the middle of an epoch and at its end: weights, optimizer, loops and random states."""
    cfg.data.num_workers = workers
    whole = fit(cfg, tmp_path / "whole", quiet)
    assert whole["global_step"] == 6
    for step in steps:
        folder = tmp_path / str(step)
        earlier = fit(cfg, folder, quiet, cut=step)
        assert earlier["global_step"] == step
        assert differing(earlier, whole)  # the comparison is one that can fail
        assert differing(fit(cfg, folder, quiet, resume=step_path(folder, step)), whole) == []


@pytest.mark.parametrize(("batches", "step"), [(3, 2), (4, 3)])
def test_a_training_cut_between_two_steps_ends_as_an_uncut_one(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any], batches: int, step: int
) -> None:
    """An epoch has a step of two batches and one of the last batch, or two steps of two batches each."""
    cfg.data.identities_per_batch = 2
    options = {**quiet, "accumulate_grad_batches": 2, "limit_train_batches": batches}
    whole = fit(cfg, tmp_path / "whole", options)
    assert whole["global_step"] == 6
    with pytest.raises(AssertionError, match="no checkpoint"):
        fit(cfg, tmp_path / "cut", options, cut=Cut(0, batches=1))
    assert fit(cfg, tmp_path / "cut", options, cut=Cut(step, batches=1))["global_step"] == step
    resumed = fit(cfg, tmp_path / "cut", options, resume=step_path(tmp_path / "cut", step))
    assert differing(resumed, whole) == []


class BatchTimer(Timer):
    """Lightning's callback of ``trainer.max_time``, with a clock that counts batches."""

    def __init__(self, batches: int) -> None:
        super().__init__(timedelta(seconds=batches))
        self.batches = 0

    def time_elapsed(self, stage: str = "train") -> float:
        return self.batches + self._offset

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.batches += 1
        super().on_train_batch_end(trainer)


NO_GAIN = {"monitor": "train/loss", "min_delta": math.inf}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    ("end", "end_options", "steps"),
    [
        (EarlyStopping(**NO_GAIN, patience=2, check_on_train_epoch_end=True), {}, 4),
        (EarlyStopping(**NO_GAIN, patience=4, check_on_train_epoch_end=False), {"val_check_interval": 1}, 3),
        (BatchTimer(5), {}, 3),
        (None, {"max_steps": 2}, 2),
    ],
    ids=["early stopping", "early stopping within an epoch", "max_time", "max_steps"],
)
def test_a_training_that_ended_early_goes_on_as_an_uncut_one(
    cfg: DictConfig,
    tmp_path: Path,
    quiet: dict[str, Any],
    end: pl.Callback | None,
    end_options: dict[str, Any],
    steps: int,
) -> None:
    """At the end of an epoch, within one, and between two steps, where the next step is the last."""
    cfg.data.identities_per_batch = cfg.data.validation_identities = 2
    options = {**quiet, "accumulate_grad_batches": 2, "limit_val_batches": 1.0, **end_options}
    whole = fit(cfg, tmp_path / "whole", {**options, "max_steps": -1})
    assert whole["global_step"] == 6
    ended = fit(cfg, tmp_path, options, callbacks=[end] if end else [], every_n_steps=100)
    assert ended["global_step"] == steps
    options["max_steps"] = 6 if "max_steps" in options else -1
    more: dict[type, list[pl.Callback]] = {BatchTimer: [BatchTimer(99)]}
    resume = step_path(tmp_path, steps)
    resumed = fit(cfg, tmp_path, options, resume=resume, callbacks=more.get(type(end), []))
    different = [place for place in differing(resumed, whole) if "Timer" not in place]
    assert [place for place in different if ".val_loop." not in place] == []


def test_early_stopping_of_a_resumed_training_has_its_own_patience(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any]
) -> None:
    for patience, steps in ((2, 4), (9, 6)):
        stopping = EarlyStopping(**NO_GAIN, patience=patience, check_on_train_epoch_end=True)
        resume = newest_whole(tmp_path)
        ended = fit(cfg, tmp_path, quiet, resume=resume, callbacks=[stopping], every_n_steps=100)
        assert ended["global_step"] == steps


def test_a_training_in_a_thread_finishes(cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any]) -> None:
    """As in W&B's agent, Ray or a notebook: Python sets signal handlers in the main thread only."""

    def train() -> int:
        with stop_on_sigterm():
            return int(fit(cfg, tmp_path, quiet)["global_step"])

    with ThreadPoolExecutor() as threads:
        assert threads.submit(train).result() == 6


@pytest.mark.slow
def test_a_cut_training_in_float64_ends_as_an_uncut_one(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any]
) -> None:
    double = {**quiet, "precision": "64-true"}
    whole = fit(cfg, tmp_path / "whole", double)
    fit(cfg, tmp_path / "cut", double, cut=3)
    assert differing(fit(cfg, tmp_path / "cut", double, resume=step_path(tmp_path / "cut", 3)), whole) == []


@pytest.mark.parametrize(
    ("where", "workers", "precision"),
    [
        ("device", 0, "32-true"),
        ("resident", 0, "64-true"),
        pytest.param("device", 2, "64-true", marks=pytest.mark.slow),
        pytest.param("resident", 2, "32-true", marks=pytest.mark.slow),
    ],
)
def test_a_cut_training_that_augments_on_the_device_ends_as_an_uncut_one(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any], where: str, workers: int, precision: str
) -> None:
    """And as the one that augments in the workers: crops enlarged to 32 x 16 are the same bit for bit."""
    options = {**quiet, "precision": precision}
    expected = fit(cfg, tmp_path / "worker", options)
    cfg.data.augment_on, cfg.data.num_workers, cfg.data.cache = where, workers, str(tmp_path / "cache")
    images = sorted(Path(cfg.data.source.root).rglob("*.jpg"))
    build_cache(images, tmp_path / "cache" / cfg.data.source.name)
    whole = fit(cfg, tmp_path / "whole", options)
    assert differing(whole, expected) == []
    fit(cfg, tmp_path / "cut", options, cut=4)
    assert differing(fit(cfg, tmp_path / "cut", options, resume=step_path(tmp_path / "cut", 4)), whole) == []


def test_a_checkpoint_of_another_network_is_refused(
    cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any]
) -> None:
    fit(cfg, tmp_path, quiet, cut=1)
    cfg.model.head.embedding_dim = 64
    with pytest.raises(WeightsError, match=r"of another network .*\(128,\), wanted \(64,\)"):
        fit(cfg, tmp_path, quiet, resume=step_path(tmp_path, 1))


def test_only_the_last_two_are_kept(cfg: DictConfig, tmp_path: Path, quiet: dict[str, Any]) -> None:
    fit(cfg, tmp_path, quiet)
    assert [path.name for path in step_checkpoints(tmp_path)] == ["step=000006.ckpt", "step=000005.ckpt"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.fixture
def stopped(composed: Callable[..., DictConfig], tmp_path: Path) -> tuple[DictConfig, Path]:
    """A config, and the directory of a run of it that has a checkpoint."""
    cfg = composed("resume=auto", f"output_dir={tmp_path}")
    cfg.callbacks = {}  # these know the command that they run in
    (tmp_path / "config.yaml").write_text(describe_config(cfg), encoding="utf-8")
    SafeCheckpointIO().save_checkpoint({}, step_path(tmp_path / "checkpoints", 7))
    return cfg, tmp_path


def test_auto_finds_the_newest_checkpoint(stopped: tuple[DictConfig, Path], tmp_path: Path) -> None:
    cfg, folder = stopped
    assert find_checkpoint(cfg, folder) == folder / "checkpoints" / "step=000007.ckpt"
    assert find_checkpoint(cfg, tmp_path / "another") is None
    cfg.resume = "none"
    assert find_checkpoint(cfg, folder) is None


def test_a_changed_config_is_refused_key_by_key(stopped: tuple[DictConfig, Path]) -> None:
    cfg, folder = stopped
    cfg.optimizer.lr = 0.5
    cfg.seed = 1
    cfg.data.num_workers = 1  # changes no result
    message = r"(?s)optimizer.lr: was 0.0002, is 0.5\n  seed: was 0, is 1\n.*allow_changed=\[seed\]'"
    with pytest.raises(ChangedConfigError, match=message):
        find_checkpoint(cfg, folder)
    cfg.optimizer.lr = 0.0002
    cfg.objective.margin = 7
    cfg.allow_changed = ["seed"]
    with pytest.raises(ChangedConfigError, match=r"objective.margin: was .*, is 7\n(?!  seed)"):
        find_checkpoint(cfg, folder)
    cfg.allow_changed = ["seed", "objective.margin"]
    assert find_checkpoint(cfg, folder) is not None


def test_a_run_that_early_stopping_ended_goes_on_without_it_if_allowed(
    stopped: tuple[DictConfig, Path],
) -> None:
    cfg, folder = stopped
    stopping = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/mAP"}
    ours = {"_target_": "sharpreid.callbacks.data_wait.DataWait"}
    ended = cfg.copy()
    ended.callbacks = {"stopping": stopping, "wait": ours}
    (folder / "config.yaml").write_text(describe_config(ended), encoding="utf-8")
    message = (
        r"(?s)stopping.monitor: was 'val/mAP', is None\n.*'allow_changed=\[(callbacks.stopping.\w+,?){2}\]'"
    )
    with pytest.raises(ChangedConfigError, match=message):
        find_checkpoint(cfg, folder)
    cfg.allow_changed = [f"callbacks.stopping.{key}" for key in stopping]
    assert find_checkpoint(cfg, folder) is not None


def test_a_callback_s_path_in_the_run_s_directory_moves_with_the_run(
    stopped: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    cfg, folder = stopped
    cfg.callbacks = {"mine": {"_target_": "mine.Profiles", "folder": "${output_dir}/profiles"}}
    moved = cfg.copy()
    moved.output_dir = str(tmp_path / "before")
    (folder / "config.yaml").write_text(describe_config(moved), encoding="utf-8")
    assert find_checkpoint(cfg, folder) is not None
    cfg.callbacks.mine.folder = "${output_dir}/others"
    with pytest.raises(ChangedConfigError, match=r"callbacks\.mine\.folder: was .*/profiles', is .*/others'"):
        find_checkpoint(cfg, folder)


def test_what_comes_from_the_checkpoint_cannot_be_changed(stopped: tuple[DictConfig, Path]) -> None:
    """It would be on record as changed, while the training goes on with the earlier value."""
    cfg, folder = stopped
    cfg.optimizer.lr = 0.5
    cfg.allow_changed = ["optimizer.lr"]
    message = r"lr: was 0.0002, is 0.5\n(?!.*allow_changed).*cannot change: optimizer.lr$"
    with pytest.raises(ChangedConfigError, match=message):
        find_checkpoint(cfg, folder)


def test_a_config_without_a_checkpoint_is_pointed_to_the_nearest_stopped_run(
    composed: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(overrides: list[str], folder: Path) -> DictConfig:
        cfg = composed("resume=auto", f"output_dir='{folder}'", *overrides)
        cfg.callbacks = {}
        SafeCheckpointIO().save_checkpoint({}, step_path(folder / "checkpoints", 7))
        (folder / "config.yaml").write_text(describe_config(cfg), encoding="utf-8")
        return cfg

    near, far = tmp_path / "near" / "seed=0", tmp_path / "far" / "seed=0"
    for name, content in (("broken", "a: ["), ("other", "trainer: null")):
        SafeCheckpointIO().save_checkpoint({}, step_path(tmp_path / name / "seed=0" / "checkpoints", 7))
        (tmp_path / name / "seed=0" / "config.yaml").write_text(content, encoding="utf-8")
    stop(["objective.margin=2"], near)
    stop(["objective.margin=2", "objective.mu=0.5"], far)
    stop(["optimizer.lr=0.1"], tmp_path / "faster" / "seed=0")  # which cannot go on with another
    cfg = composed("resume=auto", f"output_dir='{tmp_path / 'new' / 'seed=0'}'")
    cfg.callbacks = {}
    caplog.set_level(logging.WARNING, "sharpreid")  # else the level is what the test before left
    assert find_checkpoint(cfg, tmp_path / "new" / "seed=0") is None
    assert f"{near}, differs in 1 keys (objective.margin 2 -> 0.5)" in caplog.text
    assert str(far) not in caplog.text
    caplog.clear()
    stop(["objective.margin=2"], tmp_path / "odd" / "seed=0")
    (tmp_path / "odd" / "seed=0" / ".lock").mkdir()  # which cannot be opened
    with lock_run_dir(near):  # it is at work
        assert find_checkpoint(cfg, tmp_path / "new" / "seed=0") is None
    assert str(near) not in caplog.text
    assert f"{far}, differs in 2 keys" in caplog.text
    caplog.clear()
    (near / "scores.json").write_text("{}", encoding="utf-8")  # done: nothing to go on with
    (far / "scores.json").write_text("{}", encoding="utf-8")
    assert find_checkpoint(cfg, tmp_path / "new" / "seed=0") is None
    assert not caplog.text


def test_final_weights_are_no_checkpoint_to_go_on_from(
    stopped: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    cfg, folder = stopped
    final = folder / "checkpoints" / "final.ckpt"
    final.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"final\.ckpt: expected the name of a step checkpoint"):
        find_checkpoint(OmegaConf.merge(cfg, {"resume": str(final)}), tmp_path)
    final.unlink()


def test_later_checkpoints_are_moved_aside_where_an_earlier_one_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2, 3):
        SafeCheckpointIO().save_checkpoint({"step": step}, step_path(folder, step))
    move_later_checkpoints_aside(tmp_path, 2)
    assert [path.name for path in step_checkpoints(folder)] == ["step=000002.ckpt", "step=000001.ckpt"]
    assert SafeCheckpointIO().load_checkpoint(step_path(tmp_path / "previous" / "1", 3)) == {"step": 3}
    move_later_checkpoints_aside(tmp_path, 2)
    assert not (tmp_path / "previous" / "2").exists()


def test_a_missing_file_is_refused(stopped: tuple[DictConfig, Path], tmp_path: Path) -> None:
    cfg, folder = stopped
    cfg.resume = str(tmp_path / "no.ckpt")
    with pytest.raises(FileNotFoundError, match="expected auto, none or a checkpoint"):
        find_checkpoint(cfg, folder)


def job_of(
    folder: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch, *overrides: str, in_sweep: bool
) -> Job:
    """The job of a command, or the first of a sweep."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        number = "hydra.job.num=" + ("0" if in_sweep else "???")
        cfg = compose("train", [*tiny_overrides, number, *overrides], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    return Job(cfg, folder)


def test_a_wandb_id_from_outside_is_that_of_a_single_run(
    tmp_path: Path,
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ids(*, in_sweep: bool, resume: Path | None = None) -> tuple[str, str, str]:
        """The id on record, and the id and the W&B sweep that W&B sees."""
        job = job_of(tmp_path, tiny_overrides, monkeypatch, in_sweep=in_sweep)
        job.start(resume)
        with job.running():
            seen = os.environ["WANDB_RUN_ID"], os.environ.get("WANDB_SWEEP_ID", "")
        return json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))["wandb_id"], *seen

    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.setenv(name, "given")
    caplog.set_level(logging.WARNING, "sharpreid")
    assert ids(in_sweep=False) == ("given", "given", "given")
    assert not caplog.text
    own, seen, sweep = ids(in_sweep=True)
    assert own == seen != "given"
    assert sweep == ""
    assert "WANDB_RUN_ID=given is ignored" in caplog.text
    assert os.environ["WANDB_RUN_ID"] == os.environ["WANDB_SWEEP_ID"] == "given"
    checkpoint = step_path(tmp_path / "checkpoints", 7)
    assert ids(in_sweep=False, resume=checkpoint)[0] == "given"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert ids(in_sweep=False, resume=checkpoint)[0] == "given"
    assert ids(in_sweep=False)[0] not in ("given", own)


def test_a_job_that_is_refused_for_other_data_is_refused_at_the_next_attempt_too(
    tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep records the failure; the fingerprint on record stays that of the checkpoints."""
    (tmp_path / "job.json").write_text(json.dumps({"status": "done", "data": "of then"}), encoding="utf-8")
    job = job_of(tmp_path, tiny_overrides, monkeypatch, "resume=auto", in_sweep=True)
    job.fields["data"] = "of now"
    with pytest.raises(ChangedConfigError), job.preparing():
        raise ChangedConfigError
    record = json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    assert (record["status"], record["data"]) == ("failed", "of then")


@pytest.mark.parametrize("in_sweep", [False, True])
def test_an_unfinished_run_that_another_replaces_can_be_brought_back(
    tmp_path: Path,
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    in_sweep: bool,
) -> None:
    """By the words of the warning; resume=auto says them too."""
    folder = tmp_path / "a [b]" / "seed=0"

    def start(checkpoint: Path | None) -> Path | None:
        return job_of(folder, tiny_overrides, monkeypatch, in_sweep=in_sweep).start(checkpoint)

    caplog.set_level(logging.INFO, "sharpreid")
    folder.mkdir(parents=True)
    start(None)
    (folder / "train.log").write_text("stays", encoding="utf-8")
    SafeCheckpointIO().save_checkpoint({}, step_path(folder / "checkpoints", 7))
    began = json.loads((folder / "job.json").read_text(encoding="utf-8"))["started"]
    start(None)
    moved = step_path(folder / "previous" / "1" / "checkpoints", 7)
    (told,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "stopped unfinished, at step 7" in told
    *words, resume = shlex.split(told.partition("python" if in_sweep else "the same command with")[2])
    assert resume == f"resume={moved}"
    assert ("hydra.mode=RUN" in words) == (f"hydra.run.dir={folder}" in words) == in_sweep
    caplog.clear()
    find_checkpoint(DictConfig({"resume": "auto"}), folder)
    assert "last saved step is 7. To go on with that instead" in caplog.text
    assert shlex.quote(f"resume={moved}") in caplog.text
    assert start(moved) == step_path(folder / "checkpoints", 7)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    assert (job["started"], job["resumed_at"]) == (began, [7])
    assert [path.name for path in (folder / "previous").iterdir()] == ["2"]
    job["status"] = "done"
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    caplog.clear()
    start(None)
    assert [one.levelno for one in caplog.records] == [logging.INFO]  # nothing to go on with


class Command:
    """``python -m sharpreid.train`` in a directory, on one process or several."""

    def __init__(self, overrides: list[str], output_dir: Path, processes: int) -> None:
        self.output_dir = output_dir
        start = [sys.executable, "-m"]
        if processes > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            start += ["--shutdown-timeout=600", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1", "-m"]
        self.arguments = [
            *start,
            "sharpreid.train",
            *overrides,
            "resume=auto",
            "callbacks.checkpoint.every_n_steps=1",
            f"trainer.devices={processes}",
            f"hydra.run.dir={output_dir}",
        ]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments,
            cwd=self.output_dir.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> None:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output

    def result(self) -> tuple[dict[str, Any], dict[str, Any], set[tuple[str, ...]]]:
        """The last checkpoint, scores.json's scores and the log's training losses."""
        newest = newest_whole(self.output_dir / "checkpoints")
        assert newest is not None
        record = json.loads((self.output_dir / "scores.json").read_text(encoding="utf-8"))
        with (self.output_dir / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            losses = [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert len(losses) == len(set(losses))
        scores = {key: record[key] for key in ("scores", "untrained", "epochs", "iterations")}
        checkpoint = SafeCheckpointIO().load_checkpoint(newest)
        checkpoint["loops"] = checkpoint["loops"]["fit_loop"]  # the others count tests of this process
        return checkpoint, scores, set(losses)

    def epochs_with(self, name: str) -> list[str]:
        """The epoch of each row of the log that has a value of ``name``."""
        with (self.output_dir / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [row["epoch"] for row in csv.DictReader(file) if row[name]]


class Kill:
    """SIGKILL for a command with all its processes, so that none can clear up, in a phase of its training."""

    def __init__(self, command: Command, phase_file: Path) -> None:
        self.command = command
        self.phase_file = phase_file
        self.command.arguments += [
            "+callbacks.phase._target_=tests.soak.phase.PhaseMarker",
            f"+callbacks.phase.file={phase_file}",
        ]

    def phase(self) -> tuple[str, int]:
        """Phase and steps: a save where an unfinished file is there, in a training that has begun."""
        phase, steps = read_phase(self.phase_file)
        saving = any((self.command.output_dir / "checkpoints").glob(".step=*"))
        return SAVE if saving and phase not in (START, SCORING) else phase, steps

    def __call__(self, wanted: str, steps: int) -> str:
        """Start the command, kill it in the phase after so many steps or more; the phase it was killed in."""
        for left in (self.command.output_dir / "checkpoints").glob(".step=*"):
            left.unlink()  # of the kill before; the next training does it too, but later
        self.phase_file.unlink(missing_ok=True)
        process = self.command.start()
        deadline = time.monotonic() + 120
        pids: list[int] = []
        while (now := self.phase())[0] != wanted or now[1] < steps:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            if not pids and now[0] not in (START, SCORING):
                pids = processes_in(self.command.output_dir.parent)
            time.sleep(0.0005)
        for pid in pids or processes_in(self.command.output_dir.parent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        return self.phase()[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.ddp)])
def test_a_killed_command_ends_as_an_undisturbed_one(
    tiny_overrides: list[str], tmp_path: Path, processes: int, workers: int
) -> None:
    """kill -9 in a step, in a save and in a validation; `tests.soak` has a hundred of them."""
    overrides = [*tiny_overrides, "trainer.max_epochs=12", f"data.num_workers={workers}"]
    overrides += ["data.validation_identities=2"]
    undisturbed = Command(overrides, tmp_path / "whole", processes)
    undisturbed.finish()
    disturbed = Command(overrides, tmp_path / "killed", processes)
    kill = Kill(disturbed, tmp_path / "phase")
    kills = []
    for wanted, steps in ((STEP, 2), (SAVE, 4), (VALIDATION, 6)):
        for _ in range(3):  # on a busy machine a kill may come too late
            kills.append(kill(wanted, steps))
            if kills[-1] == wanted:
                break
    assert {STEP, SAVE, VALIDATION} <= set(kills)
    assert not (tmp_path / "killed" / "scores.json").exists()  # all kills came before the end
    disturbed.finish()
    record = json.loads((tmp_path / "killed" / "scores.json").read_text(encoding="utf-8"))
    assert record["resumed_at"]
    (checkpoint, values, losses), (wanted, wanted_values, wanted_losses) = (
        disturbed.result(),
        undisturbed.result(),
    )
    assert differing(checkpoint, wanted) == []
    assert values == wanted_values
    assert losses == wanted_losses
    for command in (disturbed, undisturbed):
        assert command.epochs_with("train/data_wait") == [str(epoch) for epoch in range(12)]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_training_on_a_full_disk_goes_on_when_there_is_room(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    """The disk holds two checkpoints, but not the third that is written before the first is removed."""
    undisturbed = Command(tiny_overrides, tmp_path / "whole", 1)
    undisturbed.finish()
    (last, _) = step_checkpoints(tmp_path / "whole" / "checkpoints")
    room = int(2.5 * last.stat().st_size)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        command = Command(tiny_overrides, disk / "run", 1)
        process = command.start()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert "No space left on device" in output
        assert "Traceback" not in output
        kept = step_checkpoints(disk / "run" / "checkpoints")
        assert [step_of(path) for path in kept] == [2, 1]
        for path in kept:
            verify(path)
        assert not list((disk / "run" / "checkpoints").glob(".*"))
        assert json.loads((disk / "run" / "job.json").read_text(encoding="utf-8"))["status"] == "failed"
        subprocess.run(["mount", "-o", f"remount,size={4 * room}", disk], check=True)
        command.finish()
        (checkpoint, *values), (wanted, *wanted_values) = command.result(), undisturbed.result()
        assert differing(checkpoint, wanted) == []
        assert values == wanted_values
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_says_so(
    tiny_overrides: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """To all processes of the command, its data loader's too, as a scheduler sends it."""
    overrides = [*tiny_overrides, "trainer.max_epochs=300", "data.num_workers=1", "score_untrained=false"]
    command = Command(overrides, tmp_path, 1)
    process = command.start()
    deadline = time.monotonic() + 120
    while not step_checkpoints(tmp_path / "checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == EXIT_RESUMABLE, output
    newest = step_checkpoints(tmp_path / "checkpoints")[0]
    assert f"saved in {newest}; go on with resume=auto" in output
    job = json.loads((tmp_path / "job.json").read_text(encoding="utf-8"))
    assert job["status"] == "failed"
    assert OmegaConf.load(tmp_path / "config.yaml").trainer.max_epochs == 300


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("older", ["0", "1"])
def test_processes_with_different_checkpoints_are_refused(
    tiny_overrides: list[str], tmp_path: Path, older: str
) -> None:
    """As where each machine has an output folder of its own; nothing is moved, here or there."""
    overrides = [*tiny_overrides, "trainer.max_epochs=4"]
    Command(overrides, tmp_path / "0", 1).finish()
    (tmp_path / "0" / "scores.json").unlink()
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    for kept in step_checkpoints(tmp_path / older / "checkpoints")[:1]:
        kept.unlink()
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"
    }
    command = Command([*overrides, "allow_changed=[trainer.devices]"], tmp_path, 2)
    command.arguments[-1] = f"hydra.run.dir={tmp_path}/${{oc.env:LOCAL_RANK}}"
    process = command.start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    for rank in ("0", "1"):
        assert f"process {rank}: step=00000{7 if rank == older else 8}.ckpt, SHA-256" in output
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob("previous"))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize(
    "to", [pytest.param("torchrun", marks=pytest.mark.own_interpreter), "one of its processes"]
)
def test_a_signal_to_one_of_several_processes_stops_all_at_one_step(
    tiny_overrides: list[str], tmp_path: Path, to: str
) -> None:
    overrides = [*tiny_overrides, "trainer.max_epochs=300", "score_untrained=false"]
    process = Command(overrides, tmp_path / "run", 2).start()
    deadline = time.monotonic() + 120
    while not step_checkpoints(tmp_path / "run" / "checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (*_, child) = [pid for pid in processes_in(tmp_path) if pid != process.pid]
    os.kill(process.pid if to == "torchrun" else child, signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    if to != "torchrun":  # which reports the signal that it was sent itself, not its processes' status
        assert f"exitcode  : {EXIT_RESUMABLE}" in output
    newest = newest_whole(tmp_path / "run" / "checkpoints")
    assert newest == step_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert output.count(f"stopped by a signal, saved in {newest}; go on with resume=auto") == 2
    assert process.returncode == 1
