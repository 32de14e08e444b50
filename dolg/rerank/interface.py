"""What all rerankers share: they score the first images that a search found for a query anew.

A reranker is made for some queries and a database (`images.Images`); it never sees a ground truth.
`rerank_list` orders the first k of a list by what it says, and leaves the others where they are.
"""
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dolg.rerank.pairs import PairScores


class Reranker(ABC):
    """Scores the images found for a query.

    Attributes:
        name: that of RERANK.METHOD.
        settings: what it was told, as JSON has it; with `name`, all that its scores depend on beside
            the features.
        bytes_per_image: what a database keeps of an image for it, on average of those that it read;
            0 before it has read any.
    """

    name: str
    settings: dict
    bytes_per_image: float = 0.0

    @abstractmethod
    def rerank(self, query: int, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """New scores (k,) float64, the higher the better.

        query: row of a query. candidates: (k,) int64 rows of the database, distinct, best first;
        perhaps none. scores: (k,) float64, those they were found with. NaN says that the reranker
        cannot tell: such images go behind the others.
        """

    def unit(self, scores: np.ndarray, temperature: float) -> np.ndarray:
        """The scores on the scale of a similarity, for a weighted sum with one; it rises with them."""
        return scores / temperature


class PairReranker(Reranker):
    """A reranker whose score of an image depends on the query and that image alone: each pair is
    scored once, whatever lists it is in.

    Attributes:
        known: the pairs scored so far; another may be put in its place.
        pairs_scored: those that were not known.
    """

    def __init__(self):
        self.known, self.pairs_scored = PairScores(), 0

    @abstractmethod
    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        """Scores (k,) of database rows (k,) int64, distinct; see `rerank`."""

    def rerank(self, query: int, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
        known = self.known.of(query)
        new = np.array([row for row in candidates.tolist() if row not in known], np.int64)
        if len(new):
            found = np.asarray(self.score_pairs(query, new), np.float64)
            assert found.shape == new.shape, (found.shape, new.shape)
            self.known.add(query, new, found)
            self.pairs_scored += len(new)
        return np.array([known[row] for row in candidates.tolist()], np.float64)


@dataclass(frozen=True)
class Stage:
    """A reranker in a chain.

    k: images of each list that it sees. weight: share of its score in the new one, 0..1, the rest being
    the score that the images came with; 1: its own alone. temperature: what its scores are divided by
    before they are mixed (see `Reranker.unit`).
    """

    reranker: Reranker
    k: int
    weight: float = 1.0
    temperature: float = 1.0


def rerank_list(stages: Sequence[Stage], query: int, candidates: np.ndarray,
                scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A query's list, best first, as a chain of rerankers leaves it, one after another.

    candidates: (n,) int64 database rows; -1, which a list may end with, is no image. scores: (n,)
    float. Returns both in the new order: the same images, those of the first k permuted by each stage.
    Equal scores keep their order, NaN goes to the end of the first k. An image that a list names
    twice is scored once; its copies stay together.
    """
    candidates, scores = np.array(candidates, np.int64), np.array(scores, np.float64)
    for stage in stages:
        k = min(stage.k, int((candidates >= 0).argmin()) if (candidates < 0).any() else len(candidates))
        head = candidates[:k]
        distinct, first, copies = np.unique(head, return_index=True, return_inverse=True)
        order = np.argsort(first)       # as the list has them, best first
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        new, ties = (found[rank][copies] for found in
                     _staged(stage, query, distinct[order], scores[first[order]]))
        # NaN sorts last; copies of an image, and images of equal scores, keep their order
        moved = np.lexsort((np.arange(k), first[copies], -ties, -new))
        candidates[:k], scores[:k] = head[moved], new[moved]
    return candidates, scores


def _staged(stage: Stage, query: int, candidates: np.ndarray,
            scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The new scores, and what tells equal ones apart: the reranker's own, where they stand alone, as
    `unit` may have made different ones equal."""
    own = np.asarray(stage.reranker.rerank(query, candidates, scores), np.float64)
    assert own.shape == candidates.shape, (own.shape, candidates.shape)
    unit = stage.reranker.unit(own, stage.temperature)
    if stage.weight == 1:
        return unit, own
    return (1 - stage.weight) * scores + stage.weight * unit, np.zeros_like(own)
