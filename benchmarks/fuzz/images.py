"""Damaged and hostile image files for `read_image`: mutated, cut, joined, with other sizes and many parts."""
import io
import random
import struct
import zlib
from functools import cache

from PIL import Image, ImageDraw

from benchmarks.fuzz.harness import Target
from dolg.data.decode import ImageError, jpeg_decoder, read_image

_MAX_PIXELS = 10_000_000
# What `read_header` promises for so many pixels, and room for libraries that are loaded at their first use
_MEMORY = 12 * _MAX_PIXELS + (128 << 20)
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def make(rng: random.Random) -> tuple[str, bytes]:
    """A valid file, changed some times."""
    kind, whole = rng.choice(_originals())
    if rng.random() < 0.05:
        whole = _many_parts(kind, whole, rng)
    data = bytearray(whole)
    for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
        _change(data, rng)
    return f"a.{kind}", bytes(data)


@cache
def _originals() -> list[tuple[str, bytes]]:
    photo = Image.new("RGB", (64, 48), (90, 120, 200))
    ImageDraw.Draw(photo).ellipse((8, 8, 50, 40), (200, 60, 10), (0, 255, 0), 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photograph"
    frames = [photo.rotate(angle) for angle in (90, 180)]
    grey, deep, clear = photo.convert("L"), photo.convert("I;16"), photo.convert("RGBA")
    clear.putalpha(128)
    several = {"save_all": True, "append_images": frames}
    made = [("jpeg", photo, {}), ("jpeg", photo, {"progressive": True, "exif": exif}),
            ("jpeg", grey, {"restart_marker_rows": 1}), ("jpeg", photo.convert("CMYK"), {"progressive": True}),
            ("mpo", photo, several), ("png", photo, {"exif": exif, "dpi": (72, 72)}), ("png", clear, {}),
            ("png", deep, {}), ("png", photo.convert("P"), {}), ("png", photo, several),
            ("webp", photo, {"exif": exif}), ("webp", clear, {"lossless": True}), ("webp", photo, several),
            ("bmp", photo, {}), ("bmp", photo.convert("P"), {}), ("gif", photo, several),
            ("tiff", photo, {}), ("tiff", clear, {"compression": "tiff_lzw"}),
            ("tiff", photo, {"compression": "jpeg"}), ("tiff", grey, {"compression": "tiff_deflate"}),
            ("ppm", photo, {}), ("ppm", grey, {}), ("avif", photo, {"exif": exif}), ("avif", photo, several)]
    return [(kind, _saved(kind, image, options)) for kind, image, options in made]


def _saved(kind: str, image: Image.Image, options: dict) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _many_parts(kind: str, whole: bytes, rng: random.Random) -> bytes:
    """A JPEG of many scans of many pixels, a PNG of texts that unfold, or any file with itself behind."""
    count = rng.choice((5, 50, 500, 5000))
    if kind == "jpeg" and (start := whole.rfind(b"\xff\xda")) > 0:
        frame = next(whole.find(mark) for mark in (b"\xff\xc2", b"\xff\xc0") if mark in whole)
        side = rng.choice((64, 1000, 3000, 8000))
        whole = whole[:frame + 5] + struct.pack(">HH", side, side) + whole[frame + 9:]
        return whole[:start] + whole[start:-2] * count + whole[-2:]
    if kind == "png":
        text = b"text\0\0" + zlib.compress(bytes(rng.choice((1, 10 ** 6, 10 ** 7))))
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        return whole[:33] + chunk * min(count, 500) + whole[33:]
    return whole * min(count, 50)


def _change(data: bytearray, rng: random.Random) -> None:
    """One change, more often near the beginning, where headers are."""
    end = len(data) if rng.random() < 0.4 else min(len(data), 700)
    place = rng.randrange(max(1, end))
    how = rng.randrange(7)
    if how == 0:
        del data[place:]
    elif how == 1 and data:
        data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
    elif how == 2:
        data[place:place + 1] = rng.randbytes(1)
    elif how == 3:      # a size, a count or an offset
        length = rng.choice((1, 2, 3, 4))
        value = rng.choice((*_EXTREMES, 2500, 3000, 10_000, 16_382, 65_000)) & 256 ** length - 1
        data[place:place + length] = value.to_bytes(length, rng.choice(("big", "little")))
    elif how == 4:
        del data[place:place + rng.randrange(1, 50)]
    elif how == 5:
        data[place:place] = rng.choice((bytes(30), rng.randbytes(20), bytes(data[:place])))
    else:
        _, other = rng.choice(_originals())
        data[place:] = other[rng.randrange(len(other)):]
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        _mend_checksums(data)


def _mend_checksums(data: bytearray) -> None:
    """Of a PNG's chunks, as far as they can be found, so that a change reaches the decoder."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place:place + 4], "big")
        if end + 4 > len(data):
            return
        data[end:end + 4] = struct.pack(">I", zlib.crc32(data[place + 4:end]))
        place = end + 4


IMAGE = Target(make, lambda path: read_image(path, _MAX_PIXELS), (ImageError,), seconds=10.0, memory=_MEMORY,
               prepare=jpeg_decoder)
