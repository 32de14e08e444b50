"""What training does to an image: random crop, flip, lighting; and its centred view.

A view is drawn from the image's size alone and rendered later, so that it does not depend on how
the image is decoded, nor on whether a worker or the GPU renders it.
"""
import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.nn import functional as F

# Principal axes of ImageNet's RGB pixels (Krizhevsky et al., NIPS 2012; values as in pycls):
# variances along the axes, and the axes as columns
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009],
                          [-0.5808, -0.0045, -0.8140],
                          [-0.5836, -0.6948, 0.4203]])
_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10
_REDUCTIONS = (8, 4, 2)     # what libjpeg can decode at: an eighth, a quarter, a half


@dataclass(frozen=True, slots=True)
class View:
    """A square view of an image.

    Attributes:
        box: (top, left, height, width) of the part that is seen, in the upright image's pixels.
        side: the box is scaled to side x side pixels, its aspect lost,
        corner: of which a window whose (top, left) this is
        size: and whose side this is becomes the view,
        mirror: left and right exchanged or not.
        antialias: smooth when shrinking, as Pillow does (which rounds; this does not).
        shift: added to the view's colours, in RGB for pixels of 0..1.
    """

    box: tuple[int, int, int, int]
    side: int
    size: int
    corner: tuple[int, int] = (0, 0)
    mirror: bool = False
    antialias: bool = False
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def reduction(self) -> int:
        """The largest of 8, 4, 2 and 1 by which the image may shrink and the box stay at least
        `side`; twice that where the rest of the way is smoothed, as Pillow's thumbnails have it
        (`reducing_gap`), for the result to be nearly that of smoothing from the full size."""
        least = 2 * self.side if self.antialias else self.side
        return next((n for n in _REDUCTIONS if min(self.reduced(n).box[2:]) >= least), 1)

    def reduced(self, n: int) -> "View":
        """The same view of the image at 1/n of its size.

        The box is rounded to whole pixels there. No edge moves by more than half of such a pixel,
        and so by no more than half a pixel of a view that `reduction` allows: too little to
        matter, and boxes of whole pixels are scaled by the same function on every device.
        """
        if n == 1:
            return self
        top, left, height, width = self.box
        bottom, right = round((top + height) / n), round((left + width) / n)
        top, left = round(top / n), round(left / n)
        return replace(self, box=(top, left, bottom - top, right - left))

    def shifted(self, top: int, left: int) -> "View":
        """This view of a part of an image, as one of the image, in which the part begins at
        (top, left)."""
        y, x, height, width = self.box
        return replace(self, box=(y + top, x + left, height, width))

    def cut_from(self, image: torch.Tensor) -> tuple[torch.Tensor, "View"]:
        """The part of `image` (3,H,W) in the box, and this view of that part alone."""
        top, left, height, width = self.box
        part = image[:, top:top + height, left:left + width]
        return part, replace(self, box=(0, 0, height, width))


def render(image: torch.Tensor, view: View) -> torch.Tensor:
    """What `view` shows of `image` (3,H,W), as float (3,size,size) in 0..255, on its device; the
    shift of the colours is left to `preprocess`."""
    part, _ = view.cut_from(image)
    scaled = F.interpolate(part.float()[None], size=(view.side, view.side), mode="bilinear",
                           align_corners=False, antialias=view.antialias)[0]
    (top, left), size = view.corner, view.size
    window = scaled[:, top:top + size, left:left + size]
    return window.flip(2) if view.mirror else window


def render_quickly(image: torch.Tensor, view: View) -> torch.Tensor:
    """As `render`, on the CPU: what is not smoothed goes through OpenCV, three times as fast and
    within 0.001 of a grey level of it."""
    if view.antialias:
        return render(image, view)
    part = view.cut_from(image)[0].permute(1, 2, 0).numpy()
    scaled = cv2.resize(np.ascontiguousarray(part, dtype=np.float32), (view.side, view.side),
                        interpolation=cv2.INTER_LINEAR)
    (top, left), size = view.corner, view.size
    window = scaled[top:top + size, left:left + size]
    return torch.from_numpy(cv2.flip(window, 1) if view.mirror else window).permute(2, 0, 1)


def random_crop_box(height: int, width: int, min_area: float,
                    rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width): area share in min_area..1, aspect in 3/4..4/3.

    After ten boxes that do not fit, the largest centred square (as pycls falls back).
    """
    for _ in range(_TRIES):
        area = rng.uniform(min_area, 1) * height * width
        aspect = rng.uniform(*_ASPECTS)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rng.random() < 0.5:
            w, h = h, w
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return centre_square(height, width)


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred square (top, left, side, side)."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_view(height: int, width: int, size: int, min_area: float, rng: np.random.Generator,
                lighting: float = 0.1) -> View:
    """A random crop of an image of height x width pixels, scaled to `size`, perhaps mirrored, its
    colours shifted at random by a standard deviation of `lighting` along their principal axes;
    so DOLG and DELG train."""
    return View(random_crop_box(height, width, min_area, rng), size, size, mirror=_coin(rng),
                shift=_colour_shift(lighting, rng))


def random_square_view(height: int, width: int, resize: int, size: int,
                       rng: np.random.Generator, lighting: float = 0.0) -> View:
    """As `random_view`, but the crop is one of `size` from the whole image at resize x resize
    pixels, at least `size`; so CGD trains."""
    top, left = (int(start) for start in rng.integers(resize - size + 1, size=2))
    return View((0, 0, height, width), resize, size, corner=(top, left), mirror=_coin(rng),
                antialias=True, shift=_colour_shift(lighting, rng))


def square_view(height: int, width: int, size: int) -> View:
    """The whole of an image of height x width pixels as a square of `size`, its aspect lost,
    smoothed when shrinking."""
    return View((0, 0, height, width), size, size, antialias=True)


def centre_view(height: int, width: int, short_side: int, size: int) -> View:
    """An image of height x width pixels with its shorter side scaled to `short_side`, cut to a
    centred square of `size`; cut before scaling, so that no pixel is scaled in vain."""
    side = min(height, width) * min(1.0, size / short_side)
    top, left = round((height - side) / 2), round((width - side) / 2)
    side = max(1, round(side))
    return View((top, left, side, side), size, size)


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _colour_shift(lighting: float, rng: np.random.Generator) -> tuple[float, float, float]:
    return tuple((_EIGENVECTORS @ (rng.normal(0, lighting, 3) * _EIGENVALUES)).tolist())
