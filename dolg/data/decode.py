"""Reading an image file into pixels."""
import warnings
from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image


class ImageError(Exception):
    """An image that cannot be read: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"cannot read image {path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


@cache
def jpeg_decoder() -> Callable[[torch.Tensor], torch.Tensor]:
    """torchvision's decoder of a JPEG file's bytes (n,) uint8, as uint8 (3,H,W), RGB, upright.

    Imported when first asked for: that takes two seconds, for which a command that shows its help
    or a mistake need not wait. Asked for before worker processes start, it is there in all.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    return partial(decode_jpeg, mode=ImageReadMode.RGB, apply_exif_orientation=True)


def read_image(path: str | Path, max_pixels: int = 100_000_000) -> torch.Tensor:
    """The image as uint8 (3,H,W), RGB, upright by its EXIF orientation, as cv2.imread reads it.

    Raises ImageError where the file is missing, empty, no image, damaged or cut short, or where
    its header claims more than `max_pixels`; nothing of that size is allocated before.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from None
    if not data:
        raise ImageError(path, "the file is empty")
    kind = _check_header(path, data, max_pixels)
    buffer = np.frombuffer(data, np.uint8)
    if kind == "JPEG":
        try:
            return jpeg_decoder()(torch.from_numpy(buffer.copy()))
        except RuntimeError as error:
            raise ImageError(path, _first_line(error)) from None
    return _decode_other(path, buffer, data)


def _check_header(path: str | Path, data: bytes, max_pixels: int) -> str:
    """The file's format ("JPEG", "PNG", ...), once its header is found sane."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the next lines judge by `max_pixels`
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data)) as image:
                (width, height), kind = image.size, image.format
    except Image.DecompressionBombError as error:
        raise ImageError(path, str(error)) from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = "not an image" if "cannot identify" in str(error) else _first_line(error)
        raise ImageError(path, reason) from None
    if width * height > max_pixels:
        raise ImageError(path, f"its header claims {width} x {height} pixels, more than the "
                               f"{max_pixels} allowed")
    return kind


def _decode_other(path: str | Path, buffer: np.ndarray, data: bytes) -> torch.Tensor:
    """PNG, WebP, TIFF, BMP, ... through OpenCV, once Pillow finds the file whole: OpenCV
    fills what is missing of a cut file with black and says nothing."""
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(path, _first_line(error)) from None
    pixels = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ImageError(path, "OpenCV cannot decode it")
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
