"""Exact ranks of the labelled images by counting, without ever sorting the database.

The rank of an image is the number of images that score higher, so database and distractors are
streamed in blocks, and memory does not grow with them. A block's scores are one matrix product;
each query's are sorted within the block, and the scores of its labelled images looked up in
them. Counts add up, over blocks, threads, processes and machines.

Scores are float32, as in the original code. Ties go to the lower index: database images in the
order of the ground truth, then distractors. Matrix products round differently from one place of
a matrix to another, so equal descriptors need not get equal scores. Every row that equals a
labelled image's descriptor is therefore found by its bytes and given the very score of that image.
"""
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from threading import Event, Lock
from typing import NamedTuple

import numpy as np

from revisitop.stores import Store

# Largest sizes of a block: 4 MiB of scores, 16 MiB of descriptors
_BLOCK_SCORES, _BLOCK_VALUES, _BLOCK_ROWS = 2**20, 2**22, 2**14
# Queries are filled up to a multiple of so many
_LANES = 8
# Bytes of all threads' blocks together
_MEMORY = 2**28


class Block(NamedTuple):
    """Consecutive rows of a store.

    descriptors: float32 (n,D), valid until the thread asks for its next block.
    failed: bool (n,), images without a descriptor.
    start: the first one's row; images: their indexes (n,), None for distractors, which come after
        all labelled images.
    """

    store: Store
    descriptors: np.ndarray
    failed: np.ndarray
    start: int
    images: np.ndarray | None


