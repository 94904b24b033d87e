"""Who lives in the synthetic data set: what each person looks like, and which pairs are nearly alike."""

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
"""What the two people of a hard pair may differ in."""

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
    """What stays the same in every picture of an identity. Lengths are fractions of the person's height."""

    build: float
    """Width of the body, 1 is average."""
    shoulders: float
    """Width of the shoulders beyond what ``build`` gives, 1 is average."""
    hip_height: float
    """Where the legs begin, from the crown."""
    head: float
    """Size of the head, 1 is average."""
    stride: float
    """How far legs and arms swing, 1 is average."""
    skin: Colour
    hair: Hair
    hair_colour: Colour
    upper: Fabric
    upper_end: float
    """Hem of the upper garment, from the crown."""
    long_sleeves: bool
    open_jacket: Colour | None
    """Colour of the shirt under an open jacket, or None: the upper garment is closed."""
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


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn uniformly from [low, high)."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    """One of ``options``, all equally likely."""
    return options[int(rng.integers(len(options)))]


def weighted(rng: np.random.Generator, options: tuple[tuple[T, float], ...]) -> T:
    """One of ``options``, each drawn as often as its weight says."""
    left = between(rng, 0, sum(weight for _, weight in options))
    for option, weight in options:
        left -= weight
        if left < 0:
            return option
    return options[-1][0]


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with ``probability``."""
    return float(rng.random()) < probability


def draw_person(rng: np.random.Generator) -> Person:
    """A person. Few colours are drawn from, most of them dull, so that many people are dressed alike."""
    lower: Lower = weighted(rng, (("trousers", 10.0), ("shorts", 3.0), ("skirt", 2.0), ("long skirt", 1.0)))
    sleeves = chance(rng, 0.55)
    jacket = sleeves and chance(rng, 0.3)
    hip_height = between(rng, 0.475, 0.525)
    coat = sleeves and chance(rng, 0.2)
    return Person(
        build=between(rng, 0.84, 1.26),
        shoulders=between(rng, 0.92, 1.1),
        hip_height=hip_height,
        head=between(rng, 0.92, 1.1),
        stride=between(rng, 0.7, 1.25),
        skin=pick(rng, _SKIN),
        hair=weighted(rng, (("short", 6.0), ("long", 4.0), ("bun", 1.0), ("bald", 1.0))),
        hair_colour=pick(rng, _HAIR),
        upper=_draw_upper(rng),
        upper_end=between(rng, 0.6, 0.7) if coat else hip_height + between(rng, 0.0, 0.05),
        long_sleeves=sleeves,
        open_jacket=_dyed(rng, weighted(rng, _UPPER)) if jacket else None,
        lower=lower,
        lower_fabric=Fabric(_dyed(rng, weighted(rng, _LOWER))),
        trouser_width=between(rng, 0.85, 1.3),
        shoes=weighted(rng, _SHOES),
        hat=weighted(rng, ((None, 8.0), ("cap", 1.0), ("beanie", 1.0))),
        hat_colour=pick(rng, _ACCENTS),
        knapsack=pick(rng, _ACCENTS) if chance(rng, 0.28) else None,
        bag=weighted(rng, ((None, 7.0), ("shoulder bag", 2.0), ("handbag", 1.0))),
        bag_colour=pick(rng, _ACCENTS),
        logo=pick(rng, get_args(Logo)) if chance(rng, 0.25) else None,
        logo_colour=pick(rng, _ACCENTS),
    )


def twin(rng: np.random.Generator, person: Person, detail: Detail) -> tuple[Person, Person]:
    """Two people who are both like ``person`` and differ in ``detail`` alone.

    Args:
        rng: draws the colours of the detail.
        person: what they have in common.
        detail: one of `DETAILS`; a knapsack, a logo, a hat or a bag that only the second one has, or shoes of
            another colour.

    Returns:
        The two.
    """
    if detail == "knapsack":
        colour = _contrasting(rng, person.upper.colour)
        return replace(person, knapsack=None), replace(person, knapsack=colour)
    if detail == "logo":
        plain = replace(person, logo=None, open_jacket=None, upper=replace(person.upper, pattern="plain"))
        colour = _contrasting(rng, person.upper.colour)
        return plain, replace(plain, logo=pick(rng, get_args(Logo)), logo_colour=colour)
    if detail == "hat":
        colour = _contrasting(rng, person.hair_colour)
        hat: Hat = pick(rng, get_args(Hat))
        return replace(person, hat=None), replace(person, hat=hat, hat_colour=colour)
    if detail == "bag":
        bag: Bag = pick(rng, get_args(Bag))
        colour = _contrasting(rng, person.upper.colour)
        return replace(person, bag=None), replace(person, bag=bag, bag_colour=colour)
    dark, light = (34, 32, 34), (226, 226, 222)
    return replace(person, shoes=dark), replace(person, shoes=light)


def _draw_upper(rng: np.random.Generator) -> Fabric:
    pattern: Pattern = weighted(
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
    first = weighted(rng, _UPPER)
    second = weighted(rng, _UPPER)
    while second == first:
        second = weighted(rng, _UPPER)
    return Fabric(_dyed(rng, first), _dyed(rng, second), pattern, between(rng, 0.045, 0.085))


def _dyed(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = (
        min(255, max(0, part + int(rng.integers(-_DYE_LOT, _DYE_LOT + 1)))) for part in colour
    )
    return red, green, blue


def _contrasting(rng: np.random.Generator, other: Colour) -> Colour:
    def difference(colour: Colour) -> int:
        return sum(abs(a - b) for a, b in zip(colour, other, strict=True))

    return pick(rng, tuple(colour for colour in _ACCENTS if difference(colour) > 150))
