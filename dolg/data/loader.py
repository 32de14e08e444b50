"""Loaders for training: what is seen depends on the seed and the epoch alone.

Neither the number of processes nor that of workers changes an image's augmentation, nor
which images make up a step.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dolg.data.augment import centre_view, random_view
from dolg.data.decode import ImageError, read_image
from dolg.data.image_list import ImageList
from dolg.data.preprocess import preprocess

# First words of the seeds: the order of images and their augmentation are drawn apart
_ORDER, _AUGMENT = 0, 1


@dataclass
class Batch:
    """`images` (B,3,S,S) float32, `labels` (B,) int64 and `indexes` (B,) into the image list."""

    images: torch.Tensor
    labels: torch.Tensor
    indexes: torch.Tensor

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indexes)


class StepSampler(Sampler):
    """This process's share of each step: lists of (epoch, index) pairs.

    Step i of an epoch holds images i*B .. (i+1)*B - 1 of that epoch's permutation, dealt to the
    `world_size` processes in turn. With `shuffle` an incomplete last step is left out;
    without, it is kept.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int, seed: int,
                 shuffle: bool):
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size if self.shuffle else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng([_ORDER, self.seed, self.epoch]).permutation(order)
        for step in range(len(self)):
            chosen = order[step * self.batch_size:(step + 1) * self.batch_size]
            mine = chosen[self.rank::self.world_size]
            if len(mine):
                yield [(self.epoch, int(index)) for index in mine]


class TrainingImages(Dataset):
    """Random views of an image list; an unreadable image comes as its ImageError."""

    def __init__(self, images: ImageList, size: int, min_area: float, seed: int):
        self.images, self.size, self.min_area, self.seed = images, size, min_area, seed

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            image = read_image(self.images.paths[index])
        except ImageError as error:
            return error
        rng = np.random.default_rng([_AUGMENT, self.seed, epoch, index])
        view, shift = random_view(image, self.size, self.min_area, rng)
        return view, shift, self.images.labels[index], index


class CentredImages(Dataset):
    """Centred views of an image list; an unreadable image comes as its ImageError."""

    def __init__(self, images: ImageList, short_side: int, size: int):
        self.images, self.short_side, self.size = images, short_side, size

    def __getitem__(self, key: tuple[int, int]):
        _, index = key
        try:
            image = read_image(self.images.paths[index])
        except ImageError as error:
            return error
        view = centre_view(image, self.short_side, self.size)
        return view, torch.zeros(3), self.images.labels[index], index


class StepLoader:
    """A DataLoader over a StepSampler that raises ImageError in the process that asks.

    (Raised inside a worker it would arrive with the worker's traceback as its message.)
    """

    def __init__(self, dataset: Dataset, sampler: StepSampler, input_spec, workers: int,
                 pin_memory: bool):
        self.sampler = sampler
        self._loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin_memory,
            collate_fn=_Collate(input_spec), persistent_workers=workers > 0)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        self.sampler.epoch = epoch
        for batch in self._loader:
            if isinstance(batch, ImageError):
                raise batch
            yield batch


class _Collate:
    """Samples -> Batch; or the first ImageError among them."""

    def __init__(self, input_spec):
        self.spec = input_spec

    def __call__(self, samples: list) -> Batch | ImageError:
        for sample in samples:
            if isinstance(sample, ImageError):
                return sample
        views, shifts, labels, indexes = zip(*samples)
        views, spec = torch.stack(views), self.spec
        images = preprocess(views, tuple(views.shape[2:]), spec.colour, spec.mean, spec.sd,
                            shift=torch.stack(shifts))
        return Batch(images, torch.tensor(labels), torch.tensor(indexes))
