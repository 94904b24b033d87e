"""The ranking against hand-made problems, a slow reference, and itself in other settings."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpreid.evaluation.exact import round_for_exact_products
from sharpreid.evaluation.functional import average_precision, average_precision_trapezoid, hit_ranks
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking

MARKET = Protocol.market1501()
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
GOLDEN = [
    ([1], 1.0, 1.0),
    ([2], 0.5, 0.25),
    ([3], 0.333333, 0.166667),
    ([1, 3], 0.833333, 0.791667),
    ([2, 5], 0.45, 0.2875),
    ([1, 2, 3], 1.0, 1.0),
    ([1, 10, 100], 0.41, 0.393552),
    ([4, 9, 30], 0.190741, 0.127698),
]


def on_a_line(query, gallery, protocol=MARKET, **kwargs):
    """Score points on a line; query and gallery are lists of (position, pid, camid)."""
    (q, qp, qc), (g, gp, gc) = zip(*query, strict=True), zip(*gallery, strict=True)
    return evaluate_ranking(
        torch.tensor(q).float()[:, None],
        torch.tensor(qp),
        torch.tensor(qc),
        torch.tensor(g).float()[:, None],
        torch.tensor(gp),
        torch.tensor(gc),
        protocol=protocol,
        **kwargs,
    )


def random_problem(queries=40, items=300, dim=37, seed=0):
    """Float embeddings with class structure, some of them repeated, with junk and distractors."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(-1, 12, items), rng.integers(1, 12, queries)
    centres = rng.normal(size=(14, dim))
    gallery, query = (centres[p + 1] + 1.5 * rng.normal(size=(len(p), dim)) for p in pids)
    gallery[items // 2 :] = gallery[rng.integers(0, items // 2, items - items // 2)]
    return (
        torch.tensor(query, dtype=torch.float32),
        torch.tensor(pids[1]),
        torch.tensor(rng.integers(1, 4, queries)),
        torch.tensor(gallery, dtype=torch.float32),
        torch.tensor(pids[0]),
        torch.tensor(rng.integers(1, 4, items)),
    )


def slow_scores(q, qp, qc, g, gp, gc, protocol):
    """Score item by item with an explicit sort: (mAP, mAP_trapezoid, cmc, valid queries)."""
    steps, trapezoids, first_hits = [], [], []
    for i in range(len(q)):
        ranking = []
        for j in range(len(g)):
            same_person, same_camera = gp[j] == qp[i], gc[j] == qc[i]
            junk = same_camera if protocol.exclusion == "same_camera" else same_person and same_camera
            if gp[j] != -1 and not junk:
                squared = sum((int(a) - int(b)) ** 2 for a, b in zip(q[i], g[j], strict=True))
                ranking.append((squared, bool(same_person)))
        ranking.sort()  # False before True: tied negatives come first
        matches = sum(match for _, match in ranking)
        if not matches:
            continue
        step = trapezoid = 0.0
        hits, recall_before, precision_before, first = 0, 0.0, 1.0, None
        for rank, (_, match) in enumerate(ranking, start=1):
            hits += match
            recall, precision = hits / matches, hits / rank
            step += match * precision / matches
            trapezoid += (recall - recall_before) * (precision_before + precision) / 2
            recall_before, precision_before = recall, precision
            if match and first is None:
                first = rank
        steps.append(step)
        trapezoids.append(trapezoid)
        first_hits.append(first)
    total = len(steps) if protocol.denominator == "valid_queries" else len(q)
    cmc = [sum(first <= k for first in first_hits) / max(total, 1) for k in range(1, protocol.max_rank + 1)]
    return sum(steps) / max(total, 1), sum(trapezoids) / max(total, 1), cmc, len(steps)


@pytest.mark.parametrize(("ranks", "step", "trapezoid"), GOLDEN)
def test_average_precision_of_known_hit_ranks(ranks, step, trapezoid):
    assert average_precision(ranks).item() == pytest.approx(step, abs=1e-6)
    assert average_precision_trapezoid(ranks).item() == pytest.approx(trapezoid, abs=1e-6)


def test_average_precision_takes_padded_rows_and_a_row_without_hits():
    ranks = torch.tensor([[1, 3], [2, 0], [0, 0]])
    assert average_precision(ranks).tolist() == pytest.approx([5 / 6, 0.5, 0.0])
    assert average_precision_trapezoid(ranks).tolist() == pytest.approx([19 / 24, 0.25, 0.0])
    assert average_precision(ranks).dtype == torch.float64


@pytest.mark.parametrize(("ranks", "step", "trapezoid"), GOLDEN)
def test_whole_evaluation_of_known_hit_ranks(ranks, step, trapezoid):
    gallery = [(k, 1 if k in ranks else 2, 2) for k in range(1, 121)]
    scores = on_a_line([(0, 1, 1)], gallery)
    assert scores.mAP == pytest.approx(step, abs=1e-6)
    assert scores.mAP_trapezoid == pytest.approx(trapezoid, abs=1e-6)
    assert scores.cmc == tuple(float(k >= ranks[0]) for k in range(1, 51))


def test_ranks_of_a_hand_made_matrix():
    distance = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.1, 0.4], [torch.inf, 0.5, 0.5, 0.2]])
    match = torch.tensor([[0, 2], [0, 3], [0, 1]])
    # row 2: two matches, tied with one negative, behind another; row 3: the first match is excluded
    assert hit_ranks(distance, match).tolist() == [[1, 3], [3, 4], [3, 0]]


