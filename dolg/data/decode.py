"""Reading an image file into pixels, of which no more work and memory is asked than its size allows."""
import errno
import importlib
import os
import re
import stat
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

from dolg.data.headers import (check_webp, is_animated_png, kind_of, png_size, read_jpeg, webp_size,
                               whole_png)

MAX_PIXELS = 100_000_000        # that a file may claim by default
# OpenCV's names for decoding at 1/n say GRAYSCALE or (BGR) COLOR; with the flag for RGB the former
# gives RGB, which saves exchanging the channels
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
# Errors of a file's name, kind and rights, which another try would meet again (ENXIO: a socket)
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP,
                errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV}
_NOT_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_MOST_BYTES = 1 << 30           # of a file
# Bytes per pixel that decoding takes at its peak, rounded up, of the kinds that take more than others do
_BYTES_PER_PIXEL, _HUNGRY = 12, {"animated PNG": 16, "AVIF": 24}
_MOST_SCANS, _SCANS_OF_LARGEST = 100, 20
_JPEG_END = b"\xff\xd9"
# What libjpeg reads after the end of a cut file, as long as any part of it may be
_ENDS = _JPEG_END * 33_000
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
        plain: a JPEG in colour or grey, whole, with nothing after its end: every decoder reads it alike.
        warning: what the pixels will lack, for people; empty: nothing.
    """

    kind: str
    height: int
    width: int
    orientation: int = 1
    plain: bool = False
    warning: str = ""


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
    """The bytes of a regular file of at most 1 GiB; of another none is read, nor waited for. Raises
    ImageError where it cannot be read."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                what = _NOT_FILES.get(stat.S_IFMT(found.st_mode), "something else")
                raise ImageError(path, f"it is {what}, not a regular file")
            if found.st_size > _MOST_BYTES:
                raise ImageError(path, f"it has {found.st_size} bytes, more than the {_MOST_BYTES} that an "
                                       "image file may have")
            return file.read(found.st_size)
    except OSError as error:
        raise ImageError(path, error.strerror or str(error),
                         passing=error.errno not in _OF_THE_FILE) from None
    except ValueError as error:         # a zero byte in the path
        raise ImageError(path, str(error)) from None


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would be waited for. (Python itself refuses a directory, and the system a socket)
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, lenient: bool = True) -> torch.Tensor:
    """The image as uint8 (3,H,W), RGB, upright by its EXIF orientation, as cv2.imread reads it.

    Raises ImageError where the file is missing, empty, no image or damaged (cut short: see
    `read_header`), or asks for more work or memory than `max_pixels` allow; nothing is decoded before
    that is known.
    """
    data = read_file(path)
    return decode(path, data, read_header(path, data, max_pixels, lenient))


