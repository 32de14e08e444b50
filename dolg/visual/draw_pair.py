"""Two images side by side, and what connects them."""
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from dolg.visual.drawing import INK, MARGIN, PALE, SMALL, TEXT, TITLE, WIDTH, Sheet, show, shortened
from dolg.visual.photographs import Photograph, shrunk

_LONGEST, _HIGHEST, _GAP = 1000, 5.2, 0.12
_HEAD, _LINE = 0.5, 0.19
DARK = "#101010"


class PairSheet:
    """A sheet with two images of equal height.

    What is drawn over them, each upon what was drawn before, is drawn in `over`, whose unit is an inch,
    from the sheet's upper left corner.

    Args:
        query, candidate: the images; what is cut of them has a dashed outline.
        title: above them.
        legend: (words, options of a Line2D that stands before them), below; `in_line` or one below another.

    Attributes:
        photos: the query and the candidate.
        frames: (left, top, width, height) of each, in inches.
    """

    def __init__(self, query: Photograph, candidate: Photograph, title: str, legend: Sequence[tuple],
                 in_line: bool = True):
        self.photos = query, candidate
        aspects = [photo.pixels.shape[1] / photo.pixels.shape[0] for photo in self.photos]
        inner = WIDTH - 2 * MARGIN - _GAP
        height = min(inner / sum(aspects), _HIGHEST)
        widths = [height * aspect for aspect in aspects]
        left, top = MARGIN + (inner - sum(widths)) / 2, MARGIN + _HEAD
        self.frames = ((left, top, widths[0], height), (left + widths[0] + _GAP, top, widths[1], height))
        self.sheet = Sheet(WIDTH, top + height + 0.16 + _LINE * (1 if in_line else len(legend)))
        self.sheet.text(left, MARGIN, title, TITLE, INK, weight="bold")
        for photo, frame in zip(self.photos, self.frames):
            show(self.sheet.axes(*frame), shrunk(photo.pixels, _LONGEST))
            self.sheet.text(frame[0], MARGIN + 0.26, shortened(photo.name, int(frame[2] * 14)), TEXT, PALE)
        self.over, self._levels = self._overlay(), itertools.count(1)
        for side, photo in enumerate(self.photos):
            if photo.is_cut:
                self.outline(side, corners_of(photo), "white", dashed=True)
        self._legend(left, legend, in_line)

    def place(self, side: int, xy: np.ndarray) -> np.ndarray:
        """(n,2) inches of (n,2) columns and rows in pixels of the query (side 0) or the candidate (1),
        whose pixels' centres are whole numbers."""
        left, top, width, height = self.frames[side]
        rows, columns = self.photos[side].pixels.shape[:2]
        xy = np.asarray(xy, np.float64).reshape(-1, 2)
        return np.array([left, top]) + (xy + 0.5) * [width / columns, height / rows]

    def lines(self, query_xy: np.ndarray, candidate_xy: np.ndarray, colour, width: float | np.ndarray,
              opacity: float | np.ndarray = 1.0, cased: bool = False) -> None:
        """From places in the query to places in the candidate, (n,2) pixels each; `cased`: dark edges."""
        segments = np.stack([self.place(0, query_xy), self.place(1, candidate_xy)], axis=1)
        if cased:
            self.over.add_collection(LineCollection(segments, colors=DARK, linewidths=np.add(width, 1.1),
                                                    alpha=0.45, zorder=next(self._levels)))
        self.over.add_collection(LineCollection(segments, colors=colour, linewidths=width, alpha=opacity,
                                                zorder=next(self._levels)))

    def discs(self, side: int, xy: np.ndarray, areas: float | np.ndarray, colour, edge: str = "none",
              opacity: float = 1.0) -> None:
        """At places (n,2) in pixels of an image; areas in square points."""
        places = self.place(side, xy)
        self.over.scatter(places[:, 0], places[:, 1], s=areas, c=colour, edgecolors=edge,
                          linewidths=0.5, alpha=opacity, zorder=next(self._levels))

    def outline(self, side: int, corners: np.ndarray, colour: str, dashed: bool = False) -> None:
        """A polygon of corners (n,2) in pixels of an image, cut off at its edges."""
        frame = self.frames[side]
        width, style = (1.2, (0, (4, 3))) if dashed else (1.7, "-")
        for line, tint, style in ((width + 1.1, DARK, "-"), (width, colour, style)):
            polygon = Polygon(self.place(side, corners), closed=True, fill=False, edgecolor=tint,
                              linewidth=line, linestyle=style, joinstyle="round",
                              zorder=next(self._levels))
            self.over.add_patch(polygon)
            polygon.set_clip_path(Rectangle(frame[:2], *frame[2:], transform=self.over.transData))

    def _overlay(self) -> Axes:
        axes = self.sheet.axes(0, 0, self.sheet.width, self.sheet.height)
        axes.set_xlim(0, self.sheet.width)
        axes.set_ylim(self.sheet.height, 0)
        axes.patch.set_visible(False)
        return axes

    def _legend(self, left: float, entries: Sequence[tuple], in_line: bool) -> None:
        top = self.frames[0][1] + self.frames[0][3] + 0.09
        handles = [Line2D([], [], **options) for _, options in entries]
        legend = self.over.legend(
            handles, [words for words, _ in entries], loc="upper left",
            ncols=len(entries) if in_line else 1, frameon=False,
            fontsize=SMALL, labelcolor=INK, handlelength=1.6, handletextpad=0.5, columnspacing=1.6,
            labelspacing=0.35, borderpad=0, borderaxespad=0, bbox_to_anchor=(left, top),
            bbox_transform=self.over.transData)
        legend.set_in_layout(False)


def corners_of(photo: Photograph) -> np.ndarray:
    """(4,2) of the part that the network sees, in pixels, clockwise: along the outer edges."""
    x0, y0 = photo.left - 0.5, photo.top - 0.5
    x1, y1 = x0 + photo.width, y0 + photo.height
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
