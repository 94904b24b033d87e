"""Results of an evaluation as data."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sharpreid.evaluation.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class HardPairScores:
    """Rank-1 within pairs of people who differ in one detail."""

    rank1: float
    """Share of the queries whose nearest image shows their own identity, not its twin, in [0, 1]."""
    chance: float
    """Expected ``rank1`` of a random ranking: the mean share of images that show the query's identity."""
    num_queries: int
    """Number of queries whose identity and twin both have an image in another camera than the query's."""
    by_detail: dict[str, tuple[float, int]]
    """Rank-1 and number of queries for each detail, by name, in which pairs differ."""

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as plain values for JSON."""
        details = {
            name: {"rank1": rank1, "num_queries": count} for name, (rank1, count) in self.by_detail.items()
        }
        return {
            "rank1": self.rank1,
            "chance": self.chance,
            "num_queries": self.num_queries,
            "details": details,
        }


class QueryScores(NamedTuple):
    """Scores of each query, in the order of the queries; NaN for a query without a match."""

    ap: npt.NDArray[np.float64]
    """Average precision, (Q,), in [0, 1]. With mAP on drawn galleries, the mean over the draws."""
    rank1: npt.NDArray[np.float64]
    """Share of the draws in which a match is ranked first, (Q,), in [0, 1]; 0 or 1 without draws."""


@dataclass(frozen=True, kw_only=True)
class RankingScores:
    """Scores of a ranking with the protocol they were computed under."""

    protocol: Protocol
    mAP: float
    """Mean over the queries of `average_precision`, in [0, 1]."""
    mAP_trapezoid: float
    """Mean over the queries of `average_precision_trapezoid`, in [0, 1]."""
    cmc: tuple[float, ...]
    """Share of queries with a match among the first 1, 2, ... max_rank items, in [0, 1]."""
    cmc_std: tuple[float, ...]
    """Population standard deviation of ``cmc`` over the protocol's draws; 0 without draws."""
    num_valid_queries: int
    """Number of queries with a match."""
    num_invalid_queries: int
    """Number of queries without a match."""
    re_ranking: str = "none"
    """The re-ranking method and its parameters."""
    plain: "RankingScores | None" = None
    """The scores without re-ranking; None if the gallery was not re-ranked."""
    hard_pairs: HardPairScores | None = None
    """Scores on the data set's hard pairs, without re-ranking; None if it has no hard pairs."""
    queries: QueryScores | None = field(default=None, compare=False, repr=False)

    def rank(self, k: int) -> float:
        """Return rank-k, ``cmc[k - 1]``.

        Raises:
            ValueError: k is not in 1 to max_rank.
        """
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"k must be 1 to {len(self.cmc)} (the protocol's max_rank), got {k}")
        return self.cmc[k - 1]

    def as_dict(self) -> dict[str, float | int]:
        """Return mAP, rank-1, 5, 10 and 20 and the numbers of queries as plain values for JSON.

        Ranks above max_rank are omitted. With draws, the standard deviation of each rank is included.
        """
        places = [k for k in (1, 5, 10, 20) if k <= len(self.cmc)]
        ranks = {f"rank{k}": self.rank(k) for k in places}
        if self.protocol.gallery_per_identity is not None:
            ranks |= {f"rank{k}_std": self.cmc_std[k - 1] for k in places}
        return {
            "mAP": self.mAP,
            "mAP_trapezoid": self.mAP_trapezoid,
            **ranks,
            "num_valid_queries": self.num_valid_queries,
            "num_invalid_queries": self.num_invalid_queries,
        }
