"""People of the synthetic data set: their appearance, and hard pairs that are nearly alike.

The random helpers use ``rng.random`` and ``rng.integers`` alone, so that the data set does not depend on
NumPy's implementation of higher-level methods.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np

from sharpreid.data.synthetic.raster import Colour, Fabric, Pattern

Lower = Literal["trousers", "shorts", "skirt", "long skirt"]
Hair = Literal["short", "long", "bun", "bald"]
Hat = Literal["cap", "beanie"]
Bag = Literal["shoulder bag", "handbag"]
Logo = Literal["disc", "square", "bar", "cross"]
Detail = Literal["knapsack", "logo", "hat", "shoes", "bag"]

DETAILS: tuple[Detail, ...] = get_args(Detail)
"""Details in which the two people of a hard pair may differ."""

_SKIN: tuple[Colour, ...] = ((241, 206, 178), (224, 178, 142), (190, 138, 102), (140, 95, 66), (92, 62, 46))
_HAIR: tuple[Colour, ...] = ((28, 24, 24), (58, 40, 30), (104, 70, 42), (186, 150, 92), (150, 146, 142))
_UPPER: tuple[tuple[Colour, float], ...] = (
    ((36, 37, 42), 5),
    ((222, 221, 216), 4),
    ((126, 128, 132), 3),
    ((44, 60, 104), 3),
    ((170, 44, 46), 2),
    ((96, 146, 190), 2),
    ((66, 104, 70), 1),
    ((196, 168, 126), 1),
    ((214, 178, 66), 1),
    ((116, 62, 112), 1),
    ((222, 142, 158), 1),
)
_LOWER: tuple[tuple[Colour, float], ...] = (
    ((34, 34, 40), 6),
    ((52, 68, 104), 5),
    ((98, 98, 102), 3),
    ((176, 156, 122), 2),
    ((212, 210, 204), 1),
    ((92, 64, 52), 1),
)
_SHOES: tuple[tuple[Colour, float], ...] = (
    ((30, 28, 30), 4),
    ((230, 230, 228), 3),
    ((104, 68, 44), 2),
    ((184, 44, 44), 1),
    ((58, 92, 164), 1),
)
_ACCENTS: tuple[Colour, ...] = (
    (196, 42, 46),
    (44, 86, 170),
    (52, 132, 76),
    (228, 188, 54),
    (32, 32, 36),
    (232, 230, 226),
    (214, 112, 44),
)
_DYE_LOT = 9  # clothes of one palette colour differ by up to this much per channel

T = TypeVar("T")


@dataclass(frozen=True)
class Person:
    """Appearance of an identity, the same in all its images. Lengths are fractions of the person's height."""

    build: float
    """Width of the body, 1 is average."""
    shoulders: float
    """Width of the shoulders relative to the build, 1 is average."""
    hip_height: float
    """Distance from the crown to the beginning of the legs."""
    head: float
    """Size of the head, 1 is average."""
    stride: float
    """Swing of legs and arms, 1 is average."""
    skin: Colour
    hair: Hair
    hair_colour: Colour
    upper: Fabric
    upper_end: float
    """Distance from the crown to the hem of the upper garment."""
    long_sleeves: bool
    open_jacket: Colour | None
    """Colour of the shirt under an open jacket; None is a closed upper garment."""
    lower: Lower
    lower_fabric: Fabric
    trouser_width: float
    shoes: Colour
    hat: Hat | None = None
    hat_colour: Colour = (0, 0, 0)
    knapsack: Colour | None = None
    bag: Bag | None = None
    bag_colour: Colour = (0, 0, 0)
    logo: Logo | None = None
    logo_colour: Colour = (0, 0, 0)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Sample a number uniformly from [low, high)."""
    return low + (high - low) * float(rng.random())


def choice(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """Sample one of ``options`` with equal probabilities."""
    return options[int(rng.integers(len(options)))]


def weighted_choice(rng: np.random.Generator, options: tuple[tuple[T, float], ...]) -> T:
    """Sample one of ``options`` with probabilities proportional to their weights."""
    left = uniform(rng, 0, sum(weight for _, weight in options))
    for option, weight in options:
        left -= weight
        if left < 0:
            return option
    return options[-1][0]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with ``probability``."""
    return float(rng.random()) < probability


