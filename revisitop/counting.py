"""Exact ranks of the labelled images by counting, without ever sorting the database.

The rank of an image is the number of images that score higher, so database and distractors are
streamed in blocks, and memory does not grow with them. A block's scores are one float32 matrix
product; each query's are sorted within the block, and the scores of its labelled images looked
up in them.

Ties go to the lower index: database images in the order of the ground truth, then distractors.
Matrix products round differently from one place of a matrix to another, so equal descriptors
need not get equal scores. Every row that equals a labelled image's descriptor is therefore found
by its bytes and given the very score of that image.
"""
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from revisitop.stores import Store

# Largest sizes of a block: 4 MiB of scores, 16 MiB of descriptors
_BLOCK_SCORES, _BLOCK_VALUES, _BLOCK_ROWS = 2**20, 2**22, 2**14
_BUFFERS = 2        # blocks of scores: one is filled, one counted


class _Block(NamedTuple):
    """Consecutive rows of a store: float32 (n,D), the first one's number, what failed (n,)."""

    store: Store
    start: int
    descriptors: np.ndarray
    failed: np.ndarray


def count_ranks(
    queries: np.ndarray, labelled: Sequence[np.ndarray], database: Store, images: np.ndarray,
    distractors: Sequence[Store] = (),
) -> list[np.ndarray]:
    """Rank, from 0, of every labelled image among all images of all stores.

    Args:
        queries: (Q,D) finite float32; scores are inner products.
        labelled: per query the indexes of the images to rank, each at most once.
        database: the store that holds them.
        images: (database.count,) index of the image in each row, a permutation.
        distractors: stores whose images count, but are never labelled.

    Returns, per query, float64 ranks in the order of `labelled[q]`; inf for an image that
    failed. Failed images outrank nothing. Raises StoreError for damaged stores.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    rows = np.empty(database.count, np.int64)
    rows[images] = np.arange(database.count)
    twins = _Twins(queries, database, rows[_usable(np.concatenate(labelled), rows, database)])
    counters = [_Counter(twins, q, _usable(wanted, rows, database), rows)
                for q, wanted in enumerate(labelled)]
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers + 1) as pool:
        for store in (database, *distractors):
            _stream(queries, store, twins, counters, images if store is database else None,
                    pool, workers)
    return [counter.ranks(wanted) for counter, wanted in zip(counters, labelled)]


def _usable(wanted: np.ndarray, rows: np.ndarray, database: Store) -> np.ndarray:
    """The images of `wanted` that have a descriptor."""
    wanted = np.asarray(wanted, np.int64)
    return wanted[database.status[rows[wanted]] == 0]


class _Twins:
    """The labelled images' scores, and the rows of any store that equal one of them."""

    def __init__(self, queries: np.ndarray, database: Store, rows: np.ndarray):
        self._rows = np.unique(rows)
        table = database.rows(self._rows)
        self._column: dict[bytes, int] = {}
        columns = [self._column.setdefault(row.tobytes(), len(self._column)) for row in table]
        self._columns = np.array(columns, np.int64)
        first = np.unique(self._columns, return_index=True)[1]
        self._scores = queries @ table[first].T             # (Q, different descriptors)
        # Four values of a row, mixed to 20 bits, tell nearly every other row apart
        self._sampled = np.unique(np.linspace(0, table.shape[1] - 1, 4).astype(np.int64))
        self._seen = np.zeros(2**20, bool)
        self._seen[self._mix(table)] = True

    def scores(self, q: int, rows: np.ndarray) -> np.ndarray:
        """Query q's scores of labelled rows."""
        return self._scores[q, self._columns[np.searchsorted(self._rows, rows)]]

    def unify(self, descriptors: np.ndarray, scores: np.ndarray) -> None:
        """Give the columns of `scores` (Q,n) whose descriptor a labelled image has its scores."""
        for i in np.flatnonzero(self._seen[self._mix(descriptors)]):
            column = self._column.get(descriptors[i].tobytes())
            if column is not None:
                scores[:, i] = self._scores[:, column]

    def _mix(self, descriptors: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(descriptors[:, self._sampled]).view(np.uint32)
        odd = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint32)
        return (bits * odd[:bits.shape[1]]).sum(axis=1, dtype=np.uint32) >> np.uint32(12)


