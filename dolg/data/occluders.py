"""What stands between a camera and a landmark: trees, people, poles, cars, fences.

Each `_name(layer, rng, x, y, tall)` draws on a premultiplied BGRA layer something that stands
at (x, y) and is `tall` pixels high.
"""
import cv2
import numpy as np
from numpy.random import Generator

SUBPIXEL = 4


def draw_occluders(rng: Generator, difficulty: float, size: tuple[int, int],
                   base: np.ndarray) -> np.ndarray:
    """A layer (height, width, 4) with more and larger things the harder the photograph.

    `base` is the height of the ground line at the left and right edge, in pixels.
    """
    width, height = size
    layer = np.zeros((height, width, 4), np.uint8)
    count = int(rng.poisson(1.0 + 3.0 * difficulty))
    kinds = rng.choice(len(KINDS), count, p=ODDS)
    for draw, least, most in (KINDS[i] for i in sorted(kinds)):
        x = float(rng.uniform(-0.05, 1.05) * width)
        line = float(np.clip(base[0] + (base[1] - base[0]) * x / width, 0.55 * height,
                             1.02 * height))
        near = rng.random() ** (2 - difficulty)     # 0 at the facade, 1 at the camera
        y = line + near * (1.1 * height - line)
        tall = height * rng.uniform(least, most) * (0.6 + 0.9 * near)
        draw(layer, rng, x, y, tall)
    if rng.random() < 0.35 * difficulty:
        _branches(layer, rng)
    return layer


def _polygon(layer: np.ndarray, points, colour) -> None:
    corners = np.round(np.asarray(points, float) * 2 ** SUBPIXEL).astype(np.int32)
    cv2.fillPoly(layer, [corners], (*map(float, colour), 255.0), cv2.LINE_AA, SUBPIXEL)


def _disc(layer: np.ndarray, x: float, y: float, radius: float, colour) -> None:
    cv2.circle(layer, (round(x * 16), round(y * 16)), round(max(radius, 0.6) * 16),
               (*map(float, colour), 255.0), -1, cv2.LINE_AA, SUBPIXEL)


def _line(layer: np.ndarray, start, end, width: float, colour) -> None:
    corners = np.round(np.array((start, end), float) * 16).astype(np.int32)
    cv2.polylines(layer, [corners], False, (*map(float, colour), 255.0), max(1, round(width)),
                  cv2.LINE_AA, SUBPIXEL)


def _leaves(layer: np.ndarray, rng: Generator, x: float, y: float, spread: float,
            count: int) -> None:
    """A crown of discs, darker below, in a green or an autumn colour."""
    colour = np.array(((52, 104, 74), (44, 92, 92), (60, 120, 84), (46, 118, 176))[
        int(rng.choice(4, p=(0.4, 0.25, 0.25, 0.1)))])
    offsets = rng.normal(0, 0.42, (count, 2)).clip(-1, 1) * (1, 0.85)
    for dx, dy in offsets[np.argsort(-offsets[:, 1])]:
        tone = 0.95 - 0.35 * dy + rng.normal(0, 0.1)
        _disc(layer, x + spread * dx, y + spread * dy, spread * rng.uniform(0.09, 0.24),
              np.clip(colour * tone, 0, 255))


