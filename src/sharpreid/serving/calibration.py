"""Choose the distance up to which a gallery image is taken for the person of a query.

A person who is not in the gallery should get no match. The threshold is chosen on labelled people who were
not trained on, so that a stated share of the queries of such people, the false-positive rate, is matched.

Who is enrolled in a gallery is a matter of chance. The rate is therefore an average over all galleries of n
of the labelled people, with all other people as strangers. For a query, this average is known without drawing
galleries: if c of the other people are within the threshold, the share of the galleries that contain none of
them is the hypergeometric probability C(I - 1 - c, n) / C(I - 1, n).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sharpreid.evaluation.exact import Array, chunk_slices, exact_embeddings, shifted_squared_distances
from sharpreid.evaluation.protocol import Exclusion
from sharpreid.serving.gallery import Gallery, embeddings_of
from sharpreid.serving.model import Threshold, read_config, save_threshold

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SPLITS = 1000
"""Number of random splits into enrolled people and strangers that an interval is computed from."""


class CalibrationError(ValueError):
    """Error for people from whom no threshold can be chosen."""


class Rates(NamedTuple):
    """What a threshold does in one gallery."""

    false_positive: float
    """Share of the strangers' queries that are matched, in [0, 1]."""
    detection: float | None
    """Share of the enrolled people's queries that find their person first and within the threshold.

    Queries without another valid image of their person do not count; None if there are only such queries.
    """


