"""Photographing a landmark: camera, sky, neighbouring houses, occluders, light and lens.

`take_photograph` is the whole interface. Layers are (height, width, 4) uint8, BGRA with colours
premultiplied by alpha; positions are pixels of the photograph, y runs down.
"""
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.random import Generator

from dolg.data.masonry import SIZE
from dolg.data.occluders import draw_occluders

ATTEMPTS = 12   # views that are tried until the landmark is as visible as it should be


@dataclass(frozen=True)
class View:
    """How hard the photographs of a kind are, and what may be left to see of the landmark.

    `difficulty` is the range of a number from 0 (frontal, whole, bright) to 1 (oblique, cut,
    dark, occluded); `visible` the allowed share of the landmark's own area that is in the
    picture and not occluded.
    """

    difficulty: tuple[float, float]
    visible: tuple[float, float]


VIEWS = {
    "query": View((0.0, 0.3), (0.75, 1.0)),
    "easy": View((0.05, 0.4), (0.6, 1.0)),
    "hard": View((0.6, 0.95), (0.15, 0.85)),
    "junk": View((1.0, 1.0), (0.005, 0.1)),
    "train": View((0.05, 0.95), (0.15, 1.0)),
}


@dataclass(frozen=True)
class Photograph:
    """A picture (height, width, 3) uint8 BGR; the landmark's box (x1, y1, x2, y2) in pixels,
    clipped to the picture; and the share of the landmark that can be seen. In an empty scene
    the box is that of the whole picture and the share 0."""

    image: np.ndarray
    box: tuple[float, float, float, float]
    visible: float


def pyramid(facade: np.ndarray) -> list[np.ndarray]:
    """The facade at 1, 1/2, 1/4 and 1/8 of its size, to be warped without aliasing."""
    levels = [facade]
    for _ in range(3):
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2),
                                 interpolation=cv2.INTER_AREA))
    return levels


def take_photograph(landmark: list[np.ndarray] | None, houses: list[list[np.ndarray]],
                    rng: Generator, view: View, size: tuple[int, int]) -> Photograph:
    """A photograph of `size` (width, height) of a landmark, or of a scene without one.

    `landmark` and the `houses` that stand around are pyramids of facades. The best of
    ATTEMPTS random views is taken where none is within `view.visible`.
    """
    difficulty = float(rng.uniform(*view.difficulty))
    best, miss = None, np.inf
    for _ in range(1 if landmark is None else ATTEMPTS):
        camera = _camera(rng, landmark, difficulty, size)
        layer = np.zeros((*size[::-1], 4), np.uint8) if landmark is None else _warp(
            landmark, camera, size)
        occluders = draw_occluders(rng, difficulty, size, _base(camera, size))
        share = 0.0 if landmark is None else _share(landmark[0], camera, layer, occluders)
        distance = max(view.visible[0] - share, share - view.visible[1], 0)
        if distance < miss:
            best, miss = (camera, layer, occluders, share), distance
        if distance == 0:
            break
    camera, layer, occluders, share = best
    light = _Light.random(rng, difficulty)
    scene = _background(rng, light, houses, camera, size)
    scene = _over(_lit(rng, layer, difficulty), scene)
    scene = _over(occluders, scene)
    return Photograph(_lens(rng, light.apply(scene), difficulty), _box(layer), share)


def _camera(rng: Generator, landmark: list[np.ndarray] | None, difficulty: float,
            size: tuple[int, int]) -> np.ndarray:
    """The homography (3, 3) from the pixels of the board to those of the photograph."""
    yaw = np.radians((8 + 42 * difficulty) * rng.uniform(-1, 1))
    pitch = np.radians((4 + 14 * difficulty) * rng.uniform(-0.4, 1))
    roll = np.radians((1.5 + 6 * difficulty) * rng.normal() * 0.6)
    rotation = _rotation(yaw, pitch, roll)
    distance = rng.uniform(1.3, 2.6) * SIZE
    centred = np.array(((1, 0, -SIZE / 2), (0, 1, -SIZE / 2), (0, 0, 1.0)))
    plane = np.column_stack((rotation[:, 0], rotation[:, 1], (0, 0, distance)))
    view = np.diag((distance, distance, 1)) @ plane @ centred
    return _framing(rng, view, _extent(landmark), difficulty, size) @ view


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    return (np.array(((cr, -sr, 0), (sr, cr, 0), (0, 0, 1)))
            @ np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
            @ np.array(((cy, 0, sy), (0, 1, 0), (-sy, 0, cy))))


def _extent(landmark: list[np.ndarray] | None) -> tuple[float, float, float, float]:
    """The box of the facade on its board."""
    return (90.0, 160.0, 420.0, SIZE) if landmark is None else _box(landmark[0])


