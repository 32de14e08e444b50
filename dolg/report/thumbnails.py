"""Small JPEG copies of photographs, made once."""
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dolg.data.decode import ImageError, read_file, read_header, readable

# A panorama is shrunk to this many times its height in width, or it would outweigh all the rest
MAX_ASPECT = 4
QUALITY = 75
MAX_PIXELS = 200_000_000        # of a photograph: below Pillow's own limit, which would speak otherwise
# Threads: Pillow decodes, shrinks and writes outside the interpreter's lock
MOST_THREADS = 16
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class Wanted:
    """A small copy that the page needs: of which photograph, how high at most (pixels), and of which
    part (x1, y1, x2, y2 in pixels, corners cut to whole ones) or None for all. Without a path, it is
    of a photograph that may not be looked for."""

    path: Path | None
    height: int
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, as bytes or as the name of a file; or, where the photograph cannot be read,
    neither and the reason why. `source_width` and `source_height` are the upright original's."""

    jpeg: bytes = b""
    file: str = ""
    width: int = 0
    height: int = 0
    source_width: int = 0
    source_height: int = 0
    problem: str = ""


def make_thumbnails(wanted: Iterable[Wanted], folder: Path | None = None) -> dict[Wanted, Thumbnail]:
    """All of them, several at a time; with `folder` as files there, those that are there reused."""
    wanted = list(dict.fromkeys(wanted))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def make(one: Wanted) -> Thumbnail:
        return _kept(one, folder) if folder else make_thumbnail(one)

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(wanted, tqdm(pool.map(make, wanted), "thumbnails", len(wanted), unit="image",
                                     leave=False, disable=None)))


def make_thumbnail(wanted: Wanted) -> Thumbnail:
    """A JPEG copy, upright (EXIF), whose comment tells the original's size.

    Any failure to read the photograph gives a Thumbnail with a `problem`: one bad image must not
    stop a report.
    """
    if wanted.path is None:
        return Thumbnail(problem="no such file")
    try:
        data = read_file(wanted.path)
        header = read_header(wanted.path, data, MAX_PIXELS)
        data = readable(wanted.path, data, header)
        with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            source = image.size
            part = _eight_bits(image.crop(_inside(wanted.box, source)) if wanted.box else image)
            # A size near the final one lets the decoder skip detail; its gap is a factor left for LANCZOS
            width = min(MAX_ASPECT * wanted.height, wanted.height * part.width // part.height + 1)
            part.thumbnail((width, wanted.height), Image.Resampling.LANCZOS, reducing_gap=1.5)
            small = part.convert("RGB")
    except ImageError as error:
        reason = error.reason.removesuffix(" or directory")
        return Thumbnail(problem=reason[0].lower() + reason[1:])
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's three ways to refuse a file
        return Thumbnail(problem=_reason(error))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True, comment=json.dumps(source))
    return Thumbnail(buffer.getvalue(), "", *small.size, *source)


def _kept(wanted: Wanted, folder: Path) -> Thumbnail:
    """As a file in `folder`, named after the photograph's path, size and time of change."""
    try:
        status = os.stat(wanted.path)
    except (OSError, ValueError, TypeError):        # TypeError: without a path
        return make_thumbnail(wanted)       # it says what is wrong
    key = [os.path.abspath(wanted.path), status.st_size, status.st_mtime_ns, wanted.height, wanted.box,
           QUALITY]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16] + ".jpg"
    if there := _reuse(folder / name):
        return there
    made = make_thumbnail(wanted)
    if made.problem:
        return made
    temporary = folder / f".{name}.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        temporary.write_bytes(made.jpeg)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(made, jpeg=b"", file=name)


def _reuse(path: Path) -> Thumbnail | None:
    """A thumbnail that an earlier report has left, if it is whole. (Not forced to disk when it was
    written, it may be cut off after a power failure.)"""
    try:
        content = path.read_bytes()
        if not content.endswith(_JPEG_END):
            return None
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            width, height = json.loads(image.info["comment"])
            return Thumbnail(b"", path.name, *image.size, int(width), int(height))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than eight bits, which Pillow would cut off at white, as grey of eight; floats
    between their own ends."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, np.float64)
    low, high = (values.min(), values.max()) if image.mode == "F" else (0, 65535)
    shares = (values - low) / max(high - low, 1e-30)
    return Image.fromarray((255 * np.nan_to_num(shares).clip(0, 1)).round().astype(np.uint8))


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, ...]:
    """Corners as whole pixels that lie in the image, with one pixel between them at least."""
    x1, y1 = (min(max(int(value), 0), most - 1) for value, most in zip(box[:2], size))
    x2, y2 = (min(max(int(value), low + 1), most)
              for value, low, most in zip(box[2:], (x1, y1), size))
    return x1, y1, x2, y2


def _reason(error: Exception) -> str:
    """Why an image could not be read, without its path, which the tile's name already gives."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