@dataclass(frozen=True, eq=False)
class PersonDistances:
    """Distance of each image, as a query, to the nearest valid image of each person.

    Args:
        person: person of each query, 0 to P - 1, (Q,).
        nearest: distances, float32, (Q, P); infinite if the person has no valid image.
    """

    person: Integers
    nearest: npt.NDArray[np.float32]

    @property
    def people(self) -> int:
        """P, number of people."""
        return int(self.nearest.shape[1])

    def among(self, people: Integers) -> "PersonDistances":
        """Return the distances of the images of some people to one another."""
        number = np.full(self.people, -1)
        number[people] = np.arange(len(people))
        rows = number[self.person] >= 0
        return PersonDistances(number[self.person[rows]], self.nearest[np.ix_(rows, people)])

    def to_others(self, rows: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return the distances with infinity in place of those to the query's own person, (Q, P)."""
        others = self.nearest[rows].copy()
        others[np.arange(len(others)), self.person[rows]] = np.inf
        return others

    def to_own(self) -> npt.NDArray[np.float32]:
        """Return the distances to the query's own person, (Q,)."""
        return self.nearest[np.arange(len(self.person)), self.person]


def person_distances(
    embeddings: Array,
    identities: Sequence[str],
    cameras: Sequence[str],
    exclusion: Exclusion = "same_identity_and_camera",
) -> PersonDistances:
    """Compare every image with every person.

    Args:
        embeddings: finite, float, (Q, D).
        identities: person of each image, Q.
        cameras: camera of each image, Q.
        exclusion: images that are not valid for a query. "same_identity_and_camera" (Market-1501) removes
            those of the query's person in the query's camera, "same_camera" all images of that camera.

    Raises:
        ValueError: the lengths differ, or the embeddings are not finite.
    """
    x = exact_embeddings("embeddings", embeddings)
    if not len(x) == len(identities) == len(cameras):
        raise ValueError(
            f"expected an identity and a camera for each embedding, got {len(x)} embeddings, "
            f"{len(identities)} identities and {len(cameras)} cameras"
        )
    person, camera = (np.unique(names, return_inverse=True)[1] for names in (identities, cameras))
    order = np.argsort(person, kind="stable")
    starts = np.searchsorted(person[order], np.arange(person.max() + 1))
    shifted, squared_norm = shifted_squared_distances(x, x[torch.from_numpy(order)]), x.square().sum(1)
    nearest = np.empty((len(x), len(starts)), np.float32)
    for rows in chunk_slices(len(x), 8 * len(x)):
        distance = (shifted(rows) + squared_norm[rows, None]).clamp_(min=0).sqrt_().cpu().numpy()
        junk = camera[rows, None] == camera[order]
        if exclusion == "same_identity_and_camera":
            junk &= person[rows, None] == person[order]
        distance[junk] = np.inf
        nearest[rows] = np.minimum.reduceat(distance, starts, axis=1)
    return PersonDistances(person, nearest)


def measure_rates(distances: PersonDistances, enrolled: Flags, threshold: float) -> Rates:
    """Measure a threshold in one gallery.

    Args:
        distances: distances of the images of enrolled people and strangers.
        enrolled: whether a person is in the gallery, (P,). The other people are the strangers.
        threshold: largest distance of a match.

    Raises:
        ValueError: nobody is enrolled, or nobody is a stranger.
    """
    if enrolled.all() or not enrolled.any():
        raise ValueError(f"expected enrolled people and strangers, got {enrolled.sum()} of {len(enrolled)}")
    own, is_enrolled = distances.to_own(), enrolled[distances.person]
    other = distances.to_others()[:, enrolled].min(axis=1)
    asked = is_enrolled & np.isfinite(own)
    found = (own <= threshold) & (own < other)
    return Rates(
        float((other[~is_enrolled] <= threshold).mean()), float(found[asked].mean()) if asked.any() else None
    )


def people_needed(false_positive_rate: float) -> int:
    """Return the number of people that a rate needs.

    With fewer people, each with one query, there is a chance of more than 5 % that no stranger is matched
    although the rate is the stated one. The data then cannot show it.

    >>> [people_needed(rate) for rate in (0.1, 0.05, 0.01)]
    [29, 59, 299]
    """
    return math.ceil(math.log(0.05) / math.log1p(-false_positive_rate))


def calibrate(
    distances: PersonDistances,
    *,
    false_positive_rate: float,
    gallery_identities: int | None = None,
    exclusion: Exclusion = "same_identity_and_camera",
    dataset: str,
    seed: int = 0,
) -> Threshold:
    """Choose the threshold of a false-positive rate, and state how sure the rate is.

    The estimated rate F of a threshold is the mean over all galleries of n of the given people. It is
    unbiased for a given threshold, but the threshold is chosen where F is the wanted rate a, hence more often
    where F is too low. To second order, the true rate there is a + V'(a) / 2 on average, where V(a) is the
    variance of F at the rate a. V grows with a if errors at different rates are independent, and with the
    square of a if they are proportional to a, as when a whole gallery is nearer than others. The threshold is
    therefore chosen at the rate a / (1 + V / (2 a^2)). The true rate is then a on average in the second case,
    and slightly less in the first.

    The interval is that of another measurement: as many other people are split at random into n who are
    enrolled and strangers, and the rate is measured on the strangers' queries. It covers three sources of
    chance. The first is the split; it comes from random splits of the given people. The others are the
    people whom the threshold was chosen on, and those on whom it is measured; both have the variance V. The
    delete-one jackknife over people estimates V. A person is deleted with all queries and from all galleries,
    because the queries of one person tend to be matched together.

    Args:
        distances: distances of the images of people who were not trained on. Every image is a query.
        false_positive_rate: wanted rate, above 0 and at most 0.5.
        gallery_identities: n, people in a gallery, at most half of the people; None takes half of them.
        exclusion: the rule that the distances were computed by.
        dataset: name of the people, for the model's card.
        seed: seed of the random splits.

    Raises:
        CalibrationError: there are too few people for the rate or the gallery, or their embeddings are the
            same.
        ValueError: an argument is out of range.
    """
    if not 0 < false_positive_rate <= 0.5:
        raise ValueError(f"false_positive_rate must be above 0 and at most 0.5, got {false_positive_rate}")
    people, needed = distances.people, people_needed(false_positive_rate)
    if people < needed:
        raise CalibrationError(
            f"a false-positive rate of {false_positive_rate:.2%} needs at least {needed} labelled people, "
            f"got {people}; label more people, or choose a higher rate"
        )
    size = people // 2 if gallery_identities is None else gallery_identities
    if not 1 <= size <= people // 2:
        raise CalibrationError(
            f"gallery_identities must be 1 to {people // 2}, half of the {people} labelled people, because "
            f"the others are the strangers; got {size}"
        )
    galleries = _Galleries(distances, size)
    threshold = galleries.threshold(false_positive_rate)
    if threshold is not None:
        relative_variance = galleries.variance(threshold) / false_positive_rate**2
        threshold = galleries.threshold(false_positive_rate / (1 + relative_variance / 2))
    if threshold is None:
        raise CalibrationError(
            "no distance separates the people: more strangers than the wanted rate are at the same smallest "
            "distance from the gallery; check the embeddings for a collapsed network"
        )
    return Threshold(
        distance=threshold,
        false_positive_rate=false_positive_rate,
        interval=galleries.interval(threshold, false_positive_rate, np.random.default_rng(seed)),
        detection_rate=galleries.detection_rate(threshold),
        gallery_identities=size,
        gallery_images=round(len(distances.person) * size / people),
        identities=people,
        queries=len(distances.person),
        exclusion=exclusion,
        dataset=dataset,
    )


class _Galleries:
    """All galleries of ``size`` people out of those of the distances."""

    def __init__(self, distances: PersonDistances, size: int) -> None:
        self.distances, self.size = distances, size
        self.images = np.bincount(distances.person)
        self.own, people = distances.to_own(), distances.people
        # of more people than these, hardly any gallery (e^-10) contains none
        kept = min(people - 1, math.ceil(10 * people / size))
        self.who = np.empty((len(self.own), kept), np.int32)
        self.distance = np.empty((len(self.own), kept), np.float32)
        self.nearer = np.empty(len(self.own), np.int64)  # other people at least as near as the query's own
        for rows in chunk_slices(len(self.own), 16 * people):
            others = distances.to_others(rows)
            self.nearer[rows] = (others <= self.own[rows, None]).sum(axis=1)
            who = np.argpartition(others, kept - 1, axis=1)[:, :kept]
            distance = np.take_along_axis(others, who, axis=1)
            order = np.argsort(distance, axis=1)
            self.who[rows] = np.take_along_axis(who, order, axis=1)
            self.distance[rows] = np.take_along_axis(distance, order, axis=1)

    def threshold(self, rate: float) -> float | None:
        """Return the largest distance of a query to a person with a mean rate of at most ``rate``."""
        # the k-th nearest person is the nearest in the gallery if those before are not enrolled
        weight = -np.diff(_none_enrolled(self.distances.people - 1, self.size, self.distance.shape[1]))
        order = np.argsort(self.distance, axis=None)
        value = self.distance.ravel()[order]
        total = np.cumsum(np.broadcast_to(weight, self.distance.shape).ravel()[order]) / len(self.distance)
        last_of_ties = np.flatnonzero(np.append(value[1:] > value[:-1], True) & np.isfinite(value))
        below = last_of_ties[total[last_of_ties] <= rate]
        return float(value[below[-1]]) if len(below) else None

    def rate(self, threshold: float) -> float:
        """Return the mean false-positive rate."""
        within = (self.distance <= threshold).sum(axis=1)
        none = _none_enrolled(self.distances.people - 1, self.size, self.distance.shape[1])
        return float((1 - none[within]).mean())

    def detection_rate(self, threshold: float) -> float | None:
        """Return the mean detection rate; None without a query that has another valid image of its person."""
        asked = np.isfinite(self.own)
        if not asked.any():
            return None
        others = self.distances.people - 1
        first = _none_enrolled(others, self.size - 1, others)[self.nearer[asked]]
        return float(np.where(self.own[asked] <= threshold, first, 0.0).mean())

    def variance(self, threshold: float) -> float:
        """Return the delete-one jackknife variance over people of the mean false-positive rate."""
        people, person = self.distances.people, self.distances.person
        within = self.distance <= threshold
        count = within.sum(axis=1)
        rate = 1 - _none_enrolled(people - 2, self.size, self.distance.shape[1])
        query, place = np.nonzero(within)
        less = rate[count[query]] - rate[count[query] - 1]
        total = rate[count].sum() - np.bincount(person, rate[count], people)
        total -= np.bincount(self.who[query, place], less, people)
        without = total / (len(person) - self.images)
        return float((people - 1) / people * np.square(without - without.mean()).sum())

    def interval(self, threshold: float, expected: float, rng: np.random.Generator) -> tuple[float, float]:
        """Return the 95 % interval of `calibrate` for rates whose mean is ``expected``."""
        people, person = self.distances.people, self.distances.person
        query, place = np.nonzero(self.distance <= threshold)
        who, asking = self.who[query, place], person[query]
        rates = np.empty(SPLITS)
        for split in range(SPLITS):
            enrolled = np.zeros(people, bool)
            enrolled[rng.choice(people, self.size, replace=False)] = True
            matched = np.unique(query[enrolled[who] & ~enrolled[asking]])
            rates[split] = len(matched) / self.images[~enrolled].sum()
        # the error of the mean rate is taken as log-normal: on both sets of people, hence twice the variance
        spread = np.sqrt(np.log1p(2 * self.variance(threshold) / self.rate(threshold) ** 2))
        rates *= expected / self.rate(threshold)
        rates *= np.exp(spread * rng.standard_normal(SPLITS) - spread**2 / 2)
        low, high = np.quantile(rates, [0.025, 0.975])
        return float(low), min(1.0, float(high))


def _none_enrolled(people: int, size: int, most: int) -> Floats:
    """Return the share of the galleries of ``size`` out of ``people`` that contain none of c, (most + 1,).

    c is 0 to ``most``.

    >>> _none_enrolled(4, 2, 3).round(3).tolist()
    [1.0, 0.5, 0.167, 0.0]
    """
    c = np.arange(most)
    left = np.clip((people - size - c) / np.maximum(people - c, 1), 0, None)
    return np.concatenate([[1.0], np.cumprod(left)])


def calibrate_folder(
    gallery: str | Path,
    *,
    model: str | Path,
    false_positive_rate: float,
    gallery_identities: int | None = None,
    exclusion: Exclusion = "same_identity_and_camera",
    dataset: str | None = None,
) -> Threshold:
    """Choose a threshold on a labelled gallery, and write it into config.json and the card of the model.

    Args:
        gallery: folder of `sharpreid.embed` whose images have identities and cameras. Images without an
            identity are not used. The people must not be those of the training.
        model: model folder, or the directory of a run.
        false_positive_rate: wanted rate, see `calibrate`.
        gallery_identities: people in a gallery, see `calibrate`.
        exclusion: images that are not valid for a query, see `person_distances`.
        dataset: name of the people, for the card; None takes the name of the gallery's folder.

    Raises:
        CalibrationError: too few images have an identity, or one of them has no camera; see also `calibrate`.
        GalleryError: the gallery is empty, or of another model.
        FileNotFoundError: there is no such model.
        ValueError: an argument is out of range.
    """
    place = Path(gallery).expanduser()
    table = Gallery(place, read_config(model).digest).read()
    identities, cameras = table["identity"].to_pylist(), table["camera"].to_pylist()
    labelled = [row for row, identity in enumerate(identities) if identity is not None]
    if not labelled:
        raise CalibrationError(
            f"{place}: no image has an identity; embed a CSV file with the columns path,identity,camera"
        )
    if without := sum(cameras[row] is None for row in labelled):
        raise CalibrationError(
            f"{place}: {without} of {len(labelled)} images with an identity have no camera; give a "
            "column camera, or camera_pattern=..., when embedding"
        )
    distances = person_distances(
        embeddings_of(table)[labelled],
        [identities[row] for row in labelled],
        [cameras[row] for row in labelled],
        exclusion,
    )
    threshold = calibrate(
        distances,
        false_positive_rate=false_positive_rate,
        gallery_identities=gallery_identities,
        exclusion=exclusion,
        dataset=dataset or place.absolute().name,
    )
    save_threshold(model, threshold)
    return threshold
