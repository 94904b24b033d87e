"""The measurements of loader and start-up run, and write what they found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    assert all(row["ratio"] > 0 and row["name"] and row["note"] for row in rows)
    return rows


@pytest.mark.slow
def test_every_path_of_the_loader_is_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path, "benchmarks.loader", "--images", "256")
    assert len({row["name"] for row in rows}) == 5
    assert {row["other"] for row in rows} == {"decode (Pillow), augment image by image"}


@pytest.mark.slow
def test_help_and_the_way_to_the_first_batch_are_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path, "benchmarks.startup")
    assert [row["name"] for row in rows] == ["sharpreid.train --help", "sharpreid.train, to the first batch"]
