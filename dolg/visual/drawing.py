"""What all pictures have in common: sizes, letters, colours, and how they are written.

Figures are made of matplotlib's objects, without pyplot and its global state; sizes are in inches.
"""
from io import BytesIO
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dolg.errors import UserError
from dolg.files import write_atomically

# What a picture may be written as
ENDINGS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg", ".pdf": "pdf"}
# A README shows 900 pixels across: so that 8.5 points are 11 pixels there
WIDTH, DPI = 9.6, 144
MARGIN = 0.12
TITLE, TEXT, SMALL = 10.5, 8.5, 7.5
INK, PALE = "#1a1a1a", "#6b6b6b"
# Okabe and Ito's colours, told apart by those who see red and green alike; black and yellow left out
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
# Of 0..1, its steps equally visible, and bright where there is much
HEAT = "inferno"


class Sheet:
    """A figure that is filled by places in inches from its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float, frame: bool = False) -> Axes:
        """A panel; without its `frame` and ticks unless asked for."""
        axes = self.figure.add_axes((left / self.width, 1 - (top + height) / self.height,
                                     width / self.width, height / self.height))
        if not frame:
            axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, text: str, size: float = TEXT, colour: str = INK,
             **options) -> None:
        """Words whose upper left corner is there."""
        options = {"va": "top", "ha": "left", **options}
        self.figure.text(left / self.width, 1 - top / self.height, plain(text), fontsize=size, color=colour,
                         **options)


def plain(text: str) -> str:
    """A name as it is to be read: a dollar sign begins no formula."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """A name of at most so many letters, without its middle."""
    if len(text) <= most:
        return text
    return f"{text[:most // 2 - 1]}…{text[len(text) - (most - most // 2):]}"


def show(axes: Axes, pixels: np.ndarray) -> None:
    """An image (H,W,3) that fills a panel; places in it are its pixels, whose centres are whole numbers."""
    axes.imshow(pixels, interpolation="antialiased", aspect="auto")


def overlaid(pixels: np.ndarray, values: np.ndarray, low: float, high: float,
             opacity: float = 0.6) -> np.ndarray:
    """An image (H,W,3) uint8 in grey, with a map (h,w) over it in colours from `low` to `high`.

    The cells of the map share the image evenly; between their centres it is interpolated linearly.
    """
    height, width = pixels.shape[:2]
    values = cv2.resize(np.asarray(values, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    part = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colours = matplotlib.colormaps[HEAT](part)[..., :3]
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None] / 255
    return np.rint(255 * (opacity * colours + (1 - opacity) * grey)).astype(np.uint8)


def colour_bar(axes: Axes, low: float, high: float) -> None:
    """The colours of `overlaid` from `low` (below) to `high`, with a few numbers beside them."""
    axes.set_axis_on()
    axes.imshow(np.linspace(1, 0, 256)[:, None], cmap=HEAT, aspect="auto", extent=(0, 1, low, high))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(axis="y", labelsize=SMALL, length=2.5, width=0.6, pad=2, colors=PALE)
    for spine in axes.spines.values():
        spine.set_visible(False)


def check_picture(path: Path) -> None:
    """Raise UserError for a file that no picture can be written as, before any work is done."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"-o {path}: a picture's name ends in {', '.join(ENDINGS)}")


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as the picture that its name says, whole or not at all."""
    check_picture(path)
    kind, content = ENDINGS[path.suffix.lower()], BytesIO()
    jpeg = {"pil_kwargs": {"quality": 84, "optimize": True, "progressive": True}}
    figure.savefig(content, format=kind, dpi=DPI, **(jpeg if kind == "jpeg" else {}))
    write_atomically(path, content.getvalue())
