"""Reading an image file into pixels."""
import errno
import struct
import warnings
from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

# OpenCV's names for decoding at 1/n say GRAYSCALE or (BGR) COLOR; with the flag for RGB the former
# gives RGB, which saves exchanging the channels
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
# Errors of a file's name and rights, which another try would meet again
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP,
                errno.ENAMETOOLONG}
# Pillow's readers of what is an image here (that of JPEG reads MPO, as telephones write it). Others go
# unasked: a file may be anybody's, and that of EPS, say, starts another program with it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_JPEG_END = b"\xff\xd9"
_ORIENTATION = 0x0112
# EXIF orientation -> whether rows and columns change places, then the dimensions (of 3,H,W) to flip
_TURNS = {2: (False, (2,)), 3: (False, (1, 2)), 4: (False, (1,)), 5: (True, ()), 6: (True, (2,)),
          7: (True, (1, 2)), 8: (True, (1,))}


class ImageError(Exception):
    """An image that cannot be read: `path` and `reason`.

    `passing` says that the fault may lie with the machine and not with the image (a disk, a network,
    too many open files): another try, or another machine, may succeed.
    """

    def __init__(self, path: str | Path, reason: str, passing: bool = False):
        super().__init__(f"cannot read image {path}: {reason}")
        self.path, self.reason, self.passing = str(path), reason, passing

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.passing)


class Header(NamedTuple):
    """What a file says of its image, which nobody has decoded yet.

    Attributes:
        kind: "JPEG", "PNG", ...
        height, width: in pixels; of a JPEG those of the upright image.
        orientation: of a JPEG, by its EXIF: 1 (upright) to 8.
        plain: a JPEG in colour or grey, whole to its last marker: every decoder reads it alike.
            (Of others only the full decoder knows what to do with them, or that they are cut.)
    """

    kind: str
    height: int
    width: int
    orientation: int
    plain: bool


@cache
def jpeg_decoder() -> Callable[..., torch.Tensor | list[torch.Tensor]]:
    """torchvision's decoder of a JPEG file's bytes (n,) uint8, as uint8 (3,H,W), RGB, as stored;
    with a list of them and device="cuda" it is nvJPEG.

    Imported when first asked for: that takes two seconds, for which a command that shows its help
    or a mistake need not wait. Asked for before worker processes start, it is there in all.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    return partial(decode_jpeg, mode=ImageReadMode.RGB)


def read_file(path: str | Path) -> bytes:
    """A file's bytes. Raises ImageError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(path, error.strerror or str(error),
                         passing=error.errno not in _OF_THE_FILE) from None
    except ValueError as error:         # a zero byte in the path
        raise ImageError(path, str(error)) from None


def read_image(path: str | Path, max_pixels: int = 100_000_000) -> torch.Tensor:
    """The image as uint8 (3,H,W), RGB, upright by its EXIF orientation, as cv2.imread reads it.

    Raises ImageError where the file is missing, empty, no image, damaged or cut short, or where
    its header claims more than `max_pixels`; nothing of that size is allocated before.
    """
    data = read_file(path)
    return decode(path, data, read_header(path, data, max_pixels))


def read_header(path: str | Path, data: bytes, max_pixels: int = 100_000_000) -> Header:
    """What the bytes of the file `path` say of themselves, once it is found sane (see
    `read_image`)."""
    if not data:
        raise ImageError(path, "the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the next lines judge by `max_pixels`, and of EXIF blocks
            # that make no sense
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                (width, height), kind, mode = image.size, image.format, image.mode
                exif = image.info.get("exif", b"")
    except Image.DecompressionBombError as error:
        raise ImageError(path, str(error)) from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = "not an image" if "cannot identify" in str(error) else _first_line(error)
        raise ImageError(path, reason) from None
    if width * height > max_pixels:
        raise ImageError(path, f"its header claims {width} x {height} pixels, more than the "
                               f"{max_pixels} allowed")
    if not width * height:
        raise ImageError(path, f"its header claims {width} x {height} pixels")
    if kind != "JPEG":
        return Header(kind, height, width, 1, plain=False)
    orientation = _orientation(exif)
    if orientation > 4:
        height, width = width, height
    return Header(kind, height, width, orientation,
                  plain=mode in ("RGB", "L") and data.endswith(_JPEG_END))


def decode(path: str | Path, data: bytes, header: Header, reduction: int = 1) -> torch.Tensor:
    """The image in a file's bytes as uint8 (3,H,W), RGB, upright.

    With a `reduction` n of 2, 4 or 8, for plain JPEGs only, at 1/n of its size, rounded: libjpeg
    then computes nothing more from the frequencies than about the mean of each n x n pixels.

    Raises ImageError where the file is damaged or cut short.
    """
    buffer = np.frombuffer(data, np.uint8)
    if header.kind != "JPEG":
        return _decode_other(path, buffer, data)
    if reduction > 1:
        assert header.plain, f"{path} is no plain JPEG"
        image = _decode_reduced(path, buffer, header, reduction)
    else:
        image = decode_jpeg(path, torch.from_numpy(buffer.copy()))
    return _upright(image, header.orientation)


def decode_jpeg(path: str | Path, data: torch.Tensor) -> torch.Tensor:
    """A JPEG file's bytes (n,) uint8 as uint8 (3,H,W), RGB, as stored. Raises ImageError."""
    try:
        return jpeg_decoder()(data)
    except RuntimeError as error:
        raise ImageError(path, _first_line(error)) from None


def _decode_reduced(path: str | Path, buffer: np.ndarray, header: Header, n: int) -> torch.Tensor:
    # OpenCV, since torchvision has no such option; a cut file, of which OpenCV says nothing, is
    # never plain
    flags = _REDUCED[n] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(buffer, flags)
    if pixels is None:
        raise ImageError(path, "OpenCV cannot decode it")
    # Of a last row or column that is not whole, libjpeg makes a pixel; if less than half of it is
    # there it goes, so that the image begins and ends within half a pixel of where it does, on
    # whichever sides these will be once it is upright
    height, width = round(header.height / n), round(header.width / n)
    if header.orientation > 4:
        height, width = width, height
    return torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1)


def _decode_other(path: str | Path, buffer: np.ndarray, data: bytes) -> torch.Tensor:
    """PNG, WebP, TIFF, BMP, ... through OpenCV, once Pillow finds the file whole: OpenCV
    fills what is missing of a cut file with black and says nothing."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(path, _first_line(error)) from None
    pixels = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ImageError(path, "OpenCV cannot decode it")
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _orientation(exif: bytes) -> int:
    """The orientation that an EXIF block asks for; 1 where it asks for none, or makes no sense."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        start, = struct.unpack_from(order + "I", tiff, 4)
        entries, = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            if struct.unpack_from(order + "H", tiff, entry) == (_ORIENTATION,):
                value, = struct.unpack_from(order + "H", tiff, entry + 8)
                return value if value in _TURNS else 1
    except struct.error:        # cut short
        return 1
    return 1


def _upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    if orientation == 1:
        return image
    transposed, flipped = _TURNS[orientation]
    return (image.transpose(1, 2) if transposed else image).flip(flipped)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