def _framing(rng: Generator, view: np.ndarray, extent: tuple, difficulty: float,
             size: tuple[int, int]) -> np.ndarray:
    """The similarity (3, 3) that puts the projected facade into the frame.

    Mild views hold all of it. Hard ones are far away or so near that they cut it, and at
    difficulty 1 all but an edge lies outside, or it stands far away behind other things.
    """
    x0, y0, x1, y1 = extent
    corners = _project(view, np.array(((x0, y0), (x1, y0), (x1, y1), (x0, y1))))
    low, high = corners.min(axis=0), corners.max(axis=0)
    span, (width, height) = high - low, size
    fit = min(width / span[0], height / span[1])
    near = rng.random() < 0.15 + 0.5 * difficulty
    if difficulty >= 1:
        scale = fit * rng.uniform(0.6, 1.6)
        side, keep = rng.choice((-1, 1)), rng.uniform(0.03, 0.14)
        x = 0.5 * width + side * (0.5 * width + (0.5 - keep) * scale * span[0])
        y = rng.uniform(0.3, 0.7) * height
    elif near and difficulty > 0.3:
        scale = fit * rng.uniform(1.15, 1.5 + 1.3 * difficulty)
        slack = 0.5 * np.maximum(scale * span - size, 0) * rng.uniform(-1, 1, 2)
        x, y = (0.5 * width, 0.5 * height) + slack
    else:
        scale = fit * rng.uniform(0.68 - 0.34 * difficulty, 0.95 - 0.35 * difficulty)
        free = np.maximum(np.array(size) - scale * span, 0)
        x = 0.5 * width + free[0] * rng.uniform(-0.5, 0.5)
        y = 0.5 * height + free[1] * rng.uniform(-0.1, 0.42)
    middle = (low + high) / 2
    return np.array(((scale, 0, x - scale * middle[0]), (0, scale, y - scale * middle[1]),
                     (0, 0, 1)))


def _project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    projected = np.column_stack((points, np.ones(len(points)))) @ camera.T
    return projected[:, :2] / projected[:, 2:]


def _scale(camera: np.ndarray, point: tuple[float, float]) -> float:
    """Pixels of the photograph per pixel of the board, at a point of the board."""
    x, y = point
    corners = _project(camera, np.array(((x, y), (x + 1, y), (x, y + 1))))
    return float(np.sqrt(abs(np.linalg.det(corners[1:] - corners[0]))))


