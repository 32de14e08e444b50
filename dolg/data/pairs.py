"""Pairs for reranking transformers to learn from: triplets of an anchor, an image of its class, and one
of another, which make a pair that matches and one that does not.

Which triplets make up each step depends on the seed and the epoch alone: neither the number of
processes nor that of workers changes them.
"""
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from dolg.errors import UserError

# First words of the seeds of the order of the anchors and of what is drawn for them. (Words of the
# same number that end in zeros would do no better than fewer words: NumPy fills seeds up with zeros.)
_ORDER, _DRAW = 2, 3
# Images whose neighbours are looked at together
_BLOCK = 1 << 16
# Numbers of positives that a message lists
_LISTED = 6


class Triplets:
    """Anchors, and for each a positive and a negative drawn at random.

    Args:
        labels: (N,) int, the class of each image.
        neighbours: (N,k) int, the nearest images of each; -1 is none, and the image itself counts as
            none. It may be memory-mapped: no copy is made.
        usable: (N,) bool; other images are neither anchor nor positive nor negative.
        min_positives: how many images an anchor's positive must be drawn from, at least.
        from_class: whether these are all other images of its class, or those among its neighbours.

    An anchor's negative is a neighbour of another class; images without any are no anchors (Tan et
    al., ICCV 2021, in their code, have 100 neighbours; 5 positives among them for landmarks, and the
    class's other images for products).

    Attributes:
        anchors: (A,) int64, ascending.

    Raises UserError where tables do not fit together, or nothing can be an anchor.
    """

    def __init__(self, labels: np.ndarray, neighbours: np.ndarray, usable: np.ndarray,
                 min_positives: int, from_class: bool):
        if not len(labels) == len(neighbours) == len(usable):
            raise UserError(f"there are labels of {len(labels)} images, and neighbours of "
                            f"{len(neighbours)}: TRAIN.PAIRS.NEIGHBOURS must be of the training images")
        self.neighbours = neighbours
        # Classes counted from 0; -1 for images that are not usable
        classes = np.unique(labels, return_inverse=True)[1].astype(np.int32)
        self._classes = np.where(usable, classes, np.int32(-1))
        self._mates = _ClassMates(self._classes) if from_class else None
        positives, negatives = self._count()
        enough = (self._classes >= 0) & (positives >= min_positives)
        self.anchors = np.flatnonzero(enough & (negatives > 0))
        if not len(self.anchors):
            raise UserError(self._complaint(positives, int(enough.sum()), min_positives))

    def draw(self, anchors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n,3) int64: these anchors (n,), each with its positive and its negative."""
        near, positive, negative = self._look(anchors)
        negatives = _pick(near, negative, rng)
        positives = _pick(near, positive, rng) if self._mates is None else self._mates.draw(anchors, rng)
        return np.stack([anchors, positives, negatives], axis=1)

    def _look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The neighbours (n,k) of images (n,), which of them are of their class, which of others."""
        near = np.asarray(self.neighbours[images])
        classes = self._classes[near]       # of -1 it is the last one's, and counts for nothing
        there = (near >= 0) & (near != images[:, None]) & (classes >= 0)
        same = classes == self._classes[images, None]
        return near, there & same, there & ~same

    def _count(self) -> tuple[np.ndarray, np.ndarray]:
        """How many positives and how many negatives (N,) each image has."""
        positives, negatives = np.zeros((2, len(self._classes)), np.int32)
        for start in range(0, len(self._classes), _BLOCK):
            images = np.arange(start, min(start + _BLOCK, len(self._classes)))
            _, positive, negative = self._look(images)
            positives[images], negatives[images] = positive.sum(axis=1), negative.sum(axis=1)
        return (positives if self._mates is None else self._mates.count()), negatives

    def _complaint(self, positives: np.ndarray, enough: int, min_positives: int) -> str:
        where = "in its class" if self._mates else f"among its {self.neighbours.shape[1]} neighbours"
        if enough:
            return (f"{enough} images have {min_positives} or more others of their class {where}, but none "
                    "of them has a neighbour of another class: give TRAIN.PAIRS.DEPTH more neighbours")
        numbers, counts = np.unique(positives[self._classes >= 0], return_counts=True)
        listed = [f"{count} have {number}" for number, count in zip(numbers, counts)][-_LISTED:]
        return (f"no image has {min_positives} others of its class {where}, as TRAIN.PAIRS.MIN_POSITIVES "
                f"asks: {', '.join(listed) or 'none is usable'}")


