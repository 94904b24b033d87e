"""Measure how long commands take to start.

The commands are ``python -m sharpreid.train --help`` and a training up to its first batch, on a data set of
Market-1501's size with cached images. Both are compared with ``python -c "import torch"``, because machines
and disks differ. The commands are interleaved within each repeat, and the median is reported.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl

from benchmarks import command
from benchmarks.market import write_market
from benchmarks.rows import Row, describe_machine
from sharpreid.run.preparation import prepare

TORCH = 'python -c "import torch"'
HELP = "sharpreid.train --help"
FIRST_BATCH = "sharpreid.train, to the first batch"

LIMITS = {HELP: 1.5, FIRST_BATCH: 10.0}
"""Longest acceptable time, in seconds."""

_ROOT = Path(__file__).parents[1]


class ExitAtFirstBatch(pl.Callback):
    """Callback that exits when the first batch is on the device."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Exit without cleaning up."""
        os._exit(0)


def measure(*, repeats: int = 3, root: Path | None = None) -> list[Row]:
    """Run every command in a new process.

    Args:
        repeats: number of repeats.
        root: Market-1501 folder; None makes one of noise with the same number of images.

    Returns:
        A row per command, compared with importing torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        market = root or write_market(Path(folder) / "market")
        data = ["data=market1501", f"data.source.root={market}", f"data.cache={folder}/cache"]
        data += ["data.source.allow_subset=true"] if root else []
        prepare(data)
        commands = {
            TORCH: ["-c", "import torch"],
            HELP: ["-m", "sharpreid.train", "--help"],
            FIRST_BATCH: [
                *("-m", "sharpreid.train", *data, "data.num_workers=0", "score_untrained=false"),
                *("model.trunk.weights=none", "model.trunk.depths=[1,1,1,1]", "trainer.accelerator=cpu"),
                *("logger=csv", f"hydra.run.dir={folder}/run"),
                "+callbacks.end._target_=benchmarks.startup.ExitAtFirstBatch",
            ],
        }
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for repeat in range(repeats + 1):  # the first repeat warms up
            for what, command in commands.items():
                taken = _time_command(command)
                if repeat:
                    times[what].append(taken)
    seconds, cpu_seconds = (
        {what: median(one[n] for one in found) for what, found in times.items()} for n in (0, 1)
    )
    return [
        Row(
            name=what,
            ours=seconds[what],
            unit="s",
            other=TORCH,
            theirs=seconds[TORCH],
            better="lower",
            limit=limit_s / seconds[TORCH],
            note=f"at most {limit_s:g} s; {cpu_seconds[what]:.2f} and {cpu_seconds[TORCH]:.2f} s of CPU",
        )
        for what, limit_s in LIMITS.items()
    ]


def _time_command(command: Sequence[str]) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of a Python process.

    Raises:
        RuntimeError: the process failed; the message contains its output.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=_ROOT, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = command.make_parser("startup", __doc__)
    parser.add_argument(
        "--repeats", type=command.integer_at_least(1), default=3, metavar="N", help="3 by default"
    )
    parser.add_argument(
        "--root", type=command.existing_folder, metavar="DIR", help="Market-1501 folder; noise by default"
    )
    given = parser.parse_args(arguments)
    about = describe_machine()
    with command.errors_in_one_line():
        rows = measure(repeats=given.repeats, root=given.root)
        command.report_rows(rows, about, "start-up", given.output)


if __name__ == "__main__":
    main()
