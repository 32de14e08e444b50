"""Descriptors on a plane: PCA of stores that are streamed, t-SNE and UMAP on what PCA leaves."""
import importlib
from collections.abc import Iterator, Sequence

import numpy as np

from dolg.errors import UserError, choose
from dolg.features.store import FeatureStore

# Dimensions that PCA leaves to t-SNE and UMAP: what differs beyond is noise, and time
_REDUCED = 50


def embed(stores: Sequence[FeatureStore], method: str = "pca",
          seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places (n,2) float64 of the images of stores, and their rows (n,), counted through all stores;
    images that failed have no place.

    method: pca; tsne (van der Maaten and Hinton, JMLR 2008; package scikit-learn) or umap (McInnes et
    al., 2018; package umap-learn), on the first 50 principal components. The same seed gives the same
    places. Raises UserError for another method, where a package is missing, for stores of different
    dimensions, and where fewer than 3 images are fine.
    """
    find = choose(METHODS, method, "--method")
    dims = {store.dim for store in stores}
    if len(dims) > 1:
        raise UserError(f"the stores have descriptors of {', '.join(map(str, sorted(dims)))} dimensions: "
                        "give stores that one network made")
    rows = np.flatnonzero(np.concatenate([store.status == 0 for store in stores]))
    if len(rows) < 3:
        raise UserError(f"{len(rows)} images have a descriptor: a map needs 3 or more")
    return find(stores, seed), rows


def principal_components(stores: Sequence[FeatureStore], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (n,count) float64 of the images that are fine, less their mean, along the directions of
    most variance; and the share of the variance along each, (count,).

    Stores are read twice, chunk by chunk. A direction's sign is that of its largest entry, so that it
    does not depend on the library.
    """
    dim = stores[0].dim
    total, squares, number = np.zeros(dim), np.zeros((dim, dim)), 0
    for chunk in _chunks(stores):
        total += chunk.sum(axis=0)
        squares += chunk.T @ chunk
        number += len(chunk)
    mean = total / number
    variances, directions = np.linalg.eigh(squares / number - np.outer(mean, mean))
    count = min(count, dim)
    directions = directions[:, ::-1][:, :count]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(count)])
    directions = directions * np.where(signs == 0, 1, signs)
    places = np.concatenate([(chunk - mean) @ directions for chunk in _chunks(stores)])
    variances = np.maximum(variances[::-1], 0)
    return places, variances[:count] / max(variances.sum(), 1e-300)


def _chunks(stores: Sequence[FeatureStore]) -> Iterator[np.ndarray]:
    """Descriptors (n,D) float64 of images that are fine, of a chunk at a time."""
    for store in stores:
        for index in range(store.num_chunks):
            chunk = store.chunk(index)
            yield chunk.descriptors[chunk.status == 0].astype(np.float64)


def _pca(stores: Sequence[FeatureStore], seed: int) -> np.ndarray:
    places = principal_components(stores, 2)[0]
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def _tsne(stores: Sequence[FeatureStore], seed: int) -> np.ndarray:
    package = _package("sklearn.manifold", "scikit-learn", "tsne")
    reduced = principal_components(stores, _REDUCED)[0].astype(np.float32)
    # The usual perplexity, which must be below the number of images
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    # Starts with the first two components, and so at what is alike far apart
    return _lying(package.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced))


def _umap(stores: Sequence[FeatureStore], seed: int) -> np.ndarray:
    package = _package("umap", "umap-learn", "umap")
    reduced = principal_components(stores, _REDUCED)[0].astype(np.float32)
    # Its spectral start needs more images than dimensions of the map, and some
    start = "spectral" if len(reduced) > 10 else "random"
    return _lying(package.UMAP(n_neighbors=min(15, len(reduced) - 1), random_state=seed, n_jobs=1,
                               init=start).fit_transform(reduced))


def _lying(places: np.ndarray) -> np.ndarray:
    """Places (n,2) turned so that they are spread most from left to right: these methods mean nothing by
    directions."""
    places = places - places.mean(axis=0, dtype=np.float64)
    return places @ np.linalg.eigh(places.T @ places)[1][:, ::-1]


def _package(module: str, name: str, method: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"--method {method} needs the package {name}: pip install {name}, or take "
                        "--method pca") from None


METHODS = {"pca": _pca, "tsne": _tsne, "umap": _umap}