def test_junk_does_not_cost_a_rank():
    gallery = [(1, 1, 1), (2, -1, 2), (3, 1, 1), (4, 1, 2), (5, 2, 2)]
    scores = on_a_line([(0, 1, 1)], gallery)
    assert (scores.rank(1), scores.mAP) == (1.0, 1.0)


def test_other_people_in_the_camera_of_the_query_cost_a_rank_on_market_but_not_on_cuhk03():
    query, gallery = [(0, 1, 1)], [(1, 2, 1), (2, 1, 1), (3, 1, 2), (4, 2, 2)]
    assert on_a_line(query, gallery).mAP == 0.5
    assert on_a_line(query, gallery, Protocol(name="cross camera", exclusion="same_camera")).mAP == 1.0


def test_distractors_cost_ranks():
    assert on_a_line([(0, 1, 1)], [(1, 0, 2), (2, 0, 1), (3, 1, 2)]).mAP == pytest.approx(1 / 3)


def test_ties_count_against_the_query_whatever_the_order_of_the_files():
    gallery = [(1, 2, 2), (1, 1, 2), (-1, 3, 2), (-1, 1, 3), (2, 4, 2)]
    for order in (gallery, gallery[::-1]):
        scores = on_a_line([(0, 1, 1)], order)
        assert scores.mAP == pytest.approx((1 / 3 + 2 / 4) / 2)  # negatives at 1 and 2, matches at 3 and 4


@pytest.mark.parametrize("value", [0.0, 0.1, -123.456])
def test_a_collapsed_model_gets_the_worst_score_whatever_the_order_of_the_files(value):
    query, qp, qc, gallery, gp, gc = random_problem()
    flat = torch.full_like(query, value), torch.full_like(gallery, value)
    scores = evaluate_ranking(flat[0], qp, qc, flat[1], gp, gc, protocol=MARKET)
    order = torch.randperm(len(gp), generator=torch.Generator().manual_seed(0))
    assert scores == evaluate_ranking(flat[0], qp, qc, flat[1], gp[order], gc[order], protocol=MARKET)
    chance = np.mean([((gp == p) & (gc != c)).sum() / (gp != -1).sum() for p, c in zip(qp, qc, strict=True)])
    assert scores.mAP < chance
    assert scores.rank(50) == 0.0


@pytest.mark.parametrize(("denominator", "mean_ap"), [("valid_queries", 0.5), ("all_queries", 0.25)])
def test_a_query_without_a_match_is_counted_under_both_denominators(denominator, mean_ap):
    query = [(0, 1, 1), (0, 9, 1), (0, 2, 2), (0, 1, 1)]  # 9 is not in the gallery, 2 only in its own camera
    gallery = [(1, 3, 1), (2, 1, 2), (3, 2, 2)]
    scores = on_a_line(query, gallery, Protocol(name="m", denominator=denominator))
    assert (scores.num_valid_queries, scores.num_invalid_queries) == (2, 2)
    assert (scores.mAP, scores.rank(1), scores.rank(2)) == (mean_ap, 0.0, 2 * mean_ap)


def test_the_scores_are_means_over_the_queries():
    """A perfect query, one whose match comes second, and one without a match."""
    queries, gallery = [(0, 1, 1), (10, 2, 1), (20, 3, 1)], [(1, 1, 2), (11, 9, 2), (12, 2, 2)]
    scores = on_a_line(queries, gallery)
    assert scores.queries.ap.tolist() == pytest.approx([1.0, 0.5, math.nan], nan_ok=True)
    assert scores.queries.rank1.tolist() == pytest.approx([1.0, 0.0, math.nan], nan_ok=True)
    assert np.nanmean(scores.queries.ap) == scores.mAP
    assert np.nanmean(scores.queries.rank1) == scores.rank(1)


