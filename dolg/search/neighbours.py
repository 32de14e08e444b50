"""The nearest neighbours of every image, found and kept in a folder, and their graph."""
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from dolg.errors import UserError
from dolg.files import atomic_file, write_atomically
from dolg.search.collection import Collection, gather
from dolg.search.exact import top_k

FORMAT, VERSION = "dolg-neighbours", 1
# Rows that search the database in one pass over it, and that a part holds
BLOCK_ROWS = 1 << 14
# A temporary file that nobody has written to for so long was left by a run that was killed
_ABANDONED_SECONDS = 86_400


class Neighbours(NamedTuple):
    """Per image its nearest neighbours, best first; ties go to the lower index.

    indexes: (N,k) int32, -1 where there are fewer than k.
    similarities: (N,k) float32 inner products, -inf there.
    """

    indexes: np.ndarray
    similarities: np.ndarray


class Search(Protocol):
    """A way to find neighbours that is not the exact one; `settings`, as JSON has it, say which."""

    settings: dict

    def nearest(self, descriptors: np.ndarray, k: int, own: np.ndarray | None) -> Neighbours:
        """As the function of that name, of its database."""


def nearest(
    descriptors: np.ndarray, database: np.ndarray | Iterable[np.ndarray], k: int,
    own: np.ndarray | None = None, device: str | torch.device = "cpu",
) -> Neighbours:
    """The k nearest database images of descriptors (R,D) by inner product, exact.

    database: (N,D), or chunks (n,D) of it. own: (R,) the index that each of the descriptors has in
    the database itself, and which is not among its neighbours. Images that failed, rows with NaN,
    are no neighbours and have none. Raises UserError as `exact.top_k` does.
    """
    indexes = np.full((len(descriptors), k), -1, np.int32)
    similarities = np.full((len(descriptors), k), -np.inf, np.float32)
    fine = np.flatnonzero(~np.isnan(descriptors).any(axis=1))
    chunks = [database] if isinstance(database, np.ndarray) else database
    for start in range(0, len(fine), BLOCK_ROWS):
        rows = fine[start:start + BLOCK_ROWS]
        scores, found = top_k(descriptors[rows], chunks, k if own is None else k + 1, device)
        if own is not None:
            scores, found = without_own(scores, found, own[rows])
        indexes[rows, :found.shape[1]], similarities[rows, :found.shape[1]] = found, scores
    return Neighbours(indexes, similarities)


def write_neighbours(
    folder: Path, queries: Collection, database: Collection, k: int, exclude_self: bool = False,
    device: str | torch.device = "cpu", search: Search | None = None,
) -> Neighbours:
    """`nearest` of all images of `queries`, memory-mapped from a folder; what it lacks is computed.

        manifest.json           of which stores, k; `search` if they were not found exactly
        indexes.npy             (N,k) int32
        similarities.npy        (N,k) float32
        part-000000.npz ...     of BLOCK_ROWS images, until all are there

    exclude_self: no image is its own neighbour; `queries` are the `database` then. search: of that
    database, in place of the exact one. A folder made with a larger k serves as well, and all that it
    has is returned. Several runs may share a folder: each takes what others have found. Raises
    UserError where it holds neighbours of other stores, or found otherwise, or fewer.
    """
    folder = Path(folder)
    assert not exclude_self or queries.digests == database.digests
    k = _agreed_k(folder, {
        "format": FORMAT, "version": VERSION, "count": len(queries), "k": k,
        "exclude_self": exclude_self, "part_rows": BLOCK_ROWS, "queries": queries.digests,
        "database": database.digests, **({"search": search.settings} if search else {})})
    files = [folder / f"{name}.npy" for name in Neighbours._fields]
    parts = [folder / f"part-{start // BLOCK_ROWS:06d}.npz"
             for start in range(0, len(queries), BLOCK_ROWS)]
    for number, part in enumerate(tqdm(parts, desc=f"neighbours of {len(queries)} images", unit="part",
                                       disable=None)):
        # Looked up anew each time, as another run may have found the part, or joined all
        if not part.exists() and not _all_there(files):
            start = number * BLOCK_ROWS
            rows = np.arange(start, min(start + BLOCK_ROWS, len(queries)))
            descriptors = gather(queries, rows, queries.dim)
            own = rows if exclude_self else None
            found = (search.nearest(descriptors, k, own) if search
                     else nearest(descriptors, database, k, own, device))
            with atomic_file(part) as file:
                np.savez(file, **found._asdict())
    _join(parts, files, (len(queries), k))
    _tidy(folder, parts)
    return _mapped(files)