class _ClassMates:
    """The other images of an image's class; classes (N,) from 0, -1 for images that are not usable."""

    def __init__(self, classes: np.ndarray):
        self.classes = classes
        order = np.argsort(classes, kind="stable")
        self.order = order[(classes < 0).sum():]        # the usable images, class by class
        self.sizes = np.bincount(classes[self.order])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.places = np.zeros(len(classes), np.int64)  # of each image within its class
        self.places[self.order] = np.arange(len(self.order)) - np.repeat(self.starts, self.sizes)

    def count(self) -> np.ndarray:
        """How many (N,) each image has."""
        return np.where(self.classes >= 0, self.sizes[self.classes] - 1, 0) if len(self.sizes) else (
            np.zeros(len(self.classes), np.int64))

    def draw(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One of each image's (n,), which has some."""
        kinds = self.classes[images]
        number = rng.integers(self.sizes[kinds] - 1)
        number += number >= self.places[images]         # which leaves the image itself out
        return self.order[self.starts[kinds] + number]


def _pick(table: np.ndarray, allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One entry of each row of a table (n,k), at random among the allowed ones."""
    number = rng.integers(allowed.sum(axis=1))
    column = (np.cumsum(allowed, axis=1) > number[:, None]).argmax(axis=1)
    return table[np.arange(len(table)), column].astype(np.int64)


class TripletSampler(Sampler):
    """This process's share of each step: lists of (view, index) pairs, triplet after triplet.

    Every epoch takes each anchor once, in a random order, and draws its positive and its negative anew;
    an incomplete last step is left out. Triplets are dealt to the `world_size` processes in turn. Views
    are numbers that never come twice, so that an image that comes twice looks different each time.

    Args:
        triplets: what to draw from.
        batch_size: images per step, all processes together: three a triplet, as many triplets each.
        rank, world_size: this process among all.
        seed: with the epoch, it determines all steps.

    Attributes:
        epoch: which one the next iteration goes through.
        start: the step that it begins with; those before are left out.

    Raises UserError where the anchors do not fill a step.
    """

    def __init__(self, triplets: Triplets, batch_size: int, rank: int, world_size: int, seed: int):
        self.triplets, self.batch_size, self.seed = triplets, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0
        assert batch_size % (3 * world_size) == 0, (batch_size, world_size)
        if not len(self):
            raise UserError(f"{len(triplets.anchors)} images can be anchors, fewer than the "
                            f"{batch_size // 3} of a step: lower TRAIN.BATCH_SIZE, or "
                            "TRAIN.PAIRS.MIN_POSITIVES")

    def __len__(self) -> int:
        return len(self.triplets.anchors) // (self.batch_size // 3)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([_ORDER, self.seed, self.epoch]).permutation(self.triplets.anchors)
        for step in range(self.start, len(self)):
            rng = np.random.default_rng([_DRAW, self.seed, self.epoch, step])
            anchors = order[step * self.batch_size // 3:(step + 1) * self.batch_size // 3]
            images = self.triplets.draw(anchors, rng)
            first = (self.epoch * len(self) + step) * self.batch_size
            views = first + np.arange(self.batch_size).reshape(-1, 3)
            mine = slice(self.rank, None, self.world_size)
            yield list(zip(views[mine].ravel().tolist(), images[mine].ravel().tolist()))


def pair_rows(images: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of a batch's images, triplet after triplet, are the queries and the candidates of its pairs:
    (P,) int64 each, of each anchor with its positive and then with its negative."""
    anchors = torch.arange(0, images, 3, device=device).repeat_interleave(2)
    return anchors, anchors + 1 + torch.arange(len(anchors), device=device) % 2
