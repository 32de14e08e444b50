"""Rerankers by the neighbours of query and candidates: what `dolg.search` does with a whole database,
among the candidates alone."""
import numpy as np

from dolg.errors import UserError
from dolg.rerank.descriptors import DescriptorReranker
from dolg.rerank.images import Images
from dolg.search.diffusion import check_settings as check_diffusion
from dolg.search.diffusion import diffusion, normalised_affinity
from dolg.search.expansion import expand_queries
from dolg.search.kreciprocal import check_settings as check_k_reciprocal
from dolg.search.kreciprocal import k_reciprocal
from dolg.search.neighbours import Neighbours, nearest

# By how much candidates that diffusion does not reach are below those that it reaches
_UNREACHED = 1e-6


class ExpansionReranker(DescriptorReranker):
    """The inner product with the query after query expansion by its first candidates (see
    `dolg.search.expansion.expand_queries`). Which these are depends on the list's order.

    Args:
        query, database: the images.
        n: candidates that the query is averaged with, of those that did not fail.
        alpha: power of the similarity that weighs them; 0, all alike, is the method aqe.

    Raises UserError for numbers out of range.
    """

    in_order = True

    def __init__(self, query: Images, database: Images, n: int = 10, alpha: float = 3.0):
        super().__init__(query, database)
        none = np.empty((0, database.dim), np.float32)
        expand_queries(none, none, n, alpha)        # refuses numbers out of range
        self.name = "alpha" if alpha else "aqe"
        self.n, self.alpha = n, alpha
        self.settings = {"n": n, "alpha": alpha}

    def score(self, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        expanded = expand_queries(query[None], candidates[:self.n], self.n, self.alpha)[0]
        return candidates.astype(np.float64) @ expanded


class KReciprocalReranker(DescriptorReranker):
    """k-reciprocal re-ranking, the candidates being the database of `dolg.search.kreciprocal`.

    Where there are no more candidates than k1, all are in each other's sets, and the original distance
    decides. Args k1, k2 and lambda_value are those of `k_reciprocal`. Raises UserError for numbers out of
    range.
    """

    name = "kreciprocal"

    def __init__(self, query: Images, database: Images, k1: int = 20, k2: int = 6,
                 lambda_value: float = 0.3):
        super().__init__(query, database)
        check_k_reciprocal(1, k1, k2, lambda_value)
        self.settings = {"k1": k1, "k2": k2, "lambda_value": lambda_value}

    def score(self, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        lists = _neighbours(candidates, max(self.settings["k1"], self.settings["k2"] - 1))
        indexes, scores = k_reciprocal(query[None], candidates, lists, len(candidates), **self.settings)
        new = np.empty(len(candidates))
        new[indexes[0]] = scores[0]
        return new


class DiffusionReranker(DescriptorReranker):
    """Diffusion on the graph of the candidates, the database of `dolg.search.diffusion`, by one solution
    per query (Iscen et al., CVPR 2017).

    Candidates that it does not reach have a score of 0 there; here they are below all others by some
    millionths, in the order of their similarity to the query.

    Args:
        query, database: the images.
        k_graph: first neighbours among which two candidates must have each other to have an edge.
        k_query, gamma, alpha, iterations, tolerance: of `diffusion`.

    Raises UserError for numbers out of range.
    """

    name = "diffusion"

    def __init__(self, query: Images, database: Images, k_graph: int = 50, k_query: int = 10,
                 gamma: float = 3.0, alpha: float = 0.99, iterations: int = 20, tolerance: float = 1e-6):
        super().__init__(query, database)
        if k_graph < 1:
            raise UserError(f"RERANK.DIFFUSION.K_GRAPH is {k_graph}: give the number of neighbours, "
                            "1 or more")
        check_diffusion(1, gamma, k_query, 0, alpha, iterations, tolerance)
        self.k_graph = k_graph
        self._told = {"k_query": k_query, "gamma": gamma, "alpha": alpha, "iterations": iterations,
                      "tolerance": tolerance}
        self.settings = {"k_graph": k_graph, **self._told}

    def score(self, query: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        graph = normalised_affinity(_neighbours(candidates, self.k_graph), gamma=self._told["gamma"])
        indexes, scores = diffusion(query[None], candidates, graph, len(candidates), truncate=0,
                                    **self._told)
        reached = indexes[0] >= 0
        lowest = min(0.0, scores[0, reached].min(initial=0.0))
        similarities = candidates.astype(np.float64) @ query
        new = lowest - _UNREACHED * (1 + similarities.max() - similarities)
        new[indexes[0, reached]] = scores[0, reached]
        return new


def _neighbours(candidates: np.ndarray, k: int) -> Neighbours:
    """k neighbours of each of the candidates (m,D) among the others; -1 where there are fewer."""
    return nearest(candidates, candidates, k, np.arange(len(candidates)))
