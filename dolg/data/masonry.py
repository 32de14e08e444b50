"""The stonework of a procedural facade: the drawing board, walls, openings, ornaments.

A mass is a wall of storeys under a roof; a storey is a row of bays, each with an opening.
Colours come from a few palettes that many landmarks share, so that a landmark is known by its
structure. All lengths are pixels of the board; y runs down.
"""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

SIZE = 512      # the board is SIZE x SIZE and the ground is its lower edge
SUBPIXEL = 4    # fractional bits of the corners given to OpenCV

# Wall, trim, roof, glass, accent: RGB
PALETTES = (
    ((214, 190, 148), (238, 224, 196), (122, 84, 66), (52, 58, 70), (110, 62, 48)),
    ((168, 92, 70), (226, 212, 190), (78, 80, 92), (44, 48, 58), (66, 92, 84)),
    ((196, 192, 184), (226, 224, 218), (92, 104, 116), (50, 56, 66), (128, 106, 70)),
    ((222, 206, 176), (190, 160, 118), (152, 84, 58), (58, 54, 56), (72, 98, 112)),
    ((178, 160, 136), (208, 194, 170), (96, 128, 112), (46, 50, 56), (124, 52, 50)),
    ((206, 160, 130), (240, 230, 214), (104, 72, 64), (54, 60, 72), (64, 84, 60)),
)
TEXTURES = ("brick", "ashlar", "plaster", "banded", "rubble")
SHAPES = ("rectangle", "segment", "arch", "gothic", "ogee", "round")
HOODS = ("none", "none", "flat", "triangle", "arc")
TOPS = ("balustrade", "crenels", "plain", "finials")