def read_header(path: str | Path, data: bytes, max_pixels: int = MAX_PIXELS,
                lenient: bool = True) -> Header:
    """What the bytes of the file `path` say of themselves, once it is found sane.

    Of a JPEG that is cut short, the header has a warning; without `lenient`, and where not one of its
    pixels is left, it is an ImageError, as for other kinds. `max_pixels` bounds what the file claims, and
    with it what decoding may take: 12 bytes for each of them, and 20 scans of a JPEG of that many.
    """
    if not data:
        raise ImageError(path, "the file is empty")
    kind = kind_of(data)
    if not kind:
        raise ImageError(path, "not an image")
    try:
        header, scans = _read_jpeg_header(data) if kind == "JPEG" else (Header(kind, *_size(kind, data)), 0)
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    pixels = header.width * header.height
    claims = f"its header claims {header.width} x {header.height} pixels"
    if pixels > max_pixels:
        raise ImageError(path, f"{claims}, more than the {max_pixels} allowed")
    if not pixels:
        raise ImageError(path, claims)
    kind = "animated PNG" if kind == "PNG" and is_animated_png(data) else kind
    taken, allowed = pixels * _HUNGRY.get(kind, _BYTES_PER_PIXEL), _BYTES_PER_PIXEL * max_pixels
    if taken > allowed:
        raise ImageError(path, f"{claims}; decoding so many of {kind} takes up to {taken / 1e6:.0f} MB, more "
                               f"than the {allowed / 1e6:.0f} MB for the {max_pixels} pixels allowed")
    most = min(_MOST_SCANS, _SCANS_OF_LARGEST * max_pixels // pixels)
    if scans > most:
        raise ImageError(path, f"it has {scans} scans of {header.width} x {header.height} pixels, more than "
                               f"the {most} allowed")
    if header.warning and not lenient:
        raise ImageError(path, header.warning)
    return header


def _read_jpeg_header(data: bytes) -> tuple[Header, int]:
    """The header of a JPEG, and the number of its scans. Raises ValueError."""
    jpeg = read_jpeg(data)
    if not jpeg.has_pixels:
        raise ValueError("there are only headers of a JPEG in it, and no pixels: it is damaged or cut short")
    if jpeg.bits != 8 or not 1 <= jpeg.channels <= 4:
        raise ValueError(f"it is a JPEG of {jpeg.channels} channels of {jpeg.bits} bits, which is not read")
    orientation, height, width = _orientation(jpeg.exif), jpeg.height, jpeg.width
    if orientation > 4:
        height, width = width, height
    plain = jpeg.channels in (1, 3) and jpeg.whole and data.endswith(_JPEG_END)
    warning = "" if jpeg.whole else "it is cut short: the pixels that are missing are filled in"
    return Header("JPEG", height, width, orientation, plain, warning), jpeg.scans


def _size(kind: str, data: bytes) -> tuple[int, int]:
    """The height and width that a file of a kind other than JPEG claims. Raises ValueError."""
    if kind in ("PNG", "WEBP"):     # to open one, Pillow unfolds its texts, or reserves its pixels
        return (png_size if kind == "PNG" else webp_size)(data)[::-1]
    return _with_pillow(kind, data, lambda image: image.size)[::-1]


def _with_pillow(kind: str, data: bytes, ask: Callable[[Image.Image], object]):
    """What `ask` makes of Pillow's image of a file of this kind, opened past Pillow's own limit of pixels,
    which is everybody's and not ours. Raises ValueError."""
    try:
        importlib.import_module(f"PIL.{kind.capitalize()}ImagePlugin")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of damaged tags
            return ask(Image.OPEN[kind][0](BytesIO(data), ""))
    except MemoryError:
        raise
    except (ImportError, KeyError):
        raise ValueError(f"this version of Pillow does not read {kind}") from None
    except Exception as error:      # a damaged file makes Pillow raise almost anything
        raise ValueError(_first_line(error)) from None


def decode(path: str | Path, data: bytes, header: Header, reduction: int = 1) -> torch.Tensor:
    """The image in a file's bytes as uint8 (3,H,W), RGB, upright.

    With a `reduction` n of 2, 4 or 8, for plain JPEGs only, at 1/n of its size, rounded: libjpeg
    then computes nothing more from the frequencies than about the mean of each n x n pixels.

    Raises ImageError where the file is damaged or, if it is no JPEG, cut short.
    """
    if header.kind != "JPEG":
        return _opencv(path, _whole(path, data, header), cv2.IMREAD_COLOR_RGB)
    if reduction > 1:
        assert header.plain, f"{path} is no plain JPEG"
        image = _decode_reduced(path, data, header, reduction)
    elif header.warning:        # torchvision refuses it
        image = _opencv(path, readable(path, data, header), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        image = decode_jpeg(path, torch.from_numpy(np.frombuffer(data, np.uint8).copy()))
    return _upright(image, header.orientation)


def decode_jpeg(path: str | Path, data: torch.Tensor) -> torch.Tensor:
    """A JPEG file's bytes (n,) uint8 as uint8 (3,H,W), RGB, as stored. Raises ImageError."""
    try:
        return jpeg_decoder()(data)
    except RuntimeError as error:
        raise ImageError(path, reason_of(error)) from None


def reason_of(error: RuntimeError) -> str:
    """What torchvision's decoder says, without the place in its source, on the machine that built it."""
    return re.sub(r"^\S+, \S+:\d+, ", "", _first_line(error))


def _decode_reduced(path: str | Path, data: bytes, header: Header, n: int) -> torch.Tensor:
    # OpenCV, since torchvision has no such option
    pixels = _opencv(path, data, _REDUCED[n] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    # Of a last row or column that is not whole, libjpeg makes a pixel; if less than half of it is
    # there it goes, so that the image begins and ends within half a pixel of where it does, on
    # whichever sides these will be once it is upright
    height, width = round(header.height / n), round(header.width / n)
    if header.orientation > 4:
        height, width = width, height
    return pixels[:, :height, :width]


def _opencv(path: str | Path, data: bytes, flags: int) -> torch.Tensor:
    """The pixels uint8 (3,H,W) that OpenCV finds in a file's bytes. Raises ImageError."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from None
        raise ImageError(path, f"OpenCV cannot decode it ({_first_line(error)})") from None
    if pixels is None:
        raise ImageError(path, "OpenCV cannot decode it")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def readable(path: str | Path, data: bytes, header: Header) -> bytes:
    """The bytes of a file without what decoders stumble over though the pixels are there: the end of a cut
    JPEG, side chunks of a PNG. Raises ImageError for a PNG or WebP that is damaged or cut short."""
    try:
        if header.kind == "PNG":
            return whole_png(data)
        if header.kind == "WEBP":
            check_webp(data)
    except ValueError as error:
        raise ImageError(path, str(error)) from None
    return data + _ENDS if header.warning else data


def _whole(path: str | Path, data: bytes, header: Header) -> bytes:
    """`readable` bytes of a file other than a JPEG. Raises ImageError where it is cut short, of which some
    versions of OpenCV say nothing."""
    if header.kind not in ("PNG", "WEBP", "AVIF"):
        try:
            _with_pillow(header.kind, data, _load)
        except ValueError as error:
            raise ImageError(path, str(error)) from None
    return readable(path, data, header)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Image.DecompressionBombError:        # Pillow's own limit: OpenCV has to tell
        pass


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
