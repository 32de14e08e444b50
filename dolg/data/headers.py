"""What the bytes of an image file say of themselves, read part by part; nothing is decoded.

A part that claims to be longer than the file ends the walk, whatever it claims.
"""
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# How files begin that are images here. (A file may be anybody's: other decoders go unasked, some of which
# start programs or were written for a few files that are known.)
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG\r\n\x1a\n", "WEBP": rb"RIFF....WEBP", "BMP": rb"BM",
    "GIF": rb"GIF8[79]a", "TIFF": rb"II[*+]\0|MM\0[*+]", "PPM": rb"P[1-6f]\s",
    "AVIF": rb"....ftyp(?:avi[fs]|mif1|msf1)"}
FORMATS = tuple(_SIGNATURES)
_KIND = re.compile(b"|".join(b"(?P<%s>%s)" % (kind.encode(), start) for kind, start in _SIGNATURES.items()),
                   re.DOTALL)
# Also what hides in no image: a walk over so many parts takes about a second
_MOST_PARTS = 10 ** 6
# A marker with a length after it: not a stuffed byte, a fill byte, a restart (D0 to D7) or TEM (01)
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")
_EXIF = b"Exif\0\0"


class Jpeg(NamedTuple):
    """The parts of a JPEG.

    Attributes:
        width, height, bits, channels: as its frame claims; 0 without one.
        exif: its EXIF block; empty without one.
        scans: passes over the image, of which a progressive file has about ten.
        has_pixels: some data follows a scan's header.
        whole: the marker of its end follows a scan. (That of a thumbnail within EXIF does not count.)
    """

    width: int = 0
    height: int = 0
    bits: int = 0
    channels: int = 0
    exif: bytes = b""
    scans: int = 0
    has_pixels: bool = False
    whole: bool = False


class Chunk(NamedTuple):
    """A chunk of a PNG: its four letters, and where it begins and ends in the file."""

    kind: bytes
    start: int
    end: int


def kind_of(data: bytes) -> str:
    """The kind of an image by its first 32 bytes: "JPEG", "PNG", ...; empty: it is none that is read."""
    found = _KIND.match(data[:32])
    return found.lastgroup if found else ""


def read_jpeg(data: bytes) -> Jpeg:
    """The parts of a JPEG, up to its last marker. Raises ValueError where there are absurdly many."""
    frame, exif, scans, has_pixels, place = (0, 0, 0, 0), b"", 0, False, 2
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(data, place)
        if found is None:
            return Jpeg(*frame, exif, scans, has_pixels or (scans > 0 and place < len(data)))
        if scans and found.start() > place:
            has_pixels = True
        code, place = data[found.start() + 1], found.end()
        if code == _EOI:
            return Jpeg(*frame, exif, scans, has_pixels, whole=scans > 0)
        if code < 0xC0 or code == _SOI:     # libjpeg refuses them or looks on, and so what follows counts
            continue
        length = int.from_bytes(data[place:place + 2], "big")
        if code in _FRAMES and not frame[0] and place + 8 <= len(data):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 2)
            frame = (width, height, bits, channels)
        elif code == _APP1 and not exif and data.startswith(_EXIF, place + 2):
            exif = data[place + 2:place + length]
        scans += code == _SOS
        place += max(2, length)
    raise ValueError(f"it has more than {_MOST_PARTS} parts")


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG, up to IEND. Raises ValueError where it is cut short, or they are absurdly many."""
    place = 8
    for _ in range(_MOST_PARTS):
        end = place + 12 + int.from_bytes(data[place:place + 4], "big")
        if end > len(data):
            raise ValueError("it is cut short")
        kind = data[place + 4:place + 8]
        yield Chunk(kind, place, end)
        if kind == b"IEND":
            return
        place = end
    raise ValueError(f"it has more than {_MOST_PARTS} parts")


def whole_png(data: bytes) -> bytes:
    """A PNG without its side chunks that are damaged or compressed (texts, a colour profile), which are no
    pixels and may unfold to gigabytes. Raises ValueError where a chunk that is needed is damaged or missing."""
    kept, start = [], 0
    for chunk in png_chunks(data):
        body = memoryview(data)[chunk.start + 4:chunk.end - 4]
        damaged = zlib.crc32(body) != int.from_bytes(data[chunk.end - 4:chunk.end], "big")
        is_side = chunk.kind[0] & 0x20
        if damaged and not is_side and chunk.kind != b"IEND":
            raise ValueError(f"its chunk {chunk.kind.decode('latin1')!r} is damaged")
        if is_side and (damaged or chunk.kind in _COMPRESSED):
            kept.append(data[start:chunk.start])
            start = chunk.end
    return b"".join([*kept, data[start:]]) if kept else data


def is_animated_png(data: bytes) -> bool:
    """Whether a PNG claims to hold several pictures."""
    try:
        return any(chunk.kind == b"acTL" for chunk in png_chunks(data))
    except ValueError:
        return False


def png_size(data: bytes) -> tuple[int, int]:
    """The width and height that a PNG claims. Raises ValueError where it claims none."""
    if data[12:16] != b"IHDR" or len(data) < 24:
        raise ValueError("it does not begin with its size")
    return struct.unpack_from(">II", data, 16)


def webp_size(data: bytes) -> tuple[int, int]:
    """The width and height that a WebP claims. Raises ValueError where it claims none."""
    if len(data) < 30:
        raise ValueError("it is cut short")
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 ":
        return tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    raise ValueError("it does not begin with its size")


def check_webp(data: bytes) -> None:
    """Raise ValueError where a WebP is cut short."""
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ValueError("it is cut short")
