"""Diffusion on the graph of mutual neighbours, which ranks by the paths between images.

Iscen et al., "Efficient Diffusion on Region Manifolds" (CVPR 2017): with S the graph's affinities,
similarity^gamma, symmetrically normalised, and y those of the query to its nearest images, the scores
f solve (I - alpha S) f = y. Yang et al., "Efficient Image Retrieval via Decoupling Diffusion into
Online and Offline Processing" (AAAI 2019): solved for each image alone, among its n nearest, once and
for all; a query's scores are then a linear combination of the solutions of its nearest images.
"""
from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from tqdm import tqdm

from dolg.errors import UserError
from dolg.search.collection import as_chunks, gather
from dolg.search.neighbours import Neighbours, mutual_graph, nearest
from dolg.search.rankings import best_of

# Unknowns that are solved for at a time
_BLOCK_UNKNOWNS = 1 << 16
# Residuals below this are 0: their squares would be no numbers, and neither what they divide
_LEAST_TOLERANCE = 1e-100


def diffusion(
    queries: np.ndarray, database: np.ndarray | Iterable[np.ndarray], affinity: sparse.csr_matrix,
    k: int, gamma: float = 3.0, k_query: int = 10, truncate: int = 1000, alpha: float = 0.99,
    iterations: int = 20, tolerance: float = 1e-6, device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k best database images of each query by diffusion.

    Args:
        queries: (Q,D) float; rows with NaN, queries that failed, find nothing.
        database: (N,D), or what gives it in chunks each time it is iterated over.
        affinity: `normalised_affinity` of the database, made with the same gamma.
        k_query: nearest images of a query that diffusion starts from.
        truncate: images among which each of these is diffused (Yang et al.); 0: among all, by one
            solution per query (Iscen et al.).
        alpha: share that goes on at each step, below 1.
        iterations, tolerance: conjugate gradients end after so many, at least 1, or where the residual
            is so small, relative to the right-hand side; below 1, of which nothing would be solved.

    Returns indexes (Q,k) int64, best first, equal ones by index, and scores (Q,k) float64; -1 and -inf
    where fewer than k images are reached. Raises UserError for numbers out of range and an affinity
    of another database.
    """
    chunks = as_chunks(database)
    check_settings(k, gamma, k_query, truncate, alpha, iterations, tolerance)
    count = sum(len(chunk) for chunk in chunks)
    if affinity.shape[0] != count:
        raise UserError(f"the affinity is of {affinity.shape[0]} images, but the database has {count}")
    start = query_affinity(nearest(queries, chunks, k_query, device=device), affinity.shape[0], gamma)
    if not truncate:
        return _each_by_itself(affinity, start, k, alpha, iterations, tolerance)
    images = np.unique(start.indices)
    descriptors = gather(chunks, images, queries.shape[1])
    others = nearest(descriptors, chunks, max(1, truncate - 1), images, device).indexes
    lists = np.column_stack([images, others])[:, :truncate]
    diffused = diffused_vectors(affinity, lists, alpha, iterations, tolerance)
    return best_of(start[:, images] @ diffused, k)


def check_settings(k: int, gamma: float, k_query: int, truncate: int, alpha: float, iterations: int,
                   tolerance: float) -> None:
    """Raise UserError for settings of `diffusion` that are out of range."""
    if min(k, k_query) < 1 or truncate < 0:
        raise UserError(f"k, k_query and truncate are {k}, {k_query} and {truncate}; they must be at "
                        "least 1, 1 and 0")
    _check_gamma(gamma)
    if not 0 <= alpha < 1:
        raise UserError(f"alpha is {alpha}: give 0 or more, and less than 1")
    if iterations < 1:
        raise UserError(f"iterations is {iterations}: give at least 1, or nothing is found")
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance is {tolerance}: give 0 or more, and less than 1")


def normalised_affinity(neighbours: Neighbours, k: int = 0, gamma: float = 3.0) -> sparse.csr_matrix:
    """S = D^-1/2 A D^-1/2 (N,N), float64, of A: similarity^gamma of images that are each among the
    other's first k (0: all) neighbours; D are its row sums."""
    _check_gamma(gamma)
    graph = mutual_graph(neighbours, k).astype(np.float64)
    graph.data **= gamma
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    # An image without any edge has a row of zeros, whatever it is divided by
    scale = sparse.diags_array(np.where(degrees > 0, degrees, 1) ** -0.5)
    return (scale @ graph @ scale).tocsr()


def query_affinity(found: Neighbours, count: int, gamma: float) -> sparse.csr_matrix:
    """y (Q,N), float64: similarity^gamma of each query and its nearest images; 0 or less is none."""
    indexes, similarities = found
    row, column = np.nonzero((indexes >= 0) & (similarities > 0))
    values = similarities[row, column].astype(np.float64) ** gamma
    return sparse.csr_matrix((values, (row, indexes[row, column])), (len(indexes), count))


def diffused_vectors(
    affinity: sparse.csr_matrix, lists: np.ndarray, alpha: float = 0.99, iterations: int = 20,
    tolerance: float = 1e-6,
) -> sparse.csr_matrix:
    """(R,N) float32, 12 bytes per entry at most: what each image, lists[i, 0], gives to all others.

    Row i solves (I - alpha S) f = e in the rows and columns lists[i] (R,n) of S; e is 1 at the image.
    -1 in a list is none. This is the offline part, of which a part of the images can be done as well.
    """
    count, parts = affinity.shape[0], []
    size = max(1, _BLOCK_UNKNOWNS // lists.shape[1])
    for start in tqdm(range(0, len(lists), size), desc="diffusing", unit="block", delay=1, disable=None):
        part = lists[start:start + size]
        solved = _solved(_submatrices(affinity, part), part.shape, alpha, iterations, tolerance)
        row, column = np.nonzero((part >= 0) & (solved != 0))
        parts.append(sparse.csr_matrix((solved[row, column].astype(np.float32),
                                        (row, part[row, column])), (len(part), count)))
    return sparse.vstack([sparse.csr_matrix((0, count), dtype=np.float32), *parts], format="csr")


def _submatrices(matrix: sparse.csr_matrix, lists: np.ndarray) -> sparse.csr_matrix:
    """(R n,R n), block-diagonal: block i holds the rows and columns lists[i] (R,n) of a matrix (N,N),
    zeros at -1."""
    count, (images, width) = matrix.shape[0], lists.shape
    flat = lists.ravel().astype(np.int64)
    there = np.flatnonzero(flat >= 0)
    rows = matrix[flat[there]].tocoo()
    # An entry stays if its column is in the list of its row's block: keys are (block, image)
    keys = there // width * count + flat[there]
    order = np.argsort(keys)
    wanted = there[rows.row] // width * count + rows.col
    found = np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)
    inside = keys[order[found]] == wanted
    columns = there[order[found[inside]]]
    return sparse.csr_matrix((rows.data[inside], (there[rows.row[inside]], columns)),
                             (images * width, images * width))


def _solved(matrix: sparse.csr_matrix, shape: tuple[int, int], alpha: float, iterations: int,
            tolerance: float) -> np.ndarray:
    """x (R,n) of (I - alpha M) x = e for each block of a block-diagonal M, e being 1 at its first.

    Conjugate gradients, each block with its own steps, so that its result is that of the block alone.
    """
    x, residual = np.zeros(shape), np.zeros(shape)
    residual[:, 0] = 1
    direction, squares = residual.copy(), np.ones(len(x))
    enough = max(tolerance, _LEAST_TOLERANCE) ** 2
    for _ in range(iterations):
        going = squares > enough
        if not going.any():
            break
        image = direction - alpha * (matrix @ direction.ravel()).reshape(shape)
        step = _ratio(squares, np.einsum("rn,rn->r", direction, image), going)
        x += step * direction
        residual -= step * image
        before, squares = squares, np.einsum("rn,rn->r", residual, residual)
        direction = residual + _ratio(squares, before, going) * direction
    return x


def _ratio(numerators: np.ndarray, denominators: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(R,1); 0 where it is not asked for, as denominators may be 0 there."""
    return np.divide(numerators, denominators, out=np.zeros(len(where)), where=where)[:, None]


def _each_by_itself(affinity: sparse.csr_matrix, start: sparse.csr_matrix, k: int, alpha: float,
                    iterations: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve for one query after another: all scores of one are in memory at a time."""
    system = sparse.identity(affinity.shape[0], format="csr") - alpha * affinity
    results = [(np.empty((0, k), np.int64), np.empty((0, k)))]
    for row in tqdm(range(start.shape[0]), desc="diffusing", unit="query", delay=1, disable=None):
        scores, _ = cg(system, start[[row]].toarray()[0], rtol=max(tolerance, _LEAST_TOLERANCE),
                       maxiter=iterations)
        results.append(best_of(sparse.csr_matrix(scores), k))
    return tuple(np.concatenate(tables) for tables in zip(*results))


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma < np.inf:
        raise UserError(f"gamma is {gamma}; it must be above 0")
