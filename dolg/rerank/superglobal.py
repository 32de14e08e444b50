"""SuperGlobal's reranking (Shao et al., "Global Features are All You Need for Image Retrieval and
Reranking", ICCV 2023, section 4): descriptors refined by their neighbours among the candidates."""
import numpy as np

from dolg.errors import UserError
from dolg.rerank.descriptors import DescriptorReranker
from dolg.rerank.images import Images


class SuperGlobalReranker(DescriptorReranker):
    """Each candidate is refined, then the query is; a score is the mean of two inner products.

    A candidate's refined descriptor is the weighted mean of the K + 1 candidates most like it. The first
    of them, for descriptors of unit length the candidate itself, weighs 1, the others beta times their
    similarity; the mean is not scaled to unit length. s1 is the inner product of query and refined
    descriptor. The expanded query is the elementwise maximum of the refined descriptors of the K + 1
    candidates of the largest s1, and s2 its inner product with each. The score is (s1 + s2) / 2.

    So does the published code (github.com/ShihaoShao-GH/SuperGlobal, modules/reranking). In its second
    half, `ranks_value_trans_1000` are the s1 in falling order and X2 the refined descriptors in that same
    order, so that each s2 meets its own s1; the query has no part in the maximum; and beta weighs a copy
    of the s1 that nothing reads. Where similarities are equal it takes any first; here the lower database
    row goes first.

    Args:
        query, database: the images.
        k: neighbours of each candidate beside itself, and K + 1 candidates expand the query; published: 9.
        beta: their weight; published: 0.15.

    Raises UserError for numbers out of range.
    """

    name = "superglobal"

    def __init__(self, query: Images, database: Images, k: int = 9, beta: float = 0.15):
        super().__init__(query, database)
        if k < 1:
            raise UserError(f"RERANK.SUPERGLOBAL.K is {k}: give the number of neighbours, 1 or more")
        if not 0 <= beta < np.inf:
            raise UserError(f"RERANK.SUPERGLOBAL.BETA is {beta}: give 0 (no neighbours) or more")
        self.k, self.beta = k, beta
        self.settings = {"k": k, "beta": beta}

    def score(self, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        refined = self._refined(candidates)
        first = refined @ query
        best = np.argsort(-first, kind="stable")[:self.k + 1]
        return (first + refined @ refined[best].max(axis=0)).astype(np.float64) / 2

    def _refined(self, candidates: np.ndarray) -> np.ndarray:
        """Weighted means (m,D) of each of the candidates (m,D) and its neighbours."""
        similarities = candidates @ candidates.T
        near = np.argsort(-similarities, axis=1, kind="stable")[:, :self.k + 1]
        weights = self.beta * np.take_along_axis(similarities, near, axis=1)
        weights[:, 0] = 1
        weights /= weights.sum(axis=1, keepdims=True)
        total = np.zeros_like(candidates)
        for neighbour, weight in zip(near.T, weights.T):
            total += weight[:, None] * candidates[neighbour]
        return total
