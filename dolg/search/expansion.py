"""Query expansion and database-side augmentation: descriptors averaged with their neighbours'."""
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.search import neighbours as neighbour_lists
from dolg.search.collection import Collection, as_chunks, gather, store_digest
from dolg.search.neighbours import Neighbours, nearest, neighbours_of
from revisitop.evaluation import check_made_alike

# Values of the neighbours' descriptors that are in memory at a time
_BLOCK_VALUES = 1 << 25
# What a manifest says of the files alone, and a writer says anew
_OF_THE_FILE = {"format", "version", "count", "dim", "chunk_size", "local_dim", "local_dtype"}


def expand_queries(
    queries: np.ndarray, database: np.ndarray | Iterable[np.ndarray], n: int, alpha: float = 0.0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Queries (Q,D) after query expansion, float32, of unit length.

    The sum of the query and of its n nearest database images, each times similarity^alpha; images of
    similarity 0 or less weigh 0 unless alpha is 0. alpha 0 is average query expansion (AQE; Chum et
    al., "Total Recall", ICCV 2007); larger ones are alpha-QE (Radenovic et al., "Fine-tuning CNN
    Image Retrieval with No Human Annotation", TPAMI 2019), whose code gives NaN for negative
    similarities.

    database: (N,D), or what gives it in chunks each time it is iterated over. Rows with NaN, images
    that failed, stay and are no neighbours. A sum of length 0 leaves the query as it is. Raises
    UserError for n < 1, alpha < 0, and as `exact.top_k` does.
    """
    _check(n, alpha)
    chunks = as_chunks(database)
    return weighted_means(queries, chunks, nearest(queries, chunks, n, device=device), alpha)


def augment(
    database: np.ndarray, n: int, alpha: float = 0.0, device: str | torch.device = "cpu",
) -> np.ndarray:
    """A database (N,D) after database-side augmentation (DBA; Arandjelovic and Zisserman, CVPR 2012;
    weighted: Gordo et al., IJCV 2017): each image as `expand_queries` has it, of itself and its n
    nearest other images, all as they were before.
    """
    _check(n, alpha)
    found = nearest(database, database, n, np.arange(len(database)), device)
    return weighted_means(database, [database], found, alpha)


def weighted_means(
    descriptors: np.ndarray, chunks: Iterable[np.ndarray], found: Neighbours, alpha: float
) -> np.ndarray:
    """Unit vectors (R,D), float32, of descriptors (R,D) plus their neighbours (R,n) among the rows of
    `chunks`, weighted by similarity^alpha."""
    out = np.empty(descriptors.shape, np.float32)
    block = max(1, _BLOCK_VALUES // (max(1, descriptors.shape[1]) * found.indexes.shape[1]))
    for start in range(0, len(descriptors), block):
        part = slice(start, start + block)
        own, indexes = np.asarray(descriptors[part], np.float64), np.asarray(found.indexes[part])
        there = indexes >= 0
        weights = np.maximum(found.similarities[part], 0, dtype=np.float64) ** alpha
        rows, places = np.unique(indexes[there], return_inverse=True)
        # A row of zeros, the last, stands in for neighbours that are not there
        table = np.pad(gather(chunks, rows, own.shape[1]), ((0, 1), (0, 0)))
        column = np.full(indexes.shape, len(rows))
        column[there] = places
        total = own.copy()
        for neighbour in range(indexes.shape[1]):
            total += weights[:, neighbour, None] * table[column[:, neighbour]]
        total = np.where(total.any(axis=1, keepdims=True), total, own)
        norms = np.linalg.norm(total, axis=1, keepdims=True)
        out[part] = total / np.where(norms == 0, 1, norms)
    return out


def expand_store(
    store: FeatureStore, database: Collection, path: Path, n: int, alpha: float = 0.0,
    first: int | None = None, neighbours: Neighbours | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Write a store's images, expanded among a database, to the store `path`, chunk by chunk; called
    again, it computes what is missing.

    The new manifest has all that the old one says of how descriptors were made, and what was done
    here as "expansion". Failed images stay so, local features are copied.

    Args:
        n, alpha: as for `expand_queries`.
        first: the database index of the store's first image where it is part of the database
            (DBA: no image is its own neighbour); None for queries.
        neighbours: of all database images, from elsewhere such as an approximate index; used in
            place of a search, only with `first`. Failed images in them, and an image in its own
            list, are passed over.

    Raises UserError for n < 1, alpha < 0, lists that do not fit, a `path` made by other settings, and
    StoreError for stores that are damaged or were made by different models.
    """
    _check(n, alpha)
    check_made_alike([store, *database.stores])
    writer = _writer(store, database, path, n, alpha, first, neighbours is not None)
    _fill(writer, store, database, n, alpha, first, neighbours, device)


def augment_stores(
    database: Collection, paths: Sequence[Path], n: int, alpha: float = 0.0, folder: Path | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Write the first len(paths) stores of a database, augmented among all of it, to `paths`.

    folder: of `neighbours.neighbours_of`, filled if it is not whole; None: nothing else is written.
    Raises as `expand_store` does.
    """
    _check(n, alpha)
    check_made_alike(database.stores)
    if len(paths) > len(database.stores):
        raise UserError(f"{len(paths)} new stores are named for a database of {len(database.stores)}")
    # All of them before the search, which may take hours: none may be a store of something else
    writers = [_writer(store, database, path, n, alpha, first, folder is not None)
               for store, first, path in zip(database.stores, database.starts, paths)]
    lists = None if folder is None else neighbours_of(database, n, folder, device)
    for writer, store, first in zip(writers, database.stores, database.starts):
        _fill(writer, store, database, n, alpha, first, lists, device)


def _writer(store: FeatureStore, database: Collection, path: Path, n: int, alpha: float,
            first: int | None, given: bool) -> StoreWriter:
    """Of the new store; given: whether the neighbours are. Raises UserError where `path` holds another."""
    try:
        return StoreWriter(path, store.names, store.dim, store.chunk_size,
                           _provenance(store, database, n, alpha, first, given),
                           store.local_dim, store.manifest.get("local_dtype", "float16"))
    except UserError as error:
        # The words are for who extracts; here there is no configuration
        raise UserError(str(error).replace("INFER.OUT_DIR", "--output")) from None


def _fill(writer: StoreWriter, store: FeatureStore, database: Collection, n: int, alpha: float,
          first: int | None, neighbours: Neighbours | None, device: str | torch.device) -> None:
    """Compute and write the chunks that are missing, as `expand_store` has it."""
    lists = None if neighbours is None else _usable_lists(neighbours, database, n, first, store.count)
    writer.create()
    reasons = store.reasons()
    with tqdm(total=store.count, initial=writer.count_written(), unit="image",
              desc=writer.path.name, disable=None) as bar:
        for chunks in _unfinished(writer):
            rows = np.arange(writer.rows(chunks[0]).start, writer.rows(chunks[-1]).stop)
            descriptors = store.rows(rows)
            if lists is None:
                own = None if first is None else first + rows
                found = nearest(descriptors, database, n, own, device)
            else:
                found = Neighbours(*(table[rows] for table in lists))
            means = weighted_means(descriptors, database, found, alpha)
            for chunk in chunks:
                bar.update(_write_chunk(writer, chunk, means, rows[0], store, reasons))
    writer.remove_leftovers()


def _write_chunk(writer: StoreWriter, chunk: int, means: np.ndarray, start: int, store: FeatureStore,
                 reasons: dict[int, str]) -> int:
    """Write a chunk that is missing, of means (R,D) of images from `start` on; the images written."""
    if writer.is_written(chunk):
        return 0
    rows = writer.rows(chunk)
    errors = {row - rows.start: reasons[row] for row in rows if row in reasons}
    local = _local(store, rows) if store.local_dim else None
    writer.write_chunk(chunk, means[rows.start - start:rows.stop - start], errors, local)
    return len(rows)


def _local(store: FeatureStore, rows: range) -> LocalTable:
    images = map(store.local, rows)
    return LocalTable.joined([(image.descriptors, image.xy, image.scales, image.scores)
                              for image in images])


def _unfinished(writer: StoreWriter) -> Iterator[range]:
    """Runs of chunks, of about a block of rows each, of which some are missing.

    They are the same whatever is missing: a search of other rows together may round differently.
    """
    missing = set(writer.missing_chunks())
    size = max(1, neighbour_lists.BLOCK_ROWS // writer.chunk_size)
    for start in range(0, writer.num_chunks, size):
        chunks = range(start, min(start + size, writer.num_chunks))
        if missing.intersection(chunks):
            yield chunks


def _provenance(store: FeatureStore, database: Collection, n: int, alpha: float, first: int | None,
                given: bool) -> dict:
    kept = {key: value for key, value in store.manifest.items() if key not in _OF_THE_FILE}
    expansion = {"method": "query expansion" if first is None else "database-side augmentation",
                 "n": n, "alpha": alpha, "source": store_digest(store), "database": database.digests,
                 "neighbours": "given" if given else "exact"}
    if "expansion" in kept:
        expansion["after"] = kept["expansion"]
    return {**kept, "expansion": expansion}


def _usable_lists(neighbours: Neighbours, database: Collection, n: int, first: int | None,
                  count: int) -> Neighbours:
    """The first n neighbours (count,n) that are there, of the images from `first` on."""
    indexes, similarities = neighbours
    if first is None:
        raise UserError("neighbours of the database are given, but the images to expand are queries")
    if indexes.shape != similarities.shape or len(indexes) != len(database):
        raise UserError(f"neighbours have the shapes {indexes.shape} and {similarities.shape}; there "
                        f"must be a row for each of the {len(database)} database images")
    if indexes.shape[1] < n:
        raise UserError(f"{n} neighbours are asked for, but the lists have {indexes.shape[1]}")
    indexes, similarities = (np.array(table[first:first + count]) for table in neighbours)
    if len(indexes) and (indexes.max() >= len(database) or indexes.min() < -1):
        raise UserError(f"a neighbour is not among the database's {len(database)} images")
    failed = np.concatenate([store.status != 0 for store in database.stores])
    wrong = (indexes < 0) | failed[indexes] | (indexes == first + np.arange(count)[:, None])
    indexes[wrong], similarities[wrong] = -1, -np.inf
    order = np.argsort(wrong, axis=1, kind="stable")[:, :n]
    return Neighbours(*(np.take_along_axis(table, order, 1) for table in (indexes, similarities)))


def _check(n: int, alpha: float) -> None:
    if n < 1:
        raise UserError(f"n is {n}: give the number of neighbours, 1 or more")
    if not 0 <= alpha < np.inf:
        raise UserError(f"alpha is {alpha}: give 0 (all neighbours alike) or more")
