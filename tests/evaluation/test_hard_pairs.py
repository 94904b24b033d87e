"""Rank-1 on hard pairs, against cases worked out by hand."""

import pytest
import torch

from sharpreid.evaluation.hard_pairs import score_hard_pairs
from sharpreid.evaluation.metric import ReIDMetric
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.scores import HardPairScores

# Identities 1 and 2 differ in a knapsack, 3 and 4 in a hat; 5 is nobody's twin. (embedding, identity, camera)
QUERY = [(0.0, 1, 1), (10.0, 2, 1), (20.0, 3, 1), (50.0, 5, 1)]
GALLERY = [
    (1.0, 1, 2),  # found by the first query: its twin's nearest is at 3
    (3.0, 2, 2),
    (9.5, 1, 2),  # nearer to the second query than its own image at 3: wrong
    (20.1, 3, 1),  # the third query's own camera: does not count
    (24.0, 3, 2),  # as far as its twin at 16: a tie counts against the query
    (16.0, 4, 2),
    (0.1, 5, 2),  # nearest of all to the first query, but not of its pair
]
PAIRS = [((1, 2), "knapsack"), ((3, 4), "hat")]


def columns(items: list[tuple[float, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    embeddings, pids, camids = zip(*items, strict=True)
    return torch.tensor(embeddings)[:, None], torch.tensor(pids), torch.tensor(camids)


def scored(
    query: list[tuple[float, int, int]] = QUERY, gallery: list[tuple[float, int, int]] = GALLERY
) -> HardPairScores:
    return score_hard_pairs(*columns(query), *columns(gallery), pairs=PAIRS)


def test_a_query_is_right_if_its_own_identity_is_nearer_than_its_twin() -> None:
    scores = scored()
    assert scores.num_queries == 3
    assert scores.rank1 == pytest.approx(1 / 3)
    assert scores.by_detail == {"knapsack": (0.5, 2), "hat": (0.0, 1)}


def test_chance_is_the_share_of_a_query_s_own_images() -> None:
    # of the first query 2 of 3 images in other cameras are its own, of the second 1 of 3, of the third 1 of 2
    assert scored().chance == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)


def test_a_query_without_images_of_both_people_in_other_cameras_is_left_out() -> None:
    in_own_camera = [(x, pid, 1 if pid == 4 else camera) for x, pid, camera in GALLERY]
    assert scored(gallery=in_own_camera).by_detail == {"knapsack": (0.5, 2)}


def test_pairs_of_another_data_set_are_refused() -> None:
    with pytest.raises(ValueError, match="no query of the 1 hard pairs"):
        score_hard_pairs(*columns(QUERY), *columns(GALLERY), pairs=[((77, 78), "bag")])


def test_the_metric_scores_hard_pairs_only_where_they_are_known() -> None:
    embeddings, pids, camids = columns([*QUERY, *GALLERY])
    found = []
    for pairs in ((), PAIRS):
        metric = ReIDMetric(protocol=Protocol.market1501(), hard_pairs=pairs)
        metric.update(embeddings, pids, camids, torch.arange(len(pids)) < len(QUERY), torch.arange(len(pids)))
        found.append(metric.compute())
    assert found[0].hard_pairs is None
    assert found[1].hard_pairs == scored()
    assert found[0].mAP == found[1].mAP
