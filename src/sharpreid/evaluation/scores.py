"""Results of a ranking as data."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sharpreid.evaluation.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class HardPairScores:
    """Rank-1 within pairs of people who differ in one detail, in [0, 1]."""

    rank1: float
    """Share of the queries whose nearest image is one of their own identity, not of its twin."""
    chance: float
    """Expected ``rank1`` of a random ranking: a query's share of images of its own identity, on average."""
    num_queries: int
    """Queries whose identity and twin both have an image in another camera than the query's."""
    by_detail: dict[str, tuple[float, int]]
    """Detail -> rank-1 and number of queries of the pairs that differ in it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
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
    """What each query contributes to the scores, in the order of the queries; NaN without a match."""

    ap: npt.NDArray[np.float64]
    """Average precision (mean over the draws where mAP is drawn), (Q,), in [0, 1]."""
    rank1: npt.NDArray[np.float64]
    """Share of the protocol's draws in which a match comes first, (Q,), in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class RankingScores:
    """Scores in [0, 1] with the protocol they were computed under.

    `cmc[k - 1]` is rank-k: the fraction of queries with a match among the first k. It never decreases, and
    past the end of a short gallery it stays at its last value. `cmc_std` is the standard deviation (of the
    population) over the protocol's draws, 0 without draws. `mAP` averages the precision at the matches,
    `mAP_trapezoid` is the formula of Market-1501's original Matlab code. `re_ranking` names what the ranking
    was changed by; `plain` then holds the scores without it, else it is None.
    `queries` has what each query contributes; it takes no part in comparisons.
    """

    protocol: Protocol
    mAP: float
    mAP_trapezoid: float
    cmc: tuple[float, ...]
    cmc_std: tuple[float, ...]
    num_valid_queries: int
    num_invalid_queries: int
    re_ranking: str = "none"
    plain: "RankingScores | None" = None
    hard_pairs: "HardPairScores | None" = None
    """Rank-1 on pairs of people who differ in one detail; None for data that names none. Never re-ranked."""
    queries: QueryScores | None = dataclasses.field(default=None, compare=False, repr=False)

    def rank(self, k: int) -> float:
        """Rank-k; raises ValueError for a k outside the computed curve."""
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"k must be 1 to {len(self.cmc)} (the protocol's max_rank), got {k}")
        return self.cmc[k - 1]

    def as_dict(self) -> dict[str, float | int]:
        """The usual numbers, ready for JSON; ranks past the protocol's `max_rank` are left out.

        With draws, also the standard deviation over them of each rank.
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
