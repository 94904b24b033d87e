"""Two hosts, each a network namespace, joined by a cable that can be pulled: ``make test-hosts``."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpreid.checkpoint_files import newest_whole, step_checkpoints, step_of
from sharpreid.checkpoint_io import SafeCheckpointIO

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

INTERFACE = "cable"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TIMEOUT = 20  # seconds
EPOCHS = 4  # of 2 steps


class Hosts:
    """Two network namespaces and what runs in them."""

    def __init__(self) -> None:
        self.names = [f"sharpreid-{os.getpid()}-{number}" for number in range(2)]
        self.processes: list[subprocess.Popen[str]] = []

    def set_up(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        one, other = self.names
        ip("link", "add", INTERFACE, "netns", one, "type", "veth", "peer", "name", INTERFACE, "netns", other)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", INTERFACE, "up")

    def tear_down(self) -> None:
        for number in range(2):
            self.kill_all_on(number)
        for process in self.processes:
            process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # and the cable with it

    def kill_all_on(self, number: int) -> None:
        """Everything that runs on a host: torchrun gives its processes sessions of their own."""
        command = ["ip", "netns", "pids", self.names[number]]
        running = subprocess.run(command, capture_output=True, text=True).stdout.split()
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def pull_the_cable(self) -> None:
        ip("-n", self.names[0], "link", "set", INTERFACE, "down")

    def plug_it_in(self) -> None:
        ip("-n", self.names[0], "link", "set", INTERFACE, "up")

    def start(self, overrides: Sequence[str], output_dir: Path) -> list[subprocess.Popen[str]]:
        """``torchrun -m sharpreid.train`` on both."""
        started = []
        for rank, name in enumerate(self.names):
            torchrun = [
                *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
                *("--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"),
                *(f"--master-addr={ADDRESSES[0]}", "--master-port=29500"),
            ]
            several = ["trainer.num_nodes=2", f"trainer.timeout_minutes={TIMEOUT / 60}"]
            started.append(popen([*torchrun, *train(overrides, output_dir), *several]))
        self.processes += started
        return started


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def train(overrides: Sequence[str], output_dir: Path) -> list[str]:
    return ["-m", "sharpreid.train", *overrides, "resume=auto", f"hydra.run.dir={output_dir}"]


def popen(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE if command[0] == "ip" else "lo",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    """Wait until all have ended well."""
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def result(output_dir: Path) -> dict[str, Any]:
    """Weights and optimizer state at the end, scores and the losses of all steps."""
    newest = newest_whole(output_dir / "checkpoints")
    assert newest is not None
    checkpoint = SafeCheckpointIO().load_checkpoint(newest)
    record = json.loads((output_dir / "scores.json").read_text(encoding="utf-8"))
    with (output_dir / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    return {
        "step": step_of(newest),
        "losses": losses,
        "scores": record["scores"],
        "weights": checkpoint["state_dict"],
        "moments": checkpoint["optimizer_states"][0]["state"],
    }


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the superuser and the command ip (iproute2)")
    pair = Hosts()
    try:
        try:
            pair.set_up()
        except subprocess.CalledProcessError as error:
            allowed = "not permitted" not in error.stderr
            (pytest.fail if allowed else pytest.skip)(f"no network namespaces here: {error.stderr.strip()}")
        yield pair
    finally:
        pair.tear_down()


@pytest.fixture(scope="module")
def overrides(tiny_overrides: list[str]) -> list[str]:
    """In float64."""
    return [
        *tiny_overrides,
        f"trainer.max_epochs={EPOCHS}",
        "trainer.precision=64-true",
        "objective.margin=20",
        "batch_norm=global",
        "callbacks.checkpoint.every_n_steps=1",
    ]


@pytest.fixture(scope="module")
def undisturbed(
    hosts: Hosts, overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What two hosts come to when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(*hosts.start(overrides, folder))
    return result(folder)


def test_two_hosts_train_what_two_processes_of_one_do(
    undisturbed: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finish(popen([sys.executable, *torchrun, *train([*overrides, "trainer.devices=2"], tmp_path)]))
    assert undisturbed["step"] == len(undisturbed["losses"]) == 2 * EPOCHS
    assert equal(result(tmp_path), undisturbed)


def test_two_hosts_have_the_losses_weights_and_scores_of_one_process(
    undisturbed: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    finish(popen([sys.executable, *train(overrides, tmp_path)]))
    alone = result(tmp_path)
    assert alone["losses"] == pytest.approx(undisturbed["losses"], rel=0, abs=1e-10)
    for name, weight in alone["weights"].items():  # Adam lets roundings grow about threefold a step
        assert torch.allclose(weight, undisturbed["weights"][name], rtol=1e-8, atol=1e-8), name
    assert len({*alone["losses"]}) == 2 * EPOCHS
    assert alone["scores"] == undisturbed["scores"]


@pytest.mark.parametrize("loss", ["cable pulled", "host gone"])
def test_the_others_stop_and_the_run_goes_on_when_all_are_back(
    loss: str, hosts: Hosts, undisturbed: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    both = hosts.start(overrides, tmp_path)
    wait_for_step(3, tmp_path, both)
    if loss == "cable pulled":
        hosts.pull_the_cable()
        stopping = both
    else:
        hosts.kill_all_on(1)
        stopping = both[:1]
    lost = time.monotonic()
    try:
        outputs = [process.communicate(timeout=10 * TIMEOUT)[0] for process in stopping]
    finally:
        hosts.plug_it_in()
    took = time.monotonic() - lost
    print(*outputs, f"{loss}: all stopped after {took:.1f} s", sep="\n")
    for process, output in zip(stopping, outputs, strict=True):
        assert process.returncode == 1
        assert "another process of this run ended, or did not answer for trainer.timeout_minutes=" in output
        assert "start all processes again with resume=auto" in output
    assert took < 3 * TIMEOUT
    stopped = newest_whole(tmp_path / "checkpoints")
    assert stopped is not None
    assert 3 <= step_of(stopped) < 2 * EPOCHS
    finish(*hosts.start(overrides, tmp_path))
    assert equal(result(tmp_path), undisturbed)
    resumed_at = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["resumed_at"]
    assert resumed_at == [step_of(stopped)]


def wait_for_step(step: int, output_dir: Path, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Until there is a checkpoint of it."""
    deadline = time.monotonic() + 180
    while not (found := step_checkpoints(output_dir / "checkpoints")) or step_of(found[0]) < step:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)
