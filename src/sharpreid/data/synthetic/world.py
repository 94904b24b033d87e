"""The synthetic data set as a whole: who is seen, where and how often. Of files it knows only the names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sharpreid.data.synthetic.cameras import CAMERAS, Pixels
from sharpreid.data.synthetic.people import DETAILS, Detail, Person, chance, draw_person, twin
from sharpreid.data.synthetic.scenes import Box, Place

TRAIN, QUERY, TEST = "bounding_box_train", "query", "bounding_box_test"
"""Folders of Market-1501's layout."""

DISTRACTOR, JUNK = 0, -1
"""Identities that Market-1501 gives to people who are nobody's match and to boxes that miss."""

_MAX_FRAME_STEP = 60
_MAX_IDENTITY = 9999
_POOR_DISTRACTORS = 0.4
_EMPTY_JUNK = 0.3


@dataclass(frozen=True, kw_only=True)
class SyntheticWorld:
    """How large and how hard the data set is.

    Args:
        train_identities: people to train on.
        test_identities: other people, to test on.
        train_hard_pairs: pairs among the training people who differ in one small detail only.
        test_hard_pairs: such pairs among the test people.
        cameras: how many of `CAMERAS` there are.
        cameras_per_identity: least and greatest number of cameras that see a person.
        images_per_camera: least and greatest number of pictures of a person by one camera; in the test set
            one of them is the query.
        junk: pictures of identity -1: boxes that miss.
        distractors: pictures of identity 0000: people who are nobody's match.
        camera_strength: how much the cameras' colours and light differ, 0 is not at all.
        obstruction: probability of an obstacle, and of a passer-by, in a picture.
        poor_boxes: share of people's pictures whose box is misaligned or of the wrong size.

    Raises:
        ValueError: a number is out of range.
    """

    train_identities: int = 150
    test_identities: int = 100
    train_hard_pairs: int = 30
    test_hard_pairs: int = 20
    cameras: int = len(CAMERAS)
    cameras_per_identity: tuple[int, int] = (3, 5)
    images_per_camera: tuple[int, int] = (2, 3)
    junk: int = 100
    distractors: int = 150
    camera_strength: float = 1.0
    obstruction: float = 0.12
    poor_boxes: float = 0.12

    def __post_init__(self) -> None:
        least, most = self.cameras_per_identity
        if not 2 <= least <= most <= self.cameras <= len(CAMERAS):
            raise ValueError(
                f"cameras_per_identity must be a range within 2 to cameras = {self.cameras}, which is at "
                f"most {len(CAMERAS)}; got {self.cameras_per_identity}"
            )
        if not 2 <= self.images_per_camera[0] <= self.images_per_camera[1]:
            raise ValueError(
                "images_per_camera must be a range from 2 on, since one of them is the query; "
                f"got {self.images_per_camera}"
            )
        for split in ("train", "test"):
            people, pairs = getattr(self, f"{split}_identities"), getattr(self, f"{split}_hard_pairs")
            if people < 2 or not 0 <= 2 * pairs <= people:
                raise ValueError(
                    f"{split}_identities must be at least 2 and hold the 2 people of each hard pair; got "
                    f"{people} identities and {pairs} pairs"
                )
        if self.train_identities + self.test_identities > _MAX_IDENTITY:
            raise ValueError(
                f"train_identities + test_identities must be at most {_MAX_IDENTITY}: "
                "file names have four digits"
            )
        if self.junk < 0 or self.distractors < 0 or self.camera_strength < 0:
            raise ValueError(
                "junk, distractors and camera_strength must be >= 0, got "
                f"{self.junk}, {self.distractors} and {self.camera_strength}"
            )
        if not (0 <= self.obstruction <= 1 and 0 <= self.poor_boxes <= 1):
            raise ValueError(
                f"obstruction and poor_boxes must be in [0, 1], got {self.obstruction} and {self.poor_boxes}"
            )


class HardPair(NamedTuple):
    """Two people who differ in one small detail only."""

    split: str
    """Train or test."""
    pids: tuple[int, int]
    detail: Detail


class Shot(NamedTuple):
    """A picture to be taken."""

    folder: str
    name: str
    pid: int
    camera: int
    """1-based."""
    number: int
    """Of this person's pictures by this camera; junk and distractors are numbered through."""


