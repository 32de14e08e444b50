"""The images that are searched: indexes and feature stores, one after another; and their files."""
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from dolg.data.finder import image_file
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection, store_digest
from dolg.search.exact import top_k
from dolg.search.indexes import Index, merge_results
from revisitop.evaluation import check_made_alike
from revisitop.stores import StoreError


class _StorePart:
    """A store, searched exactly."""

    def __init__(self, store: FeatureStore):
        self.path, self.names, self.count = store.path, store.names, store.count
        self.stores, self.no_stores, self.described = [store], "", [store]
        self.counts, self.digests = [store.count], [store_digest(store)]
        self._chunks = Collection([store])

    def search(self, query: np.ndarray, k: int,
               device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        return top_k(query, self._chunks, k, device)


class _IndexPart:
    """An index; its stores, which rerankers read, need not be there."""

    def __init__(self, index: Index):
        entries = index.settings["stores"]
        self.path, self.names, self.count = index.path, index.names, len(index.names)
        self.described = index.stores()
        self.counts = [entry["count"] for entry in entries]
        self.digests = [entry["digest"] for entry in entries]
        self.stores, self.no_stores = [], ""
        self._index = index
        for entry in entries:
            try:
                store = FeatureStore(entry["path"])
            except StoreError as error:
                self.no_stores = f"a store of the index {index.path} is not there: {error}"
                return
            if store_digest(store) != entry["digest"]:
                self.no_stores = f"{entry['path']} has changed since the index {index.path} was built"
                return
            self.stores.append(store)

    def search(self, query: np.ndarray, k: int,
               device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        return self._index.search(query, k)


class Database:
    """Indexes and stores that together are the database; rows count on from one to the next.

    Args:
        paths: folders that tools/search.py build or tools/infer.py made.
        probes, on_gpu: of indexes, see `Index`.

    Attributes:
        stores: all stores, also of the indexes; empty where one of them is not there any more.
        no_stores: why `stores` is empty; "" if it is not.

    Raises UserError for folders that are neither, and for images that come twice.
    """

    def __init__(self, paths: Sequence[str | Path], probes: int = 16, on_gpu: bool = False):
        if not paths:
            raise UserError("there is no database to ask: give an index or stores by --index")
        self._parts = [_open_part(Path(path), probes, on_gpu) for path in paths]
        self._check_different()
        self._starts = np.cumsum([0, *(part.count for part in self._parts)])
        self._store_starts = np.cumsum([0, *(count for part in self._parts for count in part.counts)])
        self.no_stores = next((part.no_stores for part in self._parts if part.no_stores), "")
        self.stores = [] if self.no_stores else [store for part in self._parts for store in part.stores]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def store_count(self) -> int:
        """Stores that it is made of, whether they are there or not."""
        return len(self._store_starts) - 1

    @property
    def paths(self) -> list[Path]:
        """The folders that were given."""
        return [part.path for part in self._parts]

    @property
    def digests(self) -> list[str]:
        """`store_digest` of each store that it is made of."""
        return [digest for part in self._parts for digest in part.digests]

    def name(self, row: int) -> str:
        """Of one image."""
        number = _place(self._starts, row)
        return self._parts[number].names[row - int(self._starts[number])]

    def store_number(self, row: int) -> int:
        """Of the store that an image is in."""
        return _place(self._store_starts, row)

    def search(self, descriptor: np.ndarray, k: int,
               device: torch.device) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) float32 and rows (n,) int64, n <= k, best first, of those found for a descriptor
        (D,); equal scores by row. `device` is for stores."""
        found = [part.search(descriptor[None], k, device) for part in self._parts]
        scores, rows = merge_results([(scores, np.where(rows >= 0, rows + start, -1))
                                      for (scores, rows), start in zip(found, self._starts.tolist())], k)
        there = rows[0] >= 0
        return scores[0, there], rows[0, there]

    def check_model(self, dim: int, settings: dict, across: bool = False) -> None:
        """Raise UserError where a network of so many dimensions and, unless `across`, such settings, as a
        store's manifest has them, did not make it. What a store does not record is not checked."""
        model = SimpleNamespace(path="this model", dim=dim, manifest=settings, across=across)
        for part in self._parts:
            try:
                check_made_alike([model, *part.described, *part.stores])
            except StoreError as error:
                raise UserError(f"{part.path} was made by another model than this one: {error}") from None

    def _check_different(self) -> None:
        seen: dict[str, Path] = {}
        for part in self._parts:
            for digest in part.digests:
                if digest in seen:
                    raise UserError(f"{part.path} has images that {seen[digest]} has as well: give each "
                                    "once")
                seen[digest] = part.path


class ImageFiles:
    """The image files of a database.

    Args:
        folders: as many as the database has stores: each the folder of one, in order; else all are looked
            through, in order.

    Raises UserError for a folder that is not there.
    """

    def __init__(self, database: Database, folders: Sequence[str | Path]):
        self.database, self.folders = database, [Path(folder) for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"{folder} is no folder of images")

    def find(self, row: int) -> Path | None:
        """The file of an image; None where there is none. Names that lead out of a folder have none: a
        store may be anybody's."""
        folders = self.folders
        if len(folders) == self.database.store_count:
            folders = [folders[self.database.store_number(row)]]
        name = Path(self.database.name(row))
        if name.is_absolute() or ".." in name.parts:
            return None
        return next((file for file in (folder / image_file(folder, str(name)) for folder in folders)
                     if _is_file(file)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:     # a name that is too long for any file
        return False


def _open_part(path: Path, probes: int, on_gpu: bool) -> _StorePart | _IndexPart:
    if (path / "index.json").exists():
        return _IndexPart(Index(path, probes, on_gpu))
    if not (path / "manifest.json").exists():
        what = "holds neither an index nor a store" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}: give what tools/search.py build or tools/infer.py made")
    try:
        return _StorePart(FeatureStore(path))
    except StoreError as error:
        raise UserError(str(error)) from None


def _place(starts: np.ndarray, row: int) -> int:
    """The part that a row is in, of parts that may be empty."""
    return int(np.searchsorted(starts[:-1], row, side="right")) - 1
