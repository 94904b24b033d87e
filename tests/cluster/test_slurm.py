"""A sweep on a real scheduler: a job array of 2 processes each, of which some are stopped and go on."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpreid.checkpoint_files import step_checkpoints
from sharpreid.checkpoint_io import SafeCheckpointIO

SCRIPT = Path(__file__).with_name("slurm.sh")
BLOCKS = ("[]", "[1]", "[9]")  # the last cannot be built
TRAIN = (sys.executable, "-m", "sharpreid.train")

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of this machine, while the tests run."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root and apt-get, to install and start slurm-wlm")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run(["sh", SCRIPT, "start", folder], capture_output=True, text=True, timeout=300)
        if started.returncode:
            pytest.fail(f"SLURM does not start here: {started.stderr}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
            patch.setenv("WANDB_MODE", "offline")
            yield
    finally:
        subprocess.run(["sh", SCRIPT, "stop", folder], check=True, timeout=120)


@pytest.fixture
def overrides(tiny_overrides: list[str]) -> list[str]:
    """A run of 30 steps on 2 processes, with all loggers."""
    return [
        *tiny_overrides,
        "logger=wandb_csv",
        "trainer.devices=2",
        "trainer.max_epochs=15",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.masks.images=0",
    ]


class Sweep:
    """The block ablation, submitted as a job array from ``folder``."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        experiment = ["+experiment=block_ablation", "+cluster=slurm", f"model.blocks={','.join(BLOCKS)}"]
        self.outputs = folder / "outputs" / "block_ablation"
        self.process = subprocess.Popen(
            [*TRAIN, *experiment, *overrides, "hydra.launcher.cpus_per_task=1"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def job(self, number: int) -> tuple[Path, dict[str, Any]]:
        """Directory of a job, and its job.json."""
        for path in self.outputs.rglob("job.json"):
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if f"model.blocks={BLOCKS[number]}" in content["overrides"]:
                return path.parent, content
        raise FileNotFoundError(f"no job.json of model.blocks={BLOCKS[number]} below {self.outputs}")

    def trains(self, number: int) -> bool:
        """Whether a job has begun to train."""
        try:
            return len(step_checkpoints(self.job(number)[0] / "checkpoints")) > 0
        except FileNotFoundError:
            return False

    def wait_until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not what():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.2)

    def end(self) -> str:
        """Its output, once it has ended."""
        output, _ = self.process.communicate(timeout=600)
        return output


@pytest.fixture
def sweep(cluster: None, tmp_path: Path, overrides: list[str]) -> Iterator[Sweep]:
    submitted = Sweep(tmp_path, overrides)
    yield submitted
    submitted.process.kill()
    submitted.process.communicate()
    subprocess.run(["scancel", "--name=block_ablation"], check=True)


def squeue(*arguments: str) -> list[str]:
    return subprocess.check_output(["squeue", "--noheader", *arguments], text=True).split()


def job_id(number: int) -> str:
    """SLURM's id of a job of the array."""
    return dict(pair.split("=") for pair in squeue("--name=block_ablation", "--format=%K=%A"))[str(number)]


def result(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores and final weights of a run."""
    record = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    weights = SafeCheckpointIO().load_checkpoint(run / record["checkpoint"])["state_dict"]
    return {key: record[key] for key in ("scores", "untrained", "iterations", "world_size")}, weights


def test_a_job_array_that_is_preempted_equals_undisturbed_runs(
    sweep: Sweep, tmp_path: Path, overrides: list[str]
) -> None:
    """One job makes way for a more important one, another is near its time limit, and one fails."""
    sweep.wait_until(lambda: sweep.trains(0) and sweep.trains(1))
    assert squeue("--states=RUNNING", "--format=%C") == ["2", "2"]  # CPUs
    before = [sweep.job(number)[1] for number in range(2)]
    subprocess.check_call(
        ["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"]
    )
    sweep.wait_until(lambda: any(sweep.job(number)[1]["status"] == "failed" for number in range(2)))
    preempted = [sweep.job(number)[1]["status"] for number in range(2)].index("failed")
    subprocess.run(["scancel", "--signal=USR1", job_id(1 - preempted)])  # repeats it, and says it cannot
    output = sweep.end()
    assert sweep.process.returncode == 1
    assert "1 of 3 jobs have no score." in output
    assert "blocks must be different numbers of 1-4" in output
    for number, blocks in enumerate(BLOCKS[:2]):
        folder, job = sweep.job(number)
        local = tmp_path / f"local{number}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        subprocess.run(
            [*torchrun, *TRAIN[2:], *overrides, f"model.blocks={blocks}", f"hydra.run.dir={local}"],
            check=True,
            capture_output=True,
        )
        (scores, weights), (wanted, wanted_weights) = result(folder), result(local)
        assert scores == wanted
        assert scores["world_size"] == 2
        assert weights.keys() == wanted_weights.keys()
        assert all(torch.equal(weights[name], wanted_weights[name]) for name in weights)
        assert len(job["resumed_at"]) == 1
        assert 0 < job["resumed_at"][0] < 30
        assert job["wandb_id"] == before[number]["wandb_id"]
        assert len([*folder.glob(f"wandb/offline-run-*-{job['wandb_id']}")]) == 2


def test_a_cancelled_job_is_not_queued_again(sweep: Sweep) -> None:
    sweep.wait_until(lambda: sweep.trains(0))
    array = squeue("--states=RUNNING", "--name=block_ablation", "--format=%F")[0]
    subprocess.check_call(["scancel", array])
    sweep.wait_until(lambda: not squeue("--name=block_ablation"))
    time.sleep(10)  # the cluster queues a job again after 5
    assert not squeue("--name=block_ablation")
    _, job = sweep.job(0)
    assert (job["status"], job["error"]) == ("failed", "interrupted; go on with resume=auto")
