"""Ranking protocols, scores, and the metric that collects embeddings."""

from sharpreid.evaluation.functional import average_precision, average_precision_trapezoid, hit_ranks
from sharpreid.evaluation.metric import ReIDMetric
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import ReRanking, evaluate_ranking
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