def test_a_query_score_on_drawn_galleries_is_the_mean_over_the_draws():
    problem = random_problem(queries=6, items=60, seed=2)
    protocol = Protocol.cuhk03_single_shot(repeats=7)
    scores = evaluate_ranking(*problem, protocol=protocol)
    assert np.nanmean(scores.queries.rank1) == pytest.approx(scores.rank(1))
    assert np.nanmean(scores.queries.ap) == pytest.approx(scores.mAP)
    assert {round(float(7 * value), 6) % 1 for value in scores.queries.rank1 if not np.isnan(value)} == {0.0}


def test_an_evaluation_without_any_match_says_why():
    message = "1 have an identity that the gallery lacks .* 1 have matches only in their own camera"
    with pytest.raises(ValueError, match=message):
        on_a_line([(0, 1, 1), (0, 2, 1)], [(1, 1, 1), (2, 3, 1)])
    with pytest.raises(ValueError, match="0 items that are not junk"):
        on_a_line([(0, 1, 1)], [(1, -1, 1)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["query", "gallery"])
def test_nan_and_infinite_embeddings_are_refused(bad, side):
    problem = list(random_problem())
    embeddings = problem[0 if side == "query" else 3]
    embeddings[[7, 9, 9], [0, 1, 2]] = bad
    message = f"{side}_embeddings: 2 of {len(embeddings)} rows .* row 7"
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(*problem, protocol=MARKET)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(40), r"query_embeddings .* \(40,\)"),
        (0, torch.zeros(0, 37), r"query_embeddings .* \(0, 37\)"),
        (3, torch.zeros(9, 37).long(), "gallery_embeddings .* float .* torch.int64"),
        (3, torch.zeros(300, 36), "length.* 37 and 36"),
        (1, torch.ones(39).long(), r"query_pids .* \(40,\)"),
        (5, torch.ones(300), "gallery_camids .* integers.* torch.float32"),
        (1, torch.tensor([1] * 39 + [0]), "query_pids: 1 queries.* row 39, .* identity 0"),
        (1, torch.tensor([1] * 38 + [-1] * 2), "query_pids: 2 queries.* row 38, .* identity -1"),
    ],
)
def test_invalid_arguments_are_refused(place, value, message):
    problem = list(random_problem())
    problem[place] = value
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(*problem, protocol=MARKET)


def test_identity_zero_can_be_a_person_like_others():
    protocol = Protocol(name="labels from zero", distractor_identity=None)
    assert on_a_line([(0, 0, 1)], [(1, 0, 2), (2, 1, 2)], protocol).mAP == 1.0


def test_cmc_of_a_short_gallery_is_padded_with_its_last_value():
    scores = on_a_line(
        [(0, 1, 1), (0, 9, 1)], [(1, 2, 2), (2, 1, 2)], Protocol(name="m", denominator="all_queries")
    )
    assert scores.cmc == (0.0,) + (0.5,) * 49


@pytest.mark.parametrize("exclusion", ["same_identity_and_camera", "same_camera"])
@pytest.mark.parametrize("dim", [1, 37, 128])
def test_chunks_threads_and_file_order_change_no_bit(exclusion, dim):
    protocol = Protocol(name="m", exclusion=exclusion)
    problem = random_problem(dim=dim, seed=dim)
    whole = evaluate_ranking(*problem, protocol=protocol)
    for chunk_size in (1, 2, 7, 16, 39, 40, 1000):
        assert evaluate_ranking(*problem, protocol=protocol, chunk_size=chunk_size) == whole
    rng = torch.Generator().manual_seed(0)
    q, g = torch.randperm(40, generator=rng), torch.randperm(300, generator=rng)
    shuffled = [x[q] for x in problem[:3]] + [x[g] for x in problem[3:]]
    assert evaluate_ranking(*shuffled, protocol=protocol) == whole
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert evaluate_ranking(*problem, protocol=protocol) == whole
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
def test_numpy_other_devices_autocast_and_half_precision_give_the_same_bits(device):
    problem = [x.half() if x.is_floating_point() else x for x in random_problem()]
    scores = evaluate_ranking(*problem, protocol=MARKET)
    with torch.autocast(device, torch.bfloat16):
        assert evaluate_ranking(*(x.to(device) for x in problem), protocol=MARKET) == scores
    assert evaluate_ranking(*(x.float() if x.ndim == 2 else x for x in problem), protocol=MARKET) == scores
    arrays = [x.numpy() for x in problem]
    for array in arrays:
        array.flags.writeable = False
    assert evaluate_ranking(*arrays, protocol=MARKET) == scores


