"""Re-ranking against a slow dense reference, its invariants, and its use in the evaluation."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharpreid.evaluation import exact
from sharpreid.evaluation.metric import ReIDMetric
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.evaluation.re_ranking import (
    KReciprocal,
    QueryExpansion,
    average_query_expansion,
    k_reciprocal_distances,
)

MARKET = Protocol.market1501()
SINGLE_SHOT = Protocol.cuhk03_single_shot(repeats=3)
USUAL = KReciprocal(k1=20, k2=6, lambda_value=0.3)
METHODS = [USUAL, KReciprocal(k1=7, k2=1, lambda_value=0.0), QueryExpansion(k=3)]
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def slow_k_reciprocal(query, gallery, k1, k2, lambda_value):
    """Compute the definitions with Python sets and the whole matrix; ties are broken by row."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    distance = np.square(x[:, None] - x[None]).sum(2)
    largest = distance.max(1, keepdims=True)
    distance /= np.where(largest > 0, largest, 1)
    ranking = distance.argsort(1, kind="stable")

    def nearest(i, k):
        return ranking[i, : k + 1].tolist()

    def reciprocal(i, k):
        return {j for j in nearest(i, k) if i in nearest(j, k)}

    v = np.zeros_like(distance)
    for i in range(len(x)):
        own = reciprocal(i, k1)
        expanded = set(own)
        for candidate in own:
            theirs = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        if members:
            v[i, members] = np.exp(-distance[i, members]) / np.exp(-distance[i, members]).sum()
    if k2 > 1:
        v = np.stack([v[ranking[i, :k2]].mean(0) for i in range(len(x))])
    shared = np.stack([np.minimum(row, v[len(query) :]).sum(1) for row in v[: len(query)]])
    jaccard = 1 - shared / (2 - shared)
    return lambda_value * distance[: len(query), len(query) :] + (1 - lambda_value) * jaccard


def slow_expansion(query, gallery, k, query_camids, gallery_camids):
    means = []
    for q, camera in zip(query, query_camids, strict=True):
        valid = gallery[gallery_camids != camera]
        nearest = np.square(valid - q).sum(1).argsort(kind="stable")[:k]
        means.append(np.concatenate([q[None], valid[nearest]]).mean(0))
    return np.stack(means)


def embeddings(queries=30, items=170, dim=24, identities=12, seed=0):
    """Clustered embeddings, float32: query, gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities, dim))
    query, gallery = (
        (centres[rng.integers(0, identities, n)] + 0.7 * rng.normal(size=(n, dim))).astype(np.float32)
        for n in (queries, items)
    )
    return query, gallery


def problem(queries=30, items=170, identities=12, seed=0):
    """A whole evaluation: embeddings with identities (-1 and 0, too, in the gallery) and three cameras."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(identities + 2, 24))
    query_pids, gallery_pids = (
        rng.integers(1, identities + 1, queries),
        rng.integers(-1, identities + 1, items),
    )
    q, g = (
        torch.tensor(centres[pids + 1] + rng.normal(size=(len(pids), 24)), dtype=torch.float32)
        for pids in (query_pids, gallery_pids)
    )
    cameras = rng.integers(0, 3, queries), rng.integers(0, 3, items)
    labels = [torch.tensor(x) for x in (query_pids, cameras[0], gallery_pids, cameras[1])]
    return q, *labels[:2], g, *labels[2:]


@pytest.mark.parametrize(
    ("k1", "k2", "lambda_value"),
    [(20, 6, 0.3), (20, 1, 0.3), (7, 3, 0.0), (5, 12, 0.5), (1, 1, 0.3)],
)
@pytest.mark.parametrize("dim", [3, 128])
def test_k_reciprocal_equals_the_dense_reference(k1, k2, lambda_value, dim):
    query, gallery = embeddings(dim=dim)
    found = k_reciprocal_distances(query, gallery, k1=k1, k2=k2, lambda_value=lambda_value)
    wanted = slow_k_reciprocal(query, gallery, k1, k2, lambda_value)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


