"""Neighbour lists of the images of stores among themselves, for tools/search.py: exact, or by indexes."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection
from dolg.search.indexes import Index, merge_results
from dolg.search.neighbours import Neighbours, neighbours_of, without_own, write_neighbours
from revisitop.evaluation import check_different, check_made_alike


class IndexSearch:
    """The search of indexes that together hold the images of `database`, store after store.

    Raises UserError where they hold others, or these in another order.
    """

    def __init__(self, indexes: Sequence[Index], database: Collection, probes: int):
        self.indexes = indexes
        held = [entry["digest"] for index in indexes for entry in index.settings["stores"]]
        if held != database.digests:
            raise UserError(f"{', '.join(str(index.path) for index in indexes)} must hold the stores "
                            f"{', '.join(str(store.path) for store in database.stores)}, in this order and "
                            "as they are now, and nothing else: build an index of them")
        self._starts = np.cumsum([0, *(index.settings["count"] for index in indexes)])
        self.settings = {"indexes": [[index.settings["factory"], index.settings["count"]]
                                     for index in indexes], "probes": probes}

    def nearest(self, descriptors: np.ndarray, k: int, own: np.ndarray | None) -> Neighbours:
        """k neighbours of descriptors (R,D), as the indexes find them, with their similarities; see
        `neighbours.nearest`."""
        indexes = np.full((len(descriptors), k), -1, np.int32)
        similarities = np.full((len(descriptors), k), -np.inf, np.float32)
        fine = np.flatnonzero(~np.isnan(descriptors).any(axis=1))
        found = self._search(descriptors[fine], k + (own is not None))
        if own is not None:
            found = without_own(*found, own[fine])
        similarities[fine], indexes[fine] = found
        return Neighbours(indexes, similarities)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for index, start in zip(self.indexes, self._starts):
            scores, rows = index.search(queries, k)
            parts.append((scores, np.where(rows >= 0, rows + start, -1)))
        return merge_results(parts, k)


def list_neighbours(
    stores: Sequence[FeatureStore], folder: Path, top: int, indexes: Sequence[Index] = (),
    probes: int = 16, device: str | torch.device = "cpu",
) -> str:
    """Write the `top` nearest others of every image of `stores`, which together are one database, to
    a folder (see `neighbours.write_neighbours`); what a run that was killed has left is made use of.

    indexes: search them, opened with `probes`, instead of all images. Returns what was done. Raises
    UserError for a `top` below 1 and a folder that holds others, StoreError for stores of different
    models or the same images.
    """
    if top < 1:
        raise UserError(f"--top is {top}: give at least 1")
    check_made_alike(stores)
    check_different(stores)
    database = Collection(stores)
    if indexes:
        search = IndexSearch(indexes, database, probes)
        found = write_neighbours(folder, database, database, top, exclude_self=True, search=search)
    else:
        found = neighbours_of(database, top, folder, device)
    return f"{folder}: {found.indexes.shape[1]} neighbours of each of {len(database)} images"
