"""Small JPEG copies of images, for embedding in a page."""
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
# A panorama is cut to this many times its height in width, or it would outweigh all the rest.
MAX_ASPECT = 4


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG; or, where the image cannot be read, no bytes and the reason why."""

    jpeg: bytes = b""
    width: int = 0
    height: int = 0
    source_width: int = 0
    source_height: int = 0
    problem: str = ""


def find_image(folder: Path, name: str) -> Path:
    """FOLDER/NAME if the name ends as image files do, else FOLDER/NAME.jpg; it may not exist."""
    is_file_name = Path(name).suffix.lower() in IMAGE_SUFFIXES
    return Path(folder) / (name if is_file_name else f"{name}.jpg")


def make_thumbnail(path: Path, height: int, quality: int = 75) -> Thumbnail:
    """A JPEG copy of the image at `path`, `height` pixels high at most, upright (EXIF).

    `source_width` and `source_height` are the pixels of the upright original. Any failure to
    read the image gives a Thumbnail with a `problem`: one bad image must not stop a report.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            source = image.size
            image.thumbnail((MAX_ASPECT * height, height), Image.Resampling.LANCZOS)
            small = image.convert("RGB")
    except FileNotFoundError:
        return Thumbnail(problem="no such file")
    except Image.DecompressionBombError:
        return Thumbnail(problem="absurdly large image")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's three ways to refuse a file
        return Thumbnail(problem=_reason(error))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, optimize=True)
    return Thumbnail(buffer.getvalue(), *small.size, *source)


def _reason(error: Exception) -> str:
    """Why an image could not be read, without its path, which the tile's name already gives."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
