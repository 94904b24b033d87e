"""Cameras of the synthetic data set: their backgrounds, obstacles, colours, blur and noise."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sharpreid.data.synthetic.figure import Side, shade
from sharpreid.data.synthetic.people import chance, uniform
from sharpreid.data.synthetic.raster import Canvas, Colour, Fabric, FloatArray

Wall = Literal["bricks", "panels", "hedge", "windows"]
Ground = Literal["tiles", "asphalt", "grass", "road"]
Occluder = Literal["pillar", "bicycle", "bush", "fence"]
Pixels = npt.NDArray[np.uint8]

_BACKGROUND_WIDTH = 4  # width of a background, in image widths


@dataclass(frozen=True)
class Camera:
    """Appearance of a camera and of its background.

    Attributes:
        gains: white balance, a factor per RGB channel.
        brightness: offset, in levels of 255.
        contrast: factor around middle grey.
        curve: curvature of the tone curve, -1 to 1; positive values lift the middle tones.
        light: side light on people, -0.2 (left) to 0.2 (right).
        sides: relative frequencies of front, back and side views of people.
        wall: pattern above the horizon.
        wall_colour: RGB colour above the horizon.
        ground: pattern below the horizon.
        ground_colour: RGB colour below the horizon.
        horizon: row of the horizon as a fraction of the image height.
        blur: radius of the lens blur, pixels.
        half_resolution: True if the sensor has half the resolution.
        noise: standard deviation of the sensor noise, in levels of 255.
        occluder: obstacle that may stand between camera and person.
    """

    gains: tuple[float, float, float]
    brightness: float
    contrast: float
    curve: float
    light: float
    sides: tuple[float, float, float]
    wall: Wall
    wall_colour: Colour
    ground: Ground
    ground_colour: Colour
    horizon: float
    blur: int
    half_resolution: bool
    noise: float
    occluder: Occluder


CAMERAS: tuple[Camera, ...] = (
    Camera(
        (1.02, 1.0, 0.97), 4, 1.0, 0.1, 0.10, (7, 1, 2),
        "bricks", (150, 112, 94), "tiles", (164, 158, 150), 0.46, 0, False, 5, "pillar",
    ),
    Camera(
        (0.8, 0.97, 1.22), -12, 1.08, -0.25, -0.14, (1, 7, 2),
        "hedge", (82, 108, 70), "asphalt", (108, 110, 114), 0.4, 1, False, 6, "bicycle",
    ),
    Camera(
        (1.25, 1.02, 0.72), 12, 0.86, 0.3, 0.16, (2, 1, 7),
        "panels", (196, 188, 172), "tiles", (176, 160, 138), 0.52, 0, False, 7, "pillar",
    ),
    Camera(
        (0.92, 1.06, 0.9), -26, 0.8, -0.45, -0.06, (4, 1, 5),
        "windows", (92, 100, 108), "road", (84, 86, 88), 0.42, 1, False, 10, "fence",
    ),
    Camera(
        (1.06, 0.96, 1.08), 22, 1.15, 0.35, 0.05, (1, 5, 4),
        "hedge", (108, 126, 82), "grass", (112, 140, 78), 0.36, 0, True, 6, "bush",
    ),
    Camera(
        (0.9, 0.92, 1.1), 0, 0.72, 0.25, -0.10, (3, 3, 4),
        "panels", (150, 158, 168), "road", (118, 118, 122), 0.48, 1, True, 9, "bicycle",
    ),
)  # fmt: skip
"""The six cameras; Market-1501 has six as well."""


def draw_background(rng: np.random.Generator, camera: Camera, width: int, height: int) -> FloatArray:
    """Draw the background of a camera: float32, (3, height, 4 ``width``), 0 to 255."""
    columns = width * _BACKGROUND_WIDTH
    horizon = int(camera.horizon * height)
    scene = np.empty((3, height, columns), dtype=np.float32)
    scene[:, :horizon] = np.array(camera.wall_colour, dtype=np.float32)[:, None, None]
    scene[:, horizon:] = np.array(camera.ground_colour, dtype=np.float32)[:, None, None]
    canvas = Canvas(scene, left=0, top=0, unit=float(height))
    _draw_wall(rng, canvas, camera, columns / height)
    _draw_ground(rng, canvas, camera, columns / height)
    fine, coarse = smooth_noise(rng, height, columns, 4), smooth_noise(rng, height, columns, 48)
    strength = np.full((height, 1), 0.16, dtype=np.float32)
    if camera.wall == "hedge":
        strength[:horizon] = 0.7
    if camera.ground == "grass":
        strength[horizon:] = 0.45
    scene *= 1 + (fine - np.float32(0.5)) * strength + (coarse - np.float32(0.5)) * np.float32(0.3)
    return scene


def _draw_wall(rng: np.random.Generator, canvas: Canvas, camera: Camera, width: float) -> None:
    horizon, dark = camera.horizon, Fabric(shade(camera.wall_colour, 76))
    bright = Fabric(shade(camera.wall_colour, 116))
    if camera.wall == "bricks":
        for row in range(int(horizon / 0.04) + 1):
            canvas.box((width / 2, row * 0.04), (width / 2, 0.003), 0.001, dark)
            for column in range(int(width / 0.1) + 1):
                x = column * 0.1 + (row % 2) * 0.05
                canvas.box((x, row * 0.04 + 0.02), (0.003, 0.02), 0.001, dark)
    elif camera.wall != "hedge":
        step = 0.3 if camera.wall == "panels" else 0.24
        for column in range(int(width / step) + 1):
            x = (column + uniform(rng, 0.3, 0.7)) * step
            if camera.wall == "panels":
                canvas.box((x, horizon / 2), (0.008, horizon / 2), 0.002, dark)
                if chance(rng, 0.4):
                    poster = Fabric((int(rng.integers(60, 200)), int(rng.integers(60, 200)), 110))
                    canvas.box((x + 0.14, horizon * 0.45), (0.06, 0.09), 0.004, poster)
            else:
                canvas.box((x, horizon * 0.42), (0.085, horizon * 0.34), 0.004, bright)
                canvas.box((x, horizon * 0.42), (0.074, horizon * 0.31), 0.004, dark)
        canvas.box((width / 2, horizon - 0.012), (width / 2, 0.012), 0.002, dark)


def _draw_ground(rng: np.random.Generator, canvas: Canvas, camera: Camera, width: float) -> None:
    horizon, dark = camera.horizon, Fabric(shade(camera.ground_colour, 84))
    if camera.ground == "tiles":
        y, step = horizon, 0.03
        while y < 1:
            canvas.box((width / 2, y), (width / 2, 0.003), 0.001, dark)
            for column in range(int(width / 0.16) + 1):
                canvas.box((column * 0.16, y + step / 2), (0.002, step / 2), 0.001, dark)
            y, step = y + step, step * 1.35
    elif camera.ground == "road":
        kerb = Fabric(shade(camera.ground_colour, 130))
        canvas.box((width / 2, horizon + 0.03), (width / 2, 0.03), 0.002, kerb)
        for column in range(int(width / 0.5) + 1):
            x = column * 0.5 + uniform(rng, 0.0, 0.1)
            canvas.box((x, 0.86), (0.13, 0.018), 0.004, Fabric((206, 204, 196)))


def draw_occluder(rng: np.random.Generator, image: FloatArray, camera: Camera) -> None:
    """Draw the camera's obstacle over the image at a random position."""
    _, height, width = image.shape
    aspect = width / height
    canvas = Canvas(image, left=0, top=0, unit=float(height), light=camera.light)
    if camera.occluder == "pillar":
        left = chance(rng, 0.5)
        half = uniform(rng, 0.05, 0.085)
        x = uniform(rng, 0.0, 0.09) if left else aspect - uniform(rng, 0.0, 0.09)
        canvas.box((x, 0.5), (half, 0.6), 0.002, Fabric((138, 136, 132)))
    elif camera.occluder == "bicycle":
        _draw_bicycle(rng, canvas, aspect)
    elif camera.occluder == "bush":
        for _ in range(14):
            centre = (uniform(rng, 0, aspect), uniform(rng, 0.86, 1.0))
            green = (int(rng.integers(40, 80)), int(rng.integers(80, 120)), int(rng.integers(30, 60)))
            canvas.ellipse(centre, (uniform(rng, 0.05, 0.1), uniform(rng, 0.06, 0.14)), Fabric(green))
    else:
        top, bar = uniform(rng, 0.58, 0.72), Fabric((62, 66, 70))
        canvas.box((aspect / 2, top), (aspect / 2, 0.01), 0.002, bar)
        for column in range(7):
            canvas.box((column * 0.09, top + 0.25), (0.008, 0.25), 0.002, bar)


