"""Which images make up each step of an epoch: it depends on the seed and the epoch alone.

The number of processes does not change which images a step has.
"""
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from dolg.errors import UserError

# First word of the seed: the order of images and their augmentation are drawn apart
_ORDER = 0
# Rounds of exchange between random pairs of balanced steps: a class that starts in one step may
# then end in any of 2 ** 20
_EXCHANGES = 20


class StepSampler(Sampler):
    """This process's share of each step: lists of (epoch, index) pairs.

    Step i of an epoch holds images i*B .. (i+1)*B - 1 of that epoch's permutation, dealt to the
    `world_size` processes in turn. With `shuffle` an incomplete last step is left out;
    without, it is kept, and empty for a process that gets none of its images.

    Attributes:
        epoch: which one the next iteration goes through.
        start: the step that it begins with; those before are left out.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world_size: int, seed: int,
                 shuffle: bool):
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size if self.shuffle else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.count)
        if self.shuffle:
            order = np.random.default_rng([_ORDER, self.seed, self.epoch]).permutation(order)
        for step in range(self.start, len(self)):
            chosen = order[step * self.batch_size:(step + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in chosen[self.rank::self.world_size]]


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
        self.epoch = self.start = 0

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
        mine = slice(self.start, None), slice(self.rank, None, self.world_size)
        for class_, number in zip(classes[mine], numbers[mine]):
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
