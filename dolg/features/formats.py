"""Descriptors in the files of other codes: read into a feature store, and written from one.

    .pickle, .pkl   the original DOLG: a dictionary from image name to descriptor; the original
                    DELG: from image name to a dictionary of locations, descriptors and scores
    .mat            revisitop: one table per key, such as Q and X, a column per image
    .npy            a table, a row per image, and NAME.txt beside it with a name per line
    .h5, .hdf5      hloc: a group per image, with global_descriptor, or keypoints, descriptors, scores
    a folder        TensorFlow's DELG: NAME.delg_global, and NAME.delg_local where they are (delg_files.py)
"""
import json
import os
import tokenize
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.features.delg_files import import_delg
from dolg.features.imported import Imported, joined, local_features, numbers, stacked
from dolg.features.isolated import Reader
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.files import atomic_file, write_atomically
from revisitop.pickles import PickleError, load_plain_pickle, text_of


def import_file(path: Path, key: str = "", names: Path | None = None, transpose: bool = False) -> Imported:
    """The descriptors in a file or folder of one of the formats above.

    Args:
        key: of a .mat with several tables.
        names: for .mat and .npy, a text file with a name per line; else images are numbered.
        transpose: for .mat and .npy, take rows for columns.

    Raises UserError for what is not there, or not in that format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.suffix not in (".mat", ".npy") or path.is_dir():
        for option, value in (("--names", names), ("--transpose", transpose)):
            if value:
                raise UserError(f"{option} is for .mat and .npy; {path.name} names its images itself")
    if path.is_dir():
        return import_delg(path)
    if not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if path.suffix in (".pickle", ".pkl"):
        return _import_pickle(path)
    if path.suffix in (".h5", ".hdf5"):
        return _import_hdf5(path)
    if path.suffix == ".mat":
        with Reader() as reader:
            return _tabular(path, reader.read(path, key)["table"], names, transpose)
    if path.suffix == ".npy":
        beside = path.with_suffix(".txt")
        return _tabular(path, _numpy_table(path), names or (beside if beside.exists() else None), transpose)
    raise UserError(f"{path} ends in none of .pickle, .pkl, .mat, .npy, .h5 and .hdf5, and is not a "
                    "folder of .delg_global files")


def store_imported(imported: Imported, path: Path, source: Path, chunk_size: int) -> None:
    """Write a store of what was imported from `source`; rows that are not finite are failures. Raises
    UserError where no image is left."""
    local, failed = imported.local, imported.failures()
    if len(failed) == len(imported.names):
        raise UserError(f"{source} holds no {'descriptor that is finite' if failed else 'images'}")
    if not imported.descriptors.shape[1] and not local:
        raise UserError(f"{source} holds {len(imported.names)} images, but neither descriptors nor local "
                        "features")
    writer = StoreWriter(path, imported.names, imported.descriptors.shape[1], chunk_size,
                         {"imported_from": source.name, "imported_digest": imported.digest()},
                         local.descriptors.shape[1] if local else 0)
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        errors = {row - rows.start: f"{failed[row]} in {source.name}" for row in rows if row in failed}
        writer.write_chunk(chunk, imported.descriptors[rows.start:rows.stop], errors,
                           local.of_images(rows.start, rows.stop) if local else None)


def export_store(store: FeatureStore, path: Path, key: str = "X") -> None:
    """Write a store's descriptors as the ending of `path` says. Failed images are left out, or in the
    formats without names (.mat, .npy) rows of NaN.

    Raises UserError for an ending that is not known.
    """
    writers: dict[str, Callable] = {".pickle": _export_pickle, ".pkl": _export_pickle,
                                    ".npy": _export_numpy, ".h5": _export_hdf5,
                                    ".hdf5": _export_hdf5}
    if path.suffix == ".mat":
        _export_matlab(store, path, key)
    elif path.suffix in writers:
        writers[path.suffix](store, path)
    else:
        raise UserError(f"{path} ends in none of .mat, {', '.join(writers)}")


# ------------------------------------------------------------------ pickled dictionaries

def _import_pickle(path: Path) -> Imported:
    try:
        entries = load_plain_pickle(path)
    except PickleError as error:
        raise UserError(str(error)) from None
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path} holds no dictionary from image name to descriptor")
    names = [text_of(name) for name in entries]
    try:
        if all(isinstance(entry, dict) for entry in entries.values()):
            parts = [_delg_entry(path, name, entry) for name, entry in zip(names, entries.values())]
            return Imported(names, np.empty((len(names), 0), np.float32), joined(path, parts))
        rows = [numbers(entry, f"{path}: {name}").reshape(-1) for name, entry in zip(names, entries.values())]
        return Imported(names, stacked(path, names, rows))
    except (TypeError, ValueError) as error:        # lists of unlike lists
        raise UserError(f"{path} is not laid out as such files are ({error})") from None


def _delg_entry(path: Path, name: str, entry: dict) -> tuple[np.ndarray, ...]:
    """DELG saves no global descriptors and no scales, and locations as rows and columns."""
    lacking = [field for field in ("locations", "descriptors", "scores") if field not in entry]
    if lacking:
        raise UserError(f"{path}: {name} has no {' and no '.join(lacking)}")
    locations = numbers(entry["locations"], f"{path}: {name}: locations")
    return local_features(f"{path}: {name}", entry["descriptors"], np.flip(locations, -1), None,
                          entry["scores"])


def _export_pickle(store: FeatureStore, path: Path) -> None:
    import pickle

    entries = {name: row[None] for name, row in _rows(store)}
    with atomic_file(path) as file:
        pickle.dump(entries, file, protocol=2)      # what the originals write


# ------------------------------------------------------------------ tables

def _tabular(path: Path, table: np.ndarray, names: Path | None, transpose: bool) -> Imported:
    """The images of a table (n,D). Where names are for its columns alone, these are the images."""
    if not table.size:      # it may claim any number of rows
        raise UserError(f"{path} holds no numbers: its shape is {table.shape}")
    if transpose:
        table = table.T
    count, dim = table.shape
    lines, notes = None, []
    if names is not None:
        lines = _lines(names)
        if len(lines) == dim != count and not transpose:
            table = table.T
            notes.append(f"{names} names {dim} images, and {path} was read as {count} of {dim} dimensions: "
                         "it was transposed")
        elif len(lines) != count:
            raise UserError(f"{names} names {len(lines)} images, but {path} has {count} of {dim} dimensions")
    elif count < dim and not transpose:
        notes.append(f"{path} was read as {count} images of {dim} dimensions; if it is {dim} images of "
                     f"{count} dimensions, import it with --transpose, or with --names")
    lines = lines or [str(row) for row in range(len(table))]
    return Imported(lines, np.ascontiguousarray(table), None, notes)


def _lines(names: Path) -> list[str]:
    if not names.is_file():
        raise UserError(f"{names} is not a file of names")
    content = names.read_bytes().removeprefix(b"\xef\xbb\xbf")        # Notepad's mark of UTF-8
    lines = [line.removesuffix("\r") for line in os.fsdecode(content).split("\n")]
    return [line for line in lines if line.strip()]


def _export_matlab(store: FeatureStore, path: Path, key: str) -> None:
    from scipy.io import savemat

    if store.count * store.dim * 4 >= 2 ** 32:
        raise UserError(f"{store.path} has {store.count} x {store.dim} numbers, more than the 4 GiB "
                        "that a .mat file holds: take .npy")
    with atomic_file(path) as file:
        savemat(file, {key: np.asarray(store.global_descriptors()).T})


def _numpy_table(path: Path) -> np.ndarray:
    # Not np.load, which reads archives and pickles, too. The header, at most 10,000 bytes, goes through
    # Python's parser, which has exceptions of its own; a table beyond the end of the file is refused
    try:
        with warnings.catch_warnings(action="ignore"):      # of Python 2's headers, and of overflows
            table = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, KeyError, SyntaxError, OverflowError, MemoryError, RecursionError,
            tokenize.TokenError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is not a table that NumPy can read ({reason})") from None
    if table.ndim != 2:
        raise UserError(f"{path} has the shape {table.shape}: a table has a row per image")
    return numbers(table, str(path))


def _export_numpy(store: FeatureStore, path: Path) -> None:
    with atomic_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (store.count, store.dim)}
        np.lib.format.write_array_header_2_0(file, header)
        for chunk in store.chunks():
            file.write(np.ascontiguousarray(chunk, "<f4"))
    names = "".join(f"{name}\n" for name in store.names)
    write_atomically(path.with_suffix(".txt"), os.fsencode(names))


# ------------------------------------------------------------------ HDF5, as hloc has it

def _import_hdf5(path: Path) -> Imported:
    with Reader() as reader:
        arrays = reader.read(path)
    names, descriptors = json.loads(arrays.pop("names").tobytes()), arrays.pop("global")
    return Imported(names, descriptors, LocalTable(**arrays) if arrays else None)


def _export_hdf5(store: FeatureStore, path: Path) -> None:
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need the package h5py: pip install h5py") from None
    with atomic_file(path) as file, h5py.File(file, "w") as target:
        for index, (name, row) in enumerate(_rows(store, failed=True)):
            if not np.isfinite(row).all():
                continue
            group = target.create_group(name)
            group["global_descriptor"] = row
            if store.local_dim:
                local = store.local(index)
                group["keypoints"], group["scores"] = local.xy, local.scores
                group["descriptors"], group["scales"] = local.descriptors.T, local.scales


def _rows(store: FeatureStore, failed: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Names and descriptors, chunk by chunk, in order."""
    for index in range(store.num_chunks):
        chunk = store.chunk(index)
        for name, row, status in zip(chunk.names, chunk.descriptors, chunk.status):
            if failed or status == 0:
                yield name, np.asarray(row, np.float32)
