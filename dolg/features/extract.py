"""Multi-scale extraction of descriptors and local features into a feature store."""
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dolg.core.memory import is_out_of_memory
from dolg.data.decode import ImageError
from dolg.data.preprocess import preprocess, scaled_size
from dolg.features.decoding import Decoded, decoded_images
from dolg.features.local import LocalFeatures, LocalSettings, select_local
from dolg.features.sources import ImageSource
from dolg.features.store import LocalTable, StoreWriter
from dolg.search.whitening import Whitening

# A scaled side, in pixels, below which a network may refuse an image
_SMALL = 64
# What keeps a device busy, and its memory far from full
_BATCH_PIXELS = {"cpu": 2_000_000, "cuda": 64_000_000}
# Decoded images wait for others of their size until there are so many times a batch's pixels of them
_WAITING = 4
# How the scales' unit descriptors become one: INFER.SCALE_POOLING
_POOLINGS = {"mean": sum, "max": lambda units: torch.stack(units).amax(dim=0)}


def average_scales(descriptors: list[torch.Tensor], pooling: str = "mean") -> torch.Tensor:
    """One unit descriptor (B,D) of several scales' raw ones: normalise, sum, normalise.

    With `pooling` "max" each entry is the scales' largest, in place of their sum: the generalised mean
    of infinite exponent, SuperGlobal's scale GeM (Shao et al., ICCV 2023).
    """
    units = [F.normalize(d.float(), dim=1) for d in descriptors]
    return F.normalize(_POOLINGS[pooling](units), dim=1)


def describe(model: nn.Module, images: torch.Tensor, scales: Sequence[float],
             precision: torch.dtype = torch.float32, side: int = 0,
             pooling: str = "mean") -> torch.Tensor:
    """Unit descriptors (B,D), float32, of images (B,3,H,W), uint8 RGB on the model's device.

    Every scale is resized from the same pixels; `precision` is that of the network alone. Scales
    are relative to the image's own size, or with `side` to a square of that side; `pooling` is
    `average_scales`'s.
    """
    return describe_all(model, images, scales, None, precision, side, pooling)[0]


@torch.inference_mode()
def describe_all(model: nn.Module, images: torch.Tensor | list[torch.Tensor],
                 scales: Sequence[float], local: LocalSettings | None, precision: torch.dtype = torch.float32,
                 side: int = 0, pooling: str = "mean",
                 ) -> tuple[torch.Tensor | None, LocalFeatures | None]:
    """The descriptors of `describe`, and local features; None where `scales` are empty or `local` is
    None.

    `images` may also be a list of (3,H,W), with a `side` of any sizes. A scale that both want passes
    the network once; one that only `local` wants passes no more of it than the local features need.
    """
    raw, maps = [], []
    wanted = local.scales if local else ()
    if not isinstance(images, torch.Tensor) and len({image.shape for image in images}) == 1:
        images = torch.stack(images)
    batches = [images] if isinstance(images, torch.Tensor) else [image[None] for image in images]
    with torch.autocast(batches[0].device.type, dtype=precision, enabled=precision != torch.float32):
        for scale in dict.fromkeys([*scales, *wanted]):
            outputs = _outputs(model, batches, scale, side, only_local=scale not in scales)
            if scale in scales:
                raw.append(outputs["global"])
            if scale in wanted:
                maps.append((scale, outputs["local"], outputs["attention"]))
    return (average_scales(raw, pooling) if raw else None,
            select_local(maps, local) if local else None)


def _outputs(model: nn.Module, batches: Sequence[torch.Tensor], scale: float, side: int,
             only_local: bool) -> dict[str, torch.Tensor]:
    """What the network gives of batches (n,3,H,W), which are of one size once they are scaled."""
    spec = model.input_spec
    height, width = (side, side) if side else batches[0].shape[2:]
    inputs = [preprocess(batch, scaled_size(height, width, scale), spec.colour, spec.mean, spec.sd,
                         antialias=spec.antialias) for batch in batches]
    inputs = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
    return model.forward_local(inputs) if only_local else model(inputs)


@dataclass
class Shares:
    """Where the time goes: seconds of decoding (of all processes together), of waiting for decoded
    images, and of describing them."""

    decode: float = 0.0
    wait: float = 0.0
    compute: float = 0.0


class Order:
    """The images of some chunks, as a sampler that takes a chunk when its first image is asked for;
    `begun` are the chunks taken, each with its images."""

    def __init__(self, chunks: Iterable[int], images: Callable[[int], Sequence[int]]):
        self.chunks, self.images, self.begun = chunks, images, deque()

    def __iter__(self) -> Iterator[int]:
        for chunk in self.chunks:
            images = self.images(chunk)
            self.begun.append((chunk, images))
            yield from images


