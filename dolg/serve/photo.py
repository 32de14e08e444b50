"""A photograph that somebody asks with: bounded, decoded, and cut to its box."""
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from dolg.data.boxes import Box, pixels_inside
from dolg.data.decode import MAX_PIXELS, ImageError, decode, read_file, read_header
from dolg.data.headers import kind_of
from dolg.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a photograph may be.

    Attributes:
        pixels: the most that its header may claim.
        side: the most pixels of a side; 0: any.
        kinds: of "JPEG", "PNG", "WebP", "BMP"; empty: all that extraction reads, some by decoders that
            files from strangers should not reach.
    """

    pixels: int = MAX_PIXELS
    side: int = 0
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        name: for people, as messages have it; never a path that is opened.
        data: the file's bytes.
        pixels: uint8 (3,H,W), RGB, upright.
    """

    name: str
    data: bytes
    pixels: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]

    def region(self, box: Box | None) -> Box:
        """(x1, y1, x2, y2), whole numbers: what a box, cut off at the edges, leaves; all without one.

        Raises UserError for a box that is not of finite numbers, and one that leaves nothing.
        """
        width, height = self.size
        if box is None:
            return 0, 0, width, height
        if not all(map(math.isfinite, box)):
            raise UserError("the box is not of finite numbers: give x1 y1 x2 y2 in pixels")
        try:
            top, left, rows, columns = pixels_inside(box, height, width)
        except ValueError:
            corners = " ".join(f"{corner:g}" for corner in box)
            raise UserError(f"the box {corners} leaves nothing of {self.name}, which has {width} x "
                            f"{height} pixels: give x1 y1 x2 y2 with x1 < x2 and y1 < y2 inside of "
                            "it") from None
        return left, top, left + columns, top + rows


def read_photo(path: str | Path, limits: Limits) -> Photo:
    """The photograph of a file. Raises ImageError where it cannot be read, UserError where it is too
    large."""
    return decode_photo(str(path), read_file(path), limits)


def decode_photo(name: str, data: bytes, limits: Limits) -> Photo:
    """The photograph in the bytes of a file; nothing of the size that it claims is allocated before that
    is found to be within the limits.

    Raises ImageError where it is damaged or no image, UserError where it is of another kind or too large.
    """
    if limits.kinds and kind_of(data) not in map(str.upper, limits.kinds):
        kinds = ", ".join(limits.kinds[:-1]) + f" or {limits.kinds[-1]}"
        raise UserError(f"{name} is no {kinds} file: save it as one of these first")
    header = read_header(name, data, limits.pixels)
    if limits.side and max(header.width, header.height) > limits.side:
        raise UserError(f"{name} has {header.width} x {header.height} pixels, and its sides may have "
                        f"{limits.side}: give a smaller one")
    try:
        return Photo(name, data, decode(name, data, header))
    except (ImageError, MemoryError):
        raise
    except Exception as error:      # a damaged file makes decoders raise almost anything
        raise ImageError(name, " ".join(str(error).split()) or type(error).__name__) from error


def shrunk(photo: Photo, region: Box, side: int) -> np.ndarray | None:
    """A region of a photograph as uint8 (h,w,3), BGR, its longer side `side` pixels, each the mean of
    what it covers; None where it is no larger than that, or `side` is 0."""
    left, top, right, bottom = region
    longer = max(right - left, bottom - top)
    if not side or longer <= side:
        return None
    size = [max(1, round(length * side / longer)) for length in (right - left, bottom - top)]
    pixels = photo.pixels[:, top:bottom, left:right].permute(1, 2, 0).flip(2).contiguous().numpy()
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
