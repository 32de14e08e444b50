"""What rerankers share that look at nothing but descriptors: the query's and the candidates'."""
from abc import abstractmethod

import numpy as np

from dolg.rerank.images import Images
from dolg.rerank.interface import Reranker


class DescriptorReranker(Reranker):
    """Scores candidates by their descriptors and the query's.

    Images that failed get NaN and have no part in the scores of others; where the query failed, all do.

    Attributes:
        in_order: whether scores depend on the order that candidates came in; where they do not, equal
            images and equal similarities go by database row.
    """

    in_order = False

    def __init__(self, query: Images, database: Images):
        assert query.dim == database.dim, (query.dim, database.dim)
        self.query, self.database = query, database

    @abstractmethod
    def score(self, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Scores (m,) of candidates (m,D) float32 for a query (D,) float32; m is at least 1, and none
        has failed."""

    def rerank(self, query: int, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
        new = np.full(len(candidates), np.nan)
        own = self.query.descriptors(np.array([query]))[0]
        if not len(candidates) or np.isnan(own).any():
            return new
        self.bytes_per_image = own.itemsize * self.database.dim
        order = np.arange(len(candidates)) if self.in_order else np.argsort(candidates)
        table = self.database.descriptors(candidates[order])
        fine = ~np.isnan(table).any(axis=1)
        if fine.any():
            new[order[fine]] = self.score(own, table[fine])
        return new
