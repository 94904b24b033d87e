"""Validation identities are taken from the training images, once and fairly."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sharpreid.data.reid_data import (
    ReIDData,
    Sample,
    check_counts,
    identities,
    samples_from_names,
    split_validation,
    split_without_cameras,
    subsample_identities,
)


def sample(pid: int, camid: int, number: int = 0) -> Sample:
    return Sample(Path(f"{pid:04d}_c{camid}_{number}.jpg"), pid, camid)


TRAIN = tuple(
    sample(pid, camid, number)
    for pid in range(1, 13)
    for camid in range(1, 2 + pid % 4)
    for number in range(1 + (pid + camid) % 3)
)
"""Twelve identities, three of which (4, 8 and 12) are seen by one camera only."""


def test_held_out_identities_leave_the_training_images() -> None:
    validation, rest = split_validation(TRAIN, 4, seed=0)
    held = identities(validation.query)
    assert len(held) == 4
    assert held == identities(validation.gallery)
    assert held.isdisjoint(identities(rest))
    assert {*validation.query, *validation.gallery, *rest} == set(TRAIN)
    assert (validation.train, validation.junk) == ((), 0)


def test_some_training_identities_are_kept_with_all_their_images_and_the_test_set_stays() -> None:
    data = ReIDData("all", TRAIN, (sample(20, 1),), (sample(20, 2),), 0)
    kept = subsample_identities(data, 5, seed=0)
    assert len(identities(kept.train)) == 5
    assert kept.train == tuple(one for one in TRAIN if one.pid in identities(kept.train))
    assert (kept.query, kept.gallery) == (data.query, data.gallery)
    assert subsample_identities(data, 5, seed=0) == kept
    assert subsample_identities(data, 5, seed=1) != kept
    assert subsample_identities(data, 12, seed=0) == data


@pytest.mark.parametrize("count", [1, 13])
def test_more_training_identities_than_there_are_or_too_few_are_refused(count: int) -> None:
    data = ReIDData("shop", TRAIN, (), (), 0)
    with pytest.raises(ValueError, match=f"from 2 to the 12 training identities of shop, got {count}"):
        subsample_identities(data, count, seed=0)


def test_remaining_training_images_keep_their_order() -> None:
    _, rest = split_validation(TRAIN, 4, seed=0)
    assert list(rest) == [one for one in TRAIN if one in set(rest)]


@pytest.mark.parametrize("seed", range(5))
def test_every_validation_query_has_a_match_in_another_camera(seed: int) -> None:
    validation, _ = split_validation(TRAIN, 9, seed=seed)
    for query in validation.query:
        assert any(one.pid == query.pid and one.camid != query.camid for one in validation.gallery)


def test_one_query_for_each_identity_and_camera() -> None:
    validation, _ = split_validation(TRAIN, 9, seed=0)
    seen = [(one.pid, one.camid) for one in validation.query]
    assert len(seen) == len(set(seen))
    assert set(seen) == {(one.pid, one.camid) for one in TRAIN if one.pid not in (4, 8, 12)}


def test_an_image_is_query_and_gallery_only_where_it_is_alone_in_its_camera() -> None:
    validation, _ = split_validation(TRAIN, 9, seed=0)
    both = {*validation.query} & {*validation.gallery}
    assert both
    for one in both:
        assert [other for other in TRAIN if (other.pid, other.camid) == (one.pid, one.camid)] == [one]


def test_identities_seen_by_one_camera_are_never_held_out() -> None:
    validation, rest = split_validation(TRAIN, 9, seed=0)
    assert identities(validation.query) == set(range(1, 12)) - {4, 8}
    assert identities(rest) == {4, 8, 12}


def test_the_choice_depends_on_the_seed_alone() -> None:
    assert split_validation(TRAIN, 4, seed=3) == split_validation(TRAIN, 4, seed=3)
    chosen = {frozenset(identities(split_validation(TRAIN, 4, seed=seed)[0].query)) for seed in range(8)}
    assert len(chosen) > 1


@pytest.mark.parametrize("count", [0, -1, 10])
def test_too_few_or_too_many_identities_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"1 to the 9 identities seen by two.*of the 12.*got {count}"):
        split_validation(TRAIN, count, seed=0)


def test_two_identities_must_remain_for_training() -> None:
    two_cameras = [sample(pid, camid) for pid in (1, 2, 3) for camid in (1, 2)]
    assert len(identities(split_validation(two_cameras, 1, seed=0)[1])) == 2
    with pytest.raises(ValueError, match="leave 2 of the 3 identities for training; got 2"):
        split_validation(two_cameras, 2, seed=0)


def test_a_subset_names_its_difference_and_changes_nothing_else() -> None:
    data = ReIDData("toy", TRAIN, (), (), junk=3)
    subset = check_counts(data, {"junk_images": 5}, place=Path("toy"), allow_subset=True)
    assert subset == replace(data, subset="3 junk images instead of 5")


def test_without_cameras_the_first_image_of_an_identity_is_the_query_and_the_others_are_gallery() -> None:
    query, gallery = split_without_cameras([sample(1, 4, 0), sample(1, 4, 1), sample(1, 2, 2), sample(2, 3)])
    assert [(one.path.name, one.camid) for one in query] == [("0001_c4_0.jpg", 0)]
    assert [(one.path.name, one.camid) for one in gallery] == [
        ("0001_c4_1.jpg", 1),
        ("0001_c2_2.jpg", 1),
        ("0002_c3_0.jpg", 1),
    ]


def test_identities_seen_by_one_camera_can_be_held_out_where_cameras_are_unknown() -> None:
    train = [sample(pid, 0, number) for pid in range(1, 6) for number in range(3)]
    with pytest.raises(ValueError, match="to the 0 identities seen by two cameras"):
        split_validation(train, 2, seed=0)
    held, rest = split_validation(train, 2, seed=0, cameras_known=False)
    assert (len(held.query), len(held.gallery), len(rest)) == (2, 4, 9)
    assert not held.cameras_known


def test_distractors_are_images_but_no_identity_of_the_gallery() -> None:
    data = ReIDData("toy", (), (sample(1, 1),), (sample(1, 2), sample(0, 1), sample(0, 2)), junk=3)
    counts = data.counts()
    assert (counts["gallery_images"], counts["gallery_identities"], counts["distractor_images"]) == (3, 1, 2)
    assert counts["junk_images"] == 3


def test_names_without_a_camera_are_refused_by_their_pattern(tmp_path: Path) -> None:
    (tmp_path / "7.jpg").touch()
    with pytest.raises(ValueError, match=r"has no group camera.*match_file_names"):
        samples_from_names(tmp_path, re.compile(r"(?P<pid>\d)\.jpg"), example="7.jpg", layout="")
