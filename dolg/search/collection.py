"""Several feature stores as one database, and rows picked from descriptors that come in chunks."""
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from dolg.errors import UserError
from dolg.files import file_digest
from revisitop.stores import Chunk, Store


class Collection:
    """Stores one after another: database first, then distractors. Row indexes count on from one to
    the next; iterate for chunks (n,D), memory-mapped, rows of NaN where an image failed and only there.

    Raises UserError for no store, and for descriptors of different lengths or of no length; iterating
    raises StoreError for a row that is not finite though its image did not fail.
    """

    def __init__(self, stores: Sequence[Store]):
        if not stores:
            raise UserError("there is no store to search: give at least one")
        for store in stores:
            if not store.dim or store.dim != stores[0].dim:
                raise UserError(f"{store.path} has descriptors of {store.dim} dimensions, "
                                f"{stores[0].path} of {stores[0].dim}: they cannot be one database")
        self.stores, self.dim = list(stores), stores[0].dim
        self.starts = np.cumsum([0, *(store.count for store in stores)]).tolist()
        # (store, chunk) -> whether failed rows must be marked; each is looked at once, as `gather` often
        # wants few rows of a chunk, and checking reads them all
        self._unmarked: dict[tuple[int, int], bool] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[np.ndarray]:
        for number, store in enumerate(self.stores):
            for index in range(store.num_chunks):
                chunk, place = store.chunk(index), (number, index)
                if place not in self._unmarked:
                    self._unmarked[place] = _lacks_marks(store, index, chunk)
                yield _marked(chunk) if self._unmarked[place] else chunk.descriptors

    @cached_property
    def digests(self) -> list[str]:
        """`store_digest` of each store."""
        return [store_digest(store) for store in self.stores]


def store_digest(store: Store) -> str:
    """SHA-256 of a store's manifest, its names and its chunks' digests: of all that is in it."""
    digest = hashlib.sha256(json.dumps(store.manifest, sort_keys=True).encode())
    for index in range(store.num_chunks):
        chunk = store.chunk(index)
        content = [chunk.names, chunk.digest or file_digest(chunk.file)]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _lacks_marks(store: Store, index: int, chunk: Chunk) -> bool:
    """Whether a failed row of a chunk is not all NaN. Raises StoreError for a row that is not finite
    though its image did not fail, and for damaged ones."""
    chunk.check()
    descriptors, failed = chunk.descriptors, chunk.status != 0
    broken = np.flatnonzero(~np.isfinite(descriptors).all(axis=1) & ~failed)
    if broken.size:
        raise store.not_finite(index * store.chunk_size + int(broken[0]))
    return not np.isnan(descriptors[failed]).all()


def _marked(chunk: Chunk) -> np.ndarray:
    """A copy of a chunk's descriptors (n,D), rows of NaN where an image failed."""
    descriptors = np.array(chunk.descriptors)
    descriptors[chunk.status != 0] = np.nan
    return descriptors


def as_chunks(database: np.ndarray | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Descriptors (N,D), or what gives them in chunks, as what can be iterated over many times."""
    chunks = [database] if isinstance(database, np.ndarray) else database
    if iter(chunks) is chunks:
        raise TypeError("the database is read several times: give a list, not a generator")
    return chunks


def gather(chunks: Iterable[np.ndarray], rows: np.ndarray, dim: int) -> np.ndarray:
    """The descriptors (len(rows),dim), float32, of some rows of a database, in one pass over its
    chunks.

    rows: (R,) ascending, each below the number of rows in all chunks.
    """
    table, offset = np.empty((len(rows), dim), np.float32), 0
    for chunk in chunks:
        first, last = np.searchsorted(rows, [offset, offset + len(chunk)])
        table[first:last] = chunk[rows[first:last] - offset]
        offset += len(chunk)
    return table
