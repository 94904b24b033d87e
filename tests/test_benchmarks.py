"""The benchmarks' bookkeeping: ratios, limits, comparison with the record; not the times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scoring
from benchmarks.embeddings import make
from benchmarks.growth import Curve
from benchmarks.process import Cost, in_turns
from benchmarks.rows import Row, beside, compared_with, write
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking


def row(**changes: Any) -> Row:
    given = {"name": "x", "ours": 2.0, "unit": "s", "other": "peer", "theirs": 10.0, "better": "higher"}
    return Row(**{**given, **changes})


def test_a_ratio_is_how_many_times_better_or_how_many_times_as_much() -> None:
    assert row().ratio == 5
    assert row(better="lower", theirs=1.6).ratio == 1.25
    assert row(theirs=None).ratio is None


def test_others_stand_beside_one_by_one_and_failures_are_told() -> None:
    one, other = beside("x", 2.0, "s", {"a": (10.0, "good"), "b": (None, "failed: it")}, {"a": 4})
    assert (one.name, one.ratio, one.holds) == ("x against a", 5, True)
    assert (other.ratio, other.holds, other.note) == (None, None, "failed: it")
    (alone,) = beside("x", 2.0, "s", {}, {"a": 4})
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
    assert row(**changes).holds is holds


def test_a_worse_ratio_than_on_record_is_named_whatever_the_times(tmp_path: Path) -> None:
    record = tmp_path / "recorded.json"
    lower = {"name": "y", "better": "lower", "theirs": 1.0}
    write([row(), row(**lower)], {}, record)
    slower_machine = [row(ours=20.0, theirs=100.0), row(**{**lower, "ours": 20.0, "theirs": 10.0})]
    assert compared_with(record, slower_machine, 0.25) == ([], [])
    assert compared_with(record, slower_machine[:1], 0.25) == ([], ["y"])
    assert compared_with(record, [row(ours=3.0), row(**{**lower, "ours": 3.0})], 0.25).worse == [
        "x: 3.33, recorded 5.00",
        "y: 3.00, recorded 2.00",
    ]
    assert compared_with(record, [row(name="new", ours=99.0), row(theirs=None)], 0.25) == (
        [],
        ["y", "new", "x"],
    )


def allocate(megabytes: int) -> Any:
    def work() -> int:
        return int(np.ones(megabytes * 2**20, np.uint8).sum())

    return work


def fail() -> Any:
    raise SystemExit("nothing to be had")


@pytest.mark.slow
def test_calls_run_in_turns_in_processes_of_their_own() -> None:
    module = "tests.test_benchmarks"
    small, large, failed = in_turns(
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
    assert failed == "nothing to be had"


def test_our_ways_must_have_the_same_score_and_others_that_are_too_large_are_told() -> None:
    mine = {
        way: Cost(seconds, 0, 10**9, 0.5) for way, seconds in (("Numba", 1.0), ("numpy", 3.0), ("CUDA", 0.5))
    }
    rows = {row.name: row for row in scoring._rows("x", mine, {"torchreid": "wants more than 20 GiB"})}
    assert rows["x, Numba against torchreid"].note == "wants more than 20 GiB"
    assert rows["x, Numba against torchreid"].ratio is None
    assert (rows["x, Numba against numpy"].ratio, rows["x, Numba against CUDA"].ratio) == (3, 0.5)
    with pytest.raises(RuntimeError, match=r"do not give the same score.*'CUDA': 0\.6"):
        scoring._rows("x", {**mine, "CUDA": Cost(0.5, 0, None, 0.6)}, {})


def test_synthetic_embeddings_are_neither_perfect_nor_chance() -> None:
    data = make(60, 240, 100, 20, 4, dim=16)
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
