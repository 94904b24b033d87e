"""Jobs of a sweep in processes of their own, without a scheduler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.ddp
def test_each_job_has_a_process_per_device(tiny_overrides: list[str], tmp_path: Path) -> None:
    sweep = [
        "+cluster=submitit_local",
        "trainer.devices=2",
        "seed=0,1",
        "score_untrained=false",
    ]
    command = [sys.executable, "-m", "sharpreid.train", *tiny_overrides, *sweep]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("scores.json")]
    assert sorted((record["seed"], record["world_size"]) for record in records) == [(0, 2), (1, 2)]
