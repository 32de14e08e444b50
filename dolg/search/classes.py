"""Metrics of metric learning, where an image is right if its class is: Recall@K, MAP@R, NMI."""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dolg.errors import UserError
from dolg.search.exact import top_k

# What is in memory at once, whatever the number of images: queries, and results of queries
# (each takes 12 bytes in the search and, for a while, about as much again here).
QUERIES_AT_ONCE = 1 << 14
RESULTS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ClassMetrics:
    """What `evaluate_classes` finds; all shares are in 0..1.

    recall: K -> share of all queries with an image of their class among the first K results.
    map_at_r, r_precision: means over the scored queries; NaN if there is none.
    queries, gallery: number of images on each side, failed ones included.
    unscored: queries without a (further) gallery image of their class.
    failed: queries without a descriptor; unless unscored, they count as 0 everywhere.
    """

    recall: dict[int, float]
    map_at_r: float
    r_precision: float
    queries: int
    gallery: int
    unscored: int
    failed: int


def evaluate_classes(
    queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray | Iterable[np.ndarray],
    gallery_labels: np.ndarray, ks: Sequence[int], self_retrieval: bool,
    device: str | torch.device = "cpu",
) -> ClassMetrics:
    """Recall@K, MAP@R and R-precision of queries (Q, D), by inner product.

    gallery: descriptors (N, D), or what gives them in order as chunks (n, D) each time it is
    iterated over: a list of arrays, `FeatureStore.global_descriptors()`; not a generator.
    query_labels (Q,), gallery_labels (N,): whole numbers, the classes.
    self_retrieval: the gallery is the queries, in the same order; query i does not find image i,
    but does find its duplicates. Otherwise the two are different images, as in In-shop.

    MAP@R and R-precision are those of Musgrave et al., "A Metric Learning Reality Check" (ECCV
    2020), with R the number of gallery images of the query's class, itself not counted:
    R-precision is the share of the first R results that is of the class, MAP@R the sum over the
    places i <= R that hold one of the precision at i, divided by R. Queries with R = 0 are left
    out of both and reported as `unscored`; in Recall@K they count as misses, as in the CGD code.

    A row that holds NaN is an image that failed: as a query it scores 0, in the gallery it is
    never found, and still counts in R. Equal scores go to the lower index.

    The gallery is read once for every QUERIES_AT_ONCE queries, or fewer if they need very many
    results; classes are grouped by size, so that a large one costs the others nothing.

    Raises UserError for k < 1, labels that are not whole numbers or not one per image, no
    queries, infinite values, and descriptors of different lengths.
    """
    chunks = [gallery] if isinstance(gallery, np.ndarray) else gallery
    if iter(chunks) is chunks:
        raise TypeError("the gallery is read several times: give a list, not a generator")
    _check_ks(ks)
    images = sum(len(chunk) for chunk in chunks)
    query_labels = _checked_labels(query_labels, len(queries), "queries")
    gallery_labels = _checked_labels(gallery_labels, images, "gallery images")
    if not len(queries):
        raise UserError("there are no queries to evaluate")
    assert not self_retrieval or np.array_equal(query_labels, gallery_labels)
    relevant = _count_of(query_labels, gallery_labels) - self_retrieval
    found = _Found(len(queries), ks)
    valid = _valid_rows(queries)
    depths = np.maximum(relevant, max(ks))
    for members in _groups(valid, depths[valid] + self_retrieval):
        depth = int(depths[members].max())
        _, indexes = top_k(queries[members], chunks, depth + self_retrieval, device)
        hits = gallery_labels[indexes] == query_labels[members, None]
        if self_retrieval:
            hits = _without_self(hits, indexes, members)
        found.add(members, hits, relevant[members])
    scored = relevant > 0
    return ClassMetrics(
        {k: float(found.recall[k].mean()) for k in ks},
        *(float(values[scored].mean()) if scored.any() else float("nan")
          for values in (found.average_precision, found.r_precision)),
        len(queries), images, int((~scored).sum()), len(queries) - len(valid))


