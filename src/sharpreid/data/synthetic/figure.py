"""Drawing of one person from the front, the back or the side."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharpreid.data.synthetic.people import Person, uniform
from sharpreid.data.synthetic.raster import Canvas, Colour, Fabric

Side = Literal["front", "back", "side"]

_SHOULDER = 0.112  # half widths of an average body as fractions of the height
_WAIST = 0.084
_HIP = 0.094
_CHEST_DEPTH = 0.066


@dataclass(frozen=True)
class Pose:
    """Pose of a person in one image.

    Attributes:
        side: side that faces the camera; from the side, the person walks towards +x.
        step: phase of the stride, -1 (left leg in front) to 1.
        turn: rotation of the body away from ``side``, -1 to 1 (about 25 degrees in either direction).
    """

    side: Side
    step: float
    turn: float


def sample_pose(rng: np.random.Generator, side: Side) -> Pose:
    """Sample a moment of a stride."""
    return Pose(side, uniform(rng, -1, 1), uniform(rng, -1, 1))


def draw_figure(canvas: Canvas, person: Person, pose: Pose) -> None:
    """Draw ``person`` from the crown of the head, the origin of the canvas, to the soles 1 unit below."""
    if pose.side == "side":
        _draw_from_side(canvas, person, pose)
    else:
        _draw_upright(canvas, person, pose)


def shade(colour: Colour, percent: int) -> Colour:
    """Return ``colour`` at ``percent`` of its brightness, at most 255 per channel."""
    red, green, blue = (min(255, part * percent // 100) for part in colour)
    return red, green, blue


def _draw_upright(canvas: Canvas, person: Person, pose: Pose) -> None:
    front = pose.side == "front"
    narrow = 1 - 0.1 * abs(pose.turn)
    width = person.build * narrow
    shoulder = _SHOULDER * width * person.shoulders
    swing = pose.step * person.stride
    for sign in (-1.0, 1.0):
        lift = 0.022 * max(0.0, sign * swing)
        hip, foot = sign * 0.045 * width, sign * (0.042 + 0.012 * person.build) + 0.006 * pose.turn
        _leg(
            canvas,
            person,
            hip,
            (foot * 0.96, 0.735 - lift),
            (foot, 0.95 - lift),
            dim=100 if lift == 0 else 88,
        )
        sole = 0.976 - lift
        canvas.ellipse((foot + sign * 0.004, sole), (0.027, 0.024 if front else 0.02), Fabric(person.shoes))
    behind = [-1.0, 1.0] if not front else []
    for sign in behind:
        _upright_arm(canvas, person, sign, shoulder, swing, front)
    _lower_cover(canvas, person, (0.0, 0.0), _HIP * width)
    _torso(canvas, person, shoulder, _WAIST * width, _HIP * width, lean=0.0)
    if front:
        if person.open_jacket is not None:
            shirt = ((0.165, 0.034), (0.26, 0.022), (person.upper_end - 0.004, 0.034))
            centre = 0.02 * pose.turn
            canvas.silhouette(shirt, (centre, centre), Fabric(person.open_jacket))
        _draw_logo(canvas, person, 0.03 * pose.turn)
        for sign in (-1.0, 1.0):
            _upright_arm(canvas, person, sign, shoulder, swing, front)
    _upright_bags(canvas, person, pose, shoulder, width)
    _upright_head(canvas, person, pose)


def _leg(
    canvas: Canvas,
    person: Person,
    hip: float,
    knee: tuple[float, float],
    ankle: tuple[float, float],
    dim: int,
) -> None:
    build, cloth = person.build, Fabric(shade(person.lower_fabric.colour, dim))
    skin = Fabric(shade(person.skin, dim))
    top = (hip, person.hip_height)
    thigh, calf = 0.047 * build, 0.033 * build
    if person.lower == "trousers":
        wide = person.trouser_width
        canvas.limb(top, knee, (thigh, 0.036 * build * wide), cloth)
        canvas.limb(knee, ankle, (0.036 * build * wide, 0.026 * wide), cloth)
        return
    canvas.limb(top, knee, (thigh, calf), skin)
    canvas.limb(knee, ankle, (calf, 0.02), skin)
    if person.lower == "shorts":
        hem = (hip + (knee[0] - hip) * 0.75, person.hip_height + (knee[1] - person.hip_height) * 0.75)
        canvas.limb(top, hem, (thigh * 1.04, 0.046 * build * person.trouser_width), cloth)


def _lower_cover(canvas: Canvas, person: Person, centre: tuple[float, float], hip: float) -> None:
    waist = person.hip_height - 0.06
    if person.lower in ("trousers", "shorts"):
        canvas.silhouette(
            ((waist, hip * 0.92), (person.hip_height + 0.035, hip)),
            (centre[0], centre[0]),
            person.lower_fabric,
        )
        return
    hem = 0.69 if person.lower == "skirt" else 0.89
    flare = hip * (1.22 if person.lower == "skirt" else 1.3)
    canvas.silhouette(
        ((waist, hip * 0.9), (person.hip_height, hip), (hem, flare)), centre, person.lower_fabric
    )


def _torso(canvas: Canvas, person: Person, shoulder: float, waist: float, hip: float, lean: float) -> None:
    neck = 0.03 * person.build
    canvas.limb((lean, 0.12), (lean * 0.8, 0.17), (neck, neck * 1.15), Fabric(shade(person.skin, 90)))
    outline = [(0.152, neck * 1.3), (0.176, shoulder * 0.8), (0.192, shoulder * 0.96), (0.21, shoulder)]
    outline += [(0.36, waist)]
    if person.upper_end > person.hip_height + 0.06:
        outline += [(person.hip_height, hip * 1.04), (person.upper_end, hip * 1.2)]
    else:
        outline += [(person.upper_end, hip * 1.02)]
    canvas.silhouette(tuple(outline), (lean, 0.0), person.upper)


def _sleeved_arm(
    canvas: Canvas,
    person: Person,
    joints: tuple[tuple[float, float], tuple[float, float], tuple[float, float]],
    dim: int,
) -> None:
    shoulder, elbow, hand = joints
    upper = Fabric(shade(person.upper.colour, dim))
    if person.upper.pattern not in ("plain", "halves"):
        upper = Fabric(
            upper.colour, shade(person.upper.second, dim), person.upper.pattern, person.upper.period
        )
    skin = Fabric(shade(person.skin, dim))
    build = person.build
    canvas.limb(elbow, hand, (0.024 * build, 0.018 * build), upper if person.long_sleeves else skin)
    canvas.ellipse(hand, (0.019, 0.023), skin)
    canvas.limb(shoulder, elbow, (0.031 * build, 0.026 * build), upper if person.long_sleeves else skin)
    if not person.long_sleeves:
        cuff = (shoulder[0] + (elbow[0] - shoulder[0]) * 0.55, shoulder[1] + (elbow[1] - shoulder[1]) * 0.55)
        canvas.limb(shoulder, cuff, (0.034 * build, 0.034 * build), upper)


def _upright_arm(
    canvas: Canvas, person: Person, sign: float, shoulder: float, swing: float, front: bool
) -> None:
    forward = -sign * swing if front else sign * swing
    x = sign * (shoulder - 0.02 * person.build)
    elbow = (sign * (shoulder + 0.016), 0.345 - 0.006 * forward)
    hand = (sign * (shoulder + 0.014 - 0.014 * forward), 0.487 - 0.028 * max(0.0, forward))
    _sleeved_arm(canvas, person, ((x, 0.214), elbow, hand), 94)
    if person.bag == "handbag" and sign > 0:
        _handbag(canvas, person, hand)


def _handbag(canvas: Canvas, person: Person, hand: tuple[float, float]) -> None:
    dark = Fabric(shade(person.bag_colour, 70))
    canvas.limb(hand, (hand[0], hand[1] + 0.06), (0.008, 0.008), dark)
    canvas.box((hand[0], hand[1] + 0.1), (0.055, 0.048), 0.012, Fabric(person.bag_colour))
    canvas.box((hand[0], hand[1] + 0.075), (0.055, 0.006), 0.003, dark)


def _upright_bags(canvas: Canvas, person: Person, pose: Pose, shoulder: float, width: float) -> None:
    front = pose.side == "front"
    if person.bag == "shoulder bag":
        sign = 1.0 if front else -1.0
        bag, strap = Fabric(person.bag_colour), Fabric(shade(person.bag_colour, 75))
        hip = (sign * 0.098 * width, 0.5)
        canvas.limb((-sign * shoulder * 0.6, 0.168), hip, (0.009, 0.009), strap)
        canvas.box((hip[0] + sign * 0.014, 0.515), (0.05, 0.048), 0.016, bag)
        canvas.box((hip[0] + sign * 0.014, 0.497), (0.05, 0.02), 0.012, strap)
    if person.knapsack is None:
        return
    if front:
        for sign in (-1.0, 1.0):
            x = sign * shoulder * 0.58 + 0.01 * pose.turn
            canvas.limb((x, 0.166), (x * 1.08, 0.34), (0.014, 0.012), Fabric(person.knapsack))
        return
    centre, dark = 0.03 * pose.turn, shade(person.knapsack, 72)
    canvas.box((centre, 0.29), (0.083 * width, 0.122), 0.035, Fabric(dark))
    canvas.box((centre, 0.288), (0.074 * width, 0.114), 0.03, Fabric(person.knapsack))
    canvas.box((centre, 0.345), (0.055 * width, 0.04), 0.015, Fabric(shade(person.knapsack, 84)))
    canvas.box((centre, 0.306), (0.055 * width, 0.004), 0.002, Fabric(dark))


def _draw_logo(canvas: Canvas, person: Person, x: float) -> None:
    if person.logo is None or person.open_jacket is not None:
        return
    centre, fabric = (x, 0.265), Fabric(person.logo_colour)
    if person.logo == "disc":
        canvas.ellipse(centre, (0.04, 0.036), fabric)
    elif person.logo == "square":
        canvas.box(centre, (0.038, 0.034), 0.003, fabric)
    else:
        canvas.box(centre, (0.062, 0.018), 0.003, fabric)
        if person.logo == "cross":
            canvas.box(centre, (0.02, 0.05), 0.003, fabric)


def _upright_head(canvas: Canvas, person: Person, pose: Pose) -> None:
    size, hair = person.head, Fabric(person.hair_colour)
    wide, tall = 0.049 * size, 0.07 * size
    centre = (0.004 * pose.turn, 0.076)
    front = pose.side == "front"
    has_hair = person.hair != "bald"
    if person.hair == "bun":
        canvas.ellipse((centre[0], 0.004), (0.026, 0.022), hair)
    if person.hair == "long":
        strands = ((0.03, wide * 0.95), (0.09, wide * 1.22), (0.19 if front else 0.215, wide * 1.1))
        canvas.silhouette(strands, (centre[0], centre[0]), hair)
    if has_hair:
        canvas.ellipse((centre[0], 0.07), (wide * 1.1, tall * 1.04), hair)
    if front:
        face = (centre[0] + 0.01 * pose.turn, 0.084 if has_hair else 0.077)
        if person.hair == "long":
            canvas.limb((centre[0], 0.12), (centre[0], 0.155), (0.026, 0.028), Fabric(shade(person.skin, 86)))
        canvas.ellipse(face, (wide * 0.9, tall * 0.86), Fabric(person.skin))
        if has_hair:
            canvas.ellipse((centre[0], 0.05), (wide * 1.02, tall * 0.72), hair, above=0.046)
        _face(canvas, person, face, wide)
    elif not has_hair:
        canvas.ellipse(centre, (wide, tall), Fabric(person.skin))
    elif person.hair != "long":
        canvas.ellipse((centre[0], 0.128), (wide * 0.72, 0.016), Fabric(shade(person.skin, 92)))
    _hat(canvas, person, centre[0], wide * 1.14, 0.0 if front else None)


def _face(canvas: Canvas, person: Person, centre: tuple[float, float], wide: float) -> None:
    dark = Fabric(shade(person.skin, 42))
    for sign in (-1.0, 1.0):
        canvas.ellipse((centre[0] + sign * wide * 0.4, 0.074), (0.007, 0.005), dark)
    canvas.box((centre[0], 0.117), (0.014, 0.0035), 0.003, Fabric(shade(person.skin, 66)))
    canvas.limb((centre[0], 0.08), (centre[0], 0.095), (0.004, 0.006), Fabric(shade(person.skin, 88)))


def _hat(canvas: Canvas, person: Person, x: float, wide: float, brim: float | None) -> None:
    """Draw the hat; ``brim`` is the offset of a cap's peak, None if it points away from the camera."""
    if person.hat is None:
        return
    fabric, dark = Fabric(person.hat_colour), Fabric(shade(person.hat_colour, 78))
    if person.hat == "beanie":
        canvas.ellipse((x, 0.056), (wide, 0.078), fabric, above=0.05)
        canvas.box((x, 0.052), (wide * 1.03, 0.014), 0.008, dark)
        return
    canvas.ellipse((x, 0.048), (wide, 0.06), fabric, above=0.046)
    if brim is not None:
        canvas.ellipse((x + brim, 0.05), (wide * 0.98, 0.016), dark)


