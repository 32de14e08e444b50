"""ASMK as the first stage: a whole database in a folder, image by image, and its search."""
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from tqdm import tqdm

from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.rerank.asmk import check_settings
from dolg.rerank.asmk_kernel import InvertedLists, MatchKernel
from dolg.rerank.images import StoredImages, check_local
from dolg.search.collection import store_digest
from dolg.search.rankings import Ranking
from revisitop.evaluation import check_made_alike

# Images of a part, which is in memory as a whole
PART_IMAGES = 8192


class ASMKIndex:
    """Inverted lists of a database, part by part.

        index.json                  of which stores, words and settings
        part-000000.safetensors     `asmk_kernel.InvertedLists` of images 0 .. PART_IMAGES - 1

    Args:
        folder: where it is, or is to be made.
        database: the images.
        kernel: how they are aggregated; its alpha and threshold are those of the search alone.
        most_local: local features of an image that are used, those of the highest attention.

    Raises UserError where the folder holds an index of other stores, words or settings, and as
    `asmk.ASMKReranker` does.
    """

    def __init__(self, folder: Path, database: StoredImages, kernel: MatchKernel, most_local: int = 1000):
        check_local(database, database, "asmk")
        check_settings(kernel, database, most_local)
        self.folder, self.database = Path(folder), database
        self.kernel, self.most_local = kernel, most_local
        self._about = {"format": "dolg-asmk-index", "version": 1, "part_images": PART_IMAGES,
                       "most_local": most_local, "stores": database.collection.digests,
                       **{key: kernel.settings[key] for key in ("words", "codebook", "binary")}}
        self._parts = [self.folder / f"part-{start // PART_IMAGES:06d}.safetensors"
                       for start in range(0, len(database), PART_IMAGES)]
        self._check_same()

    @property
    def bytes_per_image(self) -> float:
        """Of the parts that are there; 0 if none is."""
        written = [number for number, part in enumerate(self._parts) if part.exists()]
        images = sum(len(self._rows(number)) for number in written)
        return sum(self._parts[number].stat().st_size for number in written) / max(1, images)

    def build(self) -> None:
        """Make the parts that are not there. What a killed run has made stays."""
        write_atomically(self.folder / "index.json", json.dumps(self._about, indent=1) + "\n")
        with tqdm(total=len(self.database), desc="aggregating", unit="image", disable=None) as bar:
            for number, part in enumerate(self._parts):
                if not part.exists():
                    local = (self.database.local(row).descriptors for row in self._rows(number))
                    lists = InvertedLists.of([self.kernel.aggregated(own[:self.most_local])
                                              for own in local])
                    write_atomically(part, save(lists._asdict()))
                bar.update(len(self._rows(number)))

    def search(self, query: StoredImages, k: int, assignments: int = 5) -> Ranking:
        """The k images of the highest scores, above 0, for each query of a store; see `ASMKReranker`.

        Raises UserError for numbers out of range and an index that is not whole or damaged, and StoreError
        for stores that were made by different models.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be at least 1")
        store, = query.collection.stores
        check_made_alike([store, *self.database.collection.stores])
        check_local(query, self.database, "asmk")
        check_settings(self.kernel, query, self.most_local, assignments)
        queries = [self.kernel.aggregated(query.local(row).descriptors[:self.most_local], assignments)
                   for row in range(len(query))]
        indexes, scores = np.full((len(query), k), -1), np.full((len(query), k), -np.inf)
        for number in tqdm(range(len(self._parts)), desc="searching", unit="part", disable=None):
            lists = self._read(number)
            for row, own in enumerate(queries):
                found = lists.scores(own, self.kernel)
                _merge(indexes[row], scores[row], self._rows(number).start, found)
        settings = {"method": "asmk", "k": k, "assignments": assignments, "most_local": self.most_local,
                    **self.kernel.settings}
        return Ranking(indexes, scores, settings, store_digest(store), self._about["stores"])

    def _rows(self, number: int) -> range:
        return range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, len(self.database)))

    def _read(self, number: int) -> InvertedLists:
        part = self._parts[number]
        try:
            return InvertedLists(**load_file(part))
        except FileNotFoundError:
            raise UserError(f"{self.folder} lacks {part.name}: build the index first") from None
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{part} cannot be read ({error}): delete it and build it again") from None

    def _check_same(self) -> None:
        file = self.folder / "index.json"
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete the folder") from None
        changed = [key for key in self._about
                   if not isinstance(before, dict) or before.get(key) != self._about[key]]
        if changed:
            raise UserError(f"{self.folder} holds an index that was made otherwise ({', '.join(changed)}): "
                            "give another folder, or delete that one")


def _merge(indexes: np.ndarray, scores: np.ndarray, start: int, found: np.ndarray) -> None:
    """Put images from `start` on with scores found (n,), above 0, into a query's best (k,) of the images
    before, in place; equal ones go to the lower index."""
    there = np.flatnonzero(found > 0)
    both = np.append(scores, found[there])
    order = np.argsort(-both, kind="stable")[:len(scores)]
    indexes[:], scores[:] = np.append(indexes, start + there)[order], both[order]