def test_float_embeddings_are_ranked_as_by_float64_distances():
    q, qp, qc, g, gp, gc = random_problem(items=400, dim=128)
    g[-1] *= 1e6  # one exploded item must not blur the others
    g += 0.01 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0))  # no ties
    expected = []
    for x, p, c in zip(q.double(), qp, qc, strict=True):
        keep = (gp != -1) & ((gp != p) | (gc != c))
        order = (g[keep].double() - x).norm(dim=1).argsort()
        expected.append(average_precision((gp[keep][order] == p).nonzero().flatten() + 1).item())
    assert evaluate_ranking(q, qp, qc, g, gp, gc, protocol=MARKET).mAP == pytest.approx(
        np.mean(expected), abs=1e-12
    )


@pytest.mark.parametrize("dim", [1, 5, 128])
def test_products_of_rounded_rows_are_exact(dim):
    rng = np.random.default_rng(dim)
    scale = 2.0 ** rng.integers(-60, 60, (6, 1)) * np.array([[1], [1], [1], [1], [0], [2.0**-80]])
    x = torch.tensor(rng.normal(size=(6, dim)) * 10.0 ** rng.integers(-4, 4, (6, dim)) * scale).float()
    rounded = round_for_exact_products(x)
    largest = x.abs().amax(1, keepdim=True).double()
    assert ((rounded - x).abs() <= largest * 2.0**-21).all()
    rows = [[Fraction(v) for v in row] for row in rounded.tolist()]
    exact = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in rows] for u in rows]
    assert (rounded @ rounded.T).tolist() == exact


@st.composite
def small_problems(draw):
    """Integer embeddings, so full of ties, with junk, distractors and queries without a match."""
    dim, queries, items = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 14))

    def integers(low, high, *shape):
        size = math.prod(shape)
        return np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).reshape(shape)

    return (
        integers(-2, 2, queries, dim),
        integers(1, 4, queries),
        integers(1, 3, queries),
        integers(-2, 2, items, dim),
        integers(-1, 4, items),
        integers(1, 3, items),
    )


@settings(max_examples=150, deadline=None)
@given(
    problem=small_problems(),
    exclusion=st.sampled_from(["same_identity_and_camera", "same_camera"]),
    denominator=st.sampled_from(["valid_queries", "all_queries"]),
    chunk_size=st.sampled_from([None, 1, 2, 3]),
)
def test_agrees_with_the_slow_reference(problem, exclusion, denominator, chunk_size):
    protocol = Protocol(name="m", exclusion=exclusion, denominator=denominator)
    mean_ap, trapezoid, cmc, valid = slow_scores(*problem, protocol)
    problem = [x.astype(np.float32) if x.ndim == 2 else x for x in problem]
    if not valid:
        with pytest.raises(ValueError, match="no query has a valid match"):
            evaluate_ranking(*problem, protocol=protocol, chunk_size=chunk_size)
        return
    scores = evaluate_ranking(*problem, protocol=protocol, chunk_size=chunk_size)
    assert scores.mAP == pytest.approx(mean_ap, abs=1e-12)
    assert scores.mAP_trapezoid == pytest.approx(trapezoid, abs=1e-12)
    assert scores.cmc == pytest.approx(cmc, abs=1e-12)
    assert (scores.num_valid_queries, scores.num_invalid_queries) == (valid, len(problem[0]) - valid)
    assert scores.mAP_trapezoid <= scores.mAP + 1e-12
    assert list(scores.cmc) == sorted(scores.cmc)


# The draw of identity 1 decides rank 1 or 2.
NEAR_OR_FAR = [
    (1, 1, 2),
    (3, 1, 2),
    (2, 2, 2),
    (9, 3, 2),
    (0, 4, 1),
]


def test_single_shot_reports_mean_and_deviation_over_the_draws():
    scores = on_a_line([(0, 1, 1), (0, 1, 1)], NEAR_OR_FAR, Protocol.cuhk03_single_shot(repeats=200))
    near = scores.rank(1)
    assert 0.35 < near < 0.65
    # both queries share each draw, so a draw scores 0 or 1
    assert scores.cmc_std[0] == pytest.approx(math.sqrt(near * (1 - near)))
    assert (scores.rank(2), scores.cmc_std[1]) == (1.0, 0.0)
    assert scores.as_dict()["rank1_std"] == scores.cmc_std[0]
    assert scores.mAP == pytest.approx((1 + 2 / 3) / 2)  # hits 1 and 3 of the full gallery