def read_neighbours(folder: str | Path, digests: Sequence[str], k: int) -> Neighbours:
    """The neighbours of all images of stores among themselves, memory-mapped from a folder that
    `write_neighbours` has filled; all that it has, but at least k of each image.

    digests: `store_digest` of the stores, in order. Raises UserError where the folder is no such one,
    is not whole, or holds neighbours of other stores, or fewer.
    """
    folder = Path(folder)
    files = [folder / f"{name}.npy" for name in Neighbours._fields]
    manifest = _read_manifest(folder / "manifest.json")
    if manifest is None or not _all_there(files):
        raise UserError(f"{folder} holds no neighbours that are whole: find them with python "
                        f"tools/search.py neighbours STORE --top {k} --output {folder}")
    if not manifest["queries"] == manifest["database"] == list(digests):
        raise UserError(f"{folder} holds neighbours of other stores, or of these as they were before: "
                        "find them anew, in another folder")
    if manifest["k"] < k:
        raise UserError(f"{folder} holds {manifest['k']} neighbours of each image, and {k} are asked for: "
                        "find more, in another folder")
    return _mapped(files)


def mutual_graph(neighbours: Neighbours, k: int = 0) -> sparse.csr_matrix:
    """(N,N) float32: the similarity of images that are each among the other's first k neighbours.

    k: 0: all that the lists (N,m) have. Images of similarity 0 or less have no edge, as the powers of
    similarities ask for; the matrix is symmetric, and its diagonal is empty where the lists leave
    each image out of its own.
    """
    matrix = knn_matrix(neighbours.indexes, np.maximum(neighbours.similarities, 0), k)
    # The lesser of a similarity and of none is none; the two of a pair may be rounded differently
    return matrix.minimum(matrix.T.tocsr())


def knn_matrix(indexes: np.ndarray, values: np.ndarray | None = None, k: int = 0) -> sparse.csr_matrix:
    """(N,N): row i has values[i, j], or True, at column indexes[i, j], for the first k (0: all)
    columns of `indexes` (N,m), -1 for none, and of `values` (N,m).

    Raises UserError where the lists are shorter than k.
    """
    if k > indexes.shape[1]:
        raise UserError(f"{k} neighbours are asked for, but the lists have {indexes.shape[1]}")
    indexes = indexes[:, :k or None]
    there = indexes >= 0
    data = np.ones(there.sum(), bool) if values is None else values[:, :k or None][there]
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    matrix = sparse.csr_matrix((data, indexes[there], ends), (len(indexes), len(indexes)))
    matrix.sort_indices()
    return matrix


def neighbours_of(database: Collection, k: int, folder: Path,
                  device: str | torch.device = "cpu") -> Neighbours:
    """k or more neighbours of each database image, itself left out, in a folder."""
    return write_neighbours(folder, database, database, k, exclude_self=True, device=device)


def without_own(scores: np.ndarray, indexes: np.ndarray,
                own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Results (R,m) as (R,m-1): own[i] is left out of row i, or, where it is not there, the last."""
    others = indexes != own[:, None]
    others[others.all(axis=1), -1] = False
    shape = (len(indexes), max(0, indexes.shape[1] - 1))
    return scores[others].reshape(shape), indexes[others].reshape(shape)


def _agreed_k(folder: Path, manifest: dict) -> int:
    """The k of the folder's manifest, which is made if it is not there."""
    file = folder / "manifest.json"
    before = _read_manifest(file)
    if before is None:
        write_atomically(file, json.dumps(manifest, indent=1) + "\n")
        return manifest["k"]
    changed = [key for key in {**manifest, **before} if key != "k" and before.get(key) != manifest.get(key)]
    if changed or before["k"] < manifest["k"]:
        raise UserError(f"{folder} holds neighbours that were found otherwise ("
                        f"{', '.join(changed or ['k'])}): give another folder, or delete that one")
    return before["k"]


def _read_manifest(file: Path) -> dict | None:
    """What it says, None where it is not there. Raises UserError for another kind of file."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}): delete the folder") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("k"), int) or (
            manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{file} is no manifest of neighbours: give another folder")
    return manifest


def _mapped(files: list[Path]) -> Neighbours:
    return Neighbours(*(np.load(file, mmap_mode="r", allow_pickle=False) for file in files))


def _all_there(files: list[Path]) -> bool:
    return all(file.exists() for file in files)


def _join(parts: list[Path], files: list[Path], shape: tuple[int, int]) -> None:
    """The tables of all parts, one after another, in a file each, unless another run has made them."""
    try:
        if not _all_there(files):
            _write_joined(parts, files, shape)
    except FileNotFoundError:
        if not _all_there(files):       # else another run made them meanwhile, and removed the parts
            raise


def _write_joined(parts: list[Path], files: list[Path], shape: tuple[int, int]) -> None:
    for file, name, dtype in zip(files, Neighbours._fields, ("<i4", "<f4")):
        with atomic_file(file) as whole:
            np.lib.format.write_array_header_2_0(
                whole, {"descr": dtype, "fortran_order": False, "shape": shape})
            for part in parts:
                with np.load(part, allow_pickle=False) as tables:
                    whole.write(np.ascontiguousarray(tables[name], dtype))


def _tidy(folder: Path, parts: list[Path]) -> None:
    """Remove what nobody needs once the parts are joined. Another run may still write temporary files;
    what it does not find, it finds joined."""
    for part in parts:
        part.unlink(missing_ok=True)
    for temporary in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):       # its run has finished it
            if time.time() - temporary.stat().st_mtime > _ABANDONED_SECONDS:
                temporary.unlink()
