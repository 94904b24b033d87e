"""Estimate the difference between two methods with a paired bootstrap over seeds and identities.

The bootstrap is ours because scipy.stats.bootstrap resamples a single axis, not seeds and identities at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_NORMAL = 1.960
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of the normal distribution, and of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True, eq=False)
class QueryValues:
    """Contribution of each query of a test set to a score of one run.

    Args:
        names: unique names of the queries, Q.
        identities: person of each query, Q.
        values: contributions in [0, 1], such as average precisions, Q; NaN for a query without a match.

    Raises:
        ValueError: the lengths differ, or a name occurs twice.
    """

    names: tuple[str, ...]
    identities: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.identities) == len(self.values):
            raise ValueError(
                f"expected one identity and one value per query, got {len(self.names)} queries, "
                f"{len(self.identities)} identities and {len(self.values)} values"
            )
        if len(set(self.names)) != len(self.names):
            raise ValueError("the name of a query occurs twice")

    def ordered(self) -> "QueryValues":
        """Return the same scores, sorted by the names of the queries."""
        rows = sorted(zip(self.names, self.identities, self.values, strict=True), key=lambda row: row[0])
        names, identities, values = zip(*rows, strict=True) if rows else ((), (), ())
        return QueryValues(names, identities, values)


@dataclass(frozen=True)
class Difference:
    """The mean difference of a score between two methods, with a 95 % interval.

    Args:
        mean: mean difference, in the unit of the score.
        low: lower end of the interval.
        high: upper end of the interval.
        by_seed: seed -> difference, for the seeds that both methods have.
    """

    mean: float
    low: float
    high: float
    by_seed: Mapping[int, float]

    @property
    def test_set_only(self) -> bool:
        """Whether the interval covers the sampling of the test set only, since there is a single seed."""
        return len(self.by_seed) == 1


def paired_difference(
    ours: Mapping[int, QueryValues],
    baseline: Mapping[int, QueryValues],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference | None:
    """Return the mean difference of two methods over their shared seeds, with a 95 % interval.

    The difference of a seed is the mean over queries of ours minus the baseline. A resample draws seeds and
    test identities with replacement, as many of each as there are. Both methods get the same draw, and all
    seeds get the same identities, because all runs share one test set. The value of a resample is the mean
    over all queries of the drawn identities and over the drawn seeds. The interval contains the central 95 %
    of the values.

    Identities are drawn instead of queries because the queries of a person are ranked against the same images
    of that person and tend to be right or wrong together. An interval that treats them as independent is too
    narrow.

    A bootstrap of S = 2 to 5 seeds also gives too narrow an interval. Therefore the deviations of the seeds'
    differences from their mean are multiplied by sqrt(S / (S - 1)) t / 1.96 before they are drawn, where t is
    Student's quantile for S - 1 degrees of freedom. The first factor gives them the variance of a sample. The
    second makes the width about that of Student's interval. The product is 2.7 for three seeds and 1.6 for
    five. Two seeds can thus show only a difference many times as large as their spread.

    With one seed the interval covers other test identities scored by the same two trained networks, but not
    another training.

    Args:
        ours: seed -> contributions of the queries.
        baseline: the same for the method to compare with.
        resamples: number of resamples, at least 1.
        seed: seed of the draws; the same seed gives the same interval.

    Returns:
        The difference in the unit of the values, positive if ours is higher; None if no seed is shared.

    Raises:
        ValueError: two runs differ in their queries, in the identities of the queries, or in which queries
            have a match.
    """
    shared = sorted(ours.keys() & baseline.keys())
    if not shared:
        return None
    pairs = [(ours[one].ordered(), baseline[one].ordered()) for one in shared]
    first = pairs[0][0]
    for run in (run for pair in pairs for run in pair):
        _check_same_queries(first, run)
    differences = np.array([np.subtract(one.values, other.values) for one, other in pairs])
    matched = ~np.isnan(differences[0])
    totals, sizes = _by_identity(differences[:, matched], np.array(first.identities)[matched])

    by_seed = totals.sum(axis=1) / sizes.sum()
    mean = float(by_seed.mean())
    # widen the deviations of the seeds; those of the identities stay as they are
    stretched = totals + np.outer((_stretch(len(shared)) - 1) * (by_seed - mean), sizes)
    seeds = _counts(len(shared), resamples, seed) / len(shared)
    identities = _counts(len(sizes), resamples, seed + 1)
    means = (seeds * (identities @ stretched.T)).sum(axis=1) / (identities @ sizes)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Difference(mean, low, high, dict(zip(shared, by_seed.tolist(), strict=True)))


def _check_same_queries(one: QueryValues, other: QueryValues) -> None:
    """Raise ValueError unless two runs, sorted by query, were scored on the same queries."""
    if one.names != other.names:
        apart = sorted(set(one.names) ^ set(other.names))
        raise ValueError(
            f"the runs were scored on different queries, {len(one.names)} and {len(other.names)}, of which "
            f"{len(apart)} occur in one run only, such as {apart[0]}; score both on the same test set"
        )
    if one.identities != other.identities:
        raise ValueError("a query has different identities in the two runs; score both on the same test set")
    if not np.array_equal(np.isnan(one.values), np.isnan(other.values)):
        raise ValueError("a query has a match in one run only; score both by the same protocol")


def _by_identity(values_sq: Array, identities: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Sum values (S, Q) over the queries of each identity; return the sums (S, I) and the counts (I,)."""
    _, place = np.unique(identities, return_inverse=True)
    sizes = np.bincount(place).astype(np.float64)
    return np.array([np.bincount(place, weights=row) for row in values_sq]), sizes


def _stretch(seeds: int) -> float:
    """Return the factor on the deviations of the seeds, see `paired_difference`.

    >>> [round(_stretch(seeds), 2) for seeds in (1, 2, 3, 5)]
    [1.0, 12.71, 2.69, 1.58]
    """
    if seeds == 1:
        return 1.0
    if seeds == 2:  # each seed is alone in a quarter of the resamples, so the interval ends at its deviation
        return _STUDENT[0]
    student = _STUDENT[min(seeds - 1, len(_STUDENT)) - 1]
    return float(np.sqrt(seeds / (seeds - 1)) * student / _NORMAL)


@lru_cache(maxsize=16)
def _counts(of: int, resamples: int, seed: int) -> Array:
    """Draw how often each of ``of`` items occurs in a resample of ``of`` items, (resamples, of)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(of, np.full(of, 1 / of), size=resamples).astype(np.float64)