@dataclass
class ChunkResult:
    """What is known of the images of a chunk.

    Attributes:
        count: of its images.
        errors: the reason of each row that failed.
        warnings: what each row lacks that was described all the same.
        sizes: (width, height) of each decoded row.
        corners: of each decoded row.
        stamps: (count,3) int64, of each row's file; see `dolg.features.decoding.Decoded`.
        pieces: rows and what `describe_all` gives of them; the descriptors on the model's device.
    """

    count: int
    errors: dict[int, str] = field(default_factory=dict)
    warnings: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    corners: dict[int, tuple[int, int]] = field(default_factory=dict)
    pieces: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        self.stamps = np.full((self.count, 3), -1, np.int64)

    def global_table(self, dim: int) -> np.ndarray:
        """Descriptors (count,dim); rows that failed are NaN, and in `errors`."""
        table = np.full((self.count, dim), np.nan, np.float32)
        for rows, descriptors, _ in self.pieces:
            table[rows] = descriptors.cpu().numpy()
        for row in np.flatnonzero(~np.isfinite(table).all(axis=1)).tolist():
            self.errors.setdefault(row, "no finite descriptor ({} x {} pixels)".format(
                *self.sizes.get(row, ("?", "?"))))
        table[list(self.errors)] = np.nan
        return table

    def local_table(self, dim: int) -> LocalTable:
        """The local features of all rows, in their order; rows that failed have none. `dim` is that
        of the descriptors."""
        nothing = (np.empty((0, dim)), np.empty((0, 2)), np.empty(0), np.empty(0))
        found = [nothing] * self.count
        for rows, _, local in self.pieces:
            counts = local.counts.tolist()
            parts = [part.split(counts) for part in
                     (local.descriptors, local.xy, local.scales, local.scores)]
            for row, descriptors, xy, scales, scores in zip(rows, *parts):
                if row not in self.errors:
                    found[row] = (descriptors, xy + torch.tensor(self.corners[row]), scales, scores)
        return LocalTable.joined(found)


