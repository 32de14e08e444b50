"""Multi-scale extraction of descriptors into a feature store."""
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dolg.data.decode import ImageError, jpeg_decoder, read_image
from dolg.data.preprocess import crop_to_box, preprocess, scaled_size
from dolg.features.sources import ImageSource
from dolg.features.store import StoreWriter

# A scaled side, in pixels, below which a network may refuse an image
_SMALL = 64


def average_scales(descriptors: list[torch.Tensor]) -> torch.Tensor:
    """One unit descriptor (B,D) of several scales' raw ones: normalise, sum, normalise."""
    return F.normalize(sum(F.normalize(d.float(), dim=1) for d in descriptors), dim=1)


@torch.inference_mode()
def describe(model: nn.Module, images: torch.Tensor, scales: list[float],
             precision: torch.dtype = torch.float32, side: int = 0) -> torch.Tensor:
    """Unit descriptors (B,D), float32, of images (B,3,H,W), uint8 RGB on the model's device.

    Every scale is resized from the same pixels; `precision` is that of the network alone. Scales
    are relative to the image's own size, or with `side` to a square of that side.
    """
    spec = model.input_spec
    height, width = (side, side) if side else images.shape[2:]
    raw = []
    for scale in scales:
        inputs = preprocess(images, scaled_size(height, width, scale), spec.colour, spec.mean,
                            spec.sd, antialias=spec.antialias)
        with torch.autocast(images.device.type, dtype=precision,
                            enabled=precision != torch.float32):
            raw.append(model(inputs)["global"])
    return average_scales(raw)


class DecodedImages(Dataset):
    """Images of a source, decoded and cut to their boxes; a failure comes as its ImageError."""

    def __init__(self, source: ImageSource, order: list[int], max_pixels: int):
        self.source, self.order, self.max_pixels = source, order, max_pixels

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> torch.Tensor | ImageError:
        index = self.order[position]
        path, box = self.source.paths[index], self.source.boxes[index]
        try:
            image = read_image(path, self.max_pixels)
            return image if box is None else crop_to_box(image, box).contiguous()
        except ImageError as error:
            return error
        except ValueError as error:
            return ImageError(path, str(error))


class Extractor:
    """A model in eval mode with the settings of extraction.

    Args:
        model: a retrieval model on its device.
        scales: relative to each image's size.
        precision: torch dtype of the network.
        batch_size: images of equal size that go through the network together.
        workers: decoding processes; 0 decodes in this one.
        max_pixels: images that claim more are refused.
        strict: raise ImageError at the first failed image instead of marking it.
        side: resize every image to a square of this side first; 0: leave its size.
        worker_init: what each decoding process does first.
    """

    def __init__(self, model: nn.Module, scales: list[float], precision: torch.dtype,
                 batch_size: int, workers: int, max_pixels: int, strict: bool, side: int = 0,
                 worker_init: Callable[[int], None] | None = None):
        self.model, self.scales, self.precision = model.eval(), list(scales), precision
        self.batch_size, self.workers = batch_size, workers
        self.max_pixels, self.strict, self.side = max_pixels, strict, side
        self.worker_init = worker_init
        self.device = next(model.parameters()).device

    def fill(self, writer: StoreWriter, source: ImageSource, chunks: list[int],
             progress: bool) -> int:
        """Compute `chunks` of the store; returns how many of their images failed."""
        order = [i for chunk in chunks for i in writer.rows(chunk)]
        failed = 0
        with tqdm(total=len(order), unit="image", desc=writer.path.name,
                  disable=None if progress else True) as bar:
            images = self._images(source, order)
            for chunk in chunks:
                table, errors = self._chunk(images, len(writer.rows(chunk)), writer.dim, bar)
                writer.write_chunk(chunk, table, errors)
                failed += len(errors)
        return failed

    def table(self, source: ImageSource, rows: list[int], progress: bool) -> np.ndarray:
        """Descriptors (len(rows),D) of some images of a source; those that failed are NaN."""
        self.model.eval()
        with tqdm(total=len(rows), unit="image", leave=False,
                  disable=None if progress else True) as bar:
            return self._chunk(self._images(source, rows), len(rows), self.model.dim, bar)[0]

    def _images(self, source: ImageSource, order: list[int]) -> Iterator:
        jpeg_decoder()      # once, before the workers start
        return iter(DataLoader(DecodedImages(source, order, self.max_pixels), batch_size=None,
                               num_workers=min(self.workers, len(order)),
                               worker_init_fn=self.worker_init))

    def _chunk(self, images: Iterator, count: int, dim: int, bar: tqdm):
        """The next `count` images' descriptors (count,dim), and the reasons of the failed rows.

        Which images share a batch depends on the chunk alone, so its bytes do as well.
        """
        table, errors, waiting = np.full((count, dim), np.nan, np.float32), {}, defaultdict(list)
        sizes: dict[int, tuple[int, int]] = {}
        for row in range(count):
            image = next(images)
            if isinstance(image, ImageError):
                if self.strict:
                    raise image
                errors[row] = image.reason
                bar.update()
                continue
            sizes[row] = (image.shape[2], image.shape[1])
            same_size = waiting[image.shape]
            same_size.append((row, image))
            if len(same_size) == self.batch_size:
                self._describe(waiting.pop(image.shape), table, bar)
        for same_size in waiting.values():
            self._describe(same_size, table, bar)
        for row in set(np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist()) - set(errors):
            errors[row] = f"no finite descriptor ({sizes[row][0]} x {sizes[row][1]} pixels)"
        return table, errors

    def _describe(self, same_size: list[tuple[int, torch.Tensor]], table: np.ndarray,
                  bar: tqdm) -> None:
        rows = [row for row, _ in same_size]
        images = torch.stack([image for _, image in same_size]).to(self.device)
        try:
            table[rows] = describe(self.model, images, self.scales, self.precision,
                                   self.side).cpu().numpy()
        except RuntimeError:
            # Some networks cannot take a map of less than a pixel; the rows stay NaN, and the
            # caller says so
            if min(images.shape[2:]) * min(self.scales) >= _SMALL:
                raise
        bar.update(len(rows))
