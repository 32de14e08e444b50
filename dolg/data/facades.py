"""Drawing a landmark: `draw_facade` puts the masses of a composition on a board.

A composition (cathedral, palace, castle, ...) says where the masses stand and which roofs they
carry. Landmarks of one family share composition, palette and texture: they look alike, and
differ in openings, ornaments, counts and proportions.
"""
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from dolg.data.masonry import (PALETTES, SIZE, TEXTURES, Board, Mass, Style, draw_clock,
                               draw_cornice, draw_ground, draw_ornament, draw_portal,
                               draw_railing, draw_rose, draw_storey, draw_window, ring)

TALL_ROOFS = ("spire", "cone", "onion", "dome", "flat", "hip", "helm")
HOUSE_ROOFS = ("gable", "stepped", "bell", "hip", "flat", "mansard")


def draw_facade(family: Generator, detail: Generator) -> np.ndarray:
    """A landmark: (SIZE, SIZE, 4) uint8, BGRA with colours premultiplied by alpha.

    `family` decides composition, palette and texture, `detail` all the rest.
    """
    palette = PALETTES[int(family.integers(0, len(PALETTES)))]
    texture = str(family.choice(TEXTURES))
    composition = COMPOSITIONS[int(family.integers(0, len(COMPOSITIONS)))]
    board = Board(palette, texture, detail)
    style = Style.random(detail)
    for mass in composition(detail):
        _draw_mass(board, detail, mass, style)
    return board.image


