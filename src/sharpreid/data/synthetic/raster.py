"""Rasterisation of antialiased shapes, bit-equal on every machine.

Every pixel comes from additions, multiplications, divisions, square roots and comparisons on float32, which
IEEE 754 rounds exactly. Sines, powers and matrix products are not used, because their last bits differ
between machines. Drawing libraries give no such guarantee, so none is used.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]
Point = tuple[float, float]
FloatArray = npt.NDArray[np.float32]
Pattern = Literal["plain", "bands", "pinstripes", "checks", "halves", "dots"]


@dataclass(frozen=True)
class Fabric:
    """Fill of a shape: one or two colours and a pattern.

    Attributes:
        colour: RGB, 0 to 255.
        second: second colour of the pattern, RGB.
        pattern: arrangement of the two colours.
        period: period of the pattern, in the units of the canvas.
    """

    colour: Colour
    second: Colour = (0, 0, 0)
    pattern: Pattern = "plain"
    period: float = 0.08

    def share_of_second(self, x: FloatArray, y: FloatArray, sharpness: float) -> FloatArray:
        """Return the weight of the second colour at each point, in [0, 1]; undefined for a plain fabric."""
        if self.pattern == "halves":
            lower: FloatArray = np.clip((y - np.float32(0.33)) * np.float32(sharpness), 0, 1)
            return lower + np.zeros_like(x)
        across, along = _stripe(x, self.period, sharpness), _stripe(y, self.period, sharpness)
        if self.pattern == "bands":
            return along + np.zeros_like(x)
        if self.pattern == "pinstripes":
            return across + np.zeros_like(y)
        if self.pattern == "checks":
            return (across + along) * np.float32(0.5)
        return across * along


class Canvas:
    """Image with a coordinate system of its own, on which shapes are drawn.

    For a person the origin is the crown of the head and the unit is the height of the person.

    Args:
        image: (3, height, width) float32, 0 to 255; modified in place.
        left: column of the origin, pixels.
        top: row of the origin, pixels.
        unit: pixels per unit.
        mirrored: True if x points to the left.
        light: fraction of the brightness that is added at the right edge of a shape and removed at the left.
    """

    def __init__(
        self,
        image: FloatArray,
        *,
        left: float,
        top: float,
        unit: float,
        mirrored: bool = False,
        light: float = 0.0,
    ) -> None:
        self.image = image
        self.left, self.top, self.unit = left, top, unit
        self.sign = -1.0 if mirrored else 1.0
        self.light = light * self.sign
        columns = np.arange(image.shape[2], dtype=np.float32) + np.float32(0.5)
        rows = np.arange(image.shape[1], dtype=np.float32) + np.float32(0.5)
        self.x = ((columns - np.float32(left)) / np.float32(self.sign * unit))[None, :]
        self.y = ((rows - np.float32(top)) / np.float32(unit))[:, None]

    def limb(self, start: Point, end: Point, radii: Point, fabric: Fabric, *, opacity: float = 1.0) -> None:
        """Draw a stroke with round ends, of radius ``radii[0]`` at ``start`` and ``radii[1]`` at ``end``."""
        reach = max(radii)
        window = self._window(
            min(start[0], end[0]) - reach,
            min(start[1], end[1]) - reach,
            max(start[0], end[0]) + reach,
            max(start[1], end[1]) + reach,
        )
        if window is None:
            return
        x, y = self.x[:, window[1]] - np.float32(start[0]), self.y[window[0]] - np.float32(start[1])
        dx, dy = end[0] - start[0], end[1] - start[1]
        length2 = dx * dx + dy * dy + 1e-12
        along = np.clip(x * np.float32(dx / length2) + y * np.float32(dy / length2), 0, 1)
        away_x, away_y = x - along * np.float32(dx), y - along * np.float32(dy)
        radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
        distance = np.sqrt(away_x * away_x + away_y * away_y) - radius
        self._fill(window, distance, away_x / radius, fabric, opacity)

    def ellipse(
        self, centre: Point, radii: Point, fabric: Fabric, *, above: float | None = None, opacity: float = 1.0
    ) -> None:
        """Draw an ellipse, or only its part above the height ``above``."""
        bottom = centre[1] + radii[1] if above is None else min(centre[1] + radii[1], above)
        window = self._window(centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], bottom)
        if window is None:
            return
        x = (self.x[:, window[1]] - np.float32(centre[0])) / np.float32(radii[0])
        y = (self.y[window[0]] - np.float32(centre[1])) / np.float32(radii[1])
        distance = (np.sqrt(x * x + y * y) - np.float32(1)) * np.float32(min(radii))
        cut = self.y[window[0]] - np.float32(bottom)
        self._fill(window, np.maximum(distance, cut), x, fabric, opacity)

    def ring(self, centre: Point, radius: float, thickness: float, fabric: Fabric) -> None:
        """Draw the outline of a circle."""
        reach = radius + thickness
        window = self._window(centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
        if window is None:
            return
        x, y = self.x[:, window[1]] - np.float32(centre[0]), self.y[window[0]] - np.float32(centre[1])
        distance = np.abs(np.sqrt(x * x + y * y) - np.float32(radius)) - np.float32(thickness)
        self._fill(window, distance, x / np.float32(radius), fabric, 1.0)

    def box(self, centre: Point, half: Point, corner: float, fabric: Fabric, *, opacity: float = 1.0) -> None:
        """Draw a rectangle of half sizes ``half`` with rounded corners of radius ``corner``."""
        window = self._window(
            centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]
        )
        if window is None:
            return
        x = self.x[:, window[1]] - np.float32(centre[0])
        out_x = np.abs(x) - np.float32(half[0] - corner)
        out_y = np.abs(self.y[window[0]] - np.float32(centre[1])) - np.float32(half[1] - corner)
        beyond_x, beyond_y = np.maximum(out_x, 0), np.maximum(out_y, 0)
        inside = np.minimum(np.maximum(out_x, out_y), 0)
        distance = np.sqrt(beyond_x * beyond_x + beyond_y * beyond_y) + inside - np.float32(corner)
        self._fill(window, distance, x / np.float32(half[0]), fabric, opacity)

    def silhouette(self, outline: tuple[Point, ...], centre: Point, fabric: Fabric) -> None:
        """Draw a shape with a vertical axis, such as a torso or a skirt.

        Args:
            outline: points (y, half width) from top to bottom.
            centre: x of the axis at the top and at the bottom.
            fabric: fill.
        """
        top, bottom = outline[0][0], outline[-1][0]
        widest = max(half for _, half in outline)
        window = self._window(min(centre) - widest, top, max(centre) + widest, bottom)
        if window is None:
            return
        y = self.y[window[0]]
        half: FloatArray = np.full_like(y, outline[0][1])
        for (upper, before), (lower, after) in pairwise(outline):
            step = np.clip((y - np.float32(upper)) / np.float32(lower - upper), 0, 1)
            half += step * np.float32(after - before)
        lean = np.float32((centre[1] - centre[0]) / (bottom - top))
        x: FloatArray = self.x[:, window[1]] - (np.float32(centre[0]) + (y - np.float32(top)) * lean)
        ends = np.maximum(np.float32(top) - y, y - np.float32(bottom))
        self._fill(window, np.maximum(np.abs(x) - half, ends), x / half, fabric, 1.0)

    def _window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice] | None:
        first, last = sorted((self.left + self.sign * x0 * self.unit, self.left + self.sign * x1 * self.unit))
        _, height, width = self.image.shape
        columns = slice(max(0, math.floor(first) - 1), min(width, math.ceil(last) + 1))
        rows = slice(
            max(0, math.floor(self.top + y0 * self.unit) - 1),
            min(height, math.ceil(self.top + y1 * self.unit) + 1),
        )
        return (rows, columns) if columns.start < columns.stop and rows.start < rows.stop else None

    def _fill(
        self,
        window: tuple[slice, slice],
        distance: FloatArray,
        across: FloatArray,
        fabric: Fabric,
        opacity: float,
    ) -> None:
        cover = np.clip(np.float32(0.5) - distance * np.float32(self.unit), 0, 1) * np.float32(opacity)
        across = np.clip(across, -1, 1)
        shade = np.float32(1.06) - across * across * np.float32(0.28) + across * np.float32(self.light)
        region = self.image[:, window[0], window[1]]
        colour = np.array(fabric.colour, dtype=np.float32)[:, None, None]
        if fabric.pattern != "plain":
            weight = fabric.share_of_second(self.x[:, window[1]], self.y[window[0]], self.unit)
            second = np.array(fabric.second, dtype=np.float32)[:, None, None]
            colour = colour + weight * (second - colour)
        region += cover * (colour * shade - region)


def _stripe(position: FloatArray, period: float, sharpness: float) -> FloatArray:
    cycle = position / np.float32(period)
    cycle = cycle - np.floor(cycle)
    edge = (np.abs(cycle - np.float32(0.5)) - np.float32(0.25)) * np.float32(period * sharpness)
    weight: FloatArray = np.clip(edge + np.float32(0.5), 0, 1)
    return weight