def _draw_from_side(canvas: Canvas, person: Person, pose: Pose) -> None:
    swing = pose.step * person.stride
    deep = person.build * (1 + 0.08 * pose.turn)
    lean = 0.012
    _side_arm(canvas, person, -swing, lean, dim=70)
    for leg_swing, dim in ((-swing, 74), (swing, 100)):
        _side_leg(canvas, person, leg_swing, dim)
    if person.knapsack is not None:
        back = lean - _CHEST_DEPTH * deep
        canvas.box((back - 0.034, 0.285), (0.062, 0.118), 0.036, Fabric(person.knapsack))
        canvas.box((back - 0.07, 0.335), (0.026, 0.05), 0.016, Fabric(shade(person.knapsack, 78)))
    _lower_cover(canvas, person, (0.0, 0.0), _HIP * 0.82 * deep)
    _torso(canvas, person, _CHEST_DEPTH * deep * 1.04, 0.064 * deep, _HIP * 0.8 * deep, lean)
    if person.open_jacket is not None:
        edge = lean + _CHEST_DEPTH * deep * 0.8
        canvas.limb(
            (edge, 0.19), (edge - 0.008, person.upper_end - 0.02), (0.01, 0.014), Fabric(person.open_jacket)
        )
    if person.bag == "shoulder bag":
        strap = Fabric(shade(person.bag_colour, 75))
        canvas.limb((lean, 0.165), (-0.02, 0.48), (0.009, 0.009), strap)
    _side_arm(canvas, person, swing, lean, dim=94)
    if person.knapsack is not None:
        canvas.limb(
            (lean + 0.012, 0.162), (lean + 0.03, 0.25), (0.013, 0.011), Fabric(shade(person.knapsack, 88))
        )
        canvas.limb(
            (lean + 0.03, 0.25), (lean - 0.04, 0.35), (0.011, 0.009), Fabric(shade(person.knapsack, 88))
        )
    if person.bag == "shoulder bag":
        canvas.box((-0.02, 0.515), (0.056, 0.05), 0.016, Fabric(person.bag_colour))
        canvas.box((-0.02, 0.497), (0.056, 0.02), 0.012, Fabric(shade(person.bag_colour, 75)))
    _side_head(canvas, person, lean)


