"""Photographs as pictures show them: found, decoded, cut to their boxes."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dolg.data.boxes import Box, pixels_inside
from dolg.data.decode import ImageError, decode, read_file, read_header, read_image
from dolg.data.finder import image_file
from dolg.errors import UserError


@dataclass(frozen=True)
class Photograph:
    """An image, and the part of it that is looked at.

    Attributes:
        name: shown beside it.
        pixels: (H,W,3) uint8, RGB, upright: the whole image.
        left, top, width, height: in pixels, the part that the network sees.
        is_cut: whether that is a box, and not the whole.
    """

    name: str
    pixels: np.ndarray
    left: int
    top: int
    width: int
    height: int
    is_cut: bool = False

    @property
    def part(self) -> np.ndarray:
        """(height,width,3) uint8, what the network sees."""
        return self.pixels[self.top:self.top + self.height, self.left:self.left + self.width]


def open_photograph(path: str | Path, box: Box | None = None, name: str = "",
                    max_pixels: int = 100_000_000) -> Photograph:
    """The image at `path`, cut to the box (x0, y0, x1, y1) in its pixels as extraction cuts queries.

    Raises ImageError where it cannot be read, UserError where the box leaves nothing of it.
    """
    pixels = read_image(path, max_pixels).permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    try:
        top, left, rows, columns = pixels_inside(box, height, width) if box else (0, 0, height, width)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return Photograph(name or Path(path).stem, pixels, left, top, columns, rows, box is not None)


def find_photograph(folders: Sequence[Path], name: str) -> Path | None:
    """The file of a store's image in the first folder that has it (see `image_file`); None: in none."""
    files = (Path(folder) / image_file(folder, name) for folder in folders)
    return next((file for file in files if file.is_file()), None)


def shrunk(pixels: np.ndarray, longest: int) -> np.ndarray:
    """An image (H,W,3) with a longest side of at most so many pixels."""
    factor = longest / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def thumbnail(path: Path, longest: int = 96) -> np.ndarray | None:
    """A small copy (H,W,3) uint8 of an image, decoded no larger than it must be; None where it cannot be
    read: a dot remains of it."""
    try:
        data = read_file(path)
        header = read_header(path, data)
        ratio = max(header.height, header.width) / longest
        reduction = max(n for n in (1, 2, 4, 8) if n <= max(1, ratio)) if header.plain else 1
        pixels = decode(path, data, header, reduction)
    except ImageError:
        return None
    return shrunk(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), longest)
