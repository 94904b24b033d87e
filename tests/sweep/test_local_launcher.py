"""``hydra/launcher=local``: jobs in processes of their own, several at once, which end as one by one."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sharpreid.checkpoint_files import newest_whole, step_checkpoints
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.signals import EXIT_RESUMABLE
from sharpreid.sweep import local_launcher
from sharpreid.sweep.local_launcher import Job, launch
from sharpreid.sweep.preflight import SweepPreflight
from tests.forked import processes_in

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}
LOCAL = ("hydra/launcher=local", "hydra.launcher.jobs_at_once=2")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sharpreid.train", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, *arguments: str, status: int = 0) -> str:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def jobs_of(folder: Path) -> dict[str, Path]:
    """The directory of each job, by its seed."""
    return {path.parent.name: path.parent for path in sorted(folder.rglob("job.json"))}


def told(folder: Path, name: str = "job.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def result(folder: Path) -> tuple[Any, list[tuple[str, str]], dict[str, torch.Tensor]]:
    """A job's scores, training losses and weights."""
    with (folder / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    newest = newest_whole(folder / "checkpoints")
    assert newest is not None
    weights = SafeCheckpointIO().load_checkpoint(newest)["state_dict"]
    return told(folder, "scores.json")["scores"], losses, weights


def same(one: Path, other: Path) -> bool:
    (scores, losses, weights), (wanted, wanted_losses, wanted_weights) = result(one), result(other)
    equal = all(torch.equal(weights[name], wanted_weights[name]) for name in weights)
    return scores == wanted and losses == wanted_losses and len(losses) > 0 and equal


@pytest.fixture(scope="module")
def sweep(tiny_overrides: list[str]) -> list[str]:
    """A sweep over two seeds that goes on where it was stopped."""
    changes = ["trainer.max_epochs=12", "callbacks.checkpoint.every_n_steps=1", "model.blocks=[1]"]
    return ["--multirun", *tiny_overrides, *changes, "seed=0,1", "resume=auto", "score_untrained=false"]


@pytest.fixture(scope="module")
def one_by_one(sweep: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep ran in Hydra's own launcher: one job after the other, in one process."""
    folder = tmp_path_factory.mktemp("one_by_one")
    run(folder, *sweep)
    return folder


@pytest.mark.slow
def test_jobs_side_by_side_end_as_one_by_one(sweep: list[str], one_by_one: Path, tmp_path: Path) -> None:
    output = run(tmp_path, *sweep, *LOCAL)
    wanted, found = jobs_of(one_by_one), jobs_of(tmp_path)
    assert found.keys() == wanted.keys() == {"seed=0", "seed=1"}
    for seed, folder in found.items():
        assert folder.relative_to(tmp_path) == wanted[seed].relative_to(one_by_one)
        assert same(folder, wanted[seed])
    assert not same(found["seed=0"], found["seed=1"])  # the comparison is one that can fail
    assert told(found["seed=0"])["process"] != told(found["seed=1"])["process"]
    ended = min((folder / "scores.json").stat().st_mtime for folder in found.values())
    assert max(told(folder)["started"] for folder in found.values()) < ended
    assert f"#1 seed=1: starts, {found['seed=1']}/console.log" in output
    assert "#1 seed=1: done in" in output
    assert "\nseed=1: step 24/24" in (found["seed=1"] / "console.log").read_text(encoding="utf-8")
    assert "step 24/24" not in output
    assert len([*tmp_path.rglob("summary.csv")]) == 1


@pytest.mark.slow
def test_finished_jobs_are_not_run_again(sweep: list[str], one_by_one: Path) -> None:
    """Whatever launcher they were run by."""
    before = {seed: (folder / "scores.json").read_bytes() for seed, folder in jobs_of(one_by_one).items()}
    run(one_by_one, *sweep, *LOCAL, "skip_finished=true")
    for seed, folder in jobs_of(one_by_one).items():
        assert (folder / "scores.json").read_bytes() == before[seed]
        assert "not run again" in (folder / "console.log").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_a_failing_job_is_reported_and_the_others_go_on(tmp_path: Path, tiny_overrides: list[str]) -> None:
    """Also with a method in a config directory of one's own, which every job has to be told of."""
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "mine.yaml").write_text("# @package _global_\nobjective: {margin: 0.5}\n")
    arguments = [
        "--multirun",
        *tiny_overrides,
        "method=mine",
        "model.blocks=[7],[1]",
        "score_untrained=false",
    ]
    output = run(tmp_path, f"--config-dir={tmp_path / 'own'}", *arguments, *LOCAL, status=1)
    assert "#0 model.blocks=[7]: failed: ConfigError: model: blocks must be different numbers" in output
    assert "#1 model.blocks=[1]: done" in output
    assert "1 of 2 jobs have no score" in output
    found = [told(path.parent) for path in tmp_path.rglob("job.json")]
    assert sorted(job["status"] for job in found) == ["done", "failed"]
    (error,) = [job["error"] for job in found if job["error"]]
    assert error.startswith("ConfigError: model: blocks must be different numbers")


@pytest.mark.slow
@pytest.mark.ddp
def test_a_job_of_two_devices_trains_on_two_processes(tmp_path: Path, tiny_overrides: list[str]) -> None:
    run(tmp_path, "--multirun", *tiny_overrides, "trainer.devices=2", "score_untrained=false", *LOCAL)
    (scores,) = tmp_path.rglob("scores.json")
    assert told(scores.parent, "scores.json")["world_size"] == 2
    assert told(scores.parent)["status"] == "done"


@pytest.mark.slow
@pytest.mark.ddp
def test_without_the_launcher_a_sweep_of_several_devices_is_refused_with_advice(
    tmp_path: Path, tiny_overrides: list[str]
) -> None:
    """The processes that Lightning starts would each go through the whole sweep."""
    process = start(tmp_path, "--multirun", *tiny_overrides, "trainer.devices=2", "seed=0,1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    jobs = [told(path.parent) for path in tmp_path.rglob("job.json")]
    assert [job["status"] for job in jobs] == ["failed", "failed"]
    assert all("needs 2 processes, one per device" in job["error"] for job in jobs)
    assert all("a whole sweep with hydra/launcher=local" in job["error"] for job in jobs)
    assert not list(tmp_path.rglob("*.ckpt"))


def stop(folder: Path, arguments: list[str], number: signal.Signals) -> str:
    """Send a signal to the launcher alone, when its first job trains; what it printed."""
    process = start(folder, *arguments)
    deadline = time.monotonic() + 120
    while not any(step_checkpoints(path) for path in folder.rglob("checkpoints")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(processes_in(folder)) > 1
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_RESUMABLE, output
    assert f"stopped by {number.name}; 1 jobs not started; go on with resume=auto" in output
    assert processes_in(folder) == []
    return output


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_ends_as_an_undisturbed_one(
    sweep: list[str], one_by_one: Path, tmp_path: Path
) -> None:
    arguments = [*sweep, "hydra/launcher=local"]
    stop(tmp_path, arguments, signal.SIGTERM)
    stopped = jobs_of(tmp_path)
    assert [*stopped] == ["seed=0"]
    assert told(stopped["seed=0"])["status"] == "failed"
    assert not (stopped["seed=0"] / "scores.json").exists()
    run(tmp_path, *arguments)
    for seed, wanted in jobs_of(one_by_one).items():
        assert same(jobs_of(tmp_path)[seed], wanted)
    assert len(told(stopped["seed=0"])["resumed_at"]) == 1


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_a_signal_reaches_all_processes_of_a_job(
    sweep: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    long = [*sweep, "trainer.max_epochs=300", "trainer.devices=2"]
    stop(tmp_path, [*long, "hydra/launcher=local"], number)
    (folder,) = jobs_of(tmp_path).values()
    assert told(folder)["error"] == "interrupted; go on with resume=auto"
    assert newest_whole(folder / "checkpoints") == step_checkpoints(folder / "checkpoints")[0]


@pytest.mark.slow
def test_a_search_goes_by_held_out_identities_and_goes_on(tmp_path: Path, tiny_overrides: list[str]) -> None:
    tune = ["+experiment=tune_tau", *tiny_overrides, "data.validation_identities=2", "score_untrained=false"]
    tune += [*LOCAL, "hydra.sweeper.n_jobs=2"]
    run(tmp_path, *tune, "hydra.sweeper.n_trials=2")
    first = {path: path.read_bytes() for path in tmp_path.rglob("scores.json")}
    assert len(first) == 2
    run(tmp_path, *tune, "hydra.sweeper.n_trials=3")
    records = [told(path.parent, "scores.json") for path in tmp_path.rglob("scores.json")]
    assert len(records) == 3  # the trials of the first start are proposed again, and not run again
    assert all(path.read_bytes() == before for path, before in first.items())
    assert all(record["held_out"]["num_valid_queries"] == 4 for record in records)
    assert all(record["scores"]["num_valid_queries"] == 8 for record in records)
    best = OmegaConf.load(next(tmp_path.rglob("optimization_results.yaml")))
    assert best.best_value == max(record["held_out"]["mAP"] for record in records)
    assert best.best_params.keys() >= {"schedule.temperature.rate", "objective.mu", "objective.margin"}


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., tuple[DictConfig, HydraContext]]:
    """The config of a sweep into ``tmp_path``, and what Hydra hands to a launcher."""

    def build(*overrides: str) -> tuple[DictConfig, HydraContext]:
        register_resolvers()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose("train", [f"hydra.sweep.dir={tmp_path}", *overrides], return_hydra_config=True)
            loader = GlobalHydra.instance().config_loader()
        return config, HydraContext(config_loader=loader, callbacks=Callbacks())

    return build


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every job run ``code``, which knows its ``number`` and ``place``, instead of a training."""

    def command(job: Job) -> list[str]:
        names = f"import os, sys, time, json; number, place = {job.number}, {str(job.output_dir)!r}; "
        return [sys.executable, "-c", f"{names}os.chdir(place); {code}"]

    monkeypatch.setattr(Job, "command", command)


def held_out(returned: list[JobReturn]) -> list[float]:
    return [one.return_value for one in returned]


WRITE = "json.dump({'held_out': {'mAP': number / 10}}, open(place + '/scores.json', 'w')); "
SEEDS = [["seed=0"], ["seed=1"], ["seed=2"]]


def test_a_job_returns_what_its_scores_say_and_nan_if_it_dies(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, f"number == 1 and os.kill(os.getpid(), 9); {WRITE}")
    values = held_out(launch(*context(), SEEDS, first=0, jobs_at_once=3))
    assert (values[0], values[2]) == (0.0, 0.2)
    assert math.isnan(values[1])
    (folder,) = [path.parent for path in tmp_path.rglob("job.json")]
    assert folder.name == "seed=1"
    assert told(folder)["error"] == "its process was ended by SIGKILL"
    assert told(folder)["overrides"] == ["seed=1"]


def test_a_job_that_dies_without_a_word_keeps_what_it_has_to_go_on_from(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(monkeypatch, "sys.exit(3)")
    for resume, moved in (("auto", False), ("none", True)):
        config, hydra_context = context()
        overrides = ["seed=0", f"resume={resume}"]
        launch(config, hydra_context, [overrides], first=0, jobs_at_once=1)
        (place,) = {path.parent for path in tmp_path.rglob("job.json") if "previous" not in path.parts}
        assert told(place)["error"] == "its process was ended with status 3"
        (place / "checkpoints").mkdir(exist_ok=True)
        launch(config, hydra_context, [overrides], first=0, jobs_at_once=1)
        assert (place / "checkpoints").exists() != moved


def test_jobs_at_once_have_gpus_of_their_own(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_launcher, "visible_gpus", lambda: ["3", "5", "6"])
    note = "open(place + '/gpus', 'w').write(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1); "
    stand_in(monkeypatch, note + WRITE)
    launch(*context(), [[*seed, "trainer.devices=1"] for seed in SEEDS], first=0, jobs_at_once=None)
    assert sorted(path.read_text() for path in tmp_path.rglob("gpus")) == ["3", "5", "6"]
    with pytest.raises(CompactHydraException, match=r"trainer.devices=4, but 3 GPUs are visible"):
        launch(*context(), [["trainer.devices=4"]], first=0, jobs_at_once=None)


def test_gpus_that_are_set_already_are_those_that_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_launcher.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,4")
    assert local_launcher.visible_gpus() == ["7", "4"]


def test_on_the_cpu_jobs_share_the_threads(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stand_in(monkeypatch, "open(place + '/threads', 'w').write(os.environ['OMP_NUM_THREADS']); " + WRITE)
    launch(*context("trainer.accelerator=cpu"), SEEDS[:1], first=0, jobs_at_once=2)
    assert next(tmp_path.rglob("threads")).read_text() == "4"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_every_stop_signal_ends_the_jobs_and_then_the_launcher(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    monkeypatch.setattr(local_launcher, "_POLL", 0.05)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # whatever started the tests
    stand_in(monkeypatch, f"os.kill({os.getpid()}, {int(number)}); time.sleep(60)")
    before = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        launch(*context(), SEEDS, first=0, jobs_at_once=1)
    assert stopped.value.code == EXIT_RESUMABLE
    assert time.monotonic() - before < 30
    assert processes_in(tmp_path) == []
    assert [path.parent.name for path in tmp_path.rglob("job.json")] == ["seed=0"]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([["trainer.devices=auto"]], "a whole number, > 0, as trainer.devices"),
        ([["trainer.num_nodes=2"]], "trainer.num_nodes=1; got trainer.devices=1 and trainer.num_nodes=2"),
        ([["data.num_workers=0"], ["data.num_workers=1"]], "the output directory of two jobs"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    context: Callable[..., Any], tmp_path: Path, jobs: list[list[str]], message: str
) -> None:
    with pytest.raises(CompactHydraException, match=message):
        launch(*context(), jobs, first=0, jobs_at_once=1)
    assert not [*tmp_path.iterdir()]


def test_a_job_s_command_keeps_the_settings_of_hydra_that_are_not_the_sweep_s(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Job] = []
    monkeypatch.setattr(local_launcher, "_run_all", lambda jobs, *_: seen.extend(jobs) or {4: 0.5})
    given = (
        "hydra/launcher=local",
        "hydra.launcher.jobs_at_once=1",
        "hydra.verbose=true",
        "hydra.mode=MULTIRUN",
    )
    returned = launch(
        *context(*given), [["+experiment=table1", "trainer.devices=2"]], first=4, jobs_at_once=1
    )
    assert held_out(returned) == [0.5]
    command = seen[0].command()
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    place = f"hydra.run.dir='{seen[0].output_dir}'"
    own = ["hydra.verbose=true", "hydra.mode=RUN", place, "hydra.job.num=4", "hydra.job.id=4"]
    configs = ["--config-name=train", f"--config-path={CONF_DIR}"]
    assert command[-10:] == ["sharpreid.train", *configs, "+experiment=table1", "trainer.devices=2", *own]


def test_a_search_by_the_test_set_is_refused(context: Callable[..., Any]) -> None:
    config, _ = context("hydra/sweeper=tpe", "data.validation_identities=0")
    with pytest.raises(SystemExit, match=r"hold training identities out, data\.validation_identities=100"):
        SweepPreflight().on_multirun_start(config)
    SweepPreflight().on_multirun_start(context("data.validation_identities=0")[0])  # nothing is chosen by it


def test_a_folder_that_cannot_be_written_is_refused_by_name(
    context: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "run"
    config, _ = context(f"hydra.run.dir={place}", f"hydra.sweep.dir={place}")
    with pytest.raises(SystemExit, match=rf"hydra.run.dir={place}: cannot be written .*another folder"):
        SweepPreflight().on_run_start(config)
    with pytest.raises(SystemExit, match=rf"hydra.sweep.dir={place}: cannot be written"):
        SweepPreflight().on_multirun_start(config)
    assert not any(tmp_path.glob("file/*"))


def test_a_search_without_its_plugin_names_what_to_install(
    context: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = context("+experiment=tune_tau")
    monkeypatch.setattr(Plugins.instance(), "class_name_to_class", {config.hydra.launcher._target_: None})
    with pytest.raises(SystemExit, match=r"OptunaSweeper is not installed: pip install 'sharpreid\[tune\]'"):
        SweepPreflight().on_multirun_start(config)
