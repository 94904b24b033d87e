"""Measurements in processes of their own: each has its own peak of memory."""

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
    """What one call took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    """Above what was held before; None where the system does not tell."""
    value: Any
    """What it returned."""


def cost_of(work: Callable[[], Any]) -> Cost:
    """Cost of one call in this process."""
    before = _restart_peak()
    cpu, start = time.process_time(), time.perf_counter()
    value = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Cost(seconds, cpu_seconds, None if before is None else _status("VmHWM") - before, value)


def _restart_peak() -> int | None:
    """Bytes held now, from which the peak counts anew; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def in_turns(calls: Sequence[tuple[str, dict[str, Any]]], repeats: int) -> list[Cost | str]:
    """Median cost of each call, as those of `all_in_turns`.

    Returns:
        For each call its cost (the largest peak of memory, the first value), or why it failed.
    """
    return [one if isinstance(one, str) else _median(one) for one in all_in_turns(calls, repeats)]


def all_in_turns(calls: Sequence[tuple[str, dict[str, Any]]], repeats: int) -> list[list[Cost] | str]:
    """Costs of each call, one call after the other, ``repeats`` times over.

    Args:
        calls: ``module:function``, which takes the keywords and returns what `cost_of` is to call.
        repeats: times, >= 1.

    Returns:
        For each call its costs, or why it failed.
    """
    found: list[list[Cost | str]] = [[] for _ in calls]
    for _ in range(repeats):
        for results, (function, keywords) in zip(found, calls, strict=True):
            what = (f"{name}={value}" for name, value in keywords.items() if not isinstance(value, list))
            print(f"  {function.replace(':', ' ')} {' '.join(what)}", file=sys.stderr)
            if not results or isinstance(results[-1], Cost):
                results.append(_in_a_process(function, keywords))
    return [_all_or_why_not(results) for results in found]


def _all_or_why_not(results: list[Cost | str]) -> list[Cost] | str:
    costs = [one for one in results if isinstance(one, Cost)]
    return costs if len(costs) == len(results) else next(one for one in results if isinstance(one, str))


def _median(costs: list[Cost]) -> Cost:
    peaks = [one.peak_bytes for one in costs if one.peak_bytes is not None]
    return Cost(
        statistics.median(one.seconds for one in costs),
        statistics.median(one.cpu_seconds for one in costs),
        max(peaks) if peaks else None,
        costs[0].value,
    )


def _in_a_process(function: str, keywords: dict[str, Any]) -> Cost | str:
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
    print(json.dumps(cost_of(prepared)))