class _Counter:
    """Counts, for one query, the images ahead of each labelled image."""

    def __init__(self, twins: _Twins, q: int, images: np.ndarray, rows: np.ndarray):
        scores = twins.scores(q, rows[images])
        order = np.argsort(scores)
        self._images, self._scores = images[order], scores[order]
        self._rows = rows[self._images]
        self._ahead = np.zeros(len(images), np.int64)

    def add(self, ascending: np.ndarray) -> None:
        """Count the higher ones of a block's scores (n,), given in ascending order."""
        self._ahead += len(ascending) - np.searchsorted(ascending, self._scores, side="right")

    def add_ties(self, scores: np.ndarray, ascending: np.ndarray, images: np.ndarray,
                 start: int) -> None:
        """Count the equal ones of a block's scores whose images (n,) have lower indexes.

        scores, ascending: (n,) as they are and in order; start: the first one's row.
        """
        ends = (np.searchsorted(ascending, self._scores, side=side) for side in ("left", "right"))
        equal = np.diff(list(ends), axis=0)[0]
        itself = (self._rows >= start) & (self._rows < start + len(scores))
        for i in np.flatnonzero(equal > itself):
            self._ahead[i] += np.count_nonzero(images[scores == self._scores[i]] < self._images[i])

    def ranks(self, wanted: np.ndarray) -> np.ndarray:
        ahead = dict(zip(self._images.tolist(), self._ahead.tolist()))
        return np.array([ahead.get(image, np.inf) for image in np.asarray(wanted).tolist()],
                        np.float64)


def _stream(
    queries: np.ndarray, store: Store, twins: _Twins, counters: list[_Counter],
    images: np.ndarray | None, pool: ThreadPoolExecutor, workers: int,
) -> None:
    """Count all images of a store; `images` are the database's indexes by row.

    While a block is multiplied, the next is read and the one before is counted.
    """
    size = _block_rows(*queries.shape)
    buffers = [np.empty((len(queries), size), np.float32) for _ in range(_BUFFERS)]
    parts = [range(first, len(queries), workers) for first in range(min(workers, len(queries)))]
    pending: list[list[Future]] = [[] for _ in buffers]
    blocks = _blocks(store, size)
    number, upcoming = 0, pool.submit(next, blocks, None)
    while (block := upcoming.result()) is not None:
        upcoming = pool.submit(next, blocks, None)
        slot = number % _BUFFERS
        _finish(pending[slot])
        scores = buffers[slot][:, :len(block.descriptors)]
        _score(queries, block, twins, scores)
        pending[slot] = [pool.submit(_count, scores, counters, part, images, block.start)
                         for part in parts]
        number += 1
    for tasks in pending:
        _finish(tasks)


def _finish(tasks: list[Future]) -> None:
    for task in tasks:
        task.result()


def _score(queries: np.ndarray, block: _Block, twins: _Twins, scores: np.ndarray) -> None:
    """Fill `scores` (Q,n): inner products, -inf for failed images."""
    np.matmul(queries, block.descriptors.T, out=scores)
    # A value that is not finite makes every query's score so: one query shows it
    broken = ~np.isfinite(scores[0]) & ~block.failed
    if broken.any():
        raise block.store.not_finite(block.start + int(np.argmax(broken)))
    twins.unify(block.descriptors, scores)
    if block.failed.any():
        scores[:, block.failed] = -np.inf


def _count(scores: np.ndarray, counters: list[_Counter], part: range,
           images: np.ndarray | None, start: int) -> None:
    """Count a block's scores (Q,n) for the queries of `part`."""
    ascending = np.sort(scores[part.start::part.step], axis=1)
    for q, ordered in zip(part, ascending):
        counters[q].add(ordered)
        if images is not None:
            counters[q].add_ties(scores[q], ordered, images[start:start + len(ordered)], start)


def _block_rows(num_queries: int, dim: int) -> int:
    """Rows of a block, a power of two."""
    most = min(_BLOCK_SCORES // num_queries, _BLOCK_VALUES // dim, _BLOCK_ROWS)
    return 2 ** max(most.bit_length() - 1, 6)


def _blocks(store: Store, size: int) -> Iterator[_Block]:
    """A store's rows, `size` at a time whatever its chunks are, so that these decide no rounding.

    A block within one chunk is passed on as it is mapped. Others are put together in one of two
    buffers, so a block's descriptors last until the next but one is asked for.
    """
    buffers = [np.empty((size, store.dim), np.float32) for _ in range(2)]
    chunk = lru_cache(maxsize=1)(store.chunk)
    for number, start in enumerate(range(0, store.count, size)):
        stop = min(start + size, store.count)
        whole, failed = buffers[number % 2][:stop - start], np.empty(stop - start, bool)
        for index in range(start // store.chunk_size, (stop - 1) // store.chunk_size + 1):
            first = index * store.chunk_size
            rows = slice(max(start - first, 0), stop - first)
            part = chunk(index).descriptors[rows]
            place = slice(max(first - start, 0), max(first - start, 0) + len(part))
            failed[place] = chunk(index).status[rows] != 0
            if len(part) == len(whole) and part.dtype == np.float32 and part.flags.aligned:
                whole = part
            else:
                whole[place] = part
        yield _Block(store, start, whole, failed)
