import math
from itertools import pairwise

import pytest

from sharpreid.schedules import (
    beta1,
    cosine_temperature,
    exponential_decay_factor,
    noise_ramp,
    temperature,
)

RATE, FLOOR = 0.008, 0.5
START, END, FINAL = 100, 150, 0.001


def test_temperature_falls_by_the_same_factor_every_epoch_until_its_floor() -> None:
    taus = [temperature(epoch, RATE, FLOOR) for epoch in range(151)]
    assert taus[0] == 1.0
    for before, after in pairwise(taus[:87]):
        assert after / before == pytest.approx(math.exp(-RATE))
    assert set(taus[87:]) == {FLOOR}


def test_temperature_reaches_its_floor_in_the_first_epoch_after_log_2_over_the_rate() -> None:
    reached = math.ceil(math.log(2) / RATE)
    assert temperature(reached - 1, RATE, FLOOR) > FLOOR
    assert temperature(reached, RATE, FLOOR) == FLOOR


def test_temperature_without_a_rate_stays_at_1() -> None:
    assert {temperature(epoch, 0.0, FLOOR) for epoch in (0, 1, 1000)} == {1.0}


def test_temperature_after_very_many_epochs_is_still_its_floor() -> None:
    assert temperature(10**9, RATE, FLOOR) == FLOOR


@pytest.mark.parametrize(
    ("epoch", "rate", "floor"),
    [(-1, RATE, FLOOR), (0, -RATE, FLOOR), (0, RATE, 0.0), (0, RATE, -0.5), (0, RATE, 1.5)],
)
def test_temperature_refuses_an_argument_out_of_range(epoch: int, rate: float, floor: float) -> None:
    with pytest.raises(ValueError, match=f"floor in \\(0, 1\\], got {epoch}, {rate} and {floor}"):
        temperature(epoch, rate, floor)


def test_cosine_temperature_starts_and_ends_with_eq_9_and_is_half_way_down_in_the_middle() -> None:
    rate = math.log(2) / 80
    cosine = [cosine_temperature(epoch, rate=rate, floor=0.5) for epoch in range(101)]
    assert cosine[0] == 1.0
    assert cosine[40] == pytest.approx(0.75)
    assert cosine[80:] == pytest.approx([0.5] * 21)
    assert all(a > b for a, b in pairwise(cosine[:81]))


def test_cosine_temperature_without_a_rate_or_with_a_floor_of_1_stays_at_1() -> None:
    assert cosine_temperature(500, rate=0.0, floor=0.5) == 1.0
    assert cosine_temperature(500, rate=0.1, floor=1.0) == 1.0


def test_cosine_temperature_refuses_an_argument_out_of_range() -> None:
    with pytest.raises(ValueError, match="floor in"):
        cosine_temperature(0, rate=0.1, floor=0.0)


def test_learning_rate_is_full_up_to_and_including_its_start() -> None:
    assert {exponential_decay_factor(epoch, START, END, FINAL) for epoch in range(START + 1)} == {1.0}


def test_learning_rate_then_falls_by_the_same_factor_every_epoch_to_its_final_value() -> None:
    factors = [exponential_decay_factor(epoch, START, END, FINAL) for epoch in range(START, END + 1)]
    step = 10 ** (-3 / 50)
    for before, after in pairwise(factors):
        assert after / before == pytest.approx(step)
    assert factors[-1] == pytest.approx(FINAL)


def test_learning_rate_with_a_final_factor_of_1_never_falls() -> None:
    assert exponential_decay_factor(140, START, END, 1.0) == 1.0


@pytest.mark.parametrize(
    ("epoch", "start", "end", "final"),
    [
        (-1, START, END, FINAL),
        (0, 150, 150, FINAL),
        (0, 150, 100, FINAL),
        (0, START, END, 0.0),
        (0, START, END, 2.0),
    ],
)
def test_learning_rate_refuses_an_argument_out_of_range(
    epoch: int, start: int, end: int, final: float
) -> None:
    with pytest.raises(ValueError, match=f"got {epoch}, {start}..{end} and {final}"):
        exponential_decay_factor(epoch, start, end, final)


def test_beta1_changes_where_the_learning_rate_starts_to_fall() -> None:
    for epoch in range(151):
        falls = exponential_decay_factor(epoch, START, END, FINAL) < 1
        assert beta1(epoch, START, 0.9, 0.5) == (0.5 if falls else 0.9)


def test_the_noise_rises_evenly_from_nothing_and_then_stays_whole() -> None:
    ramp = [noise_ramp(epoch, epochs=8, share=0.5) for epoch in range(8)]
    assert ramp == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("epoch", "epochs", "share"), [(-1, 9, 0.5), (0, 0, 0.5), (0, 9, 0.0), (0, 9, 1.5)])
def test_a_noise_ramp_refuses_an_argument_out_of_range(epoch: int, epochs: int, share: float) -> None:
    with pytest.raises(ValueError, match=rf"share in \(0, 1\], got {epoch}, {epochs} and {share}"):
        noise_ramp(epoch, epochs, share)
