"""A threshold keeps its false-positive rate in galleries of other people, and travels with the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharpreid import load
from sharpreid.calibrate import main
from sharpreid.serving import calibration
from sharpreid.serving.calibration import (
    CalibrationError,
    PersonDistances,
    calibrate,
    calibrate_folder,
    measure_rates,
    people_needed,
    person_distances,
)
from sharpreid.serving.gallery import Gallery, GalleryError, Item
from sharpreid.serving.model import CARD, CONFIG, Threshold, read_config
from tests.serving.test_model import saved

__all__ = ["saved"]  # a fixture

PEOPLE = 120


def on_a_circle(rng: np.random.Generator, people: int = PEOPLE, images: int = 2) -> PersonDistances:
    """Put people at random on a circle of circumference 1, with equal images in as many cameras."""
    place = np.repeat(rng.random(people), images)
    gap = np.abs(place[:, None] - place[::images])
    distance = np.minimum(gap, 1 - gap).astype(np.float32)
    return PersonDistances(np.repeat(np.arange(people), images), distance)


def rate_on_a_circle(threshold: float, gallery: int) -> float:
    """Return the share of the strangers who are near one of the people of a random gallery."""
    return float(1 - (1 - 2 * threshold) ** gallery)


def half(people: int = PEOPLE) -> Any:
    return np.arange(people) < people // 2


def test_the_rate_is_kept_on_average_and_within_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SPLITS", 250)  # is enough, and faster
    rng = np.random.default_rng(0)
    thresholds, inside, measured = [], [], []
    for _ in range(80):
        threshold = calibrate(on_a_circle(rng), false_positive_rate=0.1, dataset="circle")
        low, high = threshold.interval
        rate = measure_rates(on_a_circle(rng), half(), threshold.distance).false_positive
        thresholds.append(rate_on_a_circle(threshold.distance, PEOPLE // 2))
        measured.append(rate)
        inside.append(low <= rate <= high)
    assert np.mean(thresholds) == pytest.approx(0.1, rel=0.1)
    assert np.mean(measured) == pytest.approx(0.1, rel=0.15)
    assert 0.9 <= np.mean(inside) <= 1
    assert low > 0.01, "the interval says something"
    assert high < 0.3


def test_the_threshold_is_that_of_the_known_distribution() -> None:
    right = (1 - 0.9 ** (1 / 500)) / 2
    found = calibrate(
        on_a_circle(np.random.default_rng(1), people=1000, images=1),
        false_positive_rate=0.1,
        dataset="circle",
    )
    assert found.distance == pytest.approx(right, rel=0.15)
    assert found.detection_rate is None or found.detection_rate == 1
    assert (found.gallery_identities, found.gallery_images, found.queries) == (500, 500, 1000)


def test_a_smaller_gallery_allows_a_larger_distance() -> None:
    people = on_a_circle(np.random.default_rng(2))
    small, large = (
        calibrate(people, false_positive_rate=0.1, gallery_identities=size, dataset="circle")
        for size in (10, 60)
    )
    assert 3 * large.distance < small.distance < 12 * large.distance
    assert rate_on_a_circle(small.distance, 10) == pytest.approx(0.1, rel=0.4)


def test_more_images_of_the_same_people_make_no_interval_narrower() -> None:
    few, many = (
        calibrate(
            on_a_circle(np.random.default_rng(3), images=images), false_positive_rate=0.1, dataset="circle"
        )
        for images in (1, 7)
    )
    assert many.interval == pytest.approx(few.interval)
    assert (many.distance, many.queries) == (few.distance, 7 * few.queries)


def test_distances_follow_the_rule_on_cameras() -> None:
    embeddings = np.array([[0.0], [1.0], [4.0], [6.0]], np.float32)
    people, cameras = ["a", "a", "a", "b"], ["1", "1", "2", "1"]
    market = person_distances(embeddings, people, cameras)
    assert market.nearest.tolist() == [[4, 6], [3, 5], [3, 2], [2, np.inf]]
    same_camera = person_distances(embeddings, people, cameras, "same_camera")
    assert same_camera.nearest.tolist() == [[4, np.inf], [3, np.inf], [3, 2], [2, np.inf]]


def test_rates_of_a_gallery_can_be_counted_by_hand() -> None:
    nearest = [[1, 3, 9], [4, 2, 9], [np.inf, 1, 9], [9, 9, 1], [2, 8, 9], [5, 6, 2]]
    distances = PersonDistances(np.array([0, 0, 0, 1, 2, 2]), np.array(nearest, np.float32))
    rates = measure_rates(distances, np.array([True, True, False]), 2.5)
    # strangers' queries: 2 and 5 away; of the enrolled one is right, one has the wrong person first, one has
    # no valid image, one is 9 away from its person
    assert rates == (0.5, pytest.approx(1 / 3))
    with pytest.raises(ValueError, match="strangers"):
        measure_rates(distances, np.ones(3, bool), 2.5)


def test_mean_rates_are_those_of_all_galleries() -> None:
    rng = np.random.default_rng(4)
    x = np.repeat(rng.normal(size=(40, 2)), 3, axis=0) + 0.2 * rng.normal(size=(120, 2))
    distances = person_distances(
        x.astype(np.float32), [str(row // 3) for row in range(120)], [str(row % 3) for row in range(120)]
    )
    threshold = calibrate(distances, false_positive_rate=0.3, dataset="normal")
    rates = []
    for _ in range(400):
        enrolled = np.zeros(40, bool)
        enrolled[rng.permutation(40)[:20]] = True
        rates.append(measure_rates(distances, enrolled, threshold.distance))
    false_positive, detection = np.mean(rates, axis=0)
    assert threshold.detection_rate == pytest.approx(detection, abs=0.02)
    assert 0.2 < false_positive <= 0.3, "below the wanted rate by the correction for choosing"


def test_people_of_a_single_camera_are_strangers_only() -> None:
    x = np.random.default_rng(6).normal(size=(90, 3)).astype(np.float32)
    people = [str(row // 3) for row in range(90)]
    several = [str(row % 3) for row in range(45)]
    some = calibrate(
        person_distances(x, people, several + ["1"] * 45), false_positive_rate=0.2, dataset="a part"
    )
    assert some.detection_rate is not None
    none = calibrate(person_distances(x, people, ["1"] * 90), false_positive_rate=0.2, dataset="one camera")
    assert none.detection_rate is None
    assert none.distance == some.distance
    assert "find their person" not in none.describe()


@pytest.mark.parametrize(
    ("people", "arguments", "message"),
    [
        (298, {"false_positive_rate": 0.01}, "needs at least 299 labelled people, got 298"),
        (20, {"false_positive_rate": 0.2, "gallery_identities": 11}, "must be 1 to 10, half of the 20"),
        (20, {"false_positive_rate": 0.0}, "above 0"),
        (20, {"false_positive_rate": 0.7}, "at most 0.5"),
    ],
)
def test_what_cannot_be_shown_is_refused(people: int, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(on_a_circle(np.random.default_rng(0), people), dataset="circle", **arguments)


def test_the_number_of_people_needed_is_enough() -> None:
    needed = people_needed(0.05)
    assert (
        calibrate(
            on_a_circle(np.random.default_rng(0), needed), false_positive_rate=0.05, dataset="circle"
        ).identities
        == needed
    )
    assert 0.95**needed <= 0.05 < 0.95 ** (needed - 1)


def test_a_collapsed_network_has_no_threshold() -> None:
    distances = person_distances(
        np.ones((80, 2), np.float32), [str(row // 2) for row in range(80)], ["1"] * 80
    )
    with pytest.raises(CalibrationError, match="collapsed"):
        calibrate(distances, false_positive_rate=0.1, dataset="nobody")


def write_gallery(folder: Path, digest: str, *, cameras: bool = True, identities: bool = True) -> Path:
    rng = np.random.default_rng(5)
    x = np.repeat(rng.normal(size=(60, 3)), 2, axis=0) + 0.1 * rng.normal(size=(120, 3))
    items = [
        Item(
            f"{row}.jpg",
            camera=str(row % 2) if cameras else None,
            identity=f"p{row // 2}" if identities else None,
        )
        for row in range(120)
    ]
    Gallery(folder, digest).append([*items, Item("nobody.jpg")], np.r_[x, [[9, 9, 9]]].astype(np.float32))
    return folder


@pytest.fixture
def model(saved: Callable[..., tuple[Path, Any]]) -> Path:
    return saved("method=baseline")[0]


def test_the_threshold_is_written_into_the_model_and_its_card(model: Path, tmp_path: Path) -> None:
    before = load(model)
    gallery = write_gallery(tmp_path / "people", before.digest)
    first = calibrate_folder(gallery, model=model, false_positive_rate=0.2)
    threshold = calibrate_folder(gallery, model=model.parent, false_positive_rate=0.1, dataset="held out")
    assert threshold.distance < first.distance
    after = load(model)
    assert after.config.threshold == threshold == read_config(model).threshold
    assert after.digest == before.digest
    assert Gallery(gallery, after.digest).read().num_rows == 121
    assert after.card == (model / CARD).read_text(encoding="utf-8")
    assert after.card.startswith(before.card.rstrip("\n"))
    assert after.card.count("## Threshold") == 1
    for part in (
        f"Distance {threshold.distance:.4g}: 10.00%",
        "60 people of held out",
        "30 people with about 60",
    ):
        assert part in after.card


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"identities": False}, "no image has an identity"), ({"cameras": False}, "120 of 120 .* no camera")],
)
def test_an_unlabelled_gallery_is_refused(
    model: Path, tmp_path: Path, labels: dict[str, bool], message: str
) -> None:
    before = (model / CONFIG).read_bytes()
    gallery = write_gallery(tmp_path / "people", load(model).digest, **labels)
    with pytest.raises(CalibrationError, match=message):
        calibrate_folder(gallery, model=model, false_positive_rate=0.1)
    assert (model / CONFIG).read_bytes() == before


def test_the_gallery_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    gallery = write_gallery(tmp_path / "people", "0" * 64)
    with pytest.raises(GalleryError, match="another model"):
        calibrate_folder(gallery, model=model, false_positive_rate=0.1)
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        calibrate_folder(gallery, model=tmp_path / "nowhere", false_positive_rate=0.1)


def test_a_much_larger_gallery_is_warned_of() -> None:
    threshold = calibrate(on_a_circle(np.random.default_rng(0)), false_positive_rate=0.1, dataset="circle")
    assert threshold.gallery_images == 120
    assert threshold.find_caution(240) is None
    assert "27.1%" in (threshold.find_caution(360) or ""), "1 - 0.9^3"
    assert Threshold.model_validate(json.loads(threshold.model_dump_json())) == threshold


def test_the_command_prints_what_it_writes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = write_gallery(tmp_path / "people", load(model).digest)
    options = ["gallery_identities=12", "exclusion=same_camera", "dataset=some people"]
    main([f"gallery={gallery}", f"model={model}", "false_positive_rate=0.1", *options])
    threshold = read_config(model).threshold
    assert threshold is not None
    assert threshold.describe() in capsys.readouterr().out
    assert (threshold.gallery_identities, threshold.exclusion) == (12, "same_camera")
    assert threshold.dataset == "some people"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["gallery=a", "model=b"], 2, "false_positive_rate=... is missing"),
        (["gallery=a", "model=b", "false_positive_rate=low"], 2, "must be a number, got 'low'"),
        (["gallery=a", "model=b", "false_positive_rate=0.1", "exclusion=none"], 2, "same_camera, got none"),
        (["gallery=a", "model=b", "false_positive_rate=0.1", "gallery_identities=0"], 2, "whole number > 0"),
        (["gallery=a", "model=nowhere", "false_positive_rate=0.1"], 1, "nowhere"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == status
    assert message in capsys.readouterr().err
