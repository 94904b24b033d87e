"""Time and memory of functions, each of which runs in a new process with its own peak memory."""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Time, memory and result of a call."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    """Peak above the memory held before the call; None where the system does not report it."""
    value: Any
    """Result of the call."""


def measure_cost(work: Callable[[], Any]) -> Cost:
    """Measure the cost of a call in this process."""
    before = _reset_peak()
    cpu, start = time.process_time(), time.perf_counter()
    value = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Cost(seconds, cpu_seconds, None if before is None else _read_status("VmHWM") - before, value)


def _reset_peak() -> int | None:
    """Reset the peak memory and return the bytes in use; None where the system does not report them."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _read_status("VmRSS")
    except OSError:
        return None


def _read_status(key: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def median_costs(calls: Sequence[tuple[str, dict[str, Any]]], repeats: int) -> list[Cost | str]:
    """Return the median times of each call, see `interleaved_costs`.

    Returns:
        The cost of each call, with the largest peak and the first result, or an error message.
    """
    return [one if isinstance(one, str) else _median(one) for one in interleaved_costs(calls, repeats)]


def interleaved_costs(calls: Sequence[tuple[str, dict[str, Any]]], repeats: int) -> list[list[Cost] | str]:
    """Run all calls in turn, several times, each call in a new process.

    Args:
        calls: ``module:function`` and keyword arguments. The function prepares the call, and returns the
            function whose cost is measured.
        repeats: number of repeats, at least 1.

    Returns:
        The costs of each call, or an error message.
    """
    found: list[list[Cost | str]] = [[] for _ in calls]
    for _ in range(repeats):
        for results, (function, keywords) in zip(found, calls, strict=True):
            what = (f"{name}={value}" for name, value in keywords.items() if not isinstance(value, list))
            print(f"  {function.replace(':', ' ')} {' '.join(what)}", file=sys.stderr)
            if not results or isinstance(results[-1], Cost):
                results.append(_cost_in_subprocess(function, keywords))
    return [_costs_or_error(results) for results in found]


def _costs_or_error(results: list[Cost | str]) -> list[Cost] | str:
    """Return the costs, or the first error message."""
    costs = [one for one in results if isinstance(one, Cost)]
    return costs if len(costs) == len(results) else next(one for one in results if isinstance(one, str))


def _median(costs: list[Cost]) -> Cost:
    """Return the median times, the largest peak and the first result."""
    peaks = [one.peak_bytes for one in costs if one.peak_bytes is not None]
    return Cost(
        statistics.median(one.seconds for one in costs),
        statistics.median(one.cpu_seconds for one in costs),
        max(peaks) if peaks else None,
        costs[0].value,
    )


def _cost_in_subprocess(function: str, keywords: dict[str, Any]) -> Cost | str:
    """Run a call in a new process; return its cost or an error message."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", __name__, function, json.dumps(keywords)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ended with status {done.returncode}"
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    prepared = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(measure_cost(prepared)))