class Wanted:
    """The labelled images of all queries, those that have a descriptor, as counters need them.

    queries: (Q,D) float32.
    ends: (Q + 1,) int64; the arrays below have query q's images at ends[q]:ends[q + 1].
    scores: float32, ascending within a query; images, rows: their indexes and rows.
    """

    def __init__(self, queries: np.ndarray, labelled: Sequence[np.ndarray], database: Store,
                 rows: np.ndarray, double: bool):
        self.queries, self.double = queries, double
        # Rows of zeros at the end: products of so many rows are faster
        self._padded = np.zeros((-(-len(queries) // _LANES) * _LANES, queries.shape[1]), np.float32)
        self._padded[:len(queries)] = queries
        usable = [_usable(wanted, rows, database) for wanted in labelled]
        self.ends = np.cumsum([0, *map(len, usable)])
        self.images = np.concatenate([np.empty(0, np.int64), *usable])
        self.rows = rows[self.images]
        self.twins = Twins(self, database)
        self.scores = np.empty(len(self.images), np.float32)
        for q in range(len(queries)):
            part = slice(self.ends[q], self.ends[q + 1])
            scores = self.twins.scores_of(q, self.rows[part])
            order = np.argsort(scores)
            self.scores[part] = scores[order]
            self.images[part], self.rows[part] = self.images[part][order], self.rows[part][order]

    def buffer(self, count: int) -> np.ndarray:
        """Room for the products of so many descriptors."""
        return np.empty((len(self._padded), count), np.float32)

    def product(self, descriptors: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        """Scores (Q,n) of descriptors (n,D), in a `buffer`: float32, of sums in float64 if
        `double`."""
        out = buffer[:, :len(descriptors)]
        if self.double:
            out[:] = self._padded.astype(np.float64) @ descriptors.T.astype(np.float64)
        else:
            with np.errstate(invalid="ignore"):     # infinities are found by whoever counts
                np.matmul(self._padded, descriptors.T, out=out)
        return out[:len(self.queries)]


class Twins:
    """The labelled images' scores, and the rows of any store that equal one of them."""

    def __init__(self, wanted: Wanted, database: Store):
        self._rows = np.unique(wanted.rows)
        table = database.rows(self._rows)
        self._column: dict[bytes, int] = {}
        columns = [self._column.setdefault(row.tobytes(), len(self._column)) for row in table]
        self._columns = np.array(columns, np.int64)
        first = np.unique(self._columns, return_index=True)[1]
        self.scores = wanted.product(table[first], wanted.buffer(len(first)))
        self._seen = np.zeros(2**20, bool)
        self._seen[self._mix(table)] = True

    def scores_of(self, q: int, rows: np.ndarray) -> np.ndarray:
        """Query q's scores of labelled rows."""
        return self.scores[q, self._columns[np.searchsorted(self._rows, rows)]]

    def find(self, descriptors: np.ndarray) -> tuple[list[int], list[int]]:
        """Which of the descriptors (n,D) a labelled image has as well, and the columns of `scores`
        that are theirs."""
        found = [(row, self._column.get(descriptors[row].tobytes()))
                 for row in np.flatnonzero(self._seen[self._mix(descriptors)]).tolist()]
        found = [pair for pair in found if pair[1] is not None]
        return [row for row, _ in found], [column for _, column in found]

    def _mix(self, descriptors: np.ndarray) -> np.ndarray:
        # Two values of a row, mixed to 20 bits, tell nearly every other row apart
        bits, odd = descriptors.view(np.uint32), (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77))
        mixed = bits[:, bits.shape[1] // 3] * odd[0]
        mixed += bits[:, -1] * odd[1]
        return mixed >> np.uint32(12)


class Counter:
    """Counts, for one thread, the images ahead of each labelled image: `ahead`, int64, in the
    order of `wanted`."""

    def __init__(self, wanted: Wanted, block_rows: int):
        self.wanted = wanted
        self._ahead = np.zeros(len(wanted.scores), np.int64)
        self._buffer = wanted.buffer(block_rows)
        self._parts = [slice(*ends) for ends in zip(wanted.ends[:-1], wanted.ends[1:])]

    @property
    def ahead(self) -> np.ndarray:
        return self._ahead

    def add(self, block: Block) -> None:
        """Count the images of a block."""
        wanted = self.wanted
        scores = wanted.product(block.descriptors, self._buffer)
        # A value that is not finite makes every query's score so: one query shows it
        check_finite(block, np.isfinite(scores[0]))
        rows, columns = wanted.twins.find(block.descriptors)
        if rows:
            scores[:, rows] = wanted.twins.scores[:, columns]
        if block.failed.any():
            scores[:, block.failed] = -np.inf
        ascending = scores
        if block.images is not None:
            scores = scores.copy()
        ascending.sort(axis=1)
        for q, part in enumerate(self._parts):
            ends = ascending[q].searchsorted(wanted.scores[part], side="right")
            self._ahead[part] += len(block.descriptors) - ends
            if block.images is not None:
                self._add_ties(q, scores[q], ascending[q], block)

    def _add_ties(self, q: int, scores: np.ndarray, ascending: np.ndarray, block: Block) -> None:
        """Count the images of a block that score the same and have lower indexes."""
        wanted, start = self.wanted, self.wanted.ends[q]
        part = slice(start, wanted.ends[q + 1])
        ends = (np.searchsorted(ascending, wanted.scores[part], side=side)
                for side in ("left", "right"))
        equal = np.diff(list(ends), axis=0)[0]
        itself = (wanted.rows[part] >= block.start) & (
            wanted.rows[part] < block.start + len(scores))
        for i in start + np.flatnonzero(equal > itself):
            tied = block.images[scores == wanted.scores[i]]
            self._ahead[i] += np.count_nonzero(tied < wanted.images[i])


def count_ranks(
    queries: np.ndarray, labelled: Sequence[np.ndarray], database: Store, images: np.ndarray,
    distractors: Sequence[Store] = (), *, share: tuple[int, int] = (0, 1),
    together: Callable[[Callable[[], np.ndarray]], np.ndarray] = lambda count: count(),
    double: bool = False,
    counter: Callable[[Wanted, int], Counter] = Counter, threads: int = 0,
) -> list[np.ndarray]:
    """Rank, from 0, of every labelled image among all images of all stores.

    Args:
        queries: (Q,D) finite float32; scores are inner products.
        labelled: per query the indexes of the images to rank, each at most once.
        database: the store that holds them.
        images: (database.count,) index of the image in each row, a permutation.
        distractors: stores whose images count, but are never labelled.
        share: (number, of): count only the number-th part of the work, from 0.
        together: calls a function that counts that part, and sums its int64 array over all parts.
        double: sum products in float64 (and round them to float32): twice as slow, and the same
            on every machine.
        counter: what counts; another one may do so on another device.
        threads: that count; 0: one per core.

    Returns, per query, float64 ranks in the order of `labelled[q]`; inf for an image that
    failed. Failed images outrank nothing. Raises StoreError for damaged stores.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    rows = np.empty(database.count, np.int64)
    rows[images] = np.arange(database.count)
    wanted = Wanted(queries, labelled, database, rows, double)
    size = _block_rows(*queries.shape)
    work = [(store, images if store is database else None, start)
            for store in (database, *distractors) for start in range(0, store.count, size)]
    number, of = share
    ahead = together(lambda: _count(wanted, work[number::of], size, counter,
                                    threads or _threads(queries, size)))
    return _ranks(wanted, ahead, labelled)


def check_finite(block: Block, finite: np.ndarray) -> None:
    """Raise StoreError for a row of a block that is not `finite` (n,), though no image failed."""
    broken = ~finite & ~block.failed
    if broken.any():
        raise block.store.not_finite(block.start + int(np.argmax(broken)))


def _count(wanted: Wanted, work: list, size: int, counter: Callable, threads: int) -> np.ndarray:
    """Images ahead of each labelled one, in the stores and from the rows on that `work` names."""
    blocks, lock, stop = iter(work), Lock(), Event()

    def count(_) -> np.ndarray:
        counts = counter(wanted, size)
        read = _reader(size, wanted.queries.shape[1])
        with _set_after_error(stop):
            while not stop.is_set():
                with lock:
                    item = next(blocks, None)
                if item is None:
                    break
                counts.add(read(*item))
        return counts.ahead

    # Threads that each do a block from end to end wait for nothing; products that are spread over
    # threads of their own would be in their way
    with _one_blas_thread(), ThreadPoolExecutor(threads) as pool, _set_after_error(stop):
        return sum(pool.map(count, range(threads)))


@contextmanager
def _set_after_error(stop: Event) -> Iterator[None]:
    """Let the other threads stop where one fails, or the user interrupts."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _reader(size: int, dim: int) -> Callable[[Store, np.ndarray | None, int], Block]:
    """A function from store, its rows' images and first row to a block of at most `size` rows; it
    uses the same memory for each, and does not care about the chunks."""
    buffer, status = np.empty((size, dim), np.float32), np.empty(size, np.uint8)
    open_chunk = lru_cache(maxsize=1)(lambda store, index: store.chunk(index))

    def read(store: Store, images: np.ndarray | None, start: int) -> Block:
        stop = min(start + size, store.count)
        for index in range(start // store.chunk_size, (stop - 1) // store.chunk_size + 1):
            first = index * store.chunk_size
            chunk = open_chunk(store, index)
            place = slice(max(first - start, 0), min(first + chunk.shape[0], stop) - start)
            chunk.read(max(start - first, 0), buffer[place], status[place])
        count = stop - start
        return Block(store, buffer[:count], status[:count] != 0, start,
                     None if images is None else images[start:stop])

    return read


def _ranks(wanted: Wanted, ahead: np.ndarray,
           labelled: Sequence[np.ndarray]) -> list[np.ndarray]:
    ranks = []
    for q, images in enumerate(labelled):
        part = slice(wanted.ends[q], wanted.ends[q + 1])
        of = dict(zip(wanted.images[part].tolist(), ahead[part].tolist()))
        ranks.append(np.array([of.get(image, np.inf) for image in np.asarray(images).tolist()],
                              np.float64))
    return ranks


def _usable(wanted: np.ndarray, rows: np.ndarray, database: Store) -> np.ndarray:
    """The images of `wanted` that have a descriptor."""
    wanted = np.asarray(wanted, np.int64)
    return wanted[database.status[rows[wanted]] == 0]


def _block_rows(num_queries: int, dim: int) -> int:
    """Rows of a block, a power of two; the same on all machines, since it decides rounding."""
    most = min(_BLOCK_SCORES // num_queries, _BLOCK_VALUES // dim, _BLOCK_ROWS)
    return 2 ** max(most.bit_length() - 1, 6)


def _threads(queries: np.ndarray, size: int) -> int:
    """One per core, as far as there is memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, _MEMORY // (4 * size * (queries.shape[1] + 2 * len(queries)))))


def _one_blas_thread() -> AbstractContextManager:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(1, user_api="blas")