def _texture(kind: str, rng: Generator) -> np.ndarray:
    """Brightness factors of a wall, (SIZE, SIZE) float32 around 1."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    coarse = cv2.resize(rng.normal(0, 1, (12, 12)).astype(np.float32), (SIZE, SIZE),
                        interpolation=cv2.INTER_CUBIC)
    fine = cv2.blur(rng.standard_normal((SIZE, SIZE), np.float32), (3, 3))
    factor = 1 + 0.035 * coarse + 0.05 * fine - 0.12 * (y / SIZE) ** 3
    if kind in ("brick", "ashlar", "rubble"):
        height = {"brick": 6, "ashlar": 15, "rubble": 10}[kind] + int(rng.integers(0, 3))
        width = int(height * {"brick": 2.2, "ashlar": 2.3, "rubble": 1.3}[kind])
        row = y // height
        shifted = x + (row % 2) * (width // 2)
        tint = rng.normal(0, {"brick": 0.07, "ashlar": 0.045, "rubble": 0.1}[kind], (128, 128))
        joint = (y % height == 0) | (shifted % width == 0)
        factor += tint[row % 128, shifted // width % 128] * ~joint
        factor[joint] *= 1.1 if kind == "brick" else 0.84
    elif kind == "banded":
        band = int(rng.integers(14, 26))
        factor[(y // band) % 2 == 1] *= 0.8
    elif kind == "tiles":
        factor[y % 7 == 0] *= 0.78
        factor *= 1 + 0.07 * np.sin(x * (2 * np.pi / 6))
    return factor.astype(np.float32)


class Board:
    """The drawing board: a premultiplied BGRA `image` and the paints of one landmark.

    `wall`, `wall2` and `roof` are textured, the other paints are flat colours.
    """

    def __init__(self, palette: tuple, texture: str, rng: Generator):
        self.image = np.zeros((SIZE, SIZE, 4), np.uint8)
        wall, trim, roof, glass, accent = (np.array(colour[::-1], float) for colour in palette)
        grain = _texture(texture, rng)
        self.textured = {"wall": _paint(wall, grain), "wall2": _paint(0.55 * wall + 0.45 * trim,
                                                                      grain),
                         "roof": _paint(roof, _texture("tiles", rng))}
        flat = {"trim": trim, "glass": glass, "accent": accent, "shade": 0.62 * wall,
                "edge": 0.78 * trim, "ridge": 0.7 * roof, "dark": 0.8 * glass,
                "sheen": 0.6 * glass + 62, "gold": np.array((88, 168, 206.0)),
                "dial": np.array((214, 228, 234.0))}
        self.flat = {name: (*map(float, colour), 255.0) for name, colour in flat.items()}

    def fill(self, points, paint: str) -> None:
        """Fill the polygon `points` (n, 2)."""
        if paint in self.flat:
            corners = np.round(np.asarray(points, float) * 2 ** SUBPIXEL).astype(np.int32)
            cv2.fillPoly(self.image, [corners], self.flat[paint], cv2.LINE_AA, SUBPIXEL)
            return
        region, mask = _mask(points)
        if region is not None:
            self.image[region][mask] = self.textured[paint][region][mask]

    def box(self, x0: float, y0: float, x1: float, y1: float, paint: str) -> None:
        self.fill(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), paint)

    def line(self, points, paint: str, width: float = 1) -> None:
        corners = np.round(np.asarray(points, float) * 2 ** SUBPIXEL).astype(np.int32)
        cv2.polylines(self.image, [corners], False, self.flat[paint], max(1, round(width)),
                      cv2.LINE_AA, SUBPIXEL)

    def shade(self, points, first: float, last: float, vertical: bool = False) -> None:
        """Multiply the colours in a polygon by a ramp, left to right or top to bottom."""
        region, mask = _mask(points)
        if region is None:
            return
        height, width = mask.shape
        ramp = (np.linspace(first, last, height)[:, None, None] if vertical
                else np.linspace(first, last, width)[None, :, None])
        colours = self.image[region][..., :3]
        shaded = np.clip(colours * ramp, 0, 255).astype(np.uint8)
        colours[mask] = shaded[mask]


def _paint(colour: np.ndarray, factor: np.ndarray) -> np.ndarray:
    image = np.full((SIZE, SIZE, 4), 255, np.uint8)
    image[..., :3] = np.clip(colour * factor[..., None], 0, 255)
    return image


def _mask(points):
    """The board region around a polygon, as slices, and the boolean mask of it in there."""
    points = np.round(np.asarray(points, float)).astype(np.int32)
    x0, y0 = np.clip(points.min(axis=0), 0, SIZE)
    x1, y1 = np.clip(points.max(axis=0) + 1, 0, SIZE)
    if x1 <= x0 or y1 <= y0:
        return None, None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(mask, [points - (x0, y0)], 1)
    return (slice(y0, y1), slice(x0, x1)), mask > 0


@dataclass(frozen=True)
class Opening:
    """A kind of window; sizes are shares of its bay and storey."""

    shape: str
    width: float
    height: float
    columns: int
    rows: int
    surround: float     # pixels
    hood: str
    extra: str          # none, shutters, balcony or twin

    @classmethod
    def random(cls, rng: Generator, shapes=SHAPES) -> "Opening":
        return cls(str(rng.choice(shapes)), rng.uniform(0.34, 0.68), rng.uniform(0.5, 0.76),
                   int(rng.integers(1, 4)), int(rng.integers(1, 5)), rng.uniform(0, 3.5),
                   str(rng.choice(HOODS)),
                   str(rng.choice(("none", "none", "shutters", "balcony", "twin"))))


@dataclass(frozen=True)
class Style:
    """What all masses of one landmark have in common."""

    openings: tuple[Opening, ...]
    ground: str         # windows, arcade, colonnade, shops or rustic
    order: str          # what stands between the bays: none, pilasters, columns or timber
    cornice: float      # pixels
    dentils: bool
    top: str            # the edge of a flat roof
    quoins: bool
    roof_pitch: float

    @classmethod
    def random(cls, rng: Generator) -> "Style":
        shapes = tuple(rng.choice(SHAPES, 3, replace=False))
        return cls(tuple(Opening.random(rng, shapes) for _ in range(3)),
                   str(rng.choice(("windows", "arcade", "colonnade", "shops", "rustic"))),
                   str(rng.choice(("none", "none", "pilasters", "columns", "timber"))),
                   rng.uniform(2, 7), bool(rng.random() < 0.5), str(rng.choice(TOPS)),
                   bool(rng.random() < 0.4), rng.uniform(0.7, 1.3))


@dataclass(frozen=True)
class Mass:
    """A block from x0 to x1, from the ground up to `top`, with `roof` of `rise` pixels on it."""

    x0: float
    x1: float
    top: float
    storeys: int
    bays: int
    roof: str
    rise: float
    ornament: str = "none"      # none, rose, clock, niche or sign
    door: bool = True
    rounded: bool = False
    paint: str = "wall"
    base: float = SIZE


def _curve(shape: str, width: float, height: float) -> np.ndarray:
    """The upper edge of an opening from left to right, (n, 2), its highest point at y = 0."""
    t = np.linspace(-1, 1, 17)
    half = width / 2
    if shape == "rectangle":
        return np.array(((0, 0), (width, 0)))
    if shape in ("arch", "round"):
        rise, y = half, 1 - np.sqrt(1 - t ** 2)
    elif shape == "segment":
        rise, y = 0.35 * half, t ** 2
    elif shape == "gothic":
        rise, y = 1.6 * half, 1 - np.sqrt(1 - (1 + np.abs(t)) ** 2 / 4) / np.sqrt(0.75)
    else:
        rise, y = 1.5 * half, 0.5 * np.abs(t) ** 0.6 + 0.5 * np.abs(t) ** 4
    return np.stack((half + half * t, min(rise, height) * y), axis=1)


def outline(shape: str, x: float, y: float, width: float, height: float) -> np.ndarray:
    """The polygon of an opening whose upper left corner is (x, y), (n, 2)."""
    if shape == "round":
        height = width = min(width, height)
    curve = _curve(shape, width, height)
    lower = (curve[::-1] * (1, -1) + (0, height) if shape == "round"
             else np.array(((width, height), (0, height))))
    return np.concatenate((curve, lower)) + (x, y)


def draw_window(board: Board, kind: Opening, x: float, y: float, width: float, height: float,
                sheen: bool) -> None:
    """An opening in the box from (x, y): surround, glass, bars, sill and hood."""
    if kind.shape == "round":
        y += max(0, (height - width) / 2)
        height = width = min(width, height)
    edge = kind.surround
    if kind.extra == "shutters" and kind.shape in ("rectangle", "segment"):
        board.box(x - 0.42 * width, y, x - 1, y + height, "accent")
        board.box(x + width + 1, y, x + 1.42 * width, y + height, "accent")
    if edge >= 1:
        board.fill(outline(kind.shape, x - edge, y - edge, width + 2 * edge,
                           height + (2 * edge if kind.shape == "round" else edge)), "trim")
    pane = outline(kind.shape, x, y, width, height)
    board.fill(pane, "sheen" if sheen else "glass")
    board.shade(pane, 0.55, 1.15, vertical=True)
    curve = _curve(kind.shape, width, height)
    columns = 2 if kind.extra == "twin" else kind.columns
    for i in range(1, columns):
        bar = width * i / columns
        top = np.interp(bar, curve[:, 0], curve[:, 1])
        low = height - top if kind.shape == "round" else height
        board.line(((x + bar, y + top), (x + bar, y + low)), "edge",
                   3 if kind.extra == "twin" else 1)
    spring = curve[0, 1]
    for i in range(1, kind.rows):
        bar = spring + (height - spring) * i / kind.rows
        if kind.shape != "round":
            board.line(((x, y + bar), (x + width, y + bar)), "edge")
    if kind.shape != "round":
        board.box(x - edge - 1, y + height, x + width + edge + 1, y + height + 2.5, "trim")
        _hood(board, kind.hood, x - edge - 2, x + width + edge + 2, y - edge - 2)
    if kind.extra == "balcony":
        draw_railing(board, x - 4, x + width + 4, y + 0.68 * height, y + height + 2, "dark")


def _hood(board: Board, hood: str, x0: float, x1: float, y: float) -> None:
    rise = 0.3 * (x1 - x0)
    if hood == "flat":
        board.box(x0, y - 3, x1, y, "trim")
    elif hood == "triangle":
        board.fill(((x0, y), ((x0 + x1) / 2, y - rise), (x1, y)), "trim")
    elif hood == "arc":
        board.fill(outline("segment", x0, y - rise, x1 - x0, rise), "trim")


def draw_railing(board: Board, x0: float, x1: float, y0: float, y1: float, paint: str) -> None:
    """Balusters between two rails."""
    board.box(x0, y0, x1, y0 + 1.5, paint)
    board.box(x0, y1 - 1.5, x1, y1, paint)
    for x in np.arange(x0 + 1, x1, 4):
        board.line(((x, y0), (x, y1)), paint)


def draw_cornice(board: Board, x0: float, x1: float, y: float, style: Style) -> None:
    """A moulding with its shadow below, its lower edge at y."""
    size = style.cornice
    board.box(x0 - 2, y - size, x1 + 2, y, "trim")
    board.shade(((x0, y), (x1, y), (x1, y + 1.5 * size), (x0, y + 1.5 * size)), 0.62, 1, True)
    if style.dentils and size > 3:
        for x in np.arange(x0, x1 - 1, 6):
            board.box(x, y, x + 3, y + 3, "edge")


def _bays(mass: Mass) -> np.ndarray:
    """Edges of the bays; those of a round tower get narrower towards its sides."""
    t = np.linspace(-1, 1, mass.bays + 1)
    if mass.rounded:
        t = np.sin(t * np.pi / 2)
    middle, half = (mass.x0 + mass.x1) / 2, 0.94 * (mass.x1 - mass.x0) / 2
    return middle + half * t


def draw_storey(board: Board, rng: Generator, mass: Mass, style: Style, y0: float,
                y1: float) -> None:
    """One row of openings of one kind, in all bays or in all but each n-th."""
    kind, blind = style.openings[int(rng.integers(0, 3))], int(rng.integers(0, 5))
    edges, height = _bays(mass), y1 - y0
    for i, (left, right) in enumerate(zip(edges[:-1], edges[1:])):
        if style.order == "timber":
            _timber(board, left, right, y0, y1, (i + int(y0)) % 3)
        if blind > 1 and i % blind == blind - 1:
            continue
        width, tall = kind.width * (right - left), kind.height * height
        draw_window(board, kind, (left + right - width) / 2, y0 + 0.55 * (height - tall), width,
                    tall, bool(rng.random() < 0.25))
    if style.order in ("pilasters", "columns") and not mass.rounded:
        for x in edges:
            draw_column(board, x, y0, y1, max(3, 0.09 * (edges[1] - edges[0])),
                        style.order == "columns")


def _timber(board: Board, x0: float, x1: float, y0: float, y1: float, kind: int) -> None:
    board.line(((x0, y0), (x0, y1)), "accent", 3)
    board.line(((x0, y1), (x1, y1)), "accent", 4)
    if kind != 1:
        board.line(((x0, y1), (x1, y0)), "accent", 3)
    if kind != 2:
        board.line(((x0, y0), (x1, y1)), "accent", 3)


def draw_column(board: Board, x: float, y0: float, y1: float, width: float, shaded: bool) -> None:
    """A pilaster, or if `shaded` a column, around x with capital and foot."""
    board.box(x - width / 2, y0, x + width / 2, y1, "trim")
    if shaded:
        board.shade(((x - width / 2, y0), (x + width / 2, y0), (x + width / 2, y1),
                     (x - width / 2, y1)), 1.05, 0.6)
    board.box(x - 0.8 * width, y0, x + 0.8 * width, y0 + 4, "trim")
    board.box(x - 0.8 * width, y1 - 4, x + 0.8 * width, y1, "edge")


def draw_ground(board: Board, mass: Mass, style: Style, y0: float, y1: float) -> None:
    """The ground floor, without its portal."""
    kind, edges = style.ground, _bays(mass)
    shape = style.openings[0].shape.replace("round", "arch")
    bay = edges[1] - edges[0]
    if kind == "rustic":
        for y in np.arange(y0 + 6, y1, 9):
            board.line(((mass.x0, y), (mass.x1, y)), "shade", 2)
    if kind == "colonnade":
        board.box(mass.x0 + 3, y0 + 4, mass.x1 - 3, y1, "dark")
    for left, right in zip(edges[:-1], edges[1:]):
        if kind == "shops":
            board.box(left + 3, y0 + 0.3 * (y1 - y0), right - 3, y1 - 4, "sheen")
            board.line((((left + right) / 2, y0 + 0.3 * (y1 - y0)),
                        ((left + right) / 2, y1 - 4)), "dark", 2)
            board.fill(((left + 4, y0 + 0.16 * (y1 - y0)), (right - 4, y0 + 0.16 * (y1 - y0)),
                        (right, y0 + 0.42 * (y1 - y0)), (left, y0 + 0.42 * (y1 - y0))),
                       "accent")
        elif kind == "arcade":
            x, y = left + 0.1 * bay, y0 + 0.12 * (y1 - y0)
            board.fill(outline(shape, x - 2, y - 3, right - left - 0.2 * bay + 4, y1 - y + 3),
                       "trim")
            hole = outline(shape, x, y, right - left - 0.2 * bay, y1 - y)
            board.fill(hole, "dark")
            board.shade(hole, 0.6, 1.7, True)
        elif kind == "rustic":
            draw_window(board, style.openings[1], left + 0.28 * bay, y0 + 0.3 * (y1 - y0),
                    right - left - 0.56 * bay, 0.45 * (y1 - y0), False)
    if kind in ("colonnade", "arcade"):
        for x in edges:
            draw_column(board, x, y0 + 4, y1, max(4, 0.16 * bay), True)


def draw_portal(board: Board, rng: Generator, x: float, y1: float, width: float, height: float,
                shape: str) -> None:
    """A door in stepped frames, with steps before it."""
    shape = shape.replace("round", "arch")
    depth = int(rng.integers(1, 5))
    for i in range(depth, -1, -1):
        grown = 0.13 * i * width
        board.fill(outline(shape, x - width / 2 - grown, y1 - height - grown, width + 2 * grown,
                           height + grown), ("trim", "shade")[i % 2])
    door = outline(shape, x - width / 2, y1 - height, width, height)
    board.fill(door, "accent")
    board.shade(door, 0.4, 1, True)
    board.line(((x, y1 - height), (x, y1)), "dark", 2)
    for i in range(3):
        board.box(x - width * (0.7 + 0.12 * i), y1 - 5 + 2 * i, x + width * (0.7 + 0.12 * i),
                  y1 - 3 + 2 * i, "edge")


def ring(x: float, y: float, radius: float, count: int = 40, phase: float = 0) -> np.ndarray:
    """`count` points on a circle, (count, 2)."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + phase
    return np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle)), axis=1)


