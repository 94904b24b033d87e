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
    rows: list[dict[str, Any]] = json.loads(output.read_text())
    for row in rows:
        assert row["machine"]
        assert row["versions"]["torch"]
        assert "commit" in row
        assert row["what"] in done.stdout
    return rows


@pytest.mark.slow
def test_gathering_pixels_costs_the_host_least(tmp_path: Path) -> None:
    rows = measured(tmp_path, "benchmarks.loader", "--images", "256")
    ratio = {row["what"]: row["ratio"] for row in rows}
    assert len(ratio) == 6
    assert ratio["decode (Pillow), augment image by image"] == 1
    assert ratio["cache, gather pixels (augment_on=device)"] > 5


@pytest.mark.slow
def test_help_is_there_before_torch_is(tmp_path: Path) -> None:
    rows = measured(tmp_path, "benchmarks.startup")
    ratio = {row["what"]: row["ratio"] for row in rows}
    assert ratio["sharpreid.train --help"] < 1 < ratio["sharpreid.train, to the first batch"]
