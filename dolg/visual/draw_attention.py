"""The picture of attention: each image with its maps over it, kind below kind, scale beside scale."""
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dolg.visual.attention import AttentionMap
from dolg.visual.drawing import (
    INK, MARGIN, PALE, SMALL, TEXT, TITLE, WIDTH, Sheet, colour_bar, overlaid, show, shortened,
)
from dolg.visual.photographs import Photograph, shrunk

# Of a panel, in pixels: more than it has on paper
_LONGEST = 640
_NAME, _HEAD, _FOOT, _GAP, _BAR = 0.28, 0.22, 0.3, 0.08, 0.62
# A panel is no narrower, and no higher than so many times its width
_NARROWEST, _HIGHEST = 1.35, 1.4


def draw_attention(images: Sequence[tuple[Photograph, Sequence[AttentionMap]]]) -> Figure:
    """A row for each image and kind of its maps: the photograph (with its box), then the part that the
    network sees, in grey, under the map of each scale. The scales of a row have one range of colours."""
    rows = [(photo, title, list(maps), number == 0) for photo, all_maps in images
            for number, (title, maps) in enumerate(groupby(all_maps, key=lambda one: one.title))]
    columns = 1 + max(len(maps) for _, _, maps, _ in rows)
    width = max((WIDTH - 2 * MARGIN - _BAR) / columns - _GAP, _NARROWEST)
    # What the photograph's part takes
    panels = [(width, width * min(photo.height / photo.width, _HIGHEST)) for photo, _, _, _ in rows]
    heights = [_HEAD + height + _FOOT + _NAME * is_first
               for (_, height), (*_, is_first) in zip(panels, rows)]
    sheet = Sheet(2 * MARGIN + _BAR + columns * (width + _GAP), MARGIN + sum(heights))
    top = MARGIN
    for (photo, title, maps, is_first), panel, height in zip(rows, panels, heights):
        if is_first:
            sheet.text(MARGIN, top, shortened(photo.name, 80), TITLE, INK, weight="bold")
            _draw_photograph(sheet, (MARGIN, top + _NAME + _HEAD), panel, photo)
        _draw_maps(sheet, top + _NAME * is_first, panel, photo, title, maps)
        top += height
    return sheet.figure


def _draw_maps(sheet: Sheet, top: float, panel: tuple[float, float], photo: Photograph, title: str,
               maps: Sequence[AttentionMap]) -> None:
    width, height = panel
    low, high, times = colour_range(maps)
    left = MARGIN + width + _GAP
    sheet.text(left, top, title + times, TEXT, INK)
    part = shrunk(photo.part, _LONGEST)
    for one in maps:
        values = one.values * (one.values.size if times else 1)
        place = _fitted((left, top + _HEAD), panel, part.shape[1] / part.shape[0])
        show(sheet.axes(*place), overlaid(part, values, low, high))
        rows, cells = one.values.shape
        sheet.text(left, top + _HEAD + height + 0.04, f"scale {one.scale:g}  ·  {cells} × {rows} cells",
                   SMALL, PALE)
        left += width + _GAP
    colour_bar(sheet.axes(left + 0.02, top + _HEAD, 0.1, height), low, high)


def _draw_photograph(sheet: Sheet, corner: tuple[float, float], panel: tuple[float, float],
                     photo: Photograph) -> None:
    height, width = photo.pixels.shape[:2]
    left, _, *size = _fitted(corner, panel, width / height)
    axes = sheet.axes(left, corner[1], *size)
    small = shrunk(photo.pixels, _LONGEST)
    show(axes, small)
    words = f"{width} × {height} pixels"
    if photo.is_cut:
        factor = small.shape[1] / width
        upper_left = photo.left * factor - 0.5, photo.top * factor - 0.5
        for colour, line in (("black", 2.6), ("#ffd23f", 1.4)):
            axes.add_patch(Rectangle(upper_left, photo.width * factor, photo.height * factor, fill=False,
                                     edgecolor=colour, linewidth=line))
        words += f", box {photo.width} × {photo.height}"
    sheet.text(left, corner[1] + size[1] + 0.04, words, SMALL, PALE)


def _fitted(corner: tuple[float, float], panel: tuple[float, float],
            aspect: float) -> tuple[float, float, float, float]:
    """(left, top, width, height) of an image of an aspect (width over height) in the middle of a panel."""
    width = min(panel[0], panel[1] * aspect)
    height = width / aspect
    return corner[0] + (panel[0] - width) / 2, corner[1] + (panel[1] - height) / 2, width, height


def colour_range(maps: Sequence[AttentionMap]) -> tuple[float, float, str]:
    """The least and the largest value that colours are for, and what is to be said of shares.

    Maps of several scales have different numbers of cells: shares are shown as multiples of an even one.
    """
    is_share = maps[0].kind == "share"
    values = [one.values * (one.values.size if is_share else 1) for one in maps]
    low, high = (float(find([find(value) for value in values])) for find in (np.min, np.max))
    return (low if maps[0].kind == "orthogonal" else min(0.0, low), high,
            ", times an even share" if is_share else "")