def test_k_reciprocal_gives_the_numbers_of_the_published_program():
    """Recorded from re_ranking_ranklist.py of the authors' repository (zhunzhong07/person-re-ranking)."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "k_reciprocal.json").read_text())
    wanted = np.array(golden.pop("distances"))
    query, gallery = embeddings(queries=12, items=40, dim=16, identities=6, seed=7)
    found = k_reciprocal_distances(query, gallery, **golden)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("k1", "k2"), [(1000, 4), (39, 6), (40, 41), (3, 1000)])
def test_more_neighbours_than_images_are_all_images(k1, k2):
    query, gallery = embeddings(queries=8, items=32, identities=4)
    found = k_reciprocal_distances(query, gallery, k1=k1, k2=k2, lambda_value=0.3)
    wanted = slow_k_reciprocal(query, gallery, k1, k2, 0.3)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


@st.composite
def tied_problems(draw):
    """Small integers as embeddings: many are equal, and many distances are."""
    dim = draw(st.integers(1, 3))
    rows = st.lists(st.lists(st.integers(-2, 2), min_size=dim, max_size=dim), min_size=1, max_size=12)
    return np.array(draw(rows), dtype=np.float32), np.array(draw(rows), dtype=np.float32)


@settings(deadline=None, max_examples=100)
@given(
    tied_problems(),
    st.integers(1, 30),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 5),
)
def test_ties_repeats_and_few_items_agree_with_the_dense_reference(problem, k1, k2, lambda_value, chunk_size):
    found = k_reciprocal_distances(
        *problem, k1=k1, k2=k2, lambda_value=lambda_value, chunk_size=chunk_size
    ).numpy()
    np.testing.assert_allclose(found, slow_k_reciprocal(*problem, k1, k2, lambda_value), rtol=0, atol=1e-6)


def test_a_known_problem_by_hand():
    # 0 and -1 know each other (k1 = 1), 1 and 1.5 do; the farthest from 0 is 9
    query, gallery = torch.tensor([[0.0]]), torch.tensor([[-1.0], [1.0], [1.5], [9.0]])
    found = k_reciprocal_distances(query, gallery, k1=1, k2=1, lambda_value=0.0)
    near, far = np.exp([0.0, -1 / 81]) / np.exp([0.0, -1 / 81]).sum()
    near_back, far_back = np.exp([0.0, -1 / 100]) / np.exp([0.0, -1 / 100]).sum()
    shared = min(near, far_back) + min(far, near_back)
    assert found[0].tolist() == pytest.approx([1 - shared / (2 - shared), 1, 1, 1], abs=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_threads_and_devices_change_no_bit(device, monkeypatch):
    query, gallery = (torch.tensor(x) for x in embeddings())
    method = {"k1": 20, "k2": 6, "lambda_value": 0.3}
    whole = k_reciprocal_distances(query, gallery, **method)
    for chunk_size in (1, 7, 10_000):
        found = k_reciprocal_distances(query.to(device), gallery.to(device), **method, chunk_size=chunk_size)
        assert torch.equal(found.cpu(), whole)
    monkeypatch.setattr(exact, "CHUNK_BYTES", 4096)
    assert torch.equal(k_reciprocal_distances(query, gallery, **method), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(k_reciprocal_distances(query, gallery, **method), whole)
    torch.set_num_threads(threads)


def test_the_order_of_the_files_changes_no_bit():
    query, gallery = (torch.tensor(x) for x in embeddings())
    method = {"k1": 20, "k2": 6, "lambda_value": 0.3}
    rows = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))
    columns = torch.randperm(len(query), generator=torch.Generator().manual_seed(1))
    found = k_reciprocal_distances(query[columns], gallery[rows], **method)
    assert torch.equal(found, k_reciprocal_distances(query, gallery, **method)[columns][:, rows])


class Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation allocates."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel() * leaf.element_size())
        return out


@pytest.mark.parametrize("method", [USUAL, QueryExpansion(k=5)])
def test_no_tensor_grows_with_the_square_of_the_number_of_images(method, monkeypatch):
    monkeypatch.setattr(exact, "CHUNK_BYTES", 2**18)
    largest = []
    for items in (400, 800):
        inputs = problem(queries=items // 4, items=items, identities=items // 10)
        with Largest() as seen:
            evaluate_ranking(*inputs, protocol=MARKET, re_ranking=method)
        largest.append(seen.size)
    assert largest[1] < 2.2 * largest[0]
    assert largest[1] < 200 * 800 * 8 / 2, "half of the queries' distances to the gallery"


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_equal_embeddings_get_the_worst_score(value):
    q, *query_labels, g, gallery_pids, gallery_camids = problem(queries=40)
    q, g = torch.full_like(q, value), torch.full_like(g, value)
    labels = gallery_pids.sort().values, gallery_camids  # files in the order of their identities
    for method in (USUAL, QueryExpansion(k=5)):
        scores = evaluate_ranking(q, *query_labels, g, *labels, protocol=MARKET, re_ranking=method)
        assert scores.plain.mAP == scores.mAP
        assert scores.rank(1) == 0


def test_nearest_columns_is_the_head_of_a_stable_sort():
    distance = torch.randint(0, 5, (50, 31), generator=torch.Generator().manual_seed(0)).double()
    for k in (1, 4, 30, 31):
        assert torch.equal(exact.nearest_columns(distance, k), distance.argsort(stable=True)[:, :k])


@pytest.mark.parametrize("protocol", [MARKET, SINGLE_SHOT], ids=lambda protocol: protocol.name)
def test_lambda_one_is_the_plain_ranking(protocol):
    method = KReciprocal(k1=20, k2=6, lambda_value=1.0)
    scores = evaluate_ranking(*problem(), protocol=protocol, re_ranking=method)
    plain = evaluate_ranking(*problem(), protocol=protocol)
    assert scores.plain == plain
    assert (scores.mAP, scores.cmc, scores.cmc_std) == (plain.mAP, plain.cmc, plain.cmc_std)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.describe())
@pytest.mark.parametrize("protocol", [MARKET, SINGLE_SHOT], ids=lambda protocol: protocol.name)
def test_scores_name_the_method_and_do_not_depend_on_the_chunks(method, protocol):
    scores = evaluate_ranking(*problem(), protocol=protocol, re_ranking=method)
    assert scores == evaluate_ranking(*problem(), protocol=protocol, re_ranking=method, chunk_size=7)
    assert scores.re_ranking == method.describe()
    assert scores.plain.re_ranking == "none"
    assert scores.plain.plain is None
    assert scores.mAP != scores.plain.mAP


def test_re_ranking_ranks_by_the_re_ranked_distance():
    q, qp, qc, g, gp, gc = problem()
    scores = evaluate_ranking(q, qp, qc, g, gp, gc, protocol=MARKET, re_ranking=USUAL)
    known = gp != -1
    distance = slow_k_reciprocal(q.numpy(), g[known].numpy(), 20, 6, 0.3)
    precisions = []
    for row, pid, camera in zip(distance, qp, qc, strict=True):
        ranked = [i for i in row.argsort() if not (gp[known][i] == pid and gc[known][i] == camera)]
        ranks = [rank for rank, i in enumerate(ranked, 1) if gp[known][i] == pid]
        precisions.append(np.mean([n / rank for n, rank in enumerate(ranks, 1)]))
    assert scores.mAP == pytest.approx(np.mean(precisions), abs=1e-9)


@dataclass
class Spy:
    """Record the arguments of a re-ranking, and rank by distance."""

    seen: list[tuple[int, int]] = field(default_factory=list)

    def describe(self):
        return "spy"

    def distances(self, query, gallery, query_camids, gallery_camids, chunk_size):
        assert query_camids.shape == query.shape[:1]
        assert gallery_camids.shape == gallery.shape[:1]
        self.seen.append((len(query), len(gallery)))
        return exact.shifted_squared_distances(query, gallery)


def test_junk_identities_take_no_part():
    spy = Spy()
    q, qp, qc, g, gp, gc = problem()
    evaluate_ranking(q, qp, qc, g, gp, gc, protocol=MARKET, re_ranking=spy)
    assert spy.seen == [(len(q), int((gp != -1).sum()))]


def test_a_drawn_gallery_is_re_ranked_for_itself_with_the_queries_of_one_camera():
    spy = Spy()
    q, qp, qc, g, gp, gc = problem()
    evaluate_ranking(q, qp, qc, g, gp.clamp(min=1), gc, protocol=SINGLE_SHOT, re_ranking=spy)
    queries = qc.bincount().tolist()
    assert spy.seen == [(len(q), len(g)), *[(n, 12) for n in queries] * SINGLE_SHOT.repeats]


def test_the_metric_re_ranks_as_the_function_does():
    q, qp, qc, g, gp, gc = problem()
    metric = ReIDMetric(protocol=MARKET, re_ranking=USUAL)
    is_query = torch.arange(len(q) + len(g)) < len(q)
    metric.update(
        torch.cat([q, g]), torch.cat([qp, gp]), torch.cat([qc, gc]), is_query, torch.arange(len(is_query))
    )
    assert metric.compute() == evaluate_ranking(q, qp, qc, g, gp, gc, protocol=MARKET, re_ranking=USUAL)


@settings(deadline=None, max_examples=40)
@given(tied_problems(), st.integers(1, 15), st.integers(1, 4), st.integers(0, 2**31))
def test_query_expansion_equals_the_slow_reference(problem, k, chunk_size, seed):
    rng = np.random.default_rng(seed)
    cameras = [rng.integers(0, 3, len(side)) for side in problem]
    found = average_query_expansion(
        *problem,
        k,
        query_camids=torch.tensor(cameras[0]),
        gallery_camids=torch.tensor(cameras[1]),
        chunk_size=chunk_size,
    )
    np.testing.assert_allclose(found.numpy(), slow_expansion(*problem, k, *cameras), rtol=0, atol=1e-6)


def test_query_expansion_leaves_out_the_camera_of_the_query_whoever_it_shows():
    query, gallery = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [2.0], [4.0]])
    cameras = {"query_camids": torch.tensor([1, 5]), "gallery_camids": torch.tensor([1, 2, 2])}
    assert average_query_expansion(query, gallery, 1, **cameras).tolist() == [[1.0], [0.5]]
    assert average_query_expansion(query, gallery, 1).tolist() == [[0.5], [0.5]]


def test_a_query_without_valid_items_stays_as_it_is():
    same = torch.tensor([3])
    found = average_query_expansion(
        torch.tensor([[2.0]]), torch.tensor([[5.0]]), 2, query_camids=same, gallery_camids=same
    )
    assert found.tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KReciprocal(k1=0, k2=6, lambda_value=0.3), "k1 .* got 0"),
        (lambda: KReciprocal(k1=20, k2=0, lambda_value=0.3), "k2 .* got 0"),
        (
            lambda: KReciprocal(k1=20, k2=6, lambda_value=1.1),
            r"lambda_value .* \[0, 1\], got 1.1",
        ),
        (lambda: QueryExpansion(k=0), "k .* got 0"),
        (
            lambda: average_query_expansion(torch.ones(2, 3), torch.ones(4, 2), 1),
            "length.* 3 and 2",
        ),
        (
            lambda: average_query_expansion(torch.ones(2, 3), torch.ones(4, 3) * torch.nan, 1),
            "gallery: 4 of 4 rows .* NaN",
        ),
        (
            lambda: average_query_expansion(torch.ones(2, 3), torch.ones(4, 3), 1, chunk_size=0),
            "chunk_size .* got 0",
        ),
        (
            lambda: average_query_expansion(
                torch.ones(2, 3), torch.ones(4, 3), 1, query_camids=torch.ones(2)
            ),
            "both or neither",
        ),
        (
            lambda: average_query_expansion(
                torch.ones(2, 3),
                torch.ones(4, 3),
                1,
                query_camids=torch.ones(3),
                gallery_camids=torch.ones(4),
            ),
            r"query_camids .* \(2,\), got \(3,\)",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