def draw_rose(board: Board, rng: Generator, x: float, y: float, radius: float) -> None:
    """A round window with spokes and petals."""
    spokes = int(rng.integers(5, 15))
    inner = rng.uniform(0.2, 0.45) * radius
    board.fill(ring(x, y, radius + 3), "trim")
    board.fill(ring(x, y, radius), "glass")
    for point in ring(x, y, radius, spokes):
        board.line(((x, y), point), "trim", 2)
    if rng.random() < 0.6:
        for px, py in ring(x, y, 0.74 * radius, spokes, np.pi / spokes):
            board.fill(ring(px, py, 0.16 * radius, 10), "gold")
    board.fill(ring(x, y, inner), "trim")
    board.fill(ring(x, y, 0.7 * inner), "accent")


def draw_clock(board: Board, rng: Generator, x: float, y: float, radius: float) -> None:
    """A dial with hands; a landmark's clock always shows the same time."""
    for share, paint in ((1.15, "gold"), (1.0, "dial" if rng.random() < 0.7 else "dark")):
        board.fill(ring(x, y, share * radius), paint)
    for inner, outer in zip(ring(x, y, 0.78 * radius, 12), ring(x, y, 0.95 * radius, 12)):
        board.line((inner, outer), "accent", 1)
    for length in (0.55, 0.8):
        hand = ring(x, y, length * radius, 1, rng.uniform(0, 6.28))[0]
        board.line(((x, y), hand), "accent", 2)