def sample_person(rng: np.random.Generator) -> Person:
    """Sample a person. Few colours, most of them dull, make many people look alike."""
    lower: Lower = weighted_choice(
        rng, (("trousers", 10.0), ("shorts", 3.0), ("skirt", 2.0), ("long skirt", 1.0))
    )
    sleeves = chance(rng, 0.55)
    jacket = sleeves and chance(rng, 0.3)
    hip_height = uniform(rng, 0.475, 0.525)
    coat = sleeves and chance(rng, 0.2)
    return Person(
        build=uniform(rng, 0.84, 1.26),
        shoulders=uniform(rng, 0.92, 1.1),
        hip_height=hip_height,
        head=uniform(rng, 0.92, 1.1),
        stride=uniform(rng, 0.7, 1.25),
        skin=choice(rng, _SKIN),
        hair=weighted_choice(rng, (("short", 6.0), ("long", 4.0), ("bun", 1.0), ("bald", 1.0))),
        hair_colour=choice(rng, _HAIR),
        upper=_sample_upper(rng),
        upper_end=uniform(rng, 0.6, 0.7) if coat else hip_height + uniform(rng, 0.0, 0.05),
        long_sleeves=sleeves,
        open_jacket=_vary_colour(rng, weighted_choice(rng, _UPPER)) if jacket else None,
        lower=lower,
        lower_fabric=Fabric(_vary_colour(rng, weighted_choice(rng, _LOWER))),
        trouser_width=uniform(rng, 0.85, 1.3),
        shoes=weighted_choice(rng, _SHOES),
        hat=weighted_choice(rng, ((None, 8.0), ("cap", 1.0), ("beanie", 1.0))),
        hat_colour=choice(rng, _ACCENTS),
        knapsack=choice(rng, _ACCENTS) if chance(rng, 0.28) else None,
        bag=weighted_choice(rng, ((None, 7.0), ("shoulder bag", 2.0), ("handbag", 1.0))),
        bag_colour=choice(rng, _ACCENTS),
        logo=choice(rng, get_args(Logo)) if chance(rng, 0.25) else None,
        logo_colour=choice(rng, _ACCENTS),
    )


def make_pair(rng: np.random.Generator, person: Person, detail: Detail) -> tuple[Person, Person]:
    """Make two people who are like ``person`` and differ in ``detail`` alone.

    Args:
        rng: random generator of the detail's colours.
        person: common appearance.
        detail: one of `DETAILS`. Only the second person has the knapsack, logo, hat or bag; shoes differ in
            colour.

    Returns:
        The two people.
    """
    if detail == "knapsack":
        colour = _sample_contrast(rng, person.upper.colour)
        return replace(person, knapsack=None), replace(person, knapsack=colour)
    if detail == "logo":
        plain = replace(person, logo=None, open_jacket=None, upper=replace(person.upper, pattern="plain"))
        colour = _sample_contrast(rng, person.upper.colour)
        return plain, replace(plain, logo=choice(rng, get_args(Logo)), logo_colour=colour)
    if detail == "hat":
        colour = _sample_contrast(rng, person.hair_colour)
        hat: Hat = choice(rng, get_args(Hat))
        return replace(person, hat=None), replace(person, hat=hat, hat_colour=colour)
    if detail == "bag":
        bag: Bag = choice(rng, get_args(Bag))
        colour = _sample_contrast(rng, person.upper.colour)
        return replace(person, bag=None), replace(person, bag=bag, bag_colour=colour)
    dark, light = (34, 32, 34), (226, 226, 222)
    return replace(person, shoes=dark), replace(person, shoes=light)


def _sample_upper(rng: np.random.Generator) -> Fabric:
    pattern: Pattern = weighted_choice(
        rng,
        (
            ("plain", 11.0),
            ("bands", 2.0),
            ("pinstripes", 1.0),
            ("checks", 2.0),
            ("halves", 2.0),
            ("dots", 1.0),
        ),
    )
    first = weighted_choice(rng, _UPPER)
    second = weighted_choice(rng, _UPPER)
    while second == first:
        second = weighted_choice(rng, _UPPER)
    return Fabric(_vary_colour(rng, first), _vary_colour(rng, second), pattern, uniform(rng, 0.045, 0.085))


def _vary_colour(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = (
        min(255, max(0, part + int(rng.integers(-_DYE_LOT, _DYE_LOT + 1)))) for part in colour
    )
    return red, green, blue


def _sample_contrast(rng: np.random.Generator, other: Colour) -> Colour:
    def difference(colour: Colour) -> int:
        return sum(abs(a - b) for a, b in zip(colour, other, strict=True))

    return choice(rng, tuple(colour for colour in _ACCENTS if difference(colour) > 150))