def _draw_mass(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    """Roof, wall, storeys from the top down, portal, and the shading of the wall."""
    ROOFS[mass.roof](board, rng, mass, style)
    wall = ((mass.x0, mass.top), (mass.x1, mass.top), (mass.x1, mass.base), (mass.x0, mass.base))
    board.fill(wall, mass.paint)
    grows = np.linspace(1, rng.uniform(1, 1.7), mass.storeys)
    levels = mass.top + np.concatenate(((0,), np.cumsum(grows / grows.sum()))) * (
        mass.base - mass.top)
    special = int(rng.integers(0, max(1, mass.storeys - 1)))
    for i, (y0, y1) in enumerate(zip(levels[:-1], levels[1:])):
        lowest = i == mass.storeys - 1 and mass.base == SIZE
        if lowest and style.ground != "windows":
            draw_ground(board, mass, style, y0, y1)
        elif i != special or mass.ornament not in ("sign", "niche"):
            draw_storey(board, rng, mass, style, y0, y1)
        if i == special:
            draw_ornament(board, rng, mass, y0, y1)
        draw_cornice(board, mass.x0, mass.x1, y0 + style.cornice, style)
    if mass.door:
        width = min(rng.uniform(0.14, 0.3) * (mass.x1 - mass.x0), 70)
        draw_portal(board, rng, (mass.x0 + mass.x1) / 2, mass.base, width,
                    min(0.86 * (levels[-1] - levels[-2]), 2.4 * width), style.openings[0].shape)
    if style.quoins and not mass.rounded:
        for i, y in enumerate(np.arange(mass.top + style.cornice, mass.base - 8, 9)):
            size = 8 + 5 * (i % 2)
            board.box(mass.x0, y, mass.x0 + size, y + 7.5, "edge")
            board.box(mass.x1 - size, y, mass.x1, y + 7.5, "edge")
    board.shade(wall, 1.1, 0.55 if mass.rounded else 0.92)


# Roofs: (board, rng, mass, style) -> None, drawn upwards from mass.top


def _flat(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    top, height = mass.top, 7 + style.cornice
    if style.top == "balustrade":
        draw_railing(board, mass.x0, mass.x1, top - height, top + 1, "trim")
    elif style.top == "crenels":
        board.box(mass.x0 - 3, top - 4, mass.x1 + 3, top + 2, mass.paint)
        for x in np.arange(mass.x0 - 3, mass.x1 - 6, 2.2 * height):
            board.box(x, top - 4 - height, min(x + 1.2 * height, mass.x1 + 3), top - 3, mass.paint)
    elif style.top == "finials":
        for x in np.linspace(mass.x0 + 3, mass.x1 - 3, mass.bays + 1):
            board.fill(((x - 4, top), (x, top - 2.4 * height), (x + 4, top)), "trim")
    else:
        board.box(mass.x0 - 2, top - 0.5 * height, mass.x1 + 2, top + 1, "edge")


def _gable(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    x, apex = (mass.x0 + mass.x1) / 2, mass.top - mass.rise
    corners = ((mass.x0 - 2, mass.top + 1), (x, apex), (mass.x1 + 2, mass.top + 1))
    board.fill(corners, mass.paint)
    board.shade(corners, 1.05, 0.9)
    board.line(corners, "trim", 2 + style.cornice / 2)
    _gable_window(board, rng, x, mass.top - 0.36 * mass.rise, 0.2 * mass.rise, style)
    if rng.random() < 0.4:
        board.line(((x, apex), (x, apex - 16)), "trim", 2)
        board.line(((x - 5, apex - 11), (x + 5, apex - 11)), "trim", 2)


def _gable_window(board: Board, rng: Generator, x: float, y: float, radius: float,
                  style: Style) -> None:
    choice = rng.random()
    if choice < 0.35:
        draw_rose(board, rng, x, y, radius)
    elif choice < 0.5:
        draw_clock(board, rng, x, y, radius)
    else:
        draw_window(board, style.openings[2], x - 0.6 * radius, y - radius, 1.2 * radius,
                    2 * radius, False)


def _stepped(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    x, half, steps = (mass.x0 + mass.x1) / 2, (mass.x1 - mass.x0) / 2, int(rng.integers(3, 7))
    for i in range(steps):
        share, y = 1 - i / steps, mass.top - mass.rise * (i + 1) / steps
        board.box(x - half * share, y, x + half * share, mass.top + 1, mass.paint)
        board.box(x - half * share - 1, y - 3, x + half * share + 1, y, "trim")
    board.box(x - half / steps, mass.top - mass.rise, x + half / steps, mass.top, mass.paint)
    _gable_window(board, rng, x, mass.top - 0.3 * mass.rise, 0.16 * mass.rise, style)


def _bell(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    """A curved gable under a small pediment."""
    x, half, t = (mass.x0 + mass.x1) / 2, (mass.x1 - mass.x0) / 2, np.linspace(0, 1, 16)
    neck = rng.uniform(0.25, 0.5)
    side = half * (neck + (1 - neck) * (1 - np.sin(t * np.pi / 2)) ** rng.uniform(0.7, 1.6))
    y = mass.top + 1 - 0.82 * mass.rise * t
    left, right = np.stack((x - side, y), 1), np.stack((x + side, y), 1)[::-1]
    board.fill(np.concatenate((left, right)), mass.paint)
    board.line(left, "trim", 4)
    board.line(right, "trim", 4)
    cap = mass.top - 0.82 * mass.rise
    board.fill(((x - half * neck - 4, cap), (x, mass.top - mass.rise),
                (x + half * neck + 4, cap)), "trim")
    _gable_window(board, rng, x, mass.top - 0.36 * mass.rise, 0.17 * mass.rise, style)


def _sloped(board: Board, rng: Generator, mass: Mass, style: Style, inset: float) -> None:
    """A roof that narrows by `inset` pixels on each side, with dormers and chimneys."""
    y = mass.top - mass.rise
    for x in rng.uniform(mass.x0 + inset, mass.x1 - inset, int(rng.integers(0, 4))) - 6:
        board.box(x, y - 16, x + 11, mass.top, "shade")
        board.box(x - 2, y - 18, x + 13, y - 14, "edge")
    slope = ((mass.x0 - 3, mass.top + 1), (mass.x0 + inset, y), (mass.x1 - inset, y),
             (mass.x1 + 3, mass.top + 1))
    board.fill(slope, "roof")
    board.shade(slope, 0.82, 1.08, vertical=True)
    board.line(slope[1:3], "ridge", 3)
    count = int(rng.integers(0, max(1, mass.bays // 2) + 2))
    width = min(0.42 * mass.rise, 0.5 * (mass.x1 - mass.x0 - 2 * inset) / max(1, count))
    for x in np.linspace(mass.x0 + inset, mass.x1 - inset, count + 2)[1:-1]:
        base, tall = mass.top - 0.16 * mass.rise, 1.1 * width
        board.box(x - width / 2, base - tall, x + width / 2, base, mass.paint)
        draw_window(board, style.openings[2], x - 0.3 * width, base - 0.85 * tall, 0.6 * width,
                    0.75 * tall, False)
        board.fill(((x - 0.65 * width, base - tall), (x, base - tall - 0.5 * width),
                    (x + 0.65 * width, base - tall)), "ridge")


def _hip(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    _sloped(board, rng, mass, style, min(0.75 * mass.rise, 0.42 * (mass.x1 - mass.x0)))


def _mansard(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    _sloped(board, rng, mass, style, min(0.22 * mass.rise, 0.3 * (mass.x1 - mass.x0)))


def _profile(board: Board, mass: Mass, radius: np.ndarray, ribs: int, paint: str) -> None:
    """A roof round in plan; `radius` are shares of the half width, from the bottom up."""
    x, half = (mass.x0 + mass.x1) / 2, (mass.x1 - mass.x0) / 2
    y = np.linspace(mass.top + 1, mass.top - mass.rise, len(radius))
    points = np.concatenate((np.stack((x - half * radius, y), 1),
                             np.stack((x + half * radius, y), 1)[::-1]))
    board.fill(points, paint)
    for t in np.sin(np.linspace(-np.pi / 2, np.pi / 2, ribs + 2))[1:-1]:
        board.line(np.stack((x + t * half * radius, y), 1), "ridge")
    board.shade(points, 1.2, 0.55)


def _spire(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    for x in (mass.x0 + 4, mass.x1 - 4):
        board.fill(((x - 5, mass.top), (x, mass.top - 0.22 * mass.rise), (x + 5, mass.top)),
                   "trim")
    _profile(board, mass, np.array((0.92, 0.0)), int(rng.integers(0, 4)), "roof")
    _finial(board, rng, mass)


def _cone(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    _profile(board, mass, np.linspace(1.14, 0, 12) ** rng.uniform(1, 1.4), 0, "roof")
    _finial(board, rng, mass)


def _onion(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    t = np.linspace(0, 1, 30)
    swell = 0.78 + rng.uniform(0.25, 0.5) * np.sin(np.minimum(t * 2.1, 1) * np.pi)
    _profile(board, mass, swell * (1 - t ** rng.uniform(1.6, 3)) + 0.06 * (1 - t),
             int(rng.integers(0, 7)), "roof")
    _finial(board, rng, mass)


def _dome(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    """A half ellipse, with a lantern on it."""
    t = np.linspace(0, 1, 24)
    _profile(board, mass, 0.96 * np.sqrt(1 - t ** 2), int(rng.integers(0, 10)), "roof")
    x, y, size = (mass.x0 + mass.x1) / 2, mass.top - mass.rise, 0.11 * (mass.x1 - mass.x0)
    board.box(x - size, y - 1.6 * size, x + size, y + 3, "trim")
    for share in (-0.5, 0.5):
        board.box(x + share * size - 2, y - 1.3 * size, x + share * size + 2, y, "dark")
    board.fill(((x - 1.2 * size, y - 1.6 * size), (x, y - 3.6 * size),
                (x + 1.2 * size, y - 1.6 * size)), "ridge")


def _helm(board: Board, rng: Generator, mass: Mass, style: Style) -> None:
    """Two storeys of a baroque helmet: a bulge, an open stage, a point."""
    radius = np.concatenate((np.linspace(1.05, 0.4, 10) ** 0.7, np.full(6, 0.36),
                             np.linspace(0.5, 0, 8)))
    _profile(board, mass, radius, int(rng.integers(0, 5)), "roof")
    _finial(board, rng, mass)


def _finial(board: Board, rng: Generator, mass: Mass) -> None:
    x, y = (mass.x0 + mass.x1) / 2, mass.top - mass.rise
    length = rng.uniform(6, 18)
    board.line(((x, y + 6), (x, y - length)), "gold", 2)
    kind = int(rng.integers(0, 3))
    if kind == 0:
        board.fill(ring(x, y - 0.4 * length, 3.5, 12), "gold")
    elif kind == 1:
        board.line(((x - 5, y - 0.7 * length), (x + 5, y - 0.7 * length)), "gold", 2)
    else:
        board.fill(((x, y - length), (x + 18, y - length + 4), (x, y - length + 9)), "accent")


ROOFS: dict[str, Callable] = {
    "flat": _flat, "gable": _gable, "stepped": _stepped, "bell": _bell, "hip": _hip,
    "mansard": _mansard, "spire": _spire, "cone": _cone, "onion": _onion, "dome": _dome,
    "helm": _helm}


# Compositions: rng -> masses, those at the back first


def _cathedral(rng: Generator) -> list[Mass]:
    tower, height = rng.uniform(76, 120), rng.uniform(240, 330)
    nave = height - rng.uniform(40, 110)
    x0, x1 = 60 + rng.uniform(-20, 20), 452 + rng.uniform(-20, 20)
    roof, rise = str(rng.choice(TALL_ROOFS)), rng.uniform(70, 150)
    storeys, bays = int(rng.integers(3, 6)), int(rng.integers(1, 4))
    masses = [Mass(x0 + tower - 4, x1 - tower + 4, SIZE - nave, int(rng.integers(2, 4)),
                   int(rng.integers(3, 6)), str(rng.choice(("gable", "gable", "stepped", "flat"))),
                   rng.uniform(60, 110), str(rng.choice(("rose", "rose", "clock", "niche"))))]
    second = height - (rng.uniform(30, 90) if rng.random() < 0.3 else 0)
    for left, tall in ((x0, height), (x1 - tower, second)):
        masses.append(Mass(left, left + tower, SIZE - tall, storeys, bays, roof, rise,
                           door=bool(bays == 1)))
    return masses


def _palace(rng: Generator) -> list[Mass]:
    height = rng.uniform(190, 290)
    storeys, bays = int(rng.integers(3, 5)), int(rng.integers(7, 12))
    roof = str(rng.choice(("hip", "mansard", "flat")))
    masses = [Mass(20, 492, SIZE - height, storeys, bays, roof, rng.uniform(45, 90), door=False)]
    wide, taller = rng.uniform(60, 110), rng.uniform(0, 40)
    if rng.random() < 0.6:
        end = str(rng.choice(("mansard", "gable", "hip", "dome")))
        for x in (12, 500 - wide):
            masses.append(Mass(x, x + wide, SIZE - height - taller, storeys, int(wide // 34), end,
                               rng.uniform(50, 80), door=False, paint="wall2"))
    half = rng.uniform(50, 95)
    masses.append(Mass(256 - half, 256 + half, SIZE - height - rng.uniform(8, 60), storeys,
                       int(half // 18) | 1, str(rng.choice(("gable", "dome", "bell", "mansard"))),
                       rng.uniform(60, 110), str(rng.choice(("clock", "none", "niche", "sign")))))
    return masses


def _town_hall(rng: Generator) -> list[Mass]:
    height, x = rng.uniform(180, 260), rng.choice((110, 256, 256, 400)) + rng.uniform(-20, 20)
    half = rng.uniform(38, 58)
    body = Mass(24, 488, SIZE - height, int(rng.integers(2, 5)), int(rng.integers(6, 10)),
                str(rng.choice(("hip", "flat", "mansard"))), rng.uniform(50, 80), door=False)
    tower = Mass(x - half, x + half, SIZE - rng.uniform(330, 400), int(rng.integers(4, 7)),
                 int(rng.integers(1, 4)), str(rng.choice(TALL_ROOFS)), rng.uniform(60, 95),
                 str(rng.choice(("clock", "clock", "none", "rose"))), paint="wall2")
    gables = [Mass(left, left + 90, SIZE - height, 1, 1, str(rng.choice(HOUSE_ROOFS[:3])), 70,
                   door=False, base=SIZE - height + 1)
              for left in (36, 386) if abs(left + 45 - x) > 110 and rng.random() < 0.7]
    return [body, *gables, tower]


def _basilica(rng: Generator) -> list[Mass]:
    height, half = rng.uniform(150, 220), rng.uniform(70, 125)
    drum = rng.uniform(50, 90)
    top = SIZE - height - rng.uniform(20, 50)
    masses = [Mass(256 - half, 256 + half, top - drum, 1, int(rng.integers(5, 10)), "dome",
                   min(1.05 * half, top - drum - 70), door=False, rounded=True, base=top + 30),
              Mass(30, 482, SIZE - height, int(rng.integers(2, 4)), int(rng.integers(7, 11)),
                   str(rng.choice(("flat", "hip"))), 40, door=False)]
    if rng.random() < 0.5:
        roof, tall = str(rng.choice(("dome", "onion", "cone"))), rng.uniform(20, 110)
        masses += [Mass(x, x + 66, SIZE - height - tall, 3, 1, roof, 54, door=False,
                        paint="wall2") for x in (34, 412)]
    wide = rng.uniform(80, 140)
    masses.append(Mass(256 - wide, 256 + wide, SIZE - height - 8, int(rng.integers(1, 4)),
                       int(rng.integers(4, 8)), "gable", rng.uniform(45, 75),
                       str(rng.choice(("none", "rose", "sign"))), paint="wall2"))
    return masses


def _terrace(rng: Generator) -> list[Mass]:
    count = int(rng.integers(3, 6))
    edges = 24 + 464 * np.concatenate(((0,), np.cumsum(rng.dirichlet(np.full(count, 14.0)))))
    masses = []
    for left, right in zip(edges[:-1], edges[1:]):
        masses.append(Mass(left + 1, right - 1, SIZE - rng.uniform(210, 350),
                           int(rng.integers(3, 6)), max(2, int((right - left) // 38)),
                           str(rng.choice(HOUSE_ROOFS)), rng.uniform(50, 105),
                           str(rng.choice(("none", "none", "clock", "sign"))),
                           paint=str(rng.choice(("wall", "wall2")))))
    return masses


def _castle(rng: Generator) -> list[Mass]:
    wall = rng.uniform(130, 220)
    keep = rng.uniform(60, 110)
    masses = [Mass(256 - keep, 256 + keep, SIZE - wall - rng.uniform(60, 130), 4,
                   int(rng.integers(2, 5)), str(rng.choice(("flat", "hip", "stepped"))), 60,
                   str(rng.choice(("none", "clock", "niche"))), door=False, paint="wall2"),
              Mass(40, 472, SIZE - wall, 2, int(rng.integers(4, 9)), "flat", 0)]
    roof = str(rng.choice(("cone", "flat", "onion", "spire")))
    places = rng.permutation((20, 140, 300, 420))[:int(rng.integers(2, 5))]
    for x in sorted(places):
        wide = rng.uniform(56, 84)
        masses.append(Mass(x, x + wide, SIZE - wall - rng.uniform(20, 130),
                           int(rng.integers(3, 6)), int(rng.integers(1, 4)), roof,
                           rng.uniform(60, 110), door=False, rounded=True))
    return masses


def _campanile(rng: Generator) -> list[Mass]:
    half, top, masses = rng.uniform(62, 92), SIZE - rng.uniform(330, 400), []
    stages = int(rng.integers(2, 5))
    levels = np.linspace(top, SIZE, stages + 1)
    roof = str(rng.choice(TALL_ROOFS))
    for i in range(stages):
        wide = half * (0.72 + 0.28 * i / max(1, stages - 1)) + 4 * i
        masses.append(Mass(256 - wide, 256 + wide, levels[i], int(rng.integers(1, 3)),
                           int(rng.integers(1, 5)), roof if i == 0 else "flat",
                           rng.uniform(60, 95), str(rng.choice(("none", "clock", "rose"))),
                           door=i == stages - 1, base=levels[i + 1],
                           paint=str(rng.choice(("wall", "wall2")))))
    low, wing = SIZE - rng.uniform(90, 170), rng.choice((-1, 0, 1))
    wings = [Mass(256 + min(0, side) * 220, 256 + max(0, side) * 220, low, 2, 6,
                  str(rng.choice(("hip", "flat"))), 50, door=False)
             for side in ((-1, 1) if wing == 0 else (wing,))]
    return wings + masses


def _arches(rng: Generator) -> list[Mass]:
    tiers, half = int(rng.integers(1, 5)), rng.uniform(150, 235)
    height = rng.uniform(220, 340)
    body = Mass(256 - half, 256 + half, SIZE - height, tiers + 1, int(rng.integers(3, 10)),
                "flat", 0, str(rng.choice(("sign", "niche", "none"))),
                rounded=bool(rng.random() < 0.4))
    wide = rng.uniform(0.3, 0.7) * half
    attic = Mass(256 - wide, 256 + wide, body.top - rng.uniform(30, 70), 1,
                 int(rng.integers(2, 6)), str(rng.choice(("flat", "gable", "bell"))), 50,
                 str(rng.choice(("sign", "none"))), door=False, base=body.top, paint="wall2")
    return [attic, body] if rng.random() < 0.7 else [body]


def _minarets(rng: Generator) -> list[Mass]:
    height, half = rng.uniform(130, 200), rng.uniform(90, 135)
    top = SIZE - height - rng.uniform(30, 70)
    masses = [Mass(256 - half, 256 + half, top, 1, int(rng.integers(6, 12)),
                   str(rng.choice(("dome", "onion"))), min(half, top - 70), door=False,
                   rounded=True, base=SIZE - height + 20)]
    masses += [Mass(256 + side * 150 - 42, 256 + side * 150 + 42, SIZE - height - 22, 1, 4,
                    "dome", 42, door=False, rounded=True, base=SIZE - height + 5)
               for side in (-1, 1) if rng.random() < 0.9]
    masses.append(Mass(54, 458, SIZE - height, int(rng.integers(2, 4)), int(rng.integers(5, 10)),
                       "flat", 0))
    tall, roof = rng.uniform(300, 400), str(rng.choice(("cone", "onion", "spire")))
    places = (24, 462) if rng.random() < 0.5 else (24, 120, 366, 462)
    masses += [Mass(x, x + 27, SIZE - tall + 0.2 * abs(x - 243) * (len(places) - 3),
                    int(rng.integers(4, 7)), 1, roof, 60, door=False, rounded=True,
                    paint="wall2") for x in places]
    return masses


def _station(rng: Generator) -> list[Mass]:
    """Blocks of unlike height beside each other, as railway stations and museums have."""
    edges = 22 + 468 * np.concatenate(((0,), np.cumsum(rng.dirichlet(np.full(3, 5.0)))))
    masses = []
    for i, (left, right) in enumerate(zip(edges[:-1], edges[1:])):
        masses.append(Mass(left, right, SIZE - rng.uniform(120, 360), int(rng.integers(2, 6)),
                           max(1, int((right - left) // rng.uniform(24, 60))),
                           str(rng.choice(("flat", "gable", "hip", "mansard", "dome"))),
                           rng.uniform(40, 85), str(rng.choice(("clock", "sign", "none"))),
                           door=i == 1, paint=("wall", "wall2")[i % 2]))
    return masses


COMPOSITIONS: tuple[Callable[[Generator], list[Mass]], ...] = (
    _cathedral, _palace, _town_hall, _basilica, _terrace, _castle, _campanile, _arches, _minarets,
    _station)