def _side_leg(canvas: Canvas, person: Person, swing: float, dim: int) -> None:
    bend = max(0.0, -swing)
    knee = (0.062 * swing + 0.022, 0.735 - 0.008 * abs(swing))
    ankle = (0.125 * swing, 0.95 - 0.012 * abs(swing) - 0.03 * bend)
    _leg(canvas, person, 0.0, knee, ankle, dim)
    toe = (ankle[0] + 0.062, ankle[1] + 0.03 + 0.012 * bend)
    canvas.limb(
        (ankle[0] - 0.004, ankle[1] + 0.024 - 0.006 * bend),
        toe,
        (0.024, 0.015),
        Fabric(shade(person.shoes, dim)),
    )


def _side_arm(canvas: Canvas, person: Person, swing: float, lean: float, dim: int) -> None:
    elbow = (lean - 0.075 * swing - 0.012, 0.345)
    hand = (lean - 0.135 * swing + 0.03, 0.482 - 0.02 * abs(swing))
    _sleeved_arm(canvas, person, ((lean, 0.208), elbow, hand), dim)
    if person.bag == "handbag" and dim > 80:
        _handbag(canvas, person, hand)


def _side_head(canvas: Canvas, person: Person, lean: float) -> None:
    size, hair = person.head, Fabric(person.hair_colour)
    wide, tall = 0.056 * size, 0.07 * size
    x = lean + 0.012
    has_hair = person.hair != "bald"
    if person.hair == "bun":
        canvas.ellipse((x - 0.055, 0.045), (0.026, 0.024), hair)
    if person.hair == "long":
        strands = ((0.04, 0.03), (0.1, 0.042), (0.205, 0.036))
        canvas.silhouette(strands, (x - 0.026, x - 0.036), hair)
    if has_hair:
        canvas.ellipse((x - 0.006, 0.068), (wide * 1.06, tall * 1.02), hair)
    canvas.ellipse((x + 0.016, 0.086 if has_hair else 0.08), (wide * 0.74, tall * 0.84), Fabric(person.skin))
    canvas.limb(
        (x + wide * 0.96, 0.076), (x + wide * 1.02, 0.094), (0.005, 0.009), Fabric(shade(person.skin, 96))
    )
    if has_hair:
        canvas.ellipse((x - 0.002, 0.05), (wide * 1.04, tall * 0.76), hair, above=0.05)
        canvas.ellipse((x - 0.028, 0.075), (0.026, 0.042), hair)
    else:
        canvas.ellipse((x - 0.006, 0.07), (wide, tall * 0.98), Fabric(person.skin))
    canvas.ellipse((x + wide * 0.66, 0.074), (0.006, 0.005), Fabric(shade(person.skin, 42)))
    _hat(canvas, person, x - 0.004, wide * 1.1, wide * 0.75)
