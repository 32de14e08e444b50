"""Images of a source on their way from files, through decoding processes, to the network."""
import math
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dolg.data.decode import ImageError, decode, jpeg_decoder, read_file, read_header
from dolg.data.loader import one_opencv_thread
from dolg.data.preprocess import crop_to_box
from dolg.features.sources import ImageSource

# Images that come from a decoding process at once
_TOGETHER = 4
# Images of a list, and of those read last, that are looked for when one is missing
_LOOKED_FOR, _REMEMBERED = 200, 8
# The stamp of a file of which nothing is known
NO_STAMP = (-1, -1, -1)


@dataclass
class Decoded:
    """An image as it comes from a decoding process.

    Attributes:
        pixels: uint8 (3,H,W), cut to the image's box, or the ImageError that came instead.
        corner: the box's upper left corner, x and y.
        seconds: that reading and decoding took.
        stamp: size in bytes, time of change in ns and CRC-32 of the file; -1 where it was not read.
        warning: what the pixels lack; empty: nothing.
    """

    pixels: torch.Tensor | ImageError
    corner: tuple[int, int]
    seconds: float
    stamp: tuple[int, int, int] = NO_STAMP
    warning: str = ""


@dataclass
class Packed:
    """Some images' pixels in one buffer: between processes a tensor costs more than its bytes.

    Attributes:
        buffer: uint8, all pixels, one image after another.
        images: each without its pixels, which are None.
        shapes: of the pixels, (3,H,W); None where there is an ImageError.
    """

    buffer: torch.Tensor
    images: list[Decoded]
    shapes: list[tuple[int, ...] | None]

    @staticmethod
    def of(images: list[Decoded]) -> "Packed":
        whole = [image.pixels for image in images if isinstance(image.pixels, torch.Tensor)]
        buffer = torch.cat([pixels.flatten() for pixels in whole]) if whole else torch.empty(0)
        shapes = [tuple(image.pixels.shape) if isinstance(image.pixels, torch.Tensor) else None
                  for image in images]
        rest = [image if shape is None else replace(image, pixels=None)
                for image, shape in zip(images, shapes)]
        return Packed(buffer, rest, shapes)

    def pin_memory(self) -> "Packed":
        return replace(self, buffer=self.buffer.pin_memory())

    def unpacked(self) -> Iterator[Decoded]:
        """The images; their pixels are views of the buffer."""
        start = 0
        for image, shape in zip(self.images, self.shapes):
            if shape is not None:
                size = math.prod(shape)
                image = replace(image, pixels=self.buffer[start:start + size].view(shape))
                start += size
            yield image


class DecodedImages(Dataset):
    """Images of a source, decoded and cut to their boxes; `max_pixels` and `lenient` are `read_header`'s.

    A file that is missing is an image that failed only while others are still there: those `described`
    before, those of a sample that were there at first, and those that were read last. Otherwise the fault
    is passing.
    """

    def __init__(self, source: ImageSource, max_pixels: int, lenient: bool = True, described: Sequence[int] = ()):
        self.source, self.max_pixels, self.lenient = source, max_pixels, lenient
        sample = range(0, len(source), max(1, len(source) // _LOOKED_FOR))
        there = [index for index in sample if self._is_there(index)]
        self._there = np.union1d(there, described).astype(np.int64)
        self._read_last: deque[int] = deque(maxlen=_REMEMBERED)

    def __getitem__(self, index: int) -> Decoded:
        start, path, box = time.perf_counter(), self.source.path(index), self.source.boxes.get(index)
        corner = (0, 0) if box is None else (max(0, int(box[0])), max(0, int(box[1])))
        stamp, warning = NO_STAMP, ""
        try:
            data, stamp = self._read(index, path)
            header = read_header(path, data, self.max_pixels, self.lenient)
            pixels, warning = decode(path, data, header), header.warning
            if box is not None:
                pixels = crop_to_box(pixels, box).contiguous()
        except ImageError as error:
            pixels = error
        except MemoryError:
            raise
        except Exception as error:      # a damaged file makes decoders raise almost anything
            pixels = ImageError(path, str(error) or type(error).__name__)
        return Decoded(pixels, corner, time.perf_counter() - start, stamp, warning)

    def _read(self, index: int, path: Path) -> tuple[bytes, tuple[int, int, int]]:
        """A file's bytes and stamp."""
        try:
            data, stamp = read_stamped(path)
        except ImageError as error:
            if error.passing:
                raise
            self._check_others(index, error)
            data, stamp = read_stamped(path)       # all may have been away for a moment
        self._read_last.append(index)
        return data, stamp

    def _check_others(self, index: int, error: ImageError) -> None:
        """Raise a passing ImageError where images that were there, near `index` in the list or read last,
        are gone as well."""
        near = int(np.searchsorted(self._there, index))
        known = [*self._there[max(0, near - 2):near].tolist(), *self._read_last,
                 *(other for other in self._there[near:near + 3].tolist() if other != index)]
        if lost := [other for other in known if not self._is_there(other)]:
            reason = f"images that were there before are gone as well, such as {self.source.path(lost[0])}"
        elif not known:
            reason = "no other image that was looked for is there either"
        else:
            return
        raise ImageError(error.path, f"{error.reason}, and {reason}: the disk seems gone. Run the same "
                                     "command again once it is back", passing=True) from None

    def _is_there(self, index: int) -> bool:
        try:
            return os.access(self.source.path(index), os.R_OK)
        except ValueError:      # a zero byte in the path
            return False


def read_stamped(path: Path) -> tuple[bytes, tuple[int, int, int]]:
    """A file's bytes, and its size, time of change in ns and CRC-32. Raises ImageError."""
    try:
        # Before it is read: a file that changes meanwhile then has another stamp
        found = os.stat(path)
    except (OSError, ValueError):
        found = None            # reading it says why
    data = read_file(path)
    return data, (len(data), found.st_mtime_ns if found else -1, zlib.crc32(data))


def decoded_images(source: ImageSource, order: Iterable[int], max_pixels: int, workers: int,
                   pin_memory: bool,
                   worker_init: Callable[[int], None] | None = None,
                   lenient: bool = True, described: Sequence[int] = ()) -> Iterator[Decoded]:
    """Images of a source, in an `order` of which no more is asked for than is decoded ahead.

    Args:
        max_pixels: images that claim more are refused.
        workers: decoding processes; 0 decodes in this one.
        pin_memory: in page-locked memory, for copies that do not wait.
        worker_init: what each process does first.
        lenient: read JPEGs that are cut short.
        described: images that were there when they were described earlier.
    """
    jpeg_decoder()      # once, before the workers start
    loader = DataLoader(
        DecodedImages(source, max_pixels, lenient, described), batch_size=_TOGETHER, sampler=order,
        collate_fn=Packed.of, num_workers=workers, worker_init_fn=worker_init,
        pin_memory=pin_memory,
        # Forked workers share the names; Python 3.14 would start them otherwise
        multiprocessing_context="fork" if workers else None)
    with one_opencv_thread():
        packs = iter(loader)
    for pack in packs:
        yield from pack.unpacked()