class Picture(NamedTuple):
    """A picture before it is encoded."""

    shot: Shot
    pixels: Pixels
    """(128, 64, 3) RGB."""


class Plan(NamedTuple):
    """Everything but the pixels."""

    people: dict[int, Person]
    hard_pairs: tuple[HardPair, ...]
    shots: tuple[Shot, ...]


def plan_world(seed: int, world: SyntheticWorld) -> Plan:
    """Decide who exists and who is seen when, by which camera and how often.

    Args:
        seed: of the world, at least 0.
        world: size.

    Returns:
        The plan; training identities are numbered from 1, test identities follow.
    """
    people: dict[int, Person] = {}
    pairs: list[HardPair] = []
    for split, count, pair_count in (
        ("train", world.train_identities, world.train_hard_pairs),
        ("test", world.test_identities, world.test_hard_pairs),
    ):
        rng = _rng(seed, 1, len(people))
        first = len(people) + 1
        pids = [first + place for place in _shuffled(rng, count)]
        for number in range(pair_count):
            detail = DETAILS[number % len(DETAILS)]
            two = pids[2 * number], pids[2 * number + 1]
            people[two[0]], people[two[1]] = twin(rng, draw_person(rng), detail)
            pairs.append(HardPair(split, (min(two), max(two)), detail))
        for pid in pids[2 * pair_count :]:
            people[pid] = draw_person(rng)
    return Plan(people, tuple(pairs), tuple(_plan_shots(_rng(seed, 2), world, sorted(people))))


def draw_pictures(seed: int, world: SyntheticWorld, plan: Plan) -> Iterator[Picture]:
    """Take all pictures of ``plan``, in order. None depends on another: each has its own random stream."""
    places = [
        Place(camera, _rng(seed, 3, number), strength=world.camera_strength, obstruction=world.obstruction)
        for number, camera in enumerate(CAMERAS[: world.cameras], start=1)
    ]
    for shot in plan.shots:
        person: Person | None
        if shot.pid > 0:
            rng = _rng(seed, 4, shot.pid, shot.camera, shot.number)
            visit = _rng(seed, 5, shot.pid, shot.camera)
            person, box = plan.people[shot.pid], _box(rng, world.poor_boxes)
        else:
            rng = visit = _rng(seed, 6 - shot.pid, shot.number)
            person, box = draw_person(rng), _box(rng, _POOR_DISTRACTORS)
            if shot.pid == JUNK:
                person, box = None if chance(rng, _EMPTY_JUNK) else person, "useless"
        yield Picture(shot, places[shot.camera - 1].picture(rng, person, visit=visit, box=box))


def _plan_shots(rng: np.random.Generator, world: SyntheticWorld, pids: list[int]) -> Iterator[Shot]:
    frames = dict.fromkeys(range(1, world.cameras + 1), 0)

    def shot(folder: str, pid: int, camera: int, number: int) -> Shot:
        frames[camera] += 1 + int(rng.integers(_MAX_FRAME_STEP))
        person = f"{pid:04d}" if pid >= 0 else str(pid)
        box = 1 if pid > 0 else 2
        return Shot(folder, f"{person}_c{camera}s1_{frames[camera]:06d}_{box:02d}.jpg", pid, camera, number)

    for pid in pids:
        seen_by = _shuffled(rng, world.cameras)[: _within(rng, world.cameras_per_identity)]
        for camera in sorted(index + 1 for index in seen_by):
            for number in range(_within(rng, world.images_per_camera)):
                test_folder = QUERY if number == 0 else TEST
                folder = TRAIN if pid <= world.train_identities else test_folder
                yield shot(folder, pid, camera, number)
    for pid, count in ((JUNK, world.junk), (DISTRACTOR, world.distractors)):
        for number in range(count):
            yield shot(TEST, pid, 1 + int(rng.integers(world.cameras)), number)


def _rng(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *stream))))


def _shuffled(rng: np.random.Generator, count: int) -> list[int]:
    return [int(index) for index in np.argsort(rng.random(count), kind="stable")]


def _within(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _box(rng: np.random.Generator, poor: float) -> Box:
    return "poor" if chance(rng, poor) else "good"
