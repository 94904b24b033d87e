"""Ratios, limits and the comparison with the record; not the times themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scoring
from benchmarks.embeddings import make_embeddings
from benchmarks.growth import Curve
from benchmarks.process import Cost, median_costs
from benchmarks.rows import Row, compare_with_record, rows_against, write_rows
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking


def row(**changes: Any) -> Row:
    given = {"name": "x", "ours": 2.0, "unit": "s", "other": "peer", "theirs": 10.0, "better": "higher"}
    return Row(**{**given, **changes})


def test_the_ratio_depends_on_whether_higher_or_lower_is_better() -> None:
    assert row().ratio == 5
    assert row(better="lower", theirs=1.6).ratio == 1.25
    assert row(theirs=None).ratio is None


def test_each_other_program_has_a_row_and_failures_are_noted() -> None:
    one, other = rows_against("x", 2.0, "s", {"a": (10.0, "good"), "b": (None, "failed: it")}, {"a": 4})
    assert (one.name, one.ratio, one.within_limit) == ("x against a", 5, True)
    assert (other.ratio, other.within_limit, other.note) == (None, None, "failed: it")
    (alone,) = rows_against("x", 2.0, "s", {}, {"a": 4})
    assert (alone.name, alone.note) == ("x", "no other toolbox was named")


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"limit": 4.0}, True),
        ({"limit": 6.0}, False),
        ({"better": "lower", "theirs": 1.6, "limit": 1.2}, False),
        ({"better": "lower", "theirs": 1.6, "limit": 1.3}, True),
        ({"theirs": None, "limit": 4.0}, None),
        ({}, None),
    ],
)
def test_a_limit_is_kept_or_missed(changes: dict[str, Any], holds: bool | None) -> None:
    assert row(**changes).within_limit is holds


def test_a_ratio_worse_than_recorded_is_reported_whatever_the_times(tmp_path: Path) -> None:
    record = tmp_path / "recorded.json"
    lower = {"name": "y", "better": "lower", "theirs": 1.0}
    write_rows([row(), row(**lower)], {}, record)
    slower_machine = [row(ours=20.0, theirs=100.0), row(**{**lower, "ours": 20.0, "theirs": 10.0})]
    assert compare_with_record(record, slower_machine, 0.25) == ([], [])
    assert compare_with_record(record, slower_machine[:1], 0.25) == ([], ["y"])
    assert compare_with_record(record, [row(ours=3.0), row(**{**lower, "ours": 3.0})], 0.25).worse == [
        "x: 3.33, recorded 5.00",
        "y: 3.00, recorded 2.00",
    ]
    assert compare_with_record(record, [row(name="new", ours=99.0), row(theirs=None)], 0.25) == (
        [],
        ["y", "new", "x"],
    )


def allocate(megabytes: int) -> Any:
    def work() -> int:
        return int(np.ones(megabytes * 2**20, np.uint8).sum())

    return work


def fail() -> Any:
    raise SystemExit("cannot allocate")


@pytest.mark.slow
def test_each_call_runs_in_a_new_process() -> None:
    module = "tests.test_benchmarks"
    small, large, failed = median_costs(
        [
            (f"{module}:allocate", {"megabytes": 1}),
            (f"{module}:allocate", {"megabytes": 200}),
            (f"{module}:fail", {}),
        ],
        repeats=2,
    )
    assert isinstance(small, Cost)
    assert isinstance(large, Cost)
    assert (small.value, large.value) == (2**20, 200 * 2**20)
    if large.peak_bytes is not None:
        assert 190e6 < large.peak_bytes < 260e6
    assert failed == "cannot allocate"


def test_backends_must_agree_and_programs_that_need_too_much_memory_are_noted() -> None:
    mine = {
        backend: Cost(seconds, 0, 10**9, 0.5)
        for backend, seconds in (("Numba", 1.0), ("numpy", 3.0), ("CUDA", 0.5))
    }
    rows = {row.name: row for row in scoring.rows_of_size("x", mine, {"torchreid": "needs more than 20 GiB"})}
    assert rows["x, Numba against torchreid"].note == "needs more than 20 GiB"
    assert rows["x, Numba against torchreid"].ratio is None
    assert (rows["x, Numba against numpy"].ratio, rows["x, Numba against CUDA"].ratio) == (3, 0.5)
    with pytest.raises(RuntimeError, match=r"do not give the same score.*'CUDA': 0\.6"):
        scoring.rows_of_size("x", {**mine, "CUDA": Cost(0.5, 0, None, 0.6)}, {})


def test_synthetic_embeddings_are_neither_perfect_nor_chance() -> None:
    data = make_embeddings(60, 240, 100, 20, 4, dim=16)
    scores = evaluate_ranking(*data, protocol=Protocol.market1501())
    assert scores.num_valid_queries == 60
    assert 0.1 < scores.mAP < 0.95


def test_the_exponent_of_a_square_is_2() -> None:
    curve = Curve(
        name="x", quantity="n", values=[1, 10, 100], seconds=[2.0, 200.0, 20_000.0], megabytes=[0, 0, 0]
    )
    time, memory = curve.exponents()
    assert time == pytest.approx(2)
    assert np.isnan(memory)
