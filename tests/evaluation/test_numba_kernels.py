"""The compiled kernels return the same bits as the reference."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpreid.evaluation import numba_kernels, ranking
from sharpreid.evaluation.exact import exact_embeddings
from sharpreid.evaluation.k_reciprocal import nearest_neighbours
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.evaluation.re_ranking import k_reciprocal_distances

compiled_ranks = pytest.importorskip("sharpreid.evaluation.numba_kernels.ranking")
compiled_re_ranking = pytest.importorskip("sharpreid.evaluation.numba_kernels.re_ranking")
compiled_distances = pytest.importorskip("sharpreid.evaluation.numba_kernels.distances")

Case = dict[str, np.ndarray]


def case(
    change: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    *,
    queries: int = 60,
    items: int = 700,
    dim: int = 24,
) -> Case:
    """Query and gallery of 12 identities, some distractors and junk, 4 cameras."""
    rng = np.random.default_rng(0)
    labels = {
        name: (rng.integers(low, 13, count), rng.integers(1, 5, count))
        for name, low, count in (("query", 1, queries), ("gallery", -1, items))
    }
    centres = rng.normal(size=(14, dim))
    found: Case = {}
    for name, (pids, camids) in labels.items():
        x = change(centres[pids] + 1.5 * rng.normal(size=(len(pids), dim)))
        found |= {f"{name}_embeddings": x.astype(np.float32), f"{name}_pids": pids, f"{name}_camids": camids}
    return found


def ranks_by(
    monkeypatch: pytest.MonkeyPatch, given: Case, protocol: Protocol, *, by_numba: bool
) -> torch.Tensor:
    """Return the ranks from which the scores are computed."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0 if by_numba else 10**12)
    monkeypatch.setattr(
        ranking, "average_precision", lambda ranks: seen.append(ranks) or ranks.double().sum(1)
    )
    evaluate_ranking(**given, protocol=protocol)
    monkeypatch.undo()
    return seen[0]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "spread": lambda x: x,
    "collapsed": np.zeros_like,
    "many ties": np.round,
    "near ties": lambda x: np.round(x) + 1e-7 * x,
    "far from the origin": lambda x: x + 3000,
    "almost one point": lambda x: 1 + 1e-6 * x,
    "huge": lambda x: x * 1e37,
    "tiny": lambda x: x * 1e-37,
    "at both ends of float32": lambda x: x / np.abs(x).max() * 3.4e38,
    "signs alone, at both ends": lambda x: np.sign(x) * 3e38,
    "denormal": lambda x: x * 1e-43,
    "one far item": lambda x: np.concatenate([x[:1] * 1e6, x[1:]]),
}


@pytest.mark.parametrize("protocol", [Protocol.market1501(), Protocol.cuhk03_single_shot(repeats=2)])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_ranks_are_those_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray], protocol: Protocol
) -> None:
    given = case(change)
    wanted = ranks_by(monkeypatch, given, protocol, by_numba=False)
    assert wanted.max() > 100
    assert torch.equal(ranks_by(monkeypatch, given, protocol, by_numba=True), wanted)


def test_float32_alone_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the error bound, near ties are counted on the wrong side."""
    given = case(CHANGES["near ties"])
    wanted = ranks_by(monkeypatch, given, Protocol.market1501(), by_numba=False)
    monkeypatch.setattr(compiled_distances, "FLOAT32_ROUNDOFF", 0.0)
    assert not torch.equal(ranks_by(monkeypatch, given, Protocol.market1501(), by_numba=True), wanted)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_chunks_and_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: int, chunk_size: int | None
) -> None:
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0)
    wanted = evaluate_ranking(**case(), protocol=Protocol.market1501())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = evaluate_ranking(**case(), protocol=Protocol.market1501(), chunk_size=chunk_size)
    finally:
        torch.set_num_threads(before)
    assert found == wanted


def test_matmul_precision_medium_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this setting, torch may multiply float32 in bfloat16, whose errors exceed the bound."""
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0)
    given = case(dim=256)
    wanted = evaluate_ranking(**given, protocol=Protocol.market1501())
    torch.set_float32_matmul_precision("medium")
    try:
        assert evaluate_ranking(**given, protocol=Protocol.market1501()) == wanted
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_fp32_precision_of_the_backends_changes_no_score(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0)
    given = case(dim=256)
    wanted = evaluate_ranking(**given, protocol=Protocol.market1501())
    backends: Any = torch.backends
    settings = [backends.mkldnn.matmul, backends.cuda.matmul][: 1 if precision == "bf16" else 2]
    before = [one.fp32_precision for one in settings]
    try:
        for one in settings:
            one.fp32_precision = precision
        assert evaluate_ranking(**given, protocol=Protocol.market1501()) == wanted
        assert [one.fp32_precision for one in settings] == [precision] * len(settings)
    finally:
        for one, kept in zip(settings, before, strict=True):
            one.fp32_precision = kept