def _tree(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    spread = tall * rng.uniform(0.28, 0.42)
    bark = (44, 58, 74)
    top = y - tall + spread
    _polygon(layer, ((x - 0.035 * tall, y), (x - 0.015 * tall, top), (x + 0.015 * tall, top),
                     (x + 0.035 * tall, y)), bark)
    if rng.random() < 0.2:
        for angle in rng.uniform(-1.3, 1.3, 16):    # a bare one
            start = rng.uniform(0.35, 0.8)
            reach = spread * rng.uniform(0.5, 1.2)
            _line(layer, (x, y - start * tall),
                  (x + reach * np.sin(angle), y - start * tall - reach * np.cos(angle)),
                  0.012 * tall, bark)
        return
    _leaves(layer, rng, x, top, spread, 70)


def _cypress(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    for share in np.linspace(0, 1, 16):
        half = tall * 0.1 * np.sin(np.pi * (0.12 + 0.86 * share)) ** 0.7
        shift = rng.normal(0, 0.015) * tall
        _disc(layer, x + shift, y - tall * share, half, np.array((48, 84, 58)) * (
            0.75 + 0.35 * share + rng.normal(0, 0.04)))


def _person(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    coat, legs = rng.uniform(30, 210, 3), rng.uniform(30, 120, 3)
    step = rng.uniform(0.04, 0.12) * tall
    for side in (-1, 1):
        _line(layer, (x, y - 0.48 * tall), (x + side * step, y), 0.09 * tall, legs)
        _line(layer, (x + side * 0.1 * tall, y - 0.78 * tall),
              (x + side * (0.13 * tall + 0.4 * step), y - 0.46 * tall), 0.07 * tall, 0.85 * coat)
    _polygon(layer, ((x - 0.12 * tall, y - 0.82 * tall), (x + 0.12 * tall, y - 0.82 * tall),
                     (x + 0.11 * tall, y - 0.42 * tall), (x - 0.11 * tall, y - 0.42 * tall)), coat)
    skin = np.array((150, 178, 222)) * rng.uniform(0.4, 1.05)
    _disc(layer, x, y - 0.91 * tall, 0.08 * tall, skin)
    _disc(layer, x, y - 0.945 * tall, 0.07 * tall, rng.uniform(20, 110) * np.array((0.6, 0.8, 1)))


def _people(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    for _ in range(int(rng.integers(1, 5))):
        _person(layer, rng, x, y + 0.06 * tall * rng.normal(), tall * rng.uniform(0.85, 1.05))
        x += tall * rng.uniform(0.3, 0.7)


def _pole(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    """A street lamp, a flagpole or a traffic sign."""
    metal = np.array((60, 62, 60)) * rng.uniform(0.6, 2.2)
    _line(layer, (x, y), (x, y - tall), max(1.5, 0.018 * tall), metal)
    kind = int(rng.integers(0, 3))
    if kind == 0:
        for side in (-1, 1):
            _line(layer, (x, y - tall), (x + side * 0.1 * tall, y - 1.03 * tall), 2, metal)
            _disc(layer, x + side * 0.1 * tall, y - 1.01 * tall, 0.035 * tall, (206, 236, 246))
    elif kind == 1:
        colours, wave = rng.uniform(40, 230, (3, 3)), 0.03 * tall * np.sin(np.arange(5))
        for i, colour in enumerate(colours):
            t = np.linspace(0, 0.32 * tall, 5)
            upper = np.stack((x + t, y - tall + 0.07 * tall * i + wave), 1)
            _polygon(layer, np.concatenate((upper, upper[::-1] + (0, 0.075 * tall))), colour)
    else:
        _disc(layer, x, y - tall, 0.08 * tall, (52, 50, 196))
        _disc(layer, x, y - tall, 0.055 * tall, (232, 232, 232))


def _car(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    """A car or, with a tall body, a van or a bus."""
    paint, long = rng.uniform(40, 225, 3), tall * rng.uniform(2.1, 3.0)
    bus = rng.random() < 0.25
    roof = 1.0 if bus else 0.62
    body = np.array(((0, 0.12), (0, 0.5), (0.16, 0.58), (0.3, 1), (0.74, 1), (0.9, 0.58),
                     (1, 0.5), (1, 0.12)))
    if bus:
        body = np.array(((0, 0.08), (0, 1), (0.02, 1.2), (0.98, 1.2), (1, 1), (1, 0.08)))
    _polygon(layer, np.stack((x + long * (body[:, 0] - 0.5), y - tall * body[:, 1]), 1), paint)
    for start, end in ((0.3, 0.5), (0.53, 0.73)) if not bus else (
            (0.05, 0.24), (0.28, 0.47), (0.51, 0.7), (0.74, 0.95)):
        _polygon(layer, [(x + long * (u - 0.5), y - tall * v) for u, v in (
            (start - 0.06 * (not bus), roof), (start, 0.92), (end, 0.92),
            (end + 0.06 * (not bus), roof))], (96, 84, 72))
    for share in (0.2, 0.8):
        _disc(layer, x + long * (share - 0.5), y - 0.14 * tall, 0.19 * tall, (34, 32, 30))
        _disc(layer, x + long * (share - 0.5), y - 0.14 * tall, 0.09 * tall, (150, 150, 150))


def _fence(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    """Railings across a part of the picture."""
    width, metal = layer.shape[1], np.array((46, 52, 48)) * rng.uniform(0.6, 3)
    start, end = sorted(rng.uniform(-0.2, 1.2, 2) * width)
    gap = max(3.0, tall * rng.uniform(0.12, 0.3))
    for share in (0.12, 0.85):
        _line(layer, (start, y - share * tall), (end, y - share * tall), 0.05 * tall, metal)
    for post in np.arange(start, end, gap):
        _line(layer, (post, y), (post, y - tall), max(1, 0.035 * tall), metal)


def _hedge(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    for offset in np.arange(-2.5, 2.5, 0.55) * tall:
        _leaves(layer, rng, x + offset, y - 0.4 * tall, 0.6 * tall, 14)


def _hoarding(layer: np.ndarray, rng: Generator, x: float, y: float, tall: float) -> None:
    """A poster wall or a kiosk."""
    long, colour = tall * rng.uniform(0.5, 1.5), rng.uniform(60, 225, 3)
    _polygon(layer, ((x, y), (x, y - tall), (x + long, y - tall), (x + long, y)), 0.5 * colour)
    _polygon(layer, ((x + 0.04 * tall, y - 0.1 * tall), (x + 0.04 * tall, y - 0.95 * tall),
                     (x + long - 0.04 * tall, y - 0.95 * tall),
                     (x + long - 0.04 * tall, y - 0.1 * tall)), colour)
    for share in (0.75, 0.55, 0.35):
        _line(layer, (x + 0.15 * long, y - share * tall),
              (x + long * rng.uniform(0.4, 0.85), y - share * tall), 0.06 * tall, 255 - colour)


def _branches(layer: np.ndarray, rng: Generator) -> None:
    """Foliage that hangs into the picture from an upper corner."""
    height, width = layer.shape[:2]
    corner = rng.choice((0, width))
    for _ in range(int(rng.integers(2, 6))):
        _leaves(layer, rng, corner + rng.normal(0, 0.16) * width,
                abs(rng.normal(0, 0.1)) * height, rng.uniform(0.08, 0.18) * height, 30)


# What is drawn, the heights it has as shares of the picture's, and how often it comes
KINDS = ((_tree, 0.3, 0.85), (_cypress, 0.3, 0.7), (_hedge, 0.06, 0.14), (_hoarding, 0.12, 0.4),
         (_pole, 0.3, 0.8), (_fence, 0.08, 0.2), (_car, 0.08, 0.16), (_people, 0.12, 0.3))
ODDS = (0.22, 0.08, 0.07, 0.06, 0.14, 0.07, 0.14, 0.22)
