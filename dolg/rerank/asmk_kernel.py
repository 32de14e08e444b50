"""Aggregated selective match kernels: local features by visual word, and their similarity.

Tolias, Avrithis and Jegou, "Image Search with Selective Match Kernels: Aggregation Across Single and
Multiple Images" (IJCV 2016), as in Tolias, Jenicek and Chum, "Learning and Aggregating Deep Local
Descriptors for Instance-Level Recognition" (ECCV 2020), whose numbers are the defaults, by the authors'
package asmk (github.com/jenicek/asmk): its words, its aggregation and its similarity. The order in which
words are gone through is ours: no image but those compared has to be in memory.
"""
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from dolg.errors import UserError


class Aggregated(NamedTuple):
    """An image.

    words: (w,) int32, those that its local features are assigned to, ascending; perhaps none.
    vectors: (w,B) uint32, the sign bits of the residuals' sum for each word, or (w,C) float32, that sum
        at unit length.
    """

    words: np.ndarray
    vectors: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.vectors.nbytes


class MatchKernel:
    """Aggregates images, and compares what it made of them.

    Two images are compared in the words that both have: the similarity of the vectors, from -1 to 1 (of
    bits: 1 - 2 times the share that differs), to the power alpha if it is no less than the threshold. The
    sum is divided by the root of both numbers of words, so that an image's with itself is 1.

    Args:
        centres: (W,C) float32, the visual words (`asmk.open_codebook`).
        binary: bits, or numbers.
        alpha, threshold: of the selectivity function.
        device: which looks up words; the CPU where faiss has no GPU support.

    Attributes:
        settings: these, with a digest of the words.

    Raises UserError for numbers out of range, and without the packages asmk and faiss.
    """

    def __init__(self, centres: np.ndarray, binary: bool = True, alpha: float = 3.0,
                 threshold: float = 0.0, device: str | torch.device = "cpu"):
        if not 0 < alpha < np.inf:
            raise UserError(f"RERANK.ASMK.ALPHA is {alpha}: give a number above 0")
        if not 0 <= threshold <= 1:
            raise UserError(f"RERANK.ASMK.THRESHOLD is {threshold}: give 0 to 1")
        package, self.centres = asmk_package(), np.ascontiguousarray(centres, np.float32)
        self._codebook = package.codebook.Codebook(index_factory(device), size=len(centres))
        self._codebook.index(self.centres)
        self._kernel = package.kernel.ASMKKernel(self._codebook, binary=binary)
        self._selectivity = {"alpha": alpha, "similarity_threshold": threshold}
        self.settings = {"words": len(centres), "codebook": hashlib.sha256(self.centres).hexdigest(),
                         "binary": binary, "alpha": alpha, "threshold": threshold}

    def aggregated(self, descriptors: np.ndarray, assignments: int = 1) -> Aggregated:
        """An image of its local features (n,C), each assigned to so many of the nearest words."""
        assert descriptors.shape[1] == self.centres.shape[1], (descriptors.shape, self.centres.shape)
        assert 1 <= assignments <= len(self.centres)
        # One image at a time: in products of other sizes a feature between two words may fall otherwise
        _, words = self._codebook.quantize(descriptors, multiple_assignment=assignments)
        vectors, words = self._kernel.aggregate_image(descriptors, words)
        return Aggregated(words.astype(np.int32), vectors)

    def similarity(self, vector: np.ndarray, vectors: np.ndarray,
                   images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one word: the images (m,) of `images` (n,) that are similar enough by their vectors (n,B),
        and how much each counts, (m,) float32."""
        return self._kernel.similarity(vector, vectors, images, **self._selectivity)


class InvertedLists(NamedTuple):
    """Images 0 .. N - 1 by word.

    words: (w,) int32, ascending, those that some image has; starts: (w+1,) int64, word i's entries are
    starts[i] .. starts[i + 1] - 1 of images (V,) int32, ascending in each, and of vectors (V,B).
    sizes: (N,) int64, words of each image.
    """

    words: np.ndarray
    starts: np.ndarray
    images: np.ndarray
    vectors: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Aggregated]) -> "InvertedLists":
        """Of one image or more."""
        sizes = np.array([len(image.words) for image in images])
        words = np.concatenate([image.words for image in images])
        order = np.argsort(words, kind="stable")
        distinct, starts = np.unique(words[order], return_index=True)
        numbers = np.repeat(np.arange(len(images), dtype=np.int32), sizes)
        return cls(distinct, np.append(starts, len(words)), numbers[order],
                   np.concatenate([image.vectors for image in images])[order], sizes)

    def scores(self, query: Aggregated, kernel: MatchKernel) -> np.ndarray:
        """(N,) float64: how similar a query is to each image, 0 to 1; 0 without a word in common."""
        total = np.zeros(len(self.sizes))
        _, own, places = np.intersect1d(query.words, self.words, assume_unique=True, return_indices=True)
        for vector, place in zip(query.vectors[own], places):
            part = slice(self.starts[place], self.starts[place + 1])
            images, similarities = kernel.similarity(vector, self.vectors[part], self.images[part])
            total[images] += similarities       # an image has a word once
        return total / np.sqrt(np.maximum(self.sizes * len(query.words), 1))


def index_factory(device: str | torch.device):
    """The package's maker of faiss indexes, on a GPU where the device is one and faiss can use it."""
    index, device = asmk_package().index, torch.device(device)
    on_gpu = device.type == "cuda" and hasattr(index.faiss, "StandardGpuResources")
    return index.initialize_index((device.index or 0) if on_gpu else None)


def asmk_package() -> SimpleNamespace:
    """The modules codebook, index and kernel of the package asmk. Raises UserError without it."""
    try:
        from asmk import codebook, index, kernel
    except ImportError as error:
        if error.name == "faiss":
            raise UserError("ASMK needs faiss: pip install faiss-gpu (or faiss-cpu)") from None
        # What it asks for, faiss-cpu, has the files of faiss-gpu in it, and would replace them
        raise UserError(f"ASMK needs the package asmk ({error}): pip install --no-deps asmk") from None
    return SimpleNamespace(codebook=codebook, index=index, kernel=kernel)
