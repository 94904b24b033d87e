"""Scores of a trained network: the ranking protocols, the scores and the metric that collects them."""

from sharpreid.evaluation.metric import ReIDMetric
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import (
    ReRanking,
    average_precision,
    average_precision_trapezoid,
    evaluate_ranking,
    hit_ranks,
)
from sharpreid.evaluation.re_ranking import (
    KReciprocal,
    QueryExpansion,
    average_query_expansion,
    k_reciprocal_distances,
)
from sharpreid.evaluation.scores import RankingScores

__all__ = [
    "KReciprocal",
    "Protocol",
    "QueryExpansion",
    "RankingScores",
    "ReIDMetric",
    "ReRanking",
    "average_precision",
    "average_precision_trapezoid",
    "average_query_expansion",
    "evaluate_ranking",
    "hit_ranks",
    "k_reciprocal_distances",
]
