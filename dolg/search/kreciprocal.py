"""k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017), sparse: its cost grows with the neighbours, not with the square of the images.

An image's k-reciprocal set holds itself and those of its k nearest others that have it among theirs.
Sets of k1 are expanded by the sets of k1 / 2 of their members where those overlap by more than two
thirds; the members of an image's expanded set, weighted by exp(-distance) to a sum of 1, are its
encoding; encodings are averaged over an image and its first k2 - 1 neighbours; and images are compared
by the Jaccard distance of their encodings.

It differs from the original in two points, so that a query's result does not depend on other queries
and that no row of all distances is needed. Neighbours are database images alone: a query has such an
image in its set if it would be among that image's k1 nearest, were it in the database. And distances
are 1 - similarity, where the original divides each row of squared distances by its largest.
"""
from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse

from dolg.errors import UserError
from dolg.search.collection import as_chunks, gather
from dolg.search.neighbours import Neighbours, knn_matrix, nearest

# What is in memory at once: values of descriptors that are compared, entries of sparse products
_BLOCK_VALUES, _BLOCK_ENTRIES = 1 << 25, 1 << 23


def k_reciprocal(
    queries: np.ndarray, database: np.ndarray | Iterable[np.ndarray], neighbours: Neighbours, k: int,
    k1: int = 20, k2: int = 6, lambda_value: float = 0.3, device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest database images of each query, in a new order.

    Args:
        queries: (Q,D) float; rows with NaN, queries that failed, find nothing.
        database: (N,D), or what gives it in chunks each time it is iterated over.
        neighbours: of all database images, themselves left out, k1 or more (see `neighbours`).
        k: images of each query that are reranked and returned.
        k1, k2: sizes of the reciprocal sets and of the averaging (1: none).
        lambda_value: share of the original distance in the final one, 0..1.

    Returns indexes (Q,k) int64, best first, equal ones by index, and scores (Q,k) float64: 1 - the
    final distance. Where there are fewer than k images, -1 and -inf. Raises UserError for numbers out
    of range and lists that do not fit.
    """
    chunks = as_chunks(database)
    count = sum(len(chunk) for chunk in chunks)
    check_settings(k, k1, k2, lambda_value)
    _check_lists(neighbours, count, k1, k2)
    found = nearest(queries, chunks, max(k, k1, k2 - 1), device=device)
    half = reciprocal_sets(neighbours.indexes, round(k1 / 2))       # to even, as the original
    wanted = _distinct(found.indexes[:, :max(k, k2 - 1)])
    around = _distinct(np.append(wanted, neighbours.indexes[wanted, :k2 - 1]))
    sets = _expanded(reciprocal_sets(neighbours.indexes, k1)[around], half)
    own = _expanded(_query_sets(found, neighbours.similarities[:, k1 - 1], k1), half)
    encodings = sparse.vstack([_encoded(sets, around, chunks, chunks, queries.shape[1]),
                               _encoded(own, None, queries, chunks, queries.shape[1])], format="csr")
    place = np.full(count + 1, -1)          # of an image's encoding; the last is of index -1
    place[around] = np.arange(len(around))
    of_images = _averaged(encodings, np.column_stack(
        [place[wanted], place[neighbours.indexes[wanted, :k2 - 1]]]))
    of_queries = _averaged(encodings, np.column_stack(
        [len(around) + np.arange(len(queries)), place[found.indexes[:, :k2 - 1]]]))
    indexes, similarities = (table[:, :k] for table in found)
    return _reranked(indexes, similarities, _overlaps(indexes, wanted, of_images, of_queries),
                     lambda_value)


def check_settings(k: int, k1: int, k2: int, lambda_value: float) -> None:
    """Raise UserError for settings of `k_reciprocal` that are out of range."""
    if min(k, k1, k2) < 1:
        raise UserError(f"k, k1 and k2 are {k}, {k1} and {k2}; they must be at least 1")
    if not 0 <= lambda_value <= 1:
        raise UserError(f"lambda is {lambda_value}: give 0 (the new distance alone) to 1")


def reciprocal_sets(indexes: np.ndarray, k: int) -> sparse.csr_matrix:
    """(N,N) bool: row i has image i and those of its first k neighbours that have it among theirs.

    indexes: (N,m) int32 of neighbours, without the image itself; -1 for none.
    """
    itself = sparse.identity(len(indexes), dtype=bool, format="csr")
    if not k:
        return itself
    forward = knn_matrix(indexes, k=k)
    return (forward.multiply(forward.T.tocsr()) + itself).tocsr()


def _query_sets(found: Neighbours, weakest: np.ndarray, k1: int) -> sparse.csr_matrix:
    """(Q,N) bool: those of each query's k1 nearest that are less like their k1-th neighbour, whose
    similarity is `weakest` (N,), than like the query."""
    indexes, similarities = (table[:, :k1] for table in found)
    mutual = (indexes >= 0) & (similarities > weakest[indexes])
    return _matrix(np.where(mutual, indexes, -1), np.ones(indexes.shape, bool), len(weakest))


def _expanded(sets: sparse.csr_matrix, half: sparse.csr_matrix) -> sparse.csr_matrix:
    """Sets (R,N) bool, each with the `half` (N,N) sets of its members that lie in it by more than two
    thirds."""
    sizes = np.diff(half.indptr)
    columns, parts = half.T.tocsr(), []
    for start, stop in _blocks(sets @ sizes, _BLOCK_ENTRIES):
        part = sets[start:stop].astype(np.int32)
        overlap = (part @ columns.astype(np.int32)).multiply(part).tocoo()
        fitting = 3 * overlap.data > 2 * sizes[overlap.col]
        chosen = sparse.csr_matrix((np.ones(fitting.sum(), bool), (
            overlap.row[fitting], overlap.col[fitting])), overlap.shape)
        parts.append((chosen @ half + sets[start:stop]).tocsr())
    return sparse.vstack(parts, format="csr") if parts else sets


def _encoded(sets: sparse.csr_matrix, rows: np.ndarray | None, left: Iterable[np.ndarray],
             chunks: Iterable[np.ndarray], dim: int) -> sparse.csr_matrix:
    """Sets (R,N) with the weights exp(-distance) of their members, of sum 1 in a row, float64.

    Row i is of image rows[i] of the chunks `left`, or of row i of the table `left` if `rows` is None.
    """
    weights = np.empty(sets.nnz)
    for start, stop in _blocks(np.diff(sets.indptr), max(1, _BLOCK_VALUES // max(1, dim))):
        entries = slice(sets.indptr[start], sets.indptr[stop])
        own = left[start:stop] if rows is None else gather(left, rows[start:stop], dim)
        members, places = np.unique(sets.indices[entries], return_inverse=True)
        others = gather(chunks, members, dim)[places]
        lengths = np.diff(sets.indptr[start:stop + 1])
        similarities = np.einsum("nd,nd->n", np.repeat(own, lengths, axis=0), others, dtype=np.float64)
        weights[entries] = np.exp(similarities - 1)
    encoded = sparse.csr_matrix((weights, sets.indices, sets.indptr), sets.shape)
    return sparse.diags_array(1 / np.maximum(encoded.sum(axis=1).A1, 1e-300)) @ encoded


def _averaged(encodings: sparse.csr_matrix, members: np.ndarray) -> sparse.csr_matrix:
    """(R,N): means of the rows members[i] (R,m) of `encodings`; -1 is no row."""
    counts = np.maximum((members >= 0).sum(axis=1, keepdims=True), 1)
    shares = np.broadcast_to(1 / counts, members.shape)
    return (_matrix(members, shares, encodings.shape[0]) @ encodings).tocsr()


def _overlaps(indexes: np.ndarray, wanted: np.ndarray, of_images: sparse.csr_matrix,
              of_queries: sparse.csr_matrix) -> np.ndarray:
    """(Q,k): the sum of the lesser weights in the encodings of a query and of image indexes[q, j],
    which has row searchsorted(wanted, image) of `of_images`."""
    overlaps = np.zeros(indexes.shape)
    query, column = np.nonzero(indexes >= 0)
    image = np.searchsorted(wanted, indexes[query, column])
    sizes = np.diff(of_images.indptr)[image] + np.diff(of_queries.indptr)[query]
    for start, stop in _blocks(sizes, _BLOCK_ENTRIES):
        part = slice(start, stop)
        lesser = of_images[image[part]].minimum(of_queries[query[part]])
        overlaps[query[part], column[part]] = lesser.sum(axis=1).A1
    return overlaps


def _reranked(indexes: np.ndarray, similarities: np.ndarray, overlaps: np.ndarray,
              lambda_value: float) -> tuple[np.ndarray, np.ndarray]:
    """By the mean of the Jaccard and the original distance; all tables are (Q,k)."""
    jaccard = 1 - overlaps / (2 - overlaps)         # both encodings have a sum of 1
    distance = 1 - np.where(indexes >= 0, similarities, 0).astype(np.float64)
    scores = 1 - (1 - lambda_value) * jaccard - lambda_value * distance
    scores[indexes < 0] = -np.inf
    order = np.lexsort((indexes, -scores), axis=1)
    return (np.take_along_axis(indexes, order, 1).astype(np.int64),
            np.take_along_axis(scores, order, 1))


def _matrix(columns: np.ndarray, values: np.ndarray, width: int) -> sparse.csr_matrix:
    """(R,width) with values[i, j] at columns[i, j], both (R,m); -1 is no column."""
    there = columns >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    matrix = sparse.csr_matrix((values[there], columns[there], ends), (len(columns), width))
    matrix.sort_indices()
    return matrix


def _blocks(sizes: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Runs (start, stop) of rows whose sizes add up to `most` or little more."""
    number = np.cumsum(sizes) // most
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(sizes)]))


def _distinct(indexes: np.ndarray) -> np.ndarray:
    return np.unique(indexes[indexes >= 0])


def _check_lists(neighbours: Neighbours, count: int, k1: int, k2: int) -> None:
    if len(neighbours.indexes) != count:
        raise UserError(f"there are neighbours of {len(neighbours.indexes)} images, but the database "
                        f"has {count}")
    if neighbours.indexes.shape[1] < max(k1, k2 - 1):
        raise UserError(f"the lists have {neighbours.indexes.shape[1]} neighbours; k1 {k1} and k2 {k2} "
                        f"need {max(k1, k2 - 1)}")
