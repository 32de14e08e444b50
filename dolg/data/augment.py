"""What training does to an image: random crop, flip, lighting; and its centred view."""
import math

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


def random_view(image: torch.Tensor, size: int, min_area: float, rng: np.random.Generator,
                lighting: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """A random crop of `image` (3,H,W) as float (3,size,size), perhaps mirrored, and a random
    shift (3,) of its colours, in RGB for pixels of 0..1, of standard deviation `lighting` along
    their principal axes; so DOLG and DELG train."""
    top, left, h, w = random_crop_box(*image.shape[1:], min_area, rng)
    crop = image[:, top:top + h, left:left + w].float()[None]
    view = F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)[0]
    return _mirror(view, rng), _colour_shift(lighting, rng)


def random_square_view(image: torch.Tensor, resize: int, size: int, rng: np.random.Generator,
                       lighting: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """As `random_view`, but the crop is one of `size` from the whole image at resize x resize
    pixels, at least `size`; so CGD trains."""
    top, left = (int(start) for start in rng.integers(resize - size + 1, size=2))
    view = square_view(image, resize)[:, top:top + size, left:left + size]
    return _mirror(view, rng), _colour_shift(lighting, rng)


def square_view(image: torch.Tensor, size: int) -> torch.Tensor:
    """The whole of `image` (3,H,W) as float (3,size,size), its aspect lost, smoothed when
    shrinking as Pillow does (which rounds; this does not)."""
    return F.interpolate(image.float()[None], size=(size, size), mode="bilinear",
                         align_corners=False, antialias=True)[0]


def _mirror(view: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return view.flip(2) if rng.random() < 0.5 else view


def _colour_shift(lighting: float, rng: np.random.Generator) -> torch.Tensor:
    shift = _EIGENVECTORS @ (rng.normal(0, lighting, 3) * _EIGENVALUES)
    return torch.from_numpy(shift).float()


def centre_view(image: torch.Tensor, short_side: int, size: int) -> torch.Tensor:
    """`image` (3,H,W) with its shorter side scaled to `short_side`, cut to a centred square of
    `size`, float (3,size,size); cut before scaling, so that no pixel is scaled in vain."""
    _, height, width = image.shape
    side = min(height, width) * min(1.0, size / short_side)
    top, left = round((height - side) / 2), round((width - side) / 2)
    side = max(1, round(side))
    crop = image[:, top:top + side, left:left + side].float()[None]
    return F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)[0]
