"""The picture of an embedding: a dot for each image, and thumbnails where there is room for them."""
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from dolg.visual.drawing import COLOURS, INK, MARGIN, PALE, SMALL, TEXT, TITLE, WIDTH, Sheet, shortened

_HEIGHT, _HEAD, _LEGEND = 5.8, 0.3, 1.75
# Free at the plane's edges
_EDGE = 0.15
_NOBODYS = "#b5b5b5"
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Labels that have a colour and a marker of their own
MOST_LABELS = len(COLOURS) * 3


def draw_embedding(places: np.ndarray, labels: Sequence[str], thumbnail: Callable[[int], np.ndarray | None],
                   title: str, side: float = 0.4, seed: int = 0) -> Figure:
    """A map of n images.

    Args:
        places: (n,2).
        labels: of each image; "": none.
        thumbnail: gives an image's pixels (H,W,3), or None where there are none; asked once for each image
            that is to be shown.
        side: of a thumbnail's square, in inches; 0: none are shown.
        seed: of the order in which images are tried: whom there is no room for remains a dot.
    """
    styles = label_styles(labels)
    has_legend = bool(styles)
    inner = WIDTH - 2 * MARGIN - (_LEGEND if has_legend else 0)
    sheet = Sheet(WIDTH, MARGIN + _HEAD + _HEIGHT + MARGIN)
    sheet.text(MARGIN, MARGIN, title, TITLE, INK, weight="bold")
    axes = sheet.axes(MARGIN, MARGIN + _HEAD, inner, _HEIGHT)
    axes.set_xlim(0, inner)
    axes.set_ylim(0, _HEIGHT)
    axes.add_patch(Rectangle((0, 0), inner, _HEIGHT, facecolor="#f6f6f4", edgecolor="none", zorder=0))
    spots = spread(places, inner, _HEIGHT, _EDGE + side / 2)
    _draw_dots(axes, spots, labels, styles)
    if side:
        for row in apart(spots, side * 1.06, np.random.default_rng(seed).permutation(len(spots))):
            if (pixels := thumbnail(int(row))) is not None:
                _draw_thumbnail(axes, spots[row], pixels, side, styles.get(labels[row], (_NOBODYS,))[0])
    if has_legend:
        _draw_legend(axes, labels, styles, inner)
    return sheet.figure


def spread(places: np.ndarray, width: float, height: float, edge: float) -> np.ndarray:
    """Places (n,2) moved and scaled, both axes alike, so that they fill a plane of so many inches but for
    its edges."""
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array([width, height]) - 2 * edge
    factor = (room / np.maximum(high - low, 1e-12)).min()
    if not (high > low).any():
        factor = 0.0
    return (places - (low + high) / 2) * factor + np.array([width, height]) / 2


def apart(spots: np.ndarray, side: float, order: np.ndarray) -> list[int]:
    """Rows, in an order, of the spots (n,2) whose squares of a side overlap none taken before."""
    taken: dict[tuple[int, int], list[int]] = {}
    rows = []
    for row in order.tolist():
        x, y = spots[row]
        cell = int(x // side), int(y // side)
        near = [other for i in (-1, 0, 1) for j in (-1, 0, 1)
                for other in taken.get((cell[0] + i, cell[1] + j), ())]
        if all(np.abs(spots[other] - spots[row]).max() >= side for other in near):
            taken.setdefault(cell, []).append(row)
            rows.append(row)
    return rows


def label_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label, the most frequent first; those of the rest are grey dots."""
    counts = Counter(label for label in labels if label)
    ranked = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
    return {label: (COLOURS[number % len(COLOURS)],
                    _MARKERS[(number + number // len(COLOURS)) % len(_MARKERS)])
            for number, label in enumerate(ranked)}


def _draw_dots(axes: Axes, spots: np.ndarray, labels: Sequence[str],
               styles: dict[str, tuple[str, str]]) -> None:
    labels = np.array([label if label in styles else "" for label in labels], object)
    area = float(np.clip(9000 / max(1, len(spots)), 4, 26))
    for label, (colour, marker) in {"": (_NOBODYS, "o"), **styles}.items():
        here = spots[labels == label]
        axes.scatter(here[:, 0], here[:, 1], s=area, c=colour, marker=marker, edgecolors="white",
                     linewidths=0.4, zorder=2)


def _draw_thumbnail(axes: Axes, spot: np.ndarray, pixels: np.ndarray, side: float, colour: str) -> None:
    rows, columns = pixels.shape[:2]
    width, height = side * columns / max(rows, columns), side * rows / max(rows, columns)
    left, bottom = spot[0] - width / 2, spot[1] - height / 2
    axes.imshow(pixels, extent=(left, left + width, bottom, bottom + height), aspect="auto", zorder=3,
                interpolation="antialiased", clip_on=True)
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=colour, linewidth=1.6,
                             zorder=4))


def _draw_legend(axes: Axes, labels: Sequence[str], styles: dict[str, tuple[str, str]],
                 left: float) -> None:
    counts = Counter(labels)
    entries = {label: (f"{shortened(label, 17)} ({counts[label]})", *style)
               for label, style in styles.items()}
    if rest := sum(number for label, number in counts.items() if label not in styles):
        entries[""] = (f"others ({rest})", _NOBODYS, "o")
    handles = [Line2D([], [], linestyle="", marker=marker, color=colour, markersize=5.5,
                      markeredgecolor="white", markeredgewidth=0.4)
               for _, colour, marker in entries.values()]
    axes.legend(handles, [words for words, _, _ in entries.values()], loc="upper left", frameon=False,
                fontsize=SMALL + 0.5, labelcolor=INK, bbox_to_anchor=(left + 0.1, _HEIGHT),
                bbox_transform=axes.transData, borderpad=0, borderaxespad=0, handletextpad=0.3)
