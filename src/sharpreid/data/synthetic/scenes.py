"""Puts people of the synthetic data set before a camera: where they stand, who else is there, the crop."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharpreid.data.synthetic.cameras import (
    Camera,
    Pixels,
    draw_occluder,
    draw_scene,
    draw_side,
    take_picture,
)
from sharpreid.data.synthetic.figure import Side, draw_figure, draw_pose
from sharpreid.data.synthetic.people import Person, between, chance, draw_person
from sharpreid.data.synthetic.raster import Fabric, Pen, Plane

WIDTH = 64
HEIGHT = 128
"""Pixels of a picture: those of Market-1501."""

_FINE = 2  # drawn at this multiple of the picture's size
_KEEPS_SIDE = 0.7  # of a person's pictures by one camera show the same side

Box = Literal["good", "poor", "useless"]


@dataclass(frozen=True)
class Framing:
    """Where a person stands in a picture; fractions of its width (``x``) and height (``top``, ``size``)."""

    x: float
    top: float
    size: float


class Place:
    """A camera and its background in one world.

    Args:
        camera: the device.
        rng: draws the background.
        strength: of the camera's colours and light, see `take_picture`.
        obstruction: probability of an obstacle, and of a passer-by.
    """

    def __init__(
        self, camera: Camera, rng: np.random.Generator, *, strength: float, obstruction: float
    ) -> None:
        self.camera = camera
        self.strength = strength
        self.obstruction = obstruction
        self.scene = draw_scene(rng, camera, WIDTH * _FINE, HEIGHT * _FINE)

    def picture(
        self, rng: np.random.Generator, person: Person | None, *, visit: np.random.Generator, box: Box
    ) -> Pixels:
        """One picture.

        Args:
            rng: draws what differs between two pictures of one visit: pose, box, light, noise, obstacles.
            person: who is seen; None is an empty place.
            visit: draws what they share: the spot and mostly the side.
            box: quality of the detector's box.

        Returns:
            (128, 64, 3) RGB.
        """
        camera = self.camera
        spot, usual_side = between(visit, 0, 1), draw_side(visit, camera)
        mirrored = chance(visit, 0.5)
        canvas = self._background(rng, spot)
        passer_by = chance(rng, self.obstruction)
        in_front = chance(rng, 0.4)
        if passer_by and not in_front:
            self._passer_by(rng, canvas, in_front=False)
        if person is not None:
            side = usual_side if chance(rng, _KEEPS_SIDE) else draw_side(rng, camera)
            self._person(rng, canvas, person, side, draw_framing(rng, box), mirrored=mirrored)
        if passer_by and in_front:
            self._passer_by(rng, canvas, in_front=True)
        if chance(rng, self.obstruction):
            draw_occluder(rng, canvas, camera)
        return take_picture(rng, camera, canvas, self.strength)

    def _background(self, rng: np.random.Generator, spot: float) -> Plane:
        width = WIDTH * _FINE
        room = self.scene.shape[2] - width
        left = int((spot * 0.85 + between(rng, 0, 0.15)) * room)
        background: Plane = self.scene[:, :, left : left + width].copy()
        return background

    def _person(
        self,
        rng: np.random.Generator,
        canvas: Plane,
        person: Person,
        side: Side,
        framing: Framing,
        *,
        mirrored: bool,
    ) -> None:
        pen = Pen(
            canvas,
            left=framing.x * canvas.shape[2],
            top=framing.top * canvas.shape[1],
            unit=framing.size * canvas.shape[1],
            mirrored=mirrored and side == "side",
            light=self.camera.light,
        )
        pen.ellipse((0.02, 0.985), (0.15, 0.022), Fabric((24, 24, 28)), opacity=0.45)
        draw_figure(pen, person, draw_pose(rng, side))

    def _passer_by(self, rng: np.random.Generator, canvas: Plane, *, in_front: bool) -> None:
        size = between(rng, 0.95, 1.15) if in_front else between(rng, 0.6, 0.8)
        offset = between(rng, 0.42, 0.58) if in_front else between(rng, 0.22, 0.5)
        x = 0.5 + offset if chance(rng, 0.5) else 0.5 - offset
        side = draw_side(rng, self.camera)
        framing = Framing(x, 0.9 - size * 0.95, size)
        self._person(rng, canvas, draw_person(rng), side, framing, mirrored=chance(rng, 0.5))


def draw_framing(rng: np.random.Generator, box: Box) -> Framing:
    """Where the box leaves the person: well framed, misaligned or of the wrong size, or mostly missed."""
    if box == "good":
        size = between(rng, 0.82, 0.94)
        return Framing(0.5 + between(rng, -0.06, 0.06), (1 - size) * between(rng, 0.3, 0.8), size)
    sign = 1.0 if chance(rng, 0.5) else -1.0
    if box == "poor":
        if chance(rng, 0.5):
            size = between(rng, 0.62, 0.76)
            return Framing(0.5 + between(rng, -0.14, 0.14), (1 - size) * between(rng, 0.2, 0.9), size)
        size = between(rng, 1.02, 1.2)
        return Framing(0.5 + sign * between(rng, 0.0, 0.14), -between(rng, 0.0, 0.12), size)
    if chance(rng, 0.5):
        size = between(rng, 0.8, 1.1)
        return Framing(0.5 + sign * between(rng, 0.42, 0.6), between(rng, -0.1, 0.2), size)
    size = between(rng, 1.8, 2.6)
    return Framing(0.5 + sign * between(rng, 0.0, 0.3), -between(rng, 0.1, 0.7) * size, size)
