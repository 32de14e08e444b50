"""ASMK: the visual words, learned once and kept in a folder, and the reranker (see `asmk_kernel`)."""
import json
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dolg.errors import UserError
from dolg.files import atomic_file
from dolg.rerank.asmk_kernel import Aggregated, InvertedLists, MatchKernel, index_factory
from dolg.rerank.images import Images, StoredImages, check_local
from dolg.rerank.interface import PairReranker

# What aggregated images may take in memory
_CACHE_BYTES = 1 << 31
# Local features per word below which faiss warns that the words may be bad
_ENOUGH = 39


class ASMKReranker(PairReranker):
    """Scores 0 to 1 by local features. An image without any, and one that failed, has 0.

    Args:
        query, database: the images, with local features.
        kernel: how they are aggregated and compared.
        most_local: local features of an image that are used, those of the highest attention.
        assignments: words that each local feature of a query is assigned to; a database's have one.

    Raises UserError for numbers out of range, and local features that are not there or not alike.
    """

    name = "asmk"

    def __init__(self, query: Images, database: Images, kernel: MatchKernel, most_local: int = 1000,
                 assignments: int = 5):
        super().__init__()
        check_local(query, database, self.name)
        check_settings(kernel, database, most_local, assignments)
        self.settings = {**kernel.settings, "most_local": most_local, "assignments": assignments}
        self.query, self.database = query, database
        self.kernel, self.most_local, self.assignments = kernel, most_local, assignments
        self._bytes = self._images = 0
        # An image has a word for each local feature at most, and a word for each of the vector's parts
        word_bytes = 4 + (-(-database.local_dim // 32) if kernel.settings["binary"]
                          else database.local_dim) * 4
        self._candidate = lru_cache(max(1, _CACHE_BYTES // (most_local * word_bytes)))(self._aggregated)
        self._last_query: tuple[int, Aggregated] | None = None

    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        lists = InvertedLists.of([self._candidate(row) for row in candidates.tolist()])
        return lists.scores(self._query(query), self.kernel)

    def _query(self, row: int) -> Aggregated:
        if self._last_query is None or self._last_query[0] != row:
            own = self.query.local(row).descriptors[:self.most_local]
            self._last_query = row, self.kernel.aggregated(own, self.assignments)
        return self._last_query[1]

    def _aggregated(self, row: int) -> Aggregated:
        image = self.kernel.aggregated(self.database.local(row).descriptors[:self.most_local])
        self._bytes, self._images = self._bytes + image.nbytes, self._images + 1
        self.bytes_per_image = self._bytes / self._images
        return image


def check_settings(kernel: MatchKernel, images: Images, most_local: int, assignments: int = 1) -> None:
    """Raise UserError for numbers out of range, and words of other local features than the images'."""
    if most_local < 1:
        raise UserError(f"RERANK.ASMK.LOCALS is {most_local}: give 1 or more")
    words, dim = kernel.centres.shape
    if not 1 <= assignments <= words:
        raise UserError(f"RERANK.ASMK.ASSIGNMENTS is {assignments}: give 1 to {words}, the number of words")
    if images.local_dim != dim:
        raise UserError(f"the visual words have {dim} dimensions, the local features {images.local_dim}: "
                        "learn the words from features of the same kind, in another RERANK.ASMK.FOLDER")


def open_codebook(
    images: StoredImages, folder: Path, words: int = 65536, train_images: int = 5000,
    most_local: int = 1000, device: str | torch.device = "cpu",
) -> np.ndarray:
    """The visual words (W,C), float32, of a folder; if they are not there, learned and written.

        codebook.npz    centres (W,C) float32, and in JSON as "about" what they were learned from

    images: to learn from, as `learn_codebook` does. Raises UserError where the folder has words learned
    from other stores or with other settings, or a file that is damaged, and as `learn_codebook` does.
    """
    about = {"format": "dolg-codebook", "version": 1, "words": words, "most_local": most_local,
             "train_images": min(train_images, len(images)), "stores": images.collection.digests}
    file = Path(folder) / "codebook.npz"
    if not file.exists():
        centres = learn_codebook(images, words, train_images, most_local, device)
        with atomic_file(file) as whole:
            np.savez(whole, centres=centres, about=np.array(json.dumps(about)))
    # Read back, so that all who share the folder have the same, whoever wrote it
    return _read_codebook(file, about)


def learn_codebook(
    images: Images, words: int = 65536, train_images: int = 5000, most_local: int = 1000,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Visual words (W,C), float32, by the package's k-means: 10 iterations from a fixed seed.

    Args:
        images: to learn from; of more than `train_images`, so many, the same ones each time.
        most_local: local features of an image that are used, those of the highest attention.
        device: for k-means; the CPU where faiss has no GPU support. On two cores, 65536 words of
            5,000,000 features take hours, and on any device the features C * 4 bytes each in memory.

    Raises UserError for numbers out of range, and fewer local features than words.
    """
    for key, number in (("WORDS", words), ("TRAIN_IMAGES", train_images), ("LOCALS", most_local)):
        if number < 1:
            raise UserError(f"RERANK.ASMK.{key} is {number}: give 1 or more")
    factory = index_factory(device)
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:train_images])
    features, count = np.empty((len(rows) * most_local, images.local_dim), np.float32), 0
    for row in tqdm(rows.tolist(), desc="reading local features", unit="image", disable=None):
        own = images.local(row).descriptors[:most_local]
        features[count:count + len(own)], count = own, count + len(own)
    if count < words:
        raise UserError(f"RERANK.ASMK.WORDS is {words}, but the {len(rows)} images to learn them from have "
                        f"{count} local features: give {max(1, count // _ENOUGH)} words or fewer, "
                        f"{_ENOUGH} features for each")
    return factory.cluster(features[:count], words)


def _read_codebook(file: Path, about: dict) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as tables:
            before, centres = json.loads(str(tables["about"])), tables["centres"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}): delete it") from None
    if not isinstance(before, dict) or centres.ndim != 2 or centres.dtype != np.float32:
        raise UserError(f"{file} holds no visual words: give another RERANK.ASMK.FOLDER")
    changed = [key if key == "stores" else f"{key} was {before.get(key)}, is {about[key]}"
               for key in about if before.get(key) != about[key]]
    if changed:
        raise UserError(f"{file} was learned otherwise ({'; '.join(changed)}): give another "
                        "RERANK.ASMK.FOLDER, or delete it")
    return centres