def _draw_bicycle(rng: np.random.Generator, canvas: Canvas, aspect: float) -> None:
    x, y = uniform(rng, -0.1, aspect - 0.1), uniform(rng, 0.86, 0.92)
    tyre, frame = Fabric((36, 36, 38)), Fabric((int(rng.integers(40, 200)), 60, int(rng.integers(40, 160))))
    back, front, saddle, bar = (x, y), (x + 0.27, y), (x + 0.08, y - 0.17), (x + 0.22, y - 0.19)
    pedals = (x + 0.12, y)
    for wheel in (back, front):
        canvas.ring(wheel, 0.1, 0.009, tyre)
    tubes = ((back, pedals), (pedals, saddle), (pedals, bar), (saddle, bar), (bar, front), (back, saddle))
    for start, end in tubes:
        canvas.limb(start, end, (0.009, 0.009), frame)
    canvas.limb(
        (saddle[0] - 0.03, saddle[1] - 0.01), (saddle[0] + 0.03, saddle[1] - 0.01), (0.014, 0.01), tyre
    )
    canvas.limb((bar[0] - 0.02, bar[1] - 0.02), (bar[0] + 0.05, bar[1] - 0.03), (0.009, 0.009), tyre)


def capture_image(rng: np.random.Generator, camera: Camera, scene: FloatArray, strength: float) -> Pixels:
    """Reduce a scene to half its size and apply light, colours, blur and noise of a camera.

    Args:
        rng: random generator of the momentary light and of the noise.
        camera: camera.
        scene: (3, 2 H, 2 W), 0 to 255; twice the size of the image.
        strength: strength of the camera's colours and light; 0 is neutral, 1 as in `CAMERAS`.

    Returns:
        (H, W, 3), RGB.
    """
    four = scene[:, ::2, ::2] + scene[:, 1::2, ::2] + scene[:, ::2, 1::2] + scene[:, 1::2, 1::2]
    image = four / np.float32(4)
    _, height, width = image.shape
    image *= np.float32(0.86) + smooth_noise(rng, height, width, 40) * np.float32(0.28)
    contrast = 1 + (camera.contrast - 1) * strength + uniform(rng, -0.08, 0.08)
    shift = 128 + camera.brightness * strength + uniform(rng, -14, 14) - 128 * contrast
    curve = camera.curve * strength + uniform(rng, -0.12, 0.12)
    for channel, gain in enumerate(camera.gains):
        factor = (1 + (gain - 1) * strength) * uniform(rng, 0.96, 1.04)
        tone = np.clip(
            (image[channel] * np.float32(contrast) + np.float32(shift)) * np.float32(factor / 255), 0, 1
        )
        image[channel] = (tone + np.float32(curve) * tone * (1 - tone)) * np.float32(255)
    pixels = np.clip(np.floor(image + np.float32(0.5)), 0, 255).astype(np.int32)
    pixels = _blur(pixels, camera, horizontal=chance(rng, 0.12))
    pixels += _noise(rng, camera.noise, pixels.shape)
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _blur(pixels: npt.NDArray[np.int32], camera: Camera, *, horizontal: bool) -> npt.NDArray[np.int32]:
    if camera.half_resolution:
        coarse = pixels[:, ::2, ::2] + pixels[:, 1::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, 1::2]
        pixels = box_blur(np.repeat(np.repeat((coarse + 2) >> 2, 2, axis=1), 2, axis=2), 1, axis=(1, 2))
    if camera.blur:
        pixels = box_blur(pixels, camera.blur, axis=(1, 2))
    return box_blur(pixels, 2, axis=(2,)) if horizontal else pixels


