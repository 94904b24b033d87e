"""Composition of a synthetic image: background, person, passer-by and obstacle in front of a camera."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sharpreid.data.synthetic.cameras import (
    Camera,
    Pixels,
    capture_image,
    draw_background,
    draw_occluder,
    sample_side,
)
from sharpreid.data.synthetic.figure import Side, draw_figure, sample_pose
from sharpreid.data.synthetic.people import Person, chance, sample_person, uniform
from sharpreid.data.synthetic.raster import Canvas, Fabric, FloatArray

WIDTH = 64
HEIGHT = 128
"""Size of an image in pixels, as in Market-1501."""

_SUPERSAMPLING = 2  # images are rendered at this multiple of their size
_SAME_SIDE = 0.7  # probability that an image shows the usual side of the visit

BoxQuality = Literal["good", "poor", "useless"]


@dataclass(frozen=True)
class Framing:
    """Position of a person as fractions of the image's width (``x``) and height (``top``, ``size``)."""

    x: float
    top: float
    size: float


class CameraScene:
    """A camera with its background.

    Args:
        camera: camera.
        rng: random generator of the background.
        strength: strength of the camera's colours and light; see `capture_image`.
        obstruction: probability of an obstacle, and of a passer-by.
    """

    def __init__(
        self, camera: Camera, rng: np.random.Generator, *, strength: float, obstruction: float
    ) -> None:
        self.camera = camera
        self.strength = strength
        self.obstruction = obstruction
        self.background = draw_background(rng, camera, WIDTH * _SUPERSAMPLING, HEIGHT * _SUPERSAMPLING)

    def render(
        self, rng: np.random.Generator, person: Person | None, *, visit: np.random.Generator, box: BoxQuality
    ) -> Pixels:
        """Render one image.

        Args:
            rng: random generator of pose, box, light, noise and obstacles, which differ between the images of
                one visit.
            person: visible person; None leaves the scene empty.
            visit: random generator of the spot and the usual side, which the images of one visit share.
            box: quality of the detector's box.

        Returns:
            (128, 64, 3), RGB.
        """
        camera = self.camera
        spot, usual_side = uniform(visit, 0, 1), sample_side(visit, camera)
        mirrored = chance(visit, 0.5)
        image = self._crop_background(rng, spot)
        passer_by = chance(rng, self.obstruction)
        in_front = chance(rng, 0.4)
        if passer_by and not in_front:
            self._draw_passer_by(rng, image, in_front=False)
        if person is not None:
            side = usual_side if chance(rng, _SAME_SIDE) else sample_side(rng, camera)
            self._draw_person(rng, image, person, side, sample_framing(rng, box), mirrored=mirrored)
        if passer_by and in_front:
            self._draw_passer_by(rng, image, in_front=True)
        if chance(rng, self.obstruction):
            draw_occluder(rng, image, camera)
        return capture_image(rng, camera, image, self.strength)

    def _crop_background(self, rng: np.random.Generator, spot: float) -> FloatArray:
        width = WIDTH * _SUPERSAMPLING
        room = self.background.shape[2] - width
        left = int((spot * 0.85 + uniform(rng, 0, 0.15)) * room)
        background: FloatArray = self.background[:, :, left : left + width].copy()
        return background

    def _draw_person(
        self,
        rng: np.random.Generator,
        image: FloatArray,
        person: Person,
        side: Side,
        framing: Framing,
        *,
        mirrored: bool,
    ) -> None:
        canvas = Canvas(
            image,
            left=framing.x * image.shape[2],
            top=framing.top * image.shape[1],
            unit=framing.size * image.shape[1],
            mirrored=mirrored and side == "side",
            light=self.camera.light,
        )
        canvas.ellipse((0.02, 0.985), (0.15, 0.022), Fabric((24, 24, 28)), opacity=0.45)
        draw_figure(canvas, person, sample_pose(rng, side))

    def _draw_passer_by(self, rng: np.random.Generator, image: FloatArray, *, in_front: bool) -> None:
        size = uniform(rng, 0.95, 1.15) if in_front else uniform(rng, 0.6, 0.8)
        offset = uniform(rng, 0.42, 0.58) if in_front else uniform(rng, 0.22, 0.5)
        x = 0.5 + offset if chance(rng, 0.5) else 0.5 - offset
        side = sample_side(rng, self.camera)
        framing = Framing(x, 0.9 - size * 0.95, size)
        self._draw_person(rng, image, sample_person(rng), side, framing, mirrored=chance(rng, 0.5))


def sample_framing(rng: np.random.Generator, box: BoxQuality) -> Framing:
    """Sample the position of a person in a box.

    A good box frames the person, a poor one is misaligned or of the wrong size, and a useless one mostly
    misses the person.
    """
    if box == "good":
        size = uniform(rng, 0.82, 0.94)
        return Framing(0.5 + uniform(rng, -0.06, 0.06), (1 - size) * uniform(rng, 0.3, 0.8), size)
    sign = 1.0 if chance(rng, 0.5) else -1.0
    if box == "poor":
        if chance(rng, 0.5):
            size = uniform(rng, 0.62, 0.76)
            return Framing(0.5 + uniform(rng, -0.14, 0.14), (1 - size) * uniform(rng, 0.2, 0.9), size)
        size = uniform(rng, 1.02, 1.2)
        return Framing(0.5 + sign * uniform(rng, 0.0, 0.14), -uniform(rng, 0.0, 0.12), size)
    if chance(rng, 0.5):
        size = uniform(rng, 0.8, 1.1)
        return Framing(0.5 + sign * uniform(rng, 0.42, 0.6), uniform(rng, -0.1, 0.2), size)
    size = uniform(rng, 1.8, 2.6)
    return Framing(0.5 + sign * uniform(rng, 0.0, 0.3), -uniform(rng, 0.1, 0.7) * size, size)
