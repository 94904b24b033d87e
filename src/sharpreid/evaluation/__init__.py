"""Ranking protocols, scores, and the metric that collects embeddings."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "functional": ("average_precision", "average_precision_trapezoid", "hit_ranks"),
    "metric": ("ReIDMetric",),
    "protocol": ("Protocol",),
    "ranking": ("ReRanking", "evaluate_ranking"),
    "re_ranking": ("KReciprocal", "QueryExpansion", "average_query_expansion", "k_reciprocal_distances"),
    "scores": ("RankingScores",),
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use, so that `protocol` loads neither torch nor torchmetrics."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