class Extractor:
    """A model in eval mode with the settings of extraction.

    Args:
        model: a retrieval model on its device.
        scales: relative to each image's size.
        precision: torch dtype of the network.
        batch_pixels: images of equal size go through the network together, as many as have so many
            pixels at the largest scale, at least one; 0: what suits the device.
        workers: decoding processes; 0 decodes in this one.
        max_pixels: images that claim more are refused.
        strict: raise ImageError at the first failed image instead of marking it. (One that another
            try may read is never marked.)
        side: resize every image to a square of this side first; 0: leave its size.
        local: select local features as well.
        whitening, local_whitening: what is done to the descriptors and to the local features' before
            they are stored.
        worker_init: what each decoding process does first.
        pooling: how the scales' descriptors become one, see `average_scales`.
        lenient: read JPEGs that are cut short, with a warning.
    """

    def __init__(self, model: nn.Module, scales: Sequence[float], precision: torch.dtype,
                 batch_pixels: int, workers: int, max_pixels: int, strict: bool, side: int = 0,
                 local: LocalSettings | None = None, whitening: Whitening | None = None,
                 local_whitening: Whitening | None = None,
                 worker_init: Callable[[int], None] | None = None, pooling: str = "mean",
                 lenient: bool = True):
        self.model, self.scales, self.precision = model.eval(), list(scales), precision
        self.max_pixels, self.strict, self.side = max_pixels, strict, side
        self.local, self.workers, self.worker_init = local, workers, worker_init
        self.pooling, self.lenient = pooling, lenient
        every_scale = [*scales, *(local.scales if local else ())]
        self.smallest, self.largest = min(every_scale), max(every_scale)
        self.device = next(model.parameters()).device
        self.whitening = whitening and whitening.to(self.device)
        self.local_whitening = local_whitening and local_whitening.to(self.device)
        self.dim = whitening.dim if whitening else model.dim
        self.local_dim = 0
        if local:
            self.local_dim = local_whitening.dim if local_whitening else model.local_dim
        self.batch_pixels = batch_pixels or _BATCH_PIXELS[self.device.type]
        self.shares = Shares()

    def fill(self, writer: StoreWriter, source: ImageSource, chunks: Iterable[int],
             on_batch: Callable[[int], None] = lambda images: None,
             on_chunk: Callable[[int], None] = lambda chunk: None) -> None:
        """Compute chunks of a store, each asked for when it is its turn, and written while the next
        is computed.

        `on_batch` is told how many more images are through, `on_chunk`, in another thread, which
        chunk has been written.
        """
        chunks = iter(chunks)
        first = next(chunks, None)
        if first is None:
            return
        order = Order(chain([first], chunks), writer.images_to_do)
        images = self.decoded(source, order, writer.described)

        def write(chunk: int, described: Sequence[int], result: ChunkResult) -> None:
            table = result.global_table(writer.dim)
            local = result.local_table(writer.local_dim) if self.local else None
            warned = {row: text for row, text in result.warnings.items() if row not in result.errors}
            writer.write_chunk(chunk, table, result.errors, local, warned, result.stamps, described)
            on_chunk(chunk)

        writing: Future | None = None
        with ThreadPoolExecutor(1) as thread:
            while (image := self._next(images)) is not None:
                chunk, described = order.begun.popleft()
                result = self._chunk(chain([image], iter(lambda: self._next(images), None)),
                                     len(described), on_batch)
                if writing:
                    writing.result()
                writing = thread.submit(write, chunk, described, result)
                del result      # what it holds on the device is free once it is written
            if writing:
                writing.result()

    def table(self, source: ImageSource, rows: Sequence[int],
              on_batch: Callable[[int], None] = lambda images: None) -> np.ndarray:
        """Descriptors (len(rows),D) of some images of a source; those that failed are NaN."""
        self.model.eval()
        return self.next_table(self.decoded(source, rows), len(rows), on_batch)

    def next_table(self, images: Iterator[Decoded], count: int,
                   on_batch: Callable[[int], None] = lambda images: None) -> np.ndarray:
        """Descriptors (count,D) of the next `count` of decoded images; those that failed are NaN."""
        return self.next_result(images, count, on_batch).global_table(self.dim)

    def next_result(self, images: Iterator[Decoded], count: int,
                    on_batch: Callable[[int], None] = lambda images: None) -> ChunkResult:
        """All that is found of the next `count` of decoded images."""
        return self._chunk(iter(lambda: self._next(images), None), count, on_batch)

    def decoded(self, source: ImageSource, order: Iterable[int],
                described: Sequence[int] = ()) -> Iterator[Decoded]:
        """The images of a source in an order, decoded by the worker processes; of `described` it is known
        that they were there."""
        return decoded_images(source, order, self.max_pixels, self.workers,
                              self.device.type == "cuda", self.worker_init, self.lenient, described)

    def _next(self, images: Iterator[Decoded]) -> Decoded | None:
        start = time.perf_counter()
        image = next(images, None)
        if image is not None:
            self.shares.decode += image.seconds
        self.shares.wait += time.perf_counter() - start
        return image

    def _chunk(self, images: Iterator[Decoded], count: int,
               on_batch: Callable[[int], None]) -> ChunkResult:
        """Describe the next `count` images.

        Which of them share a batch depends on the chunk alone, so its bytes do as well.
        """
        result, waiting, held = ChunkResult(count), defaultdict(list), 0
        budget = self.batch_pixels / self.largest ** 2

        def flush(size: tuple[int, int]) -> int:
            rows, pixels = zip(*waiting.pop(size))
            areas = sum(image.shape[1] * image.shape[2] for image in pixels)
            start = time.perf_counter()
            self._describe(list(rows), list(pixels), result)
            self.shares.compute += time.perf_counter() - start
            on_batch(len(rows))
            return areas

        for row in range(count):
            image = next(images)
            result.stamps[row] = image.stamp
            if isinstance(image.pixels, ImageError):
                if self.strict or image.pixels.passing:
                    raise image.pixels
                result.errors[row] = image.pixels.reason
                on_batch(1)
                continue
            if image.warning:
                result.warnings[row] = image.warning
            size = tuple(image.pixels.shape[1:])
            result.sizes[row], result.corners[row] = size[::-1], image.corner
            pixels = self._on_device(image.pixels)
            if pixels is None:      # what waits there may be in its way
                for other in list(waiting):
                    held -= flush(other)
                pixels = self._on_device(image.pixels)
            if pixels is None:
                result.errors[row] = _no_memory(size)
                on_batch(1)
                continue
            held += size[0] * size[1]
            size = (self.side, self.side) if self.side else size
            waiting[size].append((row, pixels))
            if (len(waiting[size]) + 1) * size[0] * size[1] > budget:
                held -= flush(size)
            elif held > _WAITING * budget:
                held -= flush(max(waiting, key=lambda s: len(waiting[s]) * s[0] * s[1]))
        for size in list(waiting):
            flush(size)
        return result

    def _on_device(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """A copy, on the CPU as well: the buffer, which is an open file, is then free. None where
        memory does not suffice."""
        try:
            return pixels.to(self.device, non_blocking=True, copy=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _describe(self, rows: list[int], images: list[torch.Tensor], result: ChunkResult) -> None:
        """Describe images of one size. Where memory does not suffice, in halves."""
        try:
            descriptors, local = describe_all(self.model, images, self.scales, self.local,
                                              self.precision, self.side, self.pooling)
            if self.whitening:
                descriptors = self.whitening(descriptors)
            if self.local_whitening:
                local.descriptors = self.local_whitening(local.descriptors)
            # Those of a chunk would fill the memory of a small device
            result.pieces.append((rows, descriptors, local and local.cpu()))
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                # Some networks cannot take a map of less than a pixel
                side = self.side or min(images[0].shape[1:])
                if side * self.smallest >= _SMALL:
                    raise
                reason = str(error).strip().splitlines()[0]
                result.errors.update({row: "the network does not take {} x {} pixels: {}".format(
                    *result.sizes[row], reason) for row in rows})
                return
        # The error, which holds what was computed so far, is gone now
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            result.errors[rows[0]] = _no_memory(images[0].shape[1:])
            return
        half = len(rows) // 2
        self._describe(rows[:half], images[:half], result)
        self._describe(rows[half:], images[half:], result)


def _no_memory(size: Sequence[int]) -> str:
    return f"not enough memory for {size[1]} x {size[0]} pixels"
