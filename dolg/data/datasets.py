"""Views of the images of a list or of shards: read, decoded and, unless a GPU does it, rendered."""
from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dolg.data.augment import (View, centre_view, random_square_view, random_view, render,
                               render_quickly, square_view)
from dolg.data.boxes import pixels_inside
from dolg.data.decode import MAX_PIXELS, ImageError, decode, read_header
from dolg.data.image_list import ImageList
from dolg.data.shards import ImageShards
from dolg.errors import UserError

# First word of the seed: the order of images and their augmentation are drawn apart
_AUGMENT = 1
# Images that are tried in the place of an unreadable one
_MOST_TRIES = 20


class Sample(NamedTuple):
    """An image on its way into a batch.

    Attributes:
        pixels: the rendered view, float (3,size,size) in 0..255; or, where the device is to render
            it, uint8 (3,H,W); or, where it is to decode as well, a JPEG file's bytes (n,) uint8.
        view: what of the pixels is seen, or was.
        label, index: the image's class, and its place in the list.
        cut: whether the image's file is cut short, and a part of the image filled in.
        replaced: (index, reason) of unreadable images in whose place this one is.
    """

    pixels: torch.Tensor
    view: View
    label: int
    index: int
    cut: bool = False
    replaced: tuple[tuple[int, str], ...] = ()


class _Views(Dataset):
    """What TrainingImages and CentredImages have in common; they say which view is drawn.

    Args:
        images: a list or shards. Of an image with a box nothing outside is seen: the view is drawn
            as if there were no more of it.
        size: side of the views.
        reduced: decode a JPEG at 1/2, 1/4 or 1/8 of its size where the view allows, and render
            quickly.
        on_device: what is left to the device: "" (nothing), "augment" (rendering the view) or
            "decode" (decoding plain, upright JPEGs, at their full size, and rendering).
        max_pixels, lenient: see `read_header`.
    """

    def __init__(self, images: ImageList | ImageShards, size: int, reduced: bool, on_device: str,
                 max_pixels: int, lenient: bool):
        assert on_device in ("", "augment", "decode"), on_device
        self.images, self.size = images, size
        self.boxes = images.boxes if isinstance(images, ImageList) else None
        self.reduced, self.on_device = reduced, on_device
        self.max_pixels, self.lenient = max_pixels, lenient

    def __getitem__(self, key: tuple[int, int]) -> Sample | ImageError:
        """The image `index` as `epoch` sees it; `key` is (epoch, index)."""
        epoch, index = key
        try:
            pixels, view, is_cut = self._load(epoch, index)
        except ImageError as error:
            return error
        if not self.on_device:
            pixels = (render_quickly if self.reduced else render)(pixels, view)
        return Sample(pixels, view, int(self.images.labels[index]), index, is_cut)

    def _load(self, epoch: int, index: int) -> tuple[torch.Tensor, View, bool]:
        """Pixels, or bytes, the view of them, and whether the image is cut short."""
        name, data = self.images.name(index), self.images.read(index)
        header = read_header(name, data, self.max_pixels, self.lenient)
        if header.kind == "JPEG":
            # Drawn from the size at which it is stored, whatever size it will be decoded at
            view = self._view(epoch, index, header.height, header.width)
            if self.on_device == "decode" and header.plain and header.orientation == 1:
                return torch.frombuffer(bytearray(data), dtype=torch.uint8), view, False
            n = view.reduction() if self.reduced and header.plain else 1
            pixels, view = decode(name, data, header, n), view.reduced(n)
        else:
            pixels = decode(name, data, header)
            view = self._view(epoch, index, *pixels.shape[1:])
        # What nobody will look at need not travel
        return (*(view.cut_from(pixels) if self.on_device else (pixels, view)), bool(header.warning))

    def _view(self, epoch: int, index: int, height: int, width: int) -> View:
        """The view of image `index`, of height x width pixels, or of what its box leaves of it."""
        if self.boxes is None:
            return self.view(epoch, index, height, width)
        try:
            top, left, height, width = pixels_inside(self.boxes[index].tolist(), height, width)
        except ValueError as error:
            raise ImageError(self.images.name(index), str(error)) from None
        return self.view(epoch, index, height, width).shifted(top, left)


class TrainingImages(_Views):
    """Random views of images; an unreadable image comes as its ImageError, or with `skip` as another.

    With `skip` the next image of its class in the list takes its place, else the next in the list. Which
    one that is depends on the files alone, and a batch keeps its size.

    Args:
        images, size, reduced, on_device, max_pixels, lenient: see `_Views`.
        min_area: least share of the image that a crop takes.
        seed: with epoch and index, it determines the view.
        lighting: standard deviation of the colours' noise; 0: none.
        resize: where above 0, crops are of the image at resize x resize pixels instead.
        skip: replace an unreadable image, unless another try may read it.
    """

    def __init__(self, images: ImageList | ImageShards, size: int, min_area: float, seed: int,
                 lighting: float = 0.1, resize: int = 0, reduced: bool = False,
                 on_device: str = "", max_pixels: int = MAX_PIXELS, lenient: bool = True, skip: bool = False):
        super().__init__(images, size, reduced, on_device, max_pixels, lenient)
        if 0 < resize < size:
            raise UserError(f"TRAIN.RESIZE is {resize}, too small for crops of TRAIN.IM_SIZE "
                            f"{size}: give at least {size}, or 0")
        self.min_area, self.seed, self.lighting, self.resize = min_area, seed, lighting, resize
        self.skip = skip

    def __getitem__(self, key: tuple[int, int]) -> Sample | ImageError:
        epoch, index = key
        sample, replaced = super().__getitem__(key), []
        others = islice(self._others(index), _MOST_TRIES)
        while self.skip and isinstance(sample, ImageError) and not sample.passing:
            replaced.append((index, sample.reason))
            index = next(others, None)
            if index is None:
                return sample
            sample = super().__getitem__((epoch, index))
        return sample._replace(replaced=tuple(replaced)) if isinstance(sample, Sample) else sample

    def _others(self, index: int) -> Iterator[int]:
        """The other images, from `index` on: those of its class, then all."""
        mates = np.flatnonzero(self.images.labels == self.images.labels[index])
        place = int(np.searchsorted(mates, index))
        yield from np.concatenate([mates[place + 1:], mates[:place]]).tolist()
        yield from chain(range(index + 1, len(self.images)), range(index))

    def view(self, epoch: int, index: int, height: int, width: int) -> View:
        """The view of image `index`, of height x width pixels, in an epoch."""
        rng = np.random.default_rng([_AUGMENT, self.seed, epoch, index])
        if self.resize:
            return random_square_view(height, width, self.resize, self.size, rng, self.lighting)
        return random_view(height, width, self.size, self.min_area, rng, self.lighting)


class CentredImages(_Views):
    """Centred views of images, side `size`, cut where the shorter side is `short_side`; with
    `square` the whole image instead. An unreadable image comes as its ImageError.

    Args:
        images, size, reduced, on_device, max_pixels, lenient: see `_Views`.
    """

    def __init__(self, images: ImageList | ImageShards, short_side: int, size: int,
                 square: bool = False, reduced: bool = False, on_device: str = "",
                 max_pixels: int = MAX_PIXELS, lenient: bool = True):
        super().__init__(images, size, reduced, on_device, max_pixels, lenient)
        self.short_side, self.square = short_side, square

    def view(self, epoch: int, index: int, height: int, width: int) -> View:
        """The view of an image of height x width pixels, the same in every epoch."""
        if self.square:
            return square_view(height, width, self.size)
        return centre_view(height, width, self.short_side, self.size)
