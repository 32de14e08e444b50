"""Matching of local features: which of a query's correspond to which of a candidate's.

Descriptors are made unit vectors, times 2^24, and rounded to integers, which takes less from them than
float32 did. A product in float32 tells which pairs may be nearest; their distances are then found in
float64, which holds all these sums of squares without rounding, and NumPy's square root of one rounds
correctly. So distances, and with them ties, depend neither on what else is in a product, nor on threads, nor
on the processor or device.
"""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dolg.errors import UserError, choose

METHODS = ("distance", "ratio", "mutual")
# A unit descriptor's length; and the length of one that is too short to have a direction
_UNIT, _LEAST = 2.0 ** 24, 1e-12
# Pairs of features that are compared at a time: on a CPU few, for its caches
_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
# Pairs for each feature, of which distances are found one by one; of more, by a product
_FEW = 8


@dataclass(frozen=True)
class Matches:
    """Corresponding features of two images.

    Attributes:
        pairs: (m,2) int64, a query's feature and a candidate's each, by the query's.
        distances: (m,) float64, between their unit descriptors.
    """

    pairs: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Matcher:
    """Finds matches.

    `distance`: each query feature and its nearest, if nearer than `max_distance`; what the PyTorch code
    of DELG (Cao et al., ECCV 2020) does with a k-d tree and 0.99. `ratio`: if nearer than `ratio` times
    the second nearest (Lowe, IJCV 2004); a lone feature of a candidate has no second, which counts as
    infinitely far. `mutual`: each the other's nearest, and nearer than `max_distance`. Among equally
    near ones the first is the nearest. Features that are zero or not finite match none.

    Raises UserError for settings that cannot be.
    """

    method: str = "distance"
    max_distance: float = 0.99
    ratio: float = 0.95
    device: str | torch.device = "cpu"

    def __post_init__(self):
        choose(dict.fromkeys(METHODS), self.method, "RERANK.SPATIAL.MATCHING")
        for name in ("max_distance", "ratio"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"RERANK.SPATIAL.{name.upper()} is {value}: it must be above 0")

    def match(self, query: np.ndarray, candidates: Iterable[np.ndarray]) -> Iterator[Matches]:
        """The matches of query descriptors (m,C) with those (n,C) of each candidate, in turn; there may
        be no features of any image. Candidates are taken as they are needed, several at a time."""
        own, known = self._integers(query)
        for block in _blocks(candidates, _BLOCK[torch.device(self.device).type] // max(1, len(query))):
            images = [self._integers(candidate) for candidate in block]
            others = [table for table, _ in images if len(table)]
            if not len(own) or not others:
                yield from (Matches(np.empty((0, 2), np.int64), np.empty(0)) for _ in block)
                continue
            products = own.float() @ torch.cat(others).float().T
            parts = products.split([len(table) for table, _ in images], dim=1)
            for (table, rows), part in zip(images, parts):
                pairs, distances = self._matches(own, table, part)
                yield Matches(np.stack([known[pairs[0]], rows[pairs[1]]], axis=1), distances)

    def _integers(self, descriptors: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Descriptors (n,C), float64, of length 2^24 and integers, of those with a direction, and their
        rows."""
        table = torch.from_numpy(np.array(descriptors, np.float64, order="C")).to(self.device)
        lengths = table.norm(dim=1, keepdim=True)
        rows = (lengths.isfinite() & (lengths > _LEAST)).nonzero()[:, 0]
        if len(rows) < len(table):
            table, lengths = table[rows], lengths[rows]
        return table.mul_(_UNIT / lengths).round_(), rows.cpu().numpy()

    def _matches(self, own: torch.Tensor, table: torch.Tensor,
                 products: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Matching features (2,p) and their distances (p,), by integers (m,C), (n,C) and their rough
        products (m,n)."""
        if not len(table):
            return np.empty((2, 0), np.int64), np.empty(0)
        # What rounding can do to two products, in whatever order they are summed up, and to two lengths
        slack = 3 * (own.shape[1] + 1) * _UNIT
        close = products >= _largest(products, 1, second=self.method == "ratio") - slack
        if self.method == "mutual":
            close |= products >= _largest(products, 0) - slack
        first, second, distances = _distances(own, table, close)
        nearest, others = _nearest(first, distances)
        kept = distances[nearest] < (self.ratio * others if self.method == "ratio" else self.max_distance)
        if self.method == "mutual":
            kept &= np.isin(nearest, _nearest(second, distances)[0])
        return np.stack([first, second])[:, nearest[kept]], distances[nearest[kept]]


def _largest(products: torch.Tensor, dim: int, second: bool = False) -> torch.Tensor:
    """The largest along a dimension, or the largest of those that are less."""
    largest = products.amax(dim=dim, keepdim=True)
    if not second:
        return largest
    return products.masked_fill(products == largest, -torch.inf).amax(dim=dim, keepdim=True)


def _distances(own: torch.Tensor, table: torch.Tensor,
               close: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (p,), (p,) of the pairs that are True in `close` (m,n), row by row, and their distances."""
    # NumPy finds them ten times as fast as torch does on a CPU
    places = close.flatten().nonzero()[:, 0] if close.is_cuda else torch.from_numpy(np.flatnonzero(close))
    first, second = places // close.shape[1], places % close.shape[1]
    if len(places) > _FEW * sum(close.shape):       # images of few different features have many ties
        lengths = [torch.linalg.vecdot(side, side) for side in (own, table)]
        squares = (lengths[0][:, None] + lengths[1] - 2 * own @ table.T)[first, second]
    else:
        difference = own[first] - table[second]
        squares = torch.linalg.vecdot(difference, difference)
    # Not torch's root: MKL's, which it uses on a CPU, is off by a bit for some processors and places in a
    # table, so that equal squares have different roots
    return first.cpu().numpy(), second.cpu().numpy(), np.sqrt(squares.cpu().numpy()) / _UNIT


def _nearest(features: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of each feature's least distance, the first of equal ones, by feature; and its second least
    distance, infinite where there is none."""
    order = np.lexsort((distances, features))       # stable
    starts = np.flatnonzero(np.diff(features[order], prepend=-1))
    following = np.minimum(starts + 1, len(order) - 1)
    alone = (following == starts) | (features[order[following]] != features[order[starts]])
    return order[starts], np.where(alone, np.inf, distances[order[following]])


def _blocks(candidates: Iterable[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Candidates in runs of at most so many features, at least one each."""
    block, count = [], 0
    for candidate in candidates:
        if block and count + len(candidate) > most:
            yield block
            block, count = [], 0
        block.append(candidate)
        count += len(candidate)
    if block:
        yield block