def draw_ornament(board: Board, rng: Generator, mass: Mass, y0: float, y1: float) -> None:
    """What makes the middle of a storey special."""
    x, height = (mass.x0 + mass.x1) / 2, y1 - y0
    radius = min(0.42 * height, 0.3 * (mass.x1 - mass.x0))
    y = (y0 + y1) / 2
    if mass.ornament in ("rose", "clock"):
        board.box(x - 1.25 * radius, y - 1.25 * radius, x + 1.25 * radius, y + 1.25 * radius,
                  mass.paint)
        (draw_rose if mass.ornament == "rose" else draw_clock)(board, rng, x, y, radius)
    elif mass.ornament == "sign":
        half = rng.uniform(0.22, 0.44) * (mass.x1 - mass.x0)
        board.box(x - half, y - 0.2 * height, x + half, y + 0.2 * height, "accent")
        for left in np.arange(x - 0.88 * half, x + 0.8 * half, 0.26 * height):
            corners = rng.uniform(0, 1, (4, 2)) * (0.18 * height, 0.26 * height)
            board.line(corners + (left, y - 0.13 * height), "dial", 2)
    elif mass.ornament == "niche":
        for share in rng.choice((-0.34, -0.17, 0.0, 0.17, 0.34), 3, replace=False):
            left = x + share * (mass.x1 - mass.x0)
            board.fill(outline("arch", left - 7, y0 + 0.14 * height, 14, 0.76 * height), "shade")
            board.fill(outline("gothic", left - 4, y0 + 0.4 * height, 8, 0.48 * height), "trim")
            board.fill(ring(left, y0 + 0.34 * height, 3, 10), "trim")
