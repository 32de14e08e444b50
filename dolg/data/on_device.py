"""Pixels or JPEG files of a batch on their way to the device that renders them."""
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from dolg.data.augment import View
from dolg.data.datasets import Sample
from dolg.data.decode import decode_jpeg, jpeg_decoder, reason_of
from dolg.errors import UserError

# JPEGs that nvJPEG decodes together; their pixels are in memory at once
_TOGETHER = 32


@dataclass
class Packed:
    """Images of different sizes as one buffer, which moves at once.

    Attributes:
        buffer: uint8 (n,), all images' pixels or bytes, one after another.
        sizes: the length of each there.
        shapes: (height, width) of pixels, stored as (height, width, 3); None for a JPEG file.
        views: of each.
        shifts: (B,3), the views' shifts of colours.
        labels, indexes: (B,) int64.
        cut: the indexes of images that are cut short.
    """

    buffer: torch.Tensor
    sizes: list[int]
    shapes: list[tuple[int, int] | None]
    views: list[View]
    shifts: torch.Tensor
    labels: torch.Tensor
    indexes: torch.Tensor
    cut: list[int]

    def pin_memory(self) -> "Packed":
        return replace(self, buffer=self.buffer.pin_memory(), shifts=self.shifts.pin_memory(),
                       labels=self.labels.pin_memory())


def pack(samples: list[Sample]) -> Packed:
    """Samples whose pixels are uint8 (3,H,W), or a JPEG file's bytes (n,)."""
    sizes = [sample.pixels.numel() for sample in samples]
    buffer, start, shapes = torch.empty(sum(sizes), dtype=torch.uint8), 0, []
    for sample, size in zip(samples, sizes):
        pixels, place = sample.pixels, buffer[start:start + size]
        if pixels.ndim == 1:
            place.copy_(pixels)
            shapes.append(None)
        else:
            height, width = pixels.shape[1:]
            place.view(height, width, 3).copy_(pixels.permute(1, 2, 0))
            shapes.append((height, width))
        start += size
    views = [sample.view for sample in samples]
    return Packed(buffer, sizes, shapes, views, torch.tensor([v.shift for v in views]).view(-1, 3),
                  torch.tensor([sample.label for sample in samples], dtype=torch.int64),
                  torch.tensor([sample.index for sample in samples], dtype=torch.int64), cut_of(samples))


def cut_of(samples: list[Sample]) -> list[int]:
    """The indexes of images that are cut short."""
    return [sample.index for sample in samples if sample.cut]


def unpack(packed: Packed, device: torch.device, names: list[str]) -> Iterator[torch.Tensor]:
    """The images, uint8 (3,H,W) on `device`; JPEGs are decoded there.

    `names` are the images', for the ImageError that is raised at a damaged file.
    """
    files = packed.buffer.split(packed.sizes)
    moved = files
    if any(packed.shapes):
        moved = packed.buffer.to(device, non_blocking=True).split(packed.sizes)
    for start in range(0, len(files), _TOGETHER):
        part = range(start, min(start + _TOGETHER, len(files)))
        jpegs = [i for i in part if packed.shapes[i] is None]
        decoded = dict(zip(jpegs, _decode_all([files[i] for i in jpegs], [names[i] for i in jpegs],
                                              device)))
        for i in part:
            yield decoded[i] if i in decoded else \
                moved[i].view(*packed.shapes[i], 3).permute(2, 0, 1)


def check_decoder(device: torch.device) -> None:
    """Raise UserError if torchvision cannot decode JPEGs on the GPU `device`."""
    if device.type != "cuda":
        return
    tiny = torch.from_numpy(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1])
    try:
        jpeg_decoder()([tiny], device=device)
    except RuntimeError as error:
        raise UserError("DATA_LOADER.ON_DEVICE is decode, but torchvision cannot decode JPEGs on "
                        f"{device} ({reason_of(error)}): choose augment") from None


def _decode_all(files: list[torch.Tensor], names: list[str],
                device: torch.device) -> list[torch.Tensor]:
    if files and device.type == "cuda":
        # Where one is damaged, or of a kind that nvJPEG lacks, the CPU's decoder says which
        with suppress(RuntimeError):
            return jpeg_decoder()(files, device=device)
    return [decode_jpeg(name, file).to(device) for name, file in zip(names, files)]