def clustering_nmi(
    descriptors: np.ndarray, labels: np.ndarray, device: str | torch.device = "cpu", seed: int = 0
) -> float:
    """How well k-means with one cluster per class finds the classes: an NMI in 0..1.

    descriptors: (N, D), failed images as rows with NaN, which are left out; labels: (N,) whole
    numbers. faiss's k-means, 25 iterations, on a GPU if `device` is one and faiss can use it.
    The same `seed` gives the same clusters, on one machine. Raises UserError if faiss is
    missing, and where every image failed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError("k-means for NMI needs faiss: pip install faiss-gpu (or faiss-cpu)"
                        ) from None
    labels = _checked_labels(labels, len(descriptors), "images")
    valid = _valid_rows(descriptors)
    if not len(valid):
        raise UserError("NMI needs descriptors: every image failed")
    points, labels = np.ascontiguousarray(descriptors[valid], np.float32), labels[valid]
    on_gpu = torch.device(device).type == "cuda" and faiss.get_num_gpus() > 0
    # faiss warns of fewer than 39 points per centroid, but small classes are usual here
    kmeans = faiss.Kmeans(points.shape[1], len(np.unique(labels)), niter=25, seed=seed,
                          min_points_per_centroid=1, gpu=on_gpu)
    kmeans.train(points)
    return normalised_mutual_information(labels, kmeans.assign(points)[1])


def normalised_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two labellings (N,), N > 0, over the mean of their entropies.

    In 0..1; 1 if both have a single class, which says the same of every image.
    """
    (_, a), (_, b) = (np.unique(labels, return_inverse=True) for labels in (a, b))
    # Only the cells of the contingency table that are not empty: at most N
    cells, counts = np.unique(a * (b.max() + 1) + b, return_counts=True)
    of_a, of_b, joint = np.bincount(a) / len(a), np.bincount(b) / len(b), counts / len(a)
    entropies = -(of_a @ np.log(of_a)) - (of_b @ np.log(of_b))
    if entropies == 0:
        return 1.0
    independent = of_a[cells // (b.max() + 1)] * of_b[cells % (b.max() + 1)]
    return float(np.clip(2 * (joint @ np.log(joint / independent)) / entropies, 0, 1))


class _Found:
    """What is known of each query: whether it has a hit among its first k, for each k, and its
    average precision and precision at R. All are 0 until its results are added."""

    def __init__(self, queries: int, ks: Sequence[int]):
        self.recall = {k: np.zeros(queries, bool) for k in ks}
        self.average_precision, self.r_precision = np.zeros((2, queries))

    def add(self, members: np.ndarray, hits: np.ndarray, relevant: np.ndarray) -> None:
        """hits (n, m): whether each result, best first, is of the class of the query
        `members[i]`, which has relevant[i] gallery images."""
        for k, recall in self.recall.items():
            recall[members] = hits[:, :k].any(axis=1)
        # m may be below R, where images of the gallery failed
        hits = hits[:, :relevant.max()]
        places = np.arange(1, hits.shape[1] + 1)
        hits = hits & (places <= relevant[:, None])
        precision = np.cumsum(hits, axis=1) / places
        at_least_one = np.maximum(relevant, 1)
        self.r_precision[members] = hits.sum(axis=1) / at_least_one
        self.average_precision[members] = (precision * hits).sum(axis=1) / at_least_one


def _groups(rows: np.ndarray, depths: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of `rows` that can be searched together; depths[i] is the results that rows[i] needs.

    Depths in a part differ by less than a factor of two.
    """
    levels = np.frexp(depths)[1]
    for level in np.unique(levels):
        here = levels == level
        members = rows[here]
        size = max(1, min(QUERIES_AT_ONCE, RESULTS_AT_ONCE // int(depths[here].max())))
        yield from (members[i:i + size] for i in range(0, len(members), size))


def _without_self(hits: np.ndarray, indexes: np.ndarray, members: np.ndarray) -> np.ndarray:
    """hits (n, m - 1): query members[i]'s result members[i] is taken out, or, where it is not
    among the results (n, m), the last of them."""
    others = indexes != members[:, None]
    others[others.all(axis=1), -1] = False
    return hits[others].reshape(len(hits), -1)


def _count_of(labels: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How often each of `labels` (n,) occurs in `among`; int64 (n,)."""
    ordered = np.sort(among)
    return (np.searchsorted(ordered, labels, side="right")
            - np.searchsorted(ordered, labels, side="left"))


def _valid_rows(descriptors: np.ndarray) -> np.ndarray:
    """Indexes of the rows without NaN. Raises UserError for infinite values in them."""
    infinite = np.isinf(descriptors).any(axis=1)
    if infinite.any():
        raise UserError(f"row {int(infinite.argmax())} of the descriptors holds an infinite value")
    return np.flatnonzero(~np.isnan(descriptors).any(axis=1))


def _check_ks(ks: Sequence[int]) -> None:
    if not len(ks) or min(ks) < 1:
        raise UserError(f"Recall@K is asked for K = {', '.join(map(str, ks)) or 'nothing'}; "
                        "give one or more whole numbers from 1")


def _checked_labels(labels: np.ndarray, images: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (images,):
        raise UserError(f"{images} {what} have labels of shape {labels.shape}; "
                        "each image must have one")
    if images and labels.dtype.kind not in "iu":
        raise UserError(f"the labels of the {what} are {labels.dtype}; they must be whole numbers")
    return labels
