"""Loaders for training: what is seen depends on the seed and the epoch alone.

Neither the number of processes nor that of workers changes an image's augmentation, nor
which images make up a step.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dolg.data.augment import centre_view, random_square_view, random_view, square_view
from dolg.data.decode import ImageError, jpeg_decoder, read_image
from dolg.data.image_list import ImageList
from dolg.data.preprocess import preprocess
from dolg.errors import UserError

# First words of the seeds: the order of images and their augmentation are drawn apart
_ORDER, _AUGMENT = 0, 1
# Rounds of exchange between random pairs of balanced steps: a class that starts in one step may
# then end in any of 2 ** 20
_EXCHANGES = 20


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


class BalancedStepSampler(Sampler):
    """As StepSampler, with steps of P classes with K images each: P * K is the batch size.

    Every epoch cuts each class's images, in a random order, into groups of K, and deals as many
    groups as it can into full steps in which no class comes twice; a few groups may be left out,
    and those of a class that has more than there are steps. The last group of a class takes what
    it lacks from the class's other images; a class of fewer than K images repeats them. A step is
    the same whatever the number of processes; all K images of a group go to one process.

    Args:
        labels: (N,) the class of each image.
        batch_size: images per step, all processes together.
        images_per_class: K.
        rank, world_size: this process among all.
        seed: with the epoch, it determines all steps.

    Raises UserError where these numbers do not go together.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, images_per_class: int, rank: int,
                 world_size: int, seed: int):
        _, self.labels, self.class_sizes = np.unique(
            np.asarray(labels, dtype=np.int64), return_inverse=True, return_counts=True)
        _check_balance(batch_size, images_per_class, len(self.class_sizes), world_size)
        self.images_per_class, self.seed = images_per_class, seed
        self.rank, self.world_size = rank, world_size
        self.classes_per_step = batch_size // images_per_class
        self.groups = -(-self.class_sizes // images_per_class)      # of each class
        self.steps = _most_steps(self.groups, self.classes_per_step)
        self.epoch = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([_ORDER, self.seed, self.epoch])
        # Images class by class, at random within each
        images = rng.permutation(len(self.labels))
        images = images[np.argsort(self.labels[images], kind="stable")]
        starts = np.cumsum(self.class_sizes) - self.class_sizes
        classes = deal_classes(self.groups, self.steps, self.classes_per_step, rng)
        numbers = _count_off(classes)
        mine = slice(self.rank, None, self.world_size)
        for class_, number in zip(classes[:, mine], numbers[:, mine]):
            places = number[:, None] * self.images_per_class + np.arange(self.images_per_class)
            chosen = images[starts[class_, None] + places % self.class_sizes[class_, None]]
            yield [(self.epoch, int(index)) for index in chosen.ravel()]


def deal_classes(groups: np.ndarray, steps: int, classes_per_step: int,
                 rng: np.random.Generator) -> np.ndarray:
    """Random classes (steps, classes_per_step), none twice in a step, class c at most groups[c]
    times; `steps` may not exceed what `_most_steps` allows."""
    # Class by class over the steps in turn: a class with no more groups than there are steps
    # comes to no step twice
    order = rng.permutation(len(groups))
    cards = np.repeat(order, np.minimum(groups[order], steps))
    left_out = rng.choice(len(cards), len(cards) - steps * classes_per_step, replace=False)
    cards = np.delete(cards, left_out)
    dealt = cards.reshape(classes_per_step, steps).T
    # Neighbours in that order share many steps, so random pairs of steps exchange classes
    for _ in range(_EXCHANGES):
        pairs = rng.permutation(steps)[:steps // 2 * 2].reshape(2, -1)
        first, second = (rng.permuted(dealt[half], axis=1) for half in pairs)
        free_first, free_second = _not_in_both(first, second)
        swap = free_first & free_second & (rng.random(first.shape) < 0.5)
        dealt[pairs[0]] = np.where(swap, second, first)
        dealt[pairs[1]] = np.where(swap, first, second)
    return rng.permuted(rng.permutation(dealt), axis=1)


def _not_in_both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which entries of each row (n,P) are not in the same row of the other array; within a row
    all differ."""
    both = np.concatenate([first, second], axis=1)
    order = np.argsort(both, axis=1)
    in_order = np.take_along_axis(both, order, axis=1)
    twins = in_order[:, 1:] == in_order[:, :-1]
    alone = np.ones(both.shape, dtype=bool)
    alone[:, 1:] &= ~twins
    alone[:, :-1] &= ~twins
    free = np.empty_like(alone)
    np.put_along_axis(free, order, alone, axis=1)
    return free[:, :first.shape[1]], free[:, first.shape[1]:]


def _count_off(classes: np.ndarray) -> np.ndarray:
    """For each entry, in reading order, how often the same class came before it."""
    flat = classes.ravel()
    order = np.argsort(flat, kind="stable")
    _, first, sizes = np.unique(flat[order], return_index=True, return_counts=True)
    numbers = np.empty(len(flat), dtype=np.int64)
    numbers[order] = np.arange(len(flat)) - np.repeat(first, sizes)
    return numbers.reshape(classes.shape)


def _most_steps(groups: np.ndarray, classes_per_step: int) -> int:
    """The most steps of `classes_per_step` groups of different classes, class c giving groups[c].

    S steps can be filled if the classes, each giving S groups at most, give S * classes_per_step.
    """
    low, high = 0, int(groups.sum()) // classes_per_step
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * classes_per_step:
            low = middle
        else:
            high = middle - 1
    return low


def _check_balance(batch_size: int, images_per_class: int, class_count: int,
                   world_size: int) -> None:
    if images_per_class < 1 or batch_size % images_per_class:
        raise UserError(f"TRAIN.IMAGES_PER_CLASS is {images_per_class}: give a divisor of "
                        f"TRAIN.BATCH_SIZE {batch_size}")
    classes_per_step = batch_size // images_per_class
    asked = (f"TRAIN.BATCH_SIZE {batch_size} with TRAIN.IMAGES_PER_CLASS {images_per_class} asks "
             f"for {classes_per_step} classes per step")
    if classes_per_step > class_count:
        raise UserError(f"{asked}, but the training images have {class_count}: lower the batch, or "
                        "take more images of each class")
    if classes_per_step % world_size:
        raise UserError(f"{asked}, which {world_size} processes cannot share evenly: make it a "
                        f"multiple of {world_size}")


class TrainingImages(Dataset):
    """Random views of an image list; an unreadable image comes as its ImageError.

    Args:
        size: side of the views.
        min_area: least share of the image that a crop takes.
        seed: with epoch and index, it determines the view.
        lighting: standard deviation of the colours' noise; 0: none.
        resize: where above 0, crops are of the image at resize x resize pixels instead.
    """

    def __init__(self, images: ImageList, size: int, min_area: float, seed: int,
                 lighting: float = 0.1, resize: int = 0):
        if 0 < resize < size:
            raise UserError(f"TRAIN.RESIZE is {resize}, too small for crops of TRAIN.IM_SIZE "
                            f"{size}: give at least {size}, or 0")
        self.images, self.size, self.min_area, self.seed = images, size, min_area, seed
        self.lighting, self.resize = lighting, resize

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            image = read_image(self.images.paths[index])
        except ImageError as error:
            return error
        rng = np.random.default_rng([_AUGMENT, self.seed, epoch, index])
        if self.resize:
            view, shift = random_square_view(image, self.resize, self.size, rng, self.lighting)
        else:
            view, shift = random_view(image, self.size, self.min_area, rng, self.lighting)
        return view, shift, self.images.labels[index], index


class CentredImages(Dataset):
    """Centred views of an image list, side `size`, cut where the shorter side is `short_side`;
    with `square` the whole image instead. An unreadable image comes as its ImageError."""

    def __init__(self, images: ImageList, short_side: int, size: int, square: bool = False):
        self.images, self.short_side, self.size, self.square = images, short_side, size, square

    def __getitem__(self, key: tuple[int, int]):
        _, index = key
        try:
            image = read_image(self.images.paths[index])
        except ImageError as error:
            return error
        if self.square:
            view = square_view(image, self.size)
        else:
            view = centre_view(image, self.short_side, self.size)
        return view, torch.zeros(3), self.images.labels[index], index


class StepLoader:
    """A DataLoader over the steps of a sampler that raises ImageError in the process that asks.

    (Raised inside a worker it would arrive with the worker's traceback as its message.)
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, input_spec, workers: int,
                 pin_memory: bool):
        self.sampler = sampler
        jpeg_decoder()      # once, before the workers start
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
