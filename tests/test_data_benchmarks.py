"""The benchmarks of loader, start-up and training run, and write their rows."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training
from benchmarks.market import write_market, write_small_market
from benchmarks.process import Cost
from benchmarks.training import WARM_UP, FinishedError, StepTimer, flops_per_image
from sharpreid.data.market1501 import load_market1501

ROOT = Path(__file__).parents[1]


def measured(folder: Path, *command: str) -> list[dict[str, Any]]:
    output = folder / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", *command, "--repeats", "1", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    assert content["machine"]["torch"]
    assert "commit" in content["machine"]
    rows: list[dict[str, Any]] = content["rows"]
    compared = [row for row in rows if row["theirs"] is not None]
    assert compared
    assert all(row["name"] and row["ours"] > 0 and row["note"] for row in compared)
    return rows


@pytest.mark.slow
def test_every_path_of_the_loader_is_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path, "benchmarks.loader", "--images", "256")
    assert len({row["name"] for row in rows}) == 5
    assert {row["other"] for row in rows} == {"decode (Pillow), augment image by image"}


@pytest.mark.slow
def test_training_is_compared_with_a_bare_loop_and_a_missing_trainer_is_noted(tmp_path: Path) -> None:
    command = ["benchmarks.training", "--batch", "8", "--steps", "1", "--images", "64", "--workers", "1"]
    rows = measured(tmp_path, *command)
    assert [row["name"].removeprefix("training, batch 8, float32, ") for row in rows] == [
        "four blocks",
        "four blocks, with waiting for data",
        "ResNet-50",
        "ResNet-50, with waiting for data",
        "four blocks against torchreid",
    ]
    assert all(row["theirs"] > 0 and row["ours"] > 0 for row in rows[:-1])
    assert rows[-1]["theirs"] is None
    assert rows[-1]["note"] == "no checkout of torchreid was named"


def test_a_trainer_that_fails_leaves_the_others_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of the repeats is reported, not the first."""
    costs = [Cost(0, 0, None, {"seconds": seconds, "waited": 0.5}) for seconds in (90.0, 20.0, 30.0)]
    found = [[Cost(0, 0, None, rate) for rate in (1e12, 2e12)], costs, costs, "no room"]
    monkeypatch.setattr(training, "interleaved_costs", lambda calls, repeats: found)
    loop, waiting, failed, theirs = training.measure({}, batch=8, images=64)
    assert (loop.ours, loop.theirs) == (30e3 / 8, 30e3 / 8)
    assert waiting.ratio == pytest.approx(30 / 29.5)
    assert (failed.ours, failed.ratio, failed.note) == (None, None, "failed: no room")
    assert theirs.theirs is None


def test_a_timer_leaves_out_the_first_steps_and_counts_the_waiting_between_its_ends() -> None:
    timer = StepTimer(2)
    for step in range(WARM_UP + 2):
        timer.start_step(waited=10.0 * step)
        time.sleep(0.01)
    with pytest.raises(FinishedError):
        timer.start_step(waited=10.0 * (WARM_UP + 2))
    figures = timer.mean_times()
    assert figures["waited"] == 10
    assert 0.01 <= figures["seconds"] < 1


def test_operations_of_resnet50_are_those_known() -> None:
    forward = 2 * 4.09e9 * (256 * 128) / 224**2  # multiply-adds of torchvision's at 224 x 224
    assert flops_per_image("model.blocks=[]") == pytest.approx(3 * forward, rel=0.03)


@pytest.mark.slow
def test_help_and_the_way_to_the_first_batch_are_measured(tmp_path: Path) -> None:
    images = write_small_market(tmp_path / "market", 256)  # 64 x 4: a batch
    rows = measured(tmp_path, "benchmarks.startup", "--root", str(images))
    assert [row["name"] for row in rows] == ["sharpreid.train --help", "sharpreid.train, to the first batch"]


@pytest.mark.slow
def test_the_images_for_the_start_up_are_as_many_as_those_of_market1501(tmp_path: Path) -> None:
    data = load_market1501(root=write_market(tmp_path / "market"))
    assert (len(data.train), len(data.query)) == (12_936, 3_368)


@pytest.mark.slow
def test_embedding_and_searching_are_measured(tmp_path: Path) -> None:
    (row,) = measured(tmp_path, "benchmarks.embed", "--images", "8")
    assert (row["name"], row["other"]) == ("sharpreid.embed", "a bare loop")
    rows = measured(tmp_path, "benchmarks.search", "--sizes", "400")
    assert [row["name"] for row in rows] == [
        "exact search, 400 rows",
        "approximate search, 400 rows",
        "exact search, 400 rows, filter",
        "make the index, 400 rows",
    ]
    assert rows[0]["theirs"] is None
    assert "recall" in rows[1]["note"]
