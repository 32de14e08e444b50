"""Images of a source on their way from files, through decoding processes, to the network."""
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader, Dataset

from dolg.data.decode import ImageError, decode, jpeg_decoder, read_file, read_header
from dolg.data.loader import one_opencv_thread
from dolg.data.preprocess import crop_to_box
from dolg.features.sources import ImageSource

# Images that come from a decoding process at once
_TOGETHER = 4


@dataclass
class Decoded:
    """An image as it comes from a decoding process.

    Attributes:
        pixels: uint8 (3,H,W), cut to the image's box, or the ImageError that came instead.
        corner: the box's upper left corner, x and y.
        seconds: that reading and decoding took.
        warning: what the pixels lack; empty: nothing.
    """

    pixels: torch.Tensor | ImageError
    corner: tuple[int, int]
    seconds: float
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
    """Images of a source, decoded and cut to their boxes; `max_pixels` and `lenient` are `read_header`'s."""

    def __init__(self, source: ImageSource, max_pixels: int, lenient: bool = True):
        self.source, self.max_pixels, self.lenient = source, max_pixels, lenient

    def __getitem__(self, index: int) -> Decoded:
        start, path, box = time.perf_counter(), self.source.path(index), self.source.boxes.get(index)
        corner, warning = (0, 0) if box is None else (max(0, int(box[0])), max(0, int(box[1]))), ""
        try:
            data = read_file(path)
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
        return Decoded(pixels, corner, time.perf_counter() - start, warning)


def decoded_images(source: ImageSource, order: Iterable[int], max_pixels: int, workers: int,
                   pin_memory: bool,
                   worker_init: Callable[[int], None] | None = None,
                   lenient: bool = True) -> Iterator[Decoded]:
    """Images of a source, in an `order` of which no more is asked for than is decoded ahead.

    Args:
        max_pixels: images that claim more are refused.
        workers: decoding processes; 0 decodes in this one.
        pin_memory: in page-locked memory, for copies that do not wait.
        worker_init: what each process does first.
        lenient: read JPEGs that are cut short.
    """
    jpeg_decoder()      # once, before the workers start
    loader = DataLoader(
        DecodedImages(source, max_pixels, lenient), batch_size=_TOGETHER, sampler=order,
        collate_fn=Packed.of, num_workers=workers, worker_init_fn=worker_init,
        pin_memory=pin_memory,
        # Forked workers share the names; Python 3.14 would start them otherwise
        multiprocessing_context="fork" if workers else None)
    with one_opencv_thread():
        packs = iter(loader)
    for pack in packs:
        yield from pack.unpacked()