def _warp(levels: list[np.ndarray], camera: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    scale = _scale(camera, (SIZE / 2, SIZE / 2))
    level = int(np.clip(np.floor(np.log2(1 / max(scale, 1e-6)) + 0.3), 0, len(levels) - 1))
    # Pixel centres lie at whole coordinates: level pixels i cover board pixels around f*i + c
    factor = 2.0 ** level
    up = np.array(((factor, 0, (factor - 1) / 2), (0, factor, (factor - 1) / 2), (0, 0, 1)))
    return cv2.warpPerspective(levels[level], camera @ up, size, flags=cv2.INTER_LINEAR)


def _base(camera: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Height of the ground line at the left and right edge of the photograph."""
    points = _project(camera, np.array(((120.0, SIZE), (392.0, SIZE))))
    slope = (points[1, 1] - points[0, 1]) / max(abs(points[1, 0] - points[0, 0]), 1e-3)
    slope = np.clip(slope, -0.35, 0.35)
    middle = points.mean(axis=0)
    return middle[1] + slope * (np.array((0.0, size[0])) - middle[0])


def _share(facade: np.ndarray, camera: np.ndarray, layer: np.ndarray,
           occluders: np.ndarray) -> float:
    """The share of the landmark's area that is in the frame and not occluded."""
    x0, y0, x1, y1 = _box(facade)
    grid = np.stack(np.meshgrid(np.linspace(x0, x1 - 1, 28), np.linspace(y0, y1 - 1, 28)), -1)
    grid = grid.reshape(-1, 2)
    solid = facade[grid[:, 1].astype(int), grid[:, 0].astype(int), 3] > 127
    places = np.floor(_project(camera, grid[solid]) + 0.5).astype(int)
    height, width = layer.shape[:2]
    inside = ((places >= 0) & (places < (width, height))).all(axis=1)
    x, y = places[inside].T
    return float((occluders[y, x, 3] < 128).sum() / max(1, solid.sum()))


def _box(layer: np.ndarray) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of what is opaque, or the whole layer where nothing is."""
    solid = layer[..., 3] > 127
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    if not len(columns):
        return 0.0, 0.0, float(layer.shape[1]), float(layer.shape[0])
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _over(layer: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """A layer on a picture (height, width, 3) uint8."""
    clear = cv2.cvtColor(255 - layer[..., 3], cv2.COLOR_GRAY2BGR)
    return cv2.add(layer[..., :3], cv2.multiply(scene, clear, scale=1 / 255))


@dataclass(frozen=True)
class _Light:
    """The hour and the weather: colours of the sky (BGR) and what the camera makes of them."""

    sky: tuple[tuple[float, ...], tuple[float, ...]]    # at the top and at the horizon
    cloud: tuple[float, ...]
    gains: np.ndarray
    gamma: float

    SKIES: ClassVar = (
        ((214, 150, 88), (240, 214, 186), (250, 248, 246)),      # noon
        ((190, 182, 176), (216, 212, 208), (232, 230, 228)),     # overcast
        ((168, 120, 104), (130, 186, 244), (190, 196, 238)),     # evening
        ((226, 190, 140), (238, 226, 210), (255, 252, 250)),     # haze
        ((84, 48, 34), (126, 84, 70), (110, 84, 72)))            # night
    TINTS: ClassVar = ((1, 1, 1), (1.04, 1, 0.96), (0.78, 0.95, 1.12), (1.02, 1, 1),
                       (0.8, 0.56, 0.5))

    @classmethod
    def random(cls, rng: Generator, difficulty: float) -> "_Light":
        odds = np.array((3, 2, 1 + difficulty, 1, 1.6 * difficulty ** 2))
        hour = int(rng.choice(len(odds), p=odds / odds.sum()))
        warmth = (0.05 + 0.12 * difficulty) * rng.normal()
        exposure = np.exp((0.1 + 0.28 * difficulty) * rng.normal() - 0.1 * difficulty)
        gains = np.array(cls.TINTS[hour]) * exposure * (1 - warmth, 1.0, 1 + warmth)
        top, horizon, cloud = cls.SKIES[hour]
        return cls((top, horizon), cloud, gains, float(np.exp(0.3 * difficulty * rng.normal())))

    def apply(self, scene: np.ndarray) -> np.ndarray:
        levels = np.linspace(0, 1, 256)[:, None] ** self.gamma * np.clip(self.gains, 0.25, 1.7)
        # A soft shoulder instead of clipping keeps bright walls from turning into white
        levels = np.where(levels > 0.8, 0.8 + 0.2 * np.tanh((levels - 0.8) / 0.2), levels)
        return cv2.LUT(scene, (255 * levels).astype(np.uint8)[None])


def _noise(rng: Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth random values around 0, (height, width) float32."""
    coarse = rng.standard_normal((cells, cells + 2), np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def _background(rng: Generator, light: _Light, houses: list[list[np.ndarray]],
                camera: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sky, clouds, a far skyline, the neighbouring houses and the ground, (h, w, 3) uint8."""
    width, height = size
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.4)
    scene = np.array(light.sky[0]) * (1 - ramp) + np.array(light.sky[1]) * ramp
    clouds = _noise(rng, size, 4) + 0.5 * _noise(rng, size, 9) + 0.25 * _noise(rng, size, 19)
    amount = np.clip(clouds - rng.uniform(-0.4, 1.2), 0, 1)[..., None] * 0.9
    scene = (scene * (1 - amount) + np.array(light.cloud) * amount).astype(np.uint8)
    base = _base(camera, size)
    _skyline(rng, scene, light, base)
    for layer in _neighbours(rng, houses, camera, size):
        scene = _over(layer, scene)
    _ground(rng, scene, base)
    return scene


def _skyline(rng: Generator, scene: np.ndarray, light: _Light, base: np.ndarray) -> None:
    """Hills, trees or houses far away, pale with the colour of the horizon."""
    height, width = scene.shape[:2]
    kind = int(rng.integers(0, 4))
    if kind == 3:
        return
    x = np.arange(0, width + 1, dtype=float)
    rise = rng.uniform(0.05, 0.4) * height
    if kind == 0:
        crest = rise * (0.6 + 0.3 * np.sin(x / width * rng.uniform(2, 7) + rng.uniform(0, 6)))
    elif kind == 1:
        crest = 0.5 * rise * (1 + 0.3 * np.abs(np.sin(x / rng.uniform(4, 9)))
                              + 0.3 * np.sin(x / rng.uniform(15, 50)))
    else:
        crest = rise * rng.uniform(0.3, 1, width + 1)[(x // rng.uniform(10, 40)).astype(int)]
    line = base[0] + (base[1] - base[0]) * x / width - crest
    far = (np.array(light.sky[1]) * 0.55
           + np.array(((110, 120, 110), (70, 110, 84), (120, 128, 140))[kind]) * 0.4)
    points = np.concatenate((np.stack((x, line), 1), ((width, height), (0, height))))
    cv2.fillPoly(scene, [points.astype(np.int32)], far.tolist(), cv2.LINE_AA)


def _neighbours(rng: Generator, houses: list[list[np.ndarray]], camera: np.ndarray,
                size: tuple[int, int]) -> list[np.ndarray]:
    """Warped layers of up to two houses on each side, in the plane of the landmark."""
    layers = []
    for side in (-1, 1):
        edge = SIZE / 2 + side * rng.uniform(225, 300)
        for _ in range(int(rng.integers(0, 3)) if houses else 0):
            house = houses[int(rng.integers(0, len(houses)))]
            scale, mirror = rng.uniform(0.55, 0.95), rng.choice((-1, 1))
            middle = edge + side * 235 * scale
            place = np.array(((scale * mirror, 0, middle - mirror * scale * SIZE / 2),
                              (0, scale, SIZE * (1 - scale)), (0, 0, 1)))
            corners = np.array(((0, 0, 1), (SIZE, 0, 1), (SIZE, SIZE, 1), (0, SIZE, 1.0)))
            # What reaches behind the camera cannot be projected
            if ((corners @ (camera @ place).T)[:, 2] > 0.15 * camera[2, 2]).all():
                layers.append(_warp(house, camera @ place, size))
            edge += side * 480 * scale
    return layers


def _ground(rng: Generator, scene: np.ndarray, base: np.ndarray) -> None:
    """Paving, grass, sand or water below the ground line."""
    height, width = scene.shape[:2]
    kind = int(rng.integers(0, 4))
    colour = np.array(((138, 142, 148), (72, 128, 104), (150, 182, 200), (150, 120, 84))[kind])
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    depth = rows - (base[0] + (base[1] - base[0]) * columns / width)
    below = depth > 0
    if not below.any():
        return
    tone = 0.82 + 0.2 * np.clip(depth / (0.25 * height), 0, 1) + 0.05 * _noise(rng, (width, height),
                                                                              14)
    tone -= 0.3 * np.exp(-np.maximum(depth, 0) / (0.02 * height))     # where walls meet it
    if kind in (0, 3):
        tone += 0.05 * np.sin(900 / (np.maximum(depth, 0) + 12))
    mirrored = colour * tone[..., None]
    if kind == 3:
        source = (rows - 2 * np.maximum(depth, 0) + 2 * np.sin(rows)).astype(np.float32)
        image = cv2.remap(scene, columns, source, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
        mirrored = 0.5 * mirrored + 0.5 * image
    scene[below] = np.clip(mirrored[below], 0, 255).astype(np.uint8)


def _lit(rng: Generator, layer: np.ndarray, difficulty: float) -> np.ndarray:
    """The landmark with uneven light and the shadow of something beside it."""
    height, width = layer.shape[:2]
    tone = 1 + (0.04 + 0.12 * difficulty) * _noise(rng, (width, height), 2)
    if rng.random() < 0.25 + 0.5 * difficulty:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        angle = rng.uniform(-0.6, 0.6)
        across = ((x - rng.uniform(0.1, 0.9) * width) * np.cos(angle)
                  + (y - 0.5 * height) * np.sin(angle)) * rng.choice((-1, 1))
        tone *= 1 - rng.uniform(0.2, 0.45) / (1 + np.exp(-across / (0.01 * width)))
    # Premultiplied colours must stay below their alpha
    colours = np.minimum(layer[..., :3] * tone[..., None], layer[..., 3:])
    return np.dstack((np.clip(colours, 0, 255).astype(np.uint8), layer[..., 3]))


def _lens(rng: Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """Blur of focus or motion, vignette and sensor noise."""
    height, width = image.shape[:2]
    blur = 0.0035 * width * rng.uniform(0, 0.2 + difficulty)
    if rng.random() < 0.2 * difficulty:
        length = 3 + 2 * int(rng.integers(0, 2))
        kernel = np.zeros((length, length), np.float32)
        kernel[length // 2] = 1 / length
        image = cv2.filter2D(image, -1, kernel if rng.random() < 0.7 else kernel.T.copy())
    elif blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j].astype(np.float32)
    vignette = 1 - rng.uniform(0, 0.16) * (x ** 2 + y ** 2)
    grain = rng.standard_normal(image.shape, np.float32) * (1 + 5 * difficulty * rng.random())
    return np.clip(image * vignette[..., None] + grain, 0, 255).astype(np.uint8)