def test_map_on_the_drawn_gallery_is_the_mean_over_the_draws():
    protocol = Protocol(
        name="m", exclusion="same_camera", gallery_per_identity=1, repeats=50, map_on="drawn_gallery"
    )
    scores = on_a_line([(0, 1, 1), (0, 7, 1)], NEAR_OR_FAR, protocol)
    assert scores.mAP == pytest.approx(0.5 + 0.5 * scores.rank(1))
    assert scores.mAP_trapezoid == pytest.approx(0.25 + 0.75 * scores.rank(1))
    assert (scores.num_valid_queries, scores.num_invalid_queries) == (1, 1)


def test_single_shot_is_reproducible_and_depends_on_seed_and_split():
    problem = random_problem(queries=10, items=150)
    first, again, seed, split = (
        evaluate_ranking(*problem, protocol=Protocol.cuhk03_single_shot(**kwargs), chunk_size=chunk_size)
        for kwargs, chunk_size in (({}, None), ({}, 3), ({"seed": 1}, None), ({"split": 1}, None))
    )
    assert first == again
    assert first.cmc != seed.cmc != split.cmc != first.cmc
    assert first.mAP == seed.mAP == split.mAP


def test_single_shot_takes_one_image_per_identity_but_every_distractor():
    crowd = [(1, 2, 2)] * 30
    scores = on_a_line([(0, 1, 1)], [*crowd, (2, 1, 2)], Protocol.cuhk03_single_shot(repeats=3))
    assert scores.cmc[:3] == (0.0, 1.0, 1.0)
    strangers = [(1, 0, 2)] * 30
    scores = on_a_line([(0, 1, 1)], [*strangers, (2, 1, 2)], Protocol.cuhk03_single_shot(repeats=3))
    assert scores.cmc.index(1.0) == 30


def test_single_shot_draws_only_from_other_cameras_than_the_query():
    query = [(0, 1, 1), (0, 1, 2)]
    gallery = [(1, 2, 1), (1, 2, 2), (2, 1, 1), (2, 1, 2), (0, 1, 1), (0, 1, 2)]
    protocol = Protocol(
        name="two", exclusion="same_camera", gallery_per_identity=2, repeats=4, map_on="drawn_gallery"
    )
    scores = on_a_line(query, gallery, protocol)
    assert (scores.mAP, scores.cmc[0]) == (pytest.approx((1 + 2 / 3) / 2), 1.0)  # hits 1 and 3 of 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"exclusion": "camera"}, "exclusion .*camera"),
        ({"map_on": "gallery"}, "map_on .*gallery"),
        ({"denominator": "some"}, "denominator .*some"),
        ({"max_rank": 0}, "max_rank .* 1, got 0"),
        ({"seed": -1}, "seed .* 0, got -1"),
        ({"repeats": 20}, "repeats .* gallery_per_identity"),
        ({"gallery_per_identity": 1}, "exclusion='same_camera'"),
    ],
)
def test_an_invalid_protocol_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Protocol(name="m", **kwargs)


def test_a_protocol_is_plain_data_that_hydra_can_build():
    single_shot = Protocol.cuhk03_single_shot(split=3)
    target = "sharpreid.evaluation.ranking.Protocol"
    assert instantiate({"_target_": target, **json.loads(json.dumps(single_shot.as_dict()))}) == single_shot
    assert instantiate({"_target_": f"{target}.duke"}) == Protocol.duke()
    assert Protocol.duke().as_dict() == {**Protocol.cuhk03_new().as_dict(), "name": "duke"}


def test_scores_are_plain_numbers():
    scores = on_a_line([(0, 1, 1)], [(1, 2, 2), (2, 1, 2)])
    assert json.loads(json.dumps(scores.as_dict())) == {
        "mAP": 0.5,
        "mAP_trapezoid": 0.25,
        "rank1": 0.0,
        "rank5": 1.0,
        "rank10": 1.0,
        "rank20": 1.0,
        "num_valid_queries": 1,
        "num_invalid_queries": 0,
    }
    assert scores.protocol == MARKET
    with pytest.raises(ValueError, match=r"k .* 50.* 51"):
        scores.rank(51)
    with pytest.raises(ValueError, match=r"chunk_size .* got 0"):
        on_a_line([(0, 1, 1)], [(1, 1, 2)], chunk_size=0)
