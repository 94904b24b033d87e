"""Plan of the synthetic data set: its people, hard pairs and images, and their rendering."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sharpreid.data.synthetic.cameras import CAMERAS, Pixels
from sharpreid.data.synthetic.people import DETAILS, Detail, Person, chance, make_pair, sample_person
from sharpreid.data.synthetic.scenes import BoxQuality, CameraScene

TRAIN, QUERY, TEST = "bounding_box_train", "query", "bounding_box_test"
"""Folders of the layout of Market-1501."""

DISTRACTOR, JUNK = 0, -1
"""Identities of Market-1501 for people who match no query and for boxes that miss the person."""

_MAX_FRAME_STEP = 60
_MAX_IDENTITY = 9999
_POOR_DISTRACTORS = 0.4
_EMPTY_JUNK = 0.3


@dataclass(frozen=True, kw_only=True)
class SyntheticParams:
    """Size and difficulty of the data set.

    Args:
        train_identities: number of training identities.
        test_identities: number of test identities.
        train_hard_pairs: number of pairs of training identities that differ in one small detail.
        test_hard_pairs: number of such pairs of test identities.
        cameras: number of cameras; the first ones of `CAMERAS` are used.
        cameras_per_identity: least and greatest number of cameras that see a person.
        images_per_camera: least and greatest number of images of a person from one camera. One of them is the
            query in the test set.
        junk: number of images of identity -1, whose boxes miss the person.
        distractors: number of images of identity 0000, people who match no query.
        camera_strength: difference between the colours and the light of the cameras; 0 is none.
        obstruction: probability of an obstacle, and of a passer-by, in an image.
        poor_boxes: fraction of images of people with a misaligned box or one of the wrong size.

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
    """Two people who differ in one small detail."""

    split: str
    """``train`` or ``test``."""
    pids: tuple[int, int]
    detail: Detail


class Shot(NamedTuple):
    """A planned image."""

    folder: str
    name: str
    pid: int
    camera: int
    """Camera, counted from 1."""
    number: int
    """Number among the images of this person by this camera, or among all junk images or all distractors."""


class RenderedImage(NamedTuple):
    """An image before it is encoded."""

    shot: Shot
    pixels: Pixels
    """(128, 64, 3), RGB."""


class Plan(NamedTuple):
    """The data set without its pixels."""

    people: dict[int, Person]
    hard_pairs: tuple[HardPair, ...]
    shots: tuple[Shot, ...]


def plan_images(seed: int, params: SyntheticParams) -> Plan:
    """Plan people, hard pairs and images.

    Args:
        seed: seed of the generator, at least 0.
        params: size and difficulty.

    Returns:
        The plan. Training identities are numbered from 1, and test identities follow.
    """
    people: dict[int, Person] = {}
    pairs: list[HardPair] = []
    for split, count, pair_count in (
        ("train", params.train_identities, params.train_hard_pairs),
        ("test", params.test_identities, params.test_hard_pairs),
    ):
        rng = _rng(seed, 1, len(people))
        first = len(people) + 1
        pids = [first + place for place in _shuffled(rng, count)]
        for number in range(pair_count):
            detail = DETAILS[number % len(DETAILS)]
            two = pids[2 * number], pids[2 * number + 1]
            people[two[0]], people[two[1]] = make_pair(rng, sample_person(rng), detail)
            pairs.append(HardPair(split, (min(two), max(two)), detail))
        for pid in pids[2 * pair_count :]:
            people[pid] = sample_person(rng)
    return Plan(people, tuple(pairs), tuple(_plan_shots(_rng(seed, 2), params, sorted(people))))


def render_images(seed: int, params: SyntheticParams, plan: Plan) -> Iterator[RenderedImage]:
    """Render the images of ``plan`` in order, each from a random stream of its own."""
    scenes = [
        CameraScene(
            camera, _rng(seed, 3, number), strength=params.camera_strength, obstruction=params.obstruction
        )
        for number, camera in enumerate(CAMERAS[: params.cameras], start=1)
    ]
    for shot in plan.shots:
        person: Person | None
        if shot.pid > 0:
            rng = _rng(seed, 4, shot.pid, shot.camera, shot.number)
            visit = _rng(seed, 5, shot.pid, shot.camera)
            person, box = plan.people[shot.pid], _sample_box_quality(rng, params.poor_boxes)
        else:
            rng = visit = _rng(seed, 6 - shot.pid, shot.number)
            person, box = sample_person(rng), _sample_box_quality(rng, _POOR_DISTRACTORS)
            if shot.pid == JUNK:
                person, box = None if chance(rng, _EMPTY_JUNK) else person, "useless"
        yield RenderedImage(shot, scenes[shot.camera - 1].render(rng, person, visit=visit, box=box))


def _plan_shots(rng: np.random.Generator, params: SyntheticParams, pids: list[int]) -> Iterator[Shot]:
    frames = dict.fromkeys(range(1, params.cameras + 1), 0)

    def shot(folder: str, pid: int, camera: int, number: int) -> Shot:
        frames[camera] += 1 + int(rng.integers(_MAX_FRAME_STEP))
        person = f"{pid:04d}" if pid >= 0 else str(pid)
        box = 1 if pid > 0 else 2
        return Shot(folder, f"{person}_c{camera}s1_{frames[camera]:06d}_{box:02d}.jpg", pid, camera, number)

    for pid in pids:
        seen_by = _shuffled(rng, params.cameras)[: _within(rng, params.cameras_per_identity)]
        for camera in sorted(index + 1 for index in seen_by):
            for number in range(_within(rng, params.images_per_camera)):
                test_folder = QUERY if number == 0 else TEST
                folder = TRAIN if pid <= params.train_identities else test_folder
                yield shot(folder, pid, camera, number)
    for pid, count in ((JUNK, params.junk), (DISTRACTOR, params.distractors)):
        for number in range(count):
            yield shot(TEST, pid, 1 + int(rng.integers(params.cameras)), number)


def _rng(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, *stream))))


def _shuffled(rng: np.random.Generator, count: int) -> list[int]:
    return [int(index) for index in np.argsort(rng.random(count), kind="stable")]


def _within(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _sample_box_quality(rng: np.random.Generator, poor: float) -> BoxQuality:
    return "poor" if chance(rng, poor) else "good"