def box_blur(pixels: npt.NDArray[np.int32], radius: int, axis: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Return the rounded mean over ``2 * radius + 1`` neighbours along each axis, with edges repeated."""
    size = 2 * radius + 1
    for one in axis:
        length = pixels.shape[one]
        padding = [(radius, radius) if other == one else (0, 0) for other in range(pixels.ndim)]
        padded = np.pad(pixels, padding, mode="edge")
        total = np.zeros_like(pixels)
        for start in range(size):
            total += padded.take(range(start, start + length), axis=one)
        pixels = (total + size // 2) // size
    return pixels


def _noise(rng: np.random.Generator, deviation: float, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Sample nearly normal noise: four uniform bytes add up to mean 510 with standard deviation 147.8."""
    total = rng.integers(0, 256, size=(4, *shape), dtype=np.uint8).sum(axis=0, dtype=np.int32) - 510
    noise: npt.NDArray[np.int32] = (total * int(deviation * 64)) // (148 * 64)
    return noise


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> FloatArray:
    """Sample noise in [0, 1] on a grid of ``cell`` pixels and interpolate it bilinearly."""
    rows, columns = height // cell + 2, width // cell + 2
    grid = rng.integers(0, 256, size=(rows, columns)).astype(np.float32) / np.float32(255)
    y, x = np.arange(height), np.arange(width)
    down = ((y % cell).astype(np.float32) / np.float32(cell))[:, None]
    right = ((x % cell).astype(np.float32) / np.float32(cell))[None, :]
    upper, lower = grid[y // cell], grid[y // cell + 1]
    lines = upper + (lower - upper) * down
    before, after = lines[:, x // cell], lines[:, x // cell + 1]
    smooth: FloatArray = before + (after - before) * right
    return smooth


def sample_side(rng: np.random.Generator, camera: Camera) -> Side:
    """Sample the side of a person that the camera sees."""
    front, back, _ = camera.sides
    left = uniform(rng, 0, sum(camera.sides))
    if left < front:
        return "front"
    return "back" if left < front + back else "side"
