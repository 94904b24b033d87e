"""Measure how time and memory grow with gallery, batch, image, attention blocks and processes.

``python -m benchmarks.growth [--output DIR]`` writes growth.json, and one SVG for each quantity.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator
from rich.console import Console
from rich.table import Table

from benchmarks.attention import saved_bytes
from benchmarks.embeddings import make_embeddings
from benchmarks.networks import build_network
from benchmarks.process import Cost, measure_cost, median_costs
from benchmarks.rows import describe_machine
from sharpreid.evaluation import numba_kernels
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.models.network import SharpAttentionNetwork

HERE = Path(__file__).with_name("growth")

_MEMORY = {"scoring": "MB at the peak", "step by processes": "MB each, network included"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Time and memory at several values of one quantity."""

    name: str
    quantity: str
    values: list[int]
    seconds: list[float]
    megabytes: list[float]

    def exponents(self) -> tuple[float, float]:
        """Return the exponents of time and memory, fitted by least squares to the logarithms; 1 is linear."""
        return _slope(self.values, self.seconds), _slope(self.values, self.megabytes)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if min(y) > 0 else math.nan


def scoring(gallery: int) -> Callable[[], float]:
    """Prepare to score 500 queries against a gallery, at most half of which are matches."""
    matching = min(gallery // 2, 10_000)
    data = make_embeddings(500, matching, gallery - matching, 250, 6, dim=128)
    numba_kernels.MIN_PAIRS = 0
    evaluate_ranking(*(x[:256] for x in data), protocol=Protocol.market1501())
    return lambda: evaluate_ranking(*data, protocol=Protocol.market1501()).mAP


def training_step(batch: int, height: int, blocks: int) -> Callable[[], tuple[float, float]]:
    """Prepare to measure the seconds of a float32 training step and the bytes it saves for the gradient.

    Args:
        batch: number of images.
        height: height of the images, whose width is half of it.
        blocks: number of attention blocks, from the first one on.
    """
    built = build_network(f"model.blocks={list(range(1, blocks + 1))}")
    images = torch.randn(batch, 3, height, height // 2).to(memory_format=torch.channels_last)

    def run() -> tuple[float, float]:
        times = []
        for _ in range(6):
            start = time.perf_counter()
            built.zero_grad(set_to_none=True)
            built.training_forward(images, total_variation=False).embedding.square().mean().backward()
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:])), saved_bytes(built, images, bf16=False, variation=False)

    return run


def distributed_step(processes: int) -> Callable[[], tuple[float, float]]:
    """Prepare to measure the seconds of a step of several gloo processes, and the peak bytes of each.

    Args:
        processes: number of processes with one thread each, which share 16 images of 128 x 64.
    """
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]

    def run() -> tuple[float, float]:
        done = subprocess.run(
            [*start, "-m", "benchmarks.growth", "--rank"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        seconds, peak = done.stdout.split()[-2:]
        return float(seconds), float(peak)

    return run


def run_worker() -> None:
    """Run one process of `distributed_step`; the first process prints its seconds per step and peak bytes."""
    torch.distributed.init_process_group("gloo")
    cost = measure_cost(_time_steps)
    if torch.distributed.get_rank() == 0:
        print(cost.value, cost.peak_bytes or 0)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class _TrainingForward(torch.nn.Module):
    """Module whose forward pass is that of a training step."""

    def __init__(self, built: SharpAttentionNetwork) -> None:
        super().__init__()
        self.network = built

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.training_forward(images, total_variation=False).embedding


def _time_steps() -> float:
    """Return the seconds of a step.

    The network is local to this function so that it is deleted before its process group. Otherwise the two
    may wait for each other at the end of the process.
    """
    built = torch.nn.parallel.DistributedDataParallel(_TrainingForward(build_network()))
    images = torch.randn(16 // torch.distributed.get_world_size(), 3, 128, 64)
    images = images.to(memory_format=torch.channels_last)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        built(images).square().mean().backward()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def measure() -> list[Curve]:
    """Measure the points of all curves."""
    fixed = {"batch": 8, "height": 128, "blocks": 4}
    plans: list[tuple[str, str, str, str, list[int]]] = [
        ("scoring", "gallery items", "scoring", "gallery", [10_000, 31_623, 100_000, 316_228, 1_000_000]),
        ("step by batch", "images", "training_step", "batch", [4, 8, 16, 32]),
        ("step by image", "pixels of height", "training_step", "height", [96, 128, 192, 256]),
        ("step by attention", "blocks", "training_step", "blocks", [1, 2, 3, 4]),
        ("step by processes", "processes", "distributed_step", "processes", [1, 2, 4]),
    ]
    curves = []
    for name, quantity, function, varied, values in plans:
        others = fixed if function == "training_step" else {}
        calls: list[tuple[str, dict[str, Any]]] = [
            (f"benchmarks.growth:{function}", {**others, varied: value}) for value in values
        ]
        costs = median_costs(calls, 1)
        failed = [one for one in costs if isinstance(one, str)]
        if failed:
            raise RuntimeError(f"{name}: {failed[0]}")
        good = [one for one in costs if isinstance(one, Cost)]
        # the functions of steps return their own measurements, which leave out a first step
        pairs = [(one.seconds, one.peak_bytes or 0) if function == "scoring" else one.value for one in good]
        curves.append(
            Curve(
                name=name,
                quantity=quantity,
                values=values,
                seconds=[seconds for seconds, _ in pairs],
                megabytes=[held / 1e6 for _, held in pairs],
            )
        )
    return curves


def draw(curve: Curve, file: Path) -> None:
    """Draw time and memory over the quantity on logarithmic axes, as SVG."""
    with_memory = min(curve.megabytes) > 0
    figure = Figure(figsize=(8 if with_memory else 4, 3), layout="constrained")
    panels = [(curve.seconds, "seconds", curve.exponents()[0])]
    if with_memory:
        panels.append(
            (curve.megabytes, _MEMORY.get(curve.name, "MB kept for the gradient"), curve.exponents()[1])
        )
    for place, (values, label, exponent) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.loglog(curve.values, values, marker="o", color="black", linewidth=1)
        axes.set(xlabel=curve.quantity, ylabel=label, title=f"{curve.name}: exponent {exponent:.2f}")
        axes.set_xticks(curve.values, [EngFormatter(places=0, sep="")(value) for value in curve.values])
        decades = math.log10(max(values) / min(values))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 1 else range(1, 10)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE,
        metavar="DIR",
        help="folder; by default benchmarks/growth/, which has the record",
    )
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        run_worker()
        return
    about, curves = describe_machine(), measure()
    given.output.mkdir(parents=True, exist_ok=True)
    table = Table("curve", "from", "to", "time exponent", "memory exponent")
    for curve in curves:
        exponents = ["-" if math.isnan(value) else f"{value:.2f}" for value in curve.exponents()]
        table.add_row(curve.name, str(curve.values[0]), str(curve.values[-1]), *exponents)
        draw(curve, given.output / f"{curve.name.replace(' ', '_')}.svg")
    Console().print(table)
    rows = [{**asdict(curve), "exponents": curve.exponents()} for curve in curves]
    content = json.dumps({"machine": about, "curves": rows}, indent=1).replace("NaN", "null")
    (given.output / "growth.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
