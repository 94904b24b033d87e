from collections.abc import Sequence

import numpy as np
import pytest

from sharpreid.report.bootstrap import QueryValues, paired_difference

NAMES = ("a", "b", "c", "d")
IDENTITIES = (1, 1, 2, 2)


def values(*numbers: float) -> QueryValues:
    return QueryValues(NAMES, IDENTITIES, numbers)


def test_a_constant_difference_has_an_interval_without_width() -> None:
    baseline = {seed: values(0.1, 0.2, 0.3, 0.4 + 0.1 * seed) for seed in range(3)}
    ours = {seed: values(*(one + 0.05 for one in run.values)) for seed, run in baseline.items()}
    found = paired_difference(ours, baseline)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.by_seed == pytest.approx({0: 0.05, 1: 0.05, 2: 0.05})


def test_only_shared_seeds_are_compared() -> None:
    ours = {0: values(0.5, 0.5, 0.5, 0.5), 7: values(1, 1, 1, 1)}
    baseline = {0: values(0.25, 0.25, 0.25, 0.25), 8: values(0, 0, 0, 0)}
    found = paired_difference(ours, baseline)
    assert found is not None
    assert found.by_seed == {0: 0.25}
    assert found.test_set_only
    assert paired_difference({1: ours[0]}, baseline) is None


def test_neither_the_order_of_queries_nor_of_seeds_matters() -> None:
    baseline = {0: values(0.1, 0.4, 0.2, 0.9), 1: values(0.3, 0.1, 0.7, 0.5)}
    ours = {0: values(0.2, 0.3, 0.6, 0.8), 1: values(0.5, 0.1, 0.1, 0.6)}

    def turned(run: QueryValues) -> QueryValues:
        return QueryValues(run.names[::-1], run.identities[::-1], run.values[::-1])

    assert paired_difference(ours, baseline) == paired_difference(
        {1: ours[1], 0: turned(ours[0])}, {1: turned(baseline[1]), 0: baseline[0]}
    )


def test_the_same_seed_draws_the_same_interval_and_another_one_another() -> None:
    rng = np.random.default_rng(0)
    ours, baseline = (drawn(rng, 4, by_seed=1.0, by_identity=1.0) for _ in range(2))
    assert paired_difference(ours, baseline) == paired_difference(ours, baseline)
    assert paired_difference(ours, baseline) != paired_difference(ours, baseline, seed=5)


def test_a_query_without_a_match_is_left_out() -> None:
    found = paired_difference(
        {0: values(0.5, float("nan"), 0.5, 0.5)}, {0: values(0.2, float("nan"), 0.2, 0.2)}
    )
    assert found is not None
    assert found.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            QueryValues(("a", "b", "c", "x"), IDENTITIES, (0, 0, 0, 0)),
            r"4 and 4,.* 2 ",
        ),
        (
            QueryValues(NAMES[:3], IDENTITIES[:3], (0, 0, 0)),
            r"4 and 3,.* 1 .* d",
        ),
        (QueryValues(NAMES, (1, 1, 2, 3), (0, 0, 0, 0)), "identities"),
        (values(0, 0, 0, float("nan")), "match"),
    ],
)
def test_runs_on_other_queries_are_refused(other: QueryValues, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference({0: values(1, 1, 1, 1)}, {0: other})
    with pytest.raises(ValueError, match=message):
        paired_difference({0: values(1, 1, 1, 1), 1: other}, {0: values(0, 0, 0, 0), 1: other})


@pytest.mark.parametrize(
    ("names", "identities", "message"),
    [(("a", "a"), (1, 1), "twice"), (("a", "b"), (1,), "2 queries, 1 identities")],
)
def test_values_that_do_not_belong_to_queries_are_refused(
    names: Sequence[str], identities: Sequence[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        QueryValues(tuple(names), tuple(identities), (0.0, 0.0))


def drawn(
    rng: np.random.Generator, seeds: int, *, by_seed: float, by_identity: float
) -> dict[int, QueryValues]:
    """Draw differences of mean 0, for 40 identities with 4 queries each, with the given deviations."""
    names = tuple(str(query) for query in range(160))
    identities = tuple(query // 4 for query in range(160))
    shared = np.repeat(rng.normal(0, by_identity, 40), 4)
    runs = (rng.normal(0, by_seed) + shared + rng.normal(0, 0.1, 160) for _ in range(seeds))
    return {seed: QueryValues(names, identities, tuple(run)) for seed, run in enumerate(runs)}


@pytest.mark.parametrize(
    ("seeds", "by_seed", "by_identity"), [(2, 1.0, 0.1), (3, 1.0, 0.1), (5, 0.2, 1.0), (1, 0.0, 1.0)]
)
def test_the_interval_holds_the_truth_in_nineteen_of_twenty_cases(
    seeds: int, by_seed: float, by_identity: float
) -> None:
    rng = np.random.default_rng(seeds)
    names, identities = drawn(rng, 1, by_seed=0, by_identity=0)[0].names, [query // 4 for query in range(160)]
    zero = {seed: QueryValues(names, tuple(identities), (0.0,) * 160) for seed in range(seeds)}
    cases = [drawn(rng, seeds, by_seed=by_seed, by_identity=by_identity) for _ in range(200)]
    found = [paired_difference(case, zero, resamples=500) for case in cases]
    assert 0.9 <= np.mean([one is not None and one.low <= 0 <= one.high for one in found]) <= 0.99


def test_queries_of_one_identity_are_not_taken_for_independent() -> None:
    rng = np.random.default_rng(0)
    ours = drawn(rng, 1, by_seed=0, by_identity=1.0)
    zero = {0: QueryValues(ours[0].names, ours[0].identities, (0.0,) * 160)}
    alone = {0: QueryValues(ours[0].names, tuple(range(160)), ours[0].values)}
    zero_alone = {0: QueryValues(ours[0].names, tuple(range(160)), (0.0,) * 160)}
    together, apart = paired_difference(ours, zero), paired_difference(alone, zero_alone)
    assert together is not None
    assert apart is not None
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_one_seed_knows_nothing_of_how_trainings_vary() -> None:
    rng = np.random.default_rng(0)
    ours = drawn(rng, 2, by_seed=1.0, by_identity=0.1)
    zero = {seed: QueryValues(run.names, run.identities, (0.0,) * 160) for seed, run in ours.items()}
    one, two = paired_difference({0: ours[0]}, zero), paired_difference(ours, zero)
    assert one is not None
    assert two is not None
    assert one.high - one.low < 0.2
    spread = abs(two.by_seed[0] - two.by_seed[1])
    assert two.high - two.low > 4 * spread
