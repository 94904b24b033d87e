"""Kills a training with SIGKILL a hundred times and compares its end with that of an undisturbed one.

``make soak``, or ``python -m tests.soak --cycles 100 --record FILE.json`` from the root of the checkout.
"""

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharpreid.checkpoint_files import DamagedCheckpointError, newest_whole, step_checkpoints, step_of, verify
from sharpreid.checkpoint_io import SafeCheckpointIO
from sharpreid.run.records import describe_code
from tests.soak.phase import SAVE, SCORING, START, read_phase
from tests.test_resume import differing

STEPS_PER_CYCLE = 4
"""At most so many new steps are made before a kill, and one more is begun."""

KILLED_AT_START = 0.15
"""Share of the kills that come before the training goes on, or while the test set is scored."""

PATIENCE = 300
"""Seconds without a new step after which a training counts as hung."""


def write_images(root: Path) -> None:
    """12 training and 12 test identities in Market-1501's layout, hard to tell apart."""
    rng = np.random.default_rng(0)
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        (root / folder).mkdir(parents=True)
    for pid in range(1, 25):
        colour = rng.integers(118, 138, 3)
        for camera in (1, 2):
            for number in range(2):
                test_folder = "bounding_box_test" if number else "query"
                folder = "bounding_box_train" if pid <= 12 else test_folder
                pixels = np.clip(colour + rng.integers(-90, 91, (32, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{pid:04d}_c{camera}s1_{number:06d}_00.jpg")


class Training:
    """``python -m sharpreid.train resume=auto`` in a directory of its own."""

    def __init__(self, folder: Path, images: Path, epochs: int, width: int) -> None:
        self.folder = folder
        self.phase_file = folder.with_suffix(".phase")
        self.output = folder.with_suffix(".log")
        self.arguments = [
            *(sys.executable, "-m", "sharpreid.train"),
            *("resume=auto", f"hydra.run.dir={folder}", "logger=csv"),
            *("data=market1501", f"data.source.root={images}", "data.source.allow_subset=true"),
            *("data.identities_per_batch=4", "data.images_per_identity=2", "data.validation_identities=2"),
            *("data.num_workers=0", "data.cache=null", "data.eval_transform.crops=plain"),
            *("image.height=32", "image.width=16"),
            *("model.trunk.depths=[1,1,1,1]", "model.trunk.weights=none", "objective.margin=2"),
            *(f"model.trunk.width={width}", f"model.head.in_features={32 * width}"),
            *(f"trainer.max_epochs={epochs}", "trainer.accelerator=cpu", "trainer.devices=1"),
            *("trainer.check_val_every_n_epoch=1", "callbacks.checkpoint.every_n_steps=2"),
            "+callbacks.phase._target_=tests.soak.phase.PhaseMarker",
            f"+callbacks.phase.file={self.phase_file}",
        ]

    def start(self) -> subprocess.Popen[bytes]:
        self.phase_file.unlink(missing_ok=True)
        with self.output.open("wb") as output:
            return subprocess.Popen(
                self.arguments,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check_running(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            said = self.output.read_text()[-3000:]
            raise RuntimeError(f"the training ended by itself, status {process.returncode}:\n{said}")

    def finish(self) -> float:
        """Run to the end; seconds until the first step."""
        began, process = time.monotonic(), self.start()
        wait_for_step(self, process, 0)
        start_up = time.monotonic() - began
        if process.wait() != 0:
            self.check_running(process)
        return start_up

    def newest(self) -> int:
        """Step of the newest whole checkpoint; 0 without any."""
        found = newest_whole(self.folder / "checkpoints")
        return 0 if found is None else step_of(found)

    def result(self) -> tuple[dict[str, Any], dict[str, Any], Counter[tuple[tuple[str, str], ...]]]:
        """The last checkpoint, scores, and the rows of the log."""
        newest = newest_whole(self.folder / "checkpoints")
        if newest is None:
            raise RuntimeError(f"{self.folder}: no checkpoint at the end")
        checkpoint = SafeCheckpointIO().load_checkpoint(newest)
        checkpoint["loops"] = checkpoint["loops"]["fit_loop"]  # the others count tests of this process
        record = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
        scores = {key: record[key] for key in ("scores", "untrained", "epochs", "iterations")}
        with (self.folder / "csv" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            timed = "train/data_wait"  # these rows are of a clock
            read = [row for row in csv.DictReader(file) if not row.get(timed)]
        rows = Counter(tuple(sorted((k, v) for k, v in row.items() if v)) for row in read)
        return checkpoint, scores, rows


def kill_once(training: Training, rng: np.random.Generator, start_up: float) -> str:
    """Start the training, kill it at a random moment; what it was doing then."""
    before = training.newest()
    process = training.start()
    try:
        if rng.random() < KILLED_AT_START:
            time.sleep(rng.uniform(0, start_up))
        else:
            step = before + int(rng.integers(STEPS_PER_CYCLE + 1))
            wait_for_step(training, process, step)
            end = time.monotonic() + rng.uniform(0, 0.5)  # on a fast machine that is many steps
            while time.monotonic() < end and read_phase(training.phase_file)[1] <= step + 1:
                time.sleep(0.002)
        training.check_running(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if any((training.folder / "checkpoints").glob(".step=*")) and start_up_is_over(training):
        return SAVE
    return read_phase(training.phase_file)[0]


def start_up_is_over(training: Training) -> bool:
    return read_phase(training.phase_file)[0] not in (START, SCORING)


def wait_for_step(training: Training, process: subprocess.Popen[bytes], step: int) -> None:
    """Until so many optimizer steps are done and the next is begun."""
    deadline = time.monotonic() + PATIENCE
    while True:
        phase, steps = read_phase(training.phase_file)
        if phase not in (START, SCORING) and steps >= step:
            return
        training.check_running(process)
        if time.monotonic() > deadline:
            raise RuntimeError(f"no step {step} after {PATIENCE} s:\n{training.output.read_text()[-3000:]}")
        time.sleep(0.01)


def soak(folder: Path, cycles: int, seed: int, width: int = 64) -> dict[str, Any]:
    """What `main` writes. ``width`` is the trunk's: with 64 most of a step is a save."""
    began = time.monotonic()
    epochs = 2 * cycles + 40  # of 2 steps; a cycle gains about 2 and at most 7: all kills come before the end
    write_images(folder / "images")
    undisturbed, disturbed = (
        Training(folder / name, folder / "images", epochs, width) for name in ("undisturbed", "killed")
    )
    start_up = undisturbed.finish()
    rng = np.random.default_rng(seed)
    kills: Counter[str] = Counter()
    lost, damaged = 0, 0
    for cycle in range(1, cycles + 1):
        before = disturbed.newest()
        kills[kill_once(disturbed, rng, start_up)] += 1
        after = disturbed.newest()
        lost += after < before
        damaged += sum(is_damaged(path) for path in step_checkpoints(disturbed.folder / "checkpoints"))
        print(f"[{cycle}/{cycles}] step {after}, kills {dict(kills)}", flush=True)
    disturbed.finish()
    (checkpoint, scores, rows), (wanted, wanted_scores, wanted_rows) = (
        disturbed.result(),
        undisturbed.result(),
    )
    left = [*(disturbed.folder / "checkpoints").glob(".*")]
    return {
        "cycles": cycles,
        "seed": seed,
        "kills": dict(sorted(kills.items())),
        "optimizer_steps": scores["iterations"],
        "kills_that_lost_a_checkpoint": lost,
        "damaged_checkpoints": damaged,
        "unfinished_files_left": len(left),
        "tensors_and_values_that_differ": differing(checkpoint, wanted),
        "scores_equal": scores == wanted_scores,
        "scores": scores["scores"],
        "log_rows": {
            "undisturbed": wanted_rows.total(),
            "missing": (wanted_rows - rows).total(),
            "too_many_or_other": (rows - wanted_rows).total(),
        },
        "seconds": round(time.monotonic() - began),
        "machine": f"{processor()}, {os.cpu_count()} cores, 1 thread",
        "versions": json.loads((undisturbed.folder / "scores.json").read_text(encoding="utf-8"))["versions"],
        **describe_code(),
    }


def is_damaged(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except DamagedCheckpointError:
        return True
    return False


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def failures(record: dict[str, Any]) -> list[str]:
    """What is not as it has to be."""
    none = ("kills_that_lost_a_checkpoint", "damaged_checkpoints", "tensors_and_values_that_differ")
    found = [key for key in (*none, "unfinished_files_left") if record[key]]
    found += [] if record["scores_equal"] else ["scores_equal"]
    return found + [f"log_rows.{key}" for key in ("missing", "too_many_or_other") if record["log_rows"][key]]


def main() -> None:
    """Run the soak; exit status 1 if anything was lost or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=Path("experiments/soak/record.json"))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    record = soak(folder, arguments.cycles, arguments.seed)
    text = json.dumps(record, indent=2)
    print(text)
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    arguments.record.write_text(text + "\n", encoding="utf-8")
    if wrong := failures(record):
        sys.exit(f"not as it has to be: {', '.join(wrong)}; the runs are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
