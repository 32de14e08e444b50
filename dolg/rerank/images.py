"""The features of images, by row: of stores, or of arrays."""
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable
from dolg.search.collection import Collection
from revisitop.evaluation import check_made_alike
from revisitop.stores import StoreError


class Images(Protocol):
    """What rerankers know of images: queries, or a database and its distractors, one row each.

    Attributes:
        dim: dimensions of the descriptors.
        local_dim: those of the local features; 0: there are none.
    """

    dim: int
    local_dim: int

    def __len__(self) -> int: ...

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """(n,D) float32 of rows (n,) in any order; NaN where an image failed."""

    def local(self, row: int) -> LocalTable:
        """The local features of one image; there may be none, and there are none where it failed."""


class StoredImages:
    """Of stores, one after another; what is asked for is read, and no more.

    Raises UserError for stores of which some have local features and some have none, or others.
    """

    def __init__(self, stores: Sequence[FeatureStore]):
        self.collection = Collection(stores)
        self.dim, self.local_dim = self.collection.dim, stores[0].local_dim
        for store in stores:
            if store.local_dim != self.local_dim:
                raise UserError(f"{store.path} has local features of {store.local_dim} dimensions, "
                                f"{stores[0].path} of {self.local_dim} (0: none): extract them alike")
        self._starts = np.array(self.collection.starts)

    def __len__(self) -> int:
        return len(self.collection)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        table = np.empty((len(rows), self.dim), np.float32)
        numbers = self._store_numbers(rows)
        for number in np.unique(numbers).tolist():
            store, here = self.collection.stores[number], numbers == number
            own = rows[here] - self._starts[number]
            part = store.rows(own)
            part[store.status[own] != 0] = np.nan
            table[here] = part
        return table

    def local(self, row: int) -> LocalTable:
        number = int(self._store_numbers(np.array([row]))[0])
        return self.collection.stores[number].local(row - int(self._starts[number]))

    def _store_numbers(self, rows: np.ndarray) -> np.ndarray:
        # Stores may be empty: the last one that starts at or before a row holds it
        return np.searchsorted(self._starts[:-1], rows, side="right") - 1


class ArrayImages:
    """Of arrays: descriptors (N,D), and, where there are some, the local features of each image."""

    def __init__(self, descriptors: np.ndarray, local: Sequence[LocalTable] = ()):
        descriptors = np.asarray(descriptors, np.float32)
        if descriptors.ndim != 2:
            raise UserError(f"descriptors have shape {descriptors.shape}: give (images, dimensions)")
        if len(local) not in (0, len(descriptors)):
            raise UserError(f"there are local features of {len(local)} images, and descriptors of "
                            f"{len(descriptors)}: give one table for each image, or none")
        self._descriptors, self._local = descriptors, local
        self.dim = descriptors.shape[1]
        self.local_dim = max((table.descriptors.shape[1] for table in local), default=0)

    def __len__(self) -> int:
        return len(self._descriptors)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        return self._descriptors[rows]

    def local(self, row: int) -> LocalTable:
        return self._local[row]


def check_local(query: Images, database: Images, method: str) -> None:
    """Raise UserError where there are no local features to compare, or they are of two kinds, or stores
    made them with different settings."""
    for images, what in ((query, "queries"), (database, "database images")):
        if not images.local_dim:
            raise UserError(f"RERANK.METHOD {method} needs local features, and the {what} have none: "
                            "extract them with INFER.LOCAL True")
    if query.local_dim != database.local_dim:
        raise UserError(f"local features of the queries have {query.local_dim} dimensions, of the "
                        f"database {database.local_dim}: extract both with one model")
    stores = [store for images in (query, database) if isinstance(images, StoredImages)
              for store in images.collection.stores]
    try:
        if stores:
            check_made_alike(stores, local=True)
    except StoreError as error:
        raise UserError(str(error)) from None