def test_products_are_computed_in_float32() -> None:
    """Checked by the setting, because not every processor has a shorter type."""
    backends: Any = torch.backends
    x = torch.rand(64, 8).double()
    seen: list[str] = []
    torch.set_float32_matmul_precision("medium")
    try:
        compiled_distances.MixedPrecisionDistances(x, x).for_each_chunk(
            lambda part, start: seen.append(backends.mkldnn.matmul.fp32_precision)
        )
        assert seen
        assert set(seen) == {"ieee"}
        assert backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_all_kernels_are_in_one_file() -> None:
    """Numba caches a kernel until its own file changes, even if a function that it calls changes."""
    kernels = importlib.import_module("sharpreid.evaluation.numba_kernels.kernels")
    found = [one for one in vars(kernels).values() if hasattr(one, "py_func")]
    assert len(found) > 10
    assert {one.py_func.__module__ for one in found} == {kernels.__name__}
    for module in (compiled_ranks, compiled_re_ranking, compiled_distances):
        assert not [name for name, one in vars(module).items() if hasattr(one, "py_func")], module


@pytest.mark.parametrize(("threads", "held"), [(1, 64), (4, 64), (16, 16), (64, 4), (256, 1), (1000, 1)])
def test_all_threads_together_hold_a_bounded_number_of_distances(
    monkeypatch: pytest.MonkeyPatch, threads: int, held: int
) -> None:
    """All threads together hold 512 MiB, or one row each if that is more."""
    seen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled_distances, "run_in_threads", lambda work: work(0))
    queries, gallery = torch.rand(64, 1).double(), torch.rand(2**19, 1).double()
    distances = compiled_distances.MixedPrecisionDistances(queries, gallery)
    distances.for_each_chunk(lambda part, start: seen.append(len(part)))
    assert seen[0] == held


def test_small_rankings_do_not_start_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_ranks, "match_ranks", lambda *_, **__: pytest.fail("compiled"))
    evaluate_ranking(**case(), protocol=Protocol.market1501())


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (5, 1), (1, 3)])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_re_ranking_is_that_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray], k1: int, k2: int
) -> None:
    given = case(change)
    embeddings = given["query_embeddings"], given["gallery_embeddings"]
    parameters = {"k1": k1, "k2": k2, "lambda_value": 0.3}
    wanted = k_reciprocal_distances(*embeddings, **parameters)
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(k_reciprocal_distances(*embeddings, **parameters), wanted)
        assert torch.equal(k_reciprocal_distances(*embeddings, **parameters, chunk_size=7), wanted)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_re_ranking_by_float32_alone_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(CHANGES["near ties"])
    x = exact_embeddings("gallery", given["gallery_embeddings"])
    wanted, _ = compiled_re_ranking.nearest_neighbours(x, 21, None)
    assert torch.equal(wanted, nearest_neighbours(x, 21)[0])
    monkeypatch.setattr(compiled_distances, "FLOAT32_ROUNDOFF", 0.0)
    assert not torch.equal(compiled_re_ranking.nearest_neighbours(x, 21, None)[0], wanted)


def test_fewer_items_than_neighbours_are_re_ranked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(queries=3, items=8)
    embeddings = given["query_embeddings"], given["gallery_embeddings"]
    wanted = k_reciprocal_distances(*embeddings, k1=20, k2=30, lambda_value=0.3)
    monkeypatch.setattr(numba_kernels, "MIN_PAIRS", 0)
    assert torch.equal(k_reciprocal_distances(*embeddings, k1=20, k2=30, lambda_value=0.3), wanted)


@pytest.mark.parametrize("failing", ["__init__", "load_overload", "save_overload"])
def test_a_cache_that_fails_costs_one_warning_and_no_result(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no locator") if failing == "__init__" else OSError("no space left")

    kernels = importlib.import_module("sharpreid.evaluation.numba_kernels.kernels")
    monkeypatch.setattr(kernels, "_warned", [])
    monkeypatch.setattr(kernels.FunctionCache, failing, fail)
    monkeypatch.setattr(kernels.numba.config, "CACHE_DIR", str(tmp_path))
    for add in (lambda x: x + 1, lambda x: x + 2):
        assert kernels._compile(add)(1) == add(1)
    assert len(caplog.records) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_without_a_numba_that_works_ranks_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> Any:
        raise ImportError("needs another NumPy")

    wanted = ranks_by(monkeypatch, case(), Protocol.market1501(), by_numba=False)
    numba_kernels._can_import_kernels.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importlib, "import_module", fail)
        assert torch.equal(ranks_by(monkeypatch, case(), Protocol.market1501(), by_numba=True), wanted)
    numba_kernels._can_import_kernels.cache_clear()
    assert "needs another NumPy" in caplog.text
