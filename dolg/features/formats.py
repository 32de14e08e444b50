"""Descriptors in the files of other codes: read into a feature store, and written from one.

    .pickle, .pkl   the original DOLG: a dictionary from image name to descriptor; the original
                    DELG: from image name to a dictionary of locations, descriptors and scores
    .mat            revisitop: one table per key, such as Q and X, a column per image
    .npy            a table, a row per image, and NAME.txt beside it with a name per line
    .h5, .hdf5      hloc: a group per image, with global_descriptor, or keypoints, descriptors, scores
    a folder        TensorFlow's DELG: NAME.delg_global, and NAME.delg_local where they are
"""
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.files import atomic_file, write_atomically
from revisitop.pickles import PickleError, load_plain_pickle, text_of


@dataclass
class Imported:
    """What a file of another code holds.

    Attributes:
        names: of the images.
        descriptors: (n,D) float32; a row of NaN where an image has none, D = 0 where none has.
        local: of all images, or None.
    """

    names: list[str]
    descriptors: np.ndarray
    local: LocalTable | None = None

    def digest(self) -> str:
        """SHA-256 of the names and all numbers."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for table in (self.descriptors, *(vars(self.local).values() if self.local else ())):
            digest.update(np.ascontiguousarray(table))
        return digest.hexdigest()


def import_file(path: Path, key: str = "", names: Path | None = None) -> Imported:
    """The descriptors in a file or folder of one of the formats above.

    Args:
        key: of a .mat with several tables.
        names: a text file with a name per line, where the format has none; else images are
            numbered.

    Raises UserError for what is not there, or not in that format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return _import(path, key, names)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, EOFError, zlib.error) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is not laid out as such files are ({reason})") from None


def _import(path: Path, key: str, names: Path | None) -> Imported:
    if path.is_dir():
        return _import_delg(path)
    readers = {".pickle": _import_pickle, ".pkl": _import_pickle, ".h5": _import_hdf5,
               ".hdf5": _import_hdf5}
    if path.suffix in readers:
        return readers[path.suffix](path)
    if path.suffix == ".mat":
        table = _matlab_table(path, key)
    elif path.suffix == ".npy":
        table = _numpy_table(path)
        names = names or (path.with_suffix(".txt") if path.with_suffix(".txt").exists() else None)
    else:
        raise UserError(f"{path} ends in none of .pickle, .pkl, .mat, .npy, .h5 and .hdf5, and is no "
                        "folder of .delg_global files")
    return Imported(_names_for(table, names, path), np.ascontiguousarray(table, np.float32))


def store_imported(imported: Imported, path: Path, source: Path, chunk_size: int) -> None:
    """Write a store of what was imported from `source`; rows that are not finite are failures."""
    local = imported.local
    writer = StoreWriter(path, imported.names, imported.descriptors.shape[1], chunk_size,
                         {"imported_from": source.name, "imported_digest": imported.digest()},
                         local.descriptors.shape[1] if local else 0)
    fine = np.isfinite(imported.descriptors).all(axis=1)
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        part = slice(rows.start, rows.stop)
        errors = {int(row): f"no descriptor in {source.name}" for row in np.flatnonzero(~fine[part])}
        writer.write_chunk(chunk, imported.descriptors[part], errors,
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
    if isinstance(next(iter(entries.values())), dict):
        # DELG saves no global descriptors and no scales, and locations as rows and columns
        parts = [(np.asarray(entry["descriptors"]), np.asarray(entry["locations"])[:, ::-1],
                  np.full(len(entry["scores"]), np.nan), np.asarray(entry["scores"]).reshape(-1))
                 for entry in entries.values()]
        return Imported(names, np.empty((len(names), 0), np.float32), LocalTable.joined(parts))
    rows = [np.asarray(entry, np.float32).reshape(-1) for entry in entries.values()]
    if len({len(row) for row in rows}) != 1:
        raise UserError(f"{path} holds descriptors of different lengths")
    return Imported(names, np.stack(rows))


def _export_pickle(store: FeatureStore, path: Path) -> None:
    import pickle

    entries = {name: row[None] for name, row in _rows(store)}
    with atomic_file(path) as file:
        pickle.dump(entries, file, protocol=2)      # what the originals write


# ------------------------------------------------------------------ tables

def _matlab_table(path: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        tables = {name: table for name, table in loadmat(path).items() if name[0] != "_"}
    except (MatReadError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is no .mat file that SciPy can read: {error}") from None
    if not key and len(tables) == 1:
        key = next(iter(tables))
    if key not in tables:
        raise UserError(f"{path} holds the tables {', '.join(sorted(tables))}: say which with --key")
    table = np.asarray(tables[key])
    # revisitop has a column per image; the original DOLG a list of rows, one (1,D) each
    return table.reshape(len(table), -1) if table.ndim == 3 else table.T


def _export_matlab(store: FeatureStore, path: Path, key: str) -> None:
    from scipy.io import savemat

    if store.count * store.dim * 4 >= 2 ** 32:
        raise UserError(f"{store.path} has {store.count} x {store.dim} numbers, more than the 4 GiB "
                        "that a .mat file holds: take .npy")
    with atomic_file(path) as file:
        savemat(file, {key: np.asarray(store.global_descriptors()).T})


def _numpy_table(path: Path) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path} is no table that NumPy can read: {error}") from None
    if table.ndim != 2:
        raise UserError(f"{path} has the shape {table.shape}: a table has a row per image")
    return table


def _export_numpy(store: FeatureStore, path: Path) -> None:
    with atomic_file(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (store.count, store.dim)}
        np.lib.format.write_array_header_2_0(file, header)
        for chunk in store.chunks():
            file.write(np.ascontiguousarray(chunk, "<f4"))
    names = "".join(f"{name}\n" for name in store.names)
    write_atomically(path.with_suffix(".txt"), os.fsencode(names))


def _names_for(table: np.ndarray, names: Path | None, path: Path) -> list[str]:
    if names is None:
        return [str(row) for row in range(len(table))]
    lines = [line for line in os.fsdecode(names.read_bytes()).splitlines() if line.strip()]
    if len(lines) != len(table):
        raise UserError(f"{names} names {len(lines)} images, but {path} has {len(table)}")
    return lines


# ------------------------------------------------------------------ HDF5, as hloc has it

def _h5py():
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need the package h5py: pip install h5py") from None
    return h5py


def _import_hdf5(path: Path) -> Imported:
    h5py = _h5py()
    found: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item) -> None:
        image, _, field = name.rpartition("/")      # names of images may have slashes, too
        if isinstance(item, h5py.Dataset) and image:
            found.setdefault(image, {})[field] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise UserError(f"{path} is no HDF5 file: {error}") from None
    if not found:
        raise UserError(f"{path} has no group per image")
    names = sorted(found)
    dims = {entry["global_descriptor"].size for entry in found.values()
            if "global_descriptor" in entry}
    has_local = any("keypoints" in entry for entry in found.values())
    if not dims and not has_local:
        raise UserError(f"{path} has neither global_descriptor nor keypoints in any group")
    if len(dims) > 1:
        raise UserError(f"{path} holds descriptors of different lengths")
    descriptors = np.full((len(names), dims.pop() if dims else 0), np.nan, np.float32)
    for row, name in enumerate(names):
        if "global_descriptor" in found[name]:
            descriptors[row] = found[name]["global_descriptor"].reshape(-1)
    local = LocalTable.joined([_hloc_features(found[name]) for name in names]) if has_local else None
    return Imported(names, descriptors, local)


def _hloc_features(entry: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Of a group, as `LocalTable.joined` takes them. hloc's descriptors have a column per keypoint."""
    if "keypoints" not in entry:
        return np.empty((0, 0)), np.empty((0, 2)), np.empty(0), np.empty(0)
    count = len(entry["keypoints"])
    return (entry["descriptors"].T, entry["keypoints"], entry.get("scales", np.full(count, np.nan)),
            entry["scores"])


def _export_hdf5(store: FeatureStore, path: Path) -> None:
    with atomic_file(path) as file, _h5py().File(file, "w") as target:
        for index, (name, row) in enumerate(_rows(store, failed=True)):
            if not np.isfinite(row).all():
                continue
            group = target.create_group(name)
            group["global_descriptor"] = row
            if store.local_dim:
                local = store.local(index)
                group["keypoints"], group["scores"] = local.xy, local.scores
                group["descriptors"], group["scales"] = local.descriptors.T, local.scales


# ------------------------------------------------------------------ TensorFlow's DELG

def _import_delg(folder: Path) -> Imported:
    files = sorted(folder.rglob("*.delg_global"))
    if not files:
        raise UserError(f"the folder {folder} holds no .delg_global files")
    datum, features = _delf_messages()
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    table = np.stack([_array(_parsed(datum, file)).reshape(-1) for file in files])
    locals_ = [file.with_suffix(".delg_local") for file in files]
    if not all(file.exists() for file in locals_):
        return Imported(names, table)
    parts = []
    for file in locals_:
        found = _parsed(features, file).feature
        parts.append((np.stack([_array(f.descriptor) for f in found]) if found else np.empty((0, 0)),
                      np.array([(f.x, f.y) for f in found]).reshape(-1, 2),
                      np.array([f.scale for f in found]), np.array([f.strength for f in found])))
    return Imported(names, table, LocalTable.joined(parts))


def _array(datum) -> np.ndarray:
    return np.array(datum.float_list.value, np.float32).reshape(tuple(datum.shape.dim))


def _parsed(message, file: Path):
    from google.protobuf.message import DecodeError

    try:
        return message.FromString(file.read_bytes())
    except DecodeError as error:
        raise UserError(f"{file} is no file of TensorFlow's DELG: {error}") from None


def _delf_messages() -> tuple:
    """The classes of a tensor and of an image's features, after tensorflow/models,
    research/delf/delf/protos (datum.proto and feature.proto)."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise UserError("files of TensorFlow's DELG need the package protobuf: pip install "
                        "protobuf") from None
    kinds = descriptor_pb2.FieldDescriptorProto
    layout = {
        "Shape": [("dim", kinds.TYPE_INT64, "", True)],
        "Floats": [("value", kinds.TYPE_FLOAT, "", True)],
        "Datum": [("shape", kinds.TYPE_MESSAGE, ".delf.Shape", False),
                  ("float_list", kinds.TYPE_MESSAGE, ".delf.Floats", False)],
        "Feature": [("descriptor", kinds.TYPE_MESSAGE, ".delf.Datum", False),
                    *((name, kinds.TYPE_FLOAT, "", False)
                      for name in ("x", "y", "scale", "orientation", "strength"))],
        "Features": [("feature", kinds.TYPE_MESSAGE, ".delf.Feature", True)]}
    file = descriptor_pb2.FileDescriptorProto(name="delf.proto", package="delf", syntax="proto2")
    for message, fields in layout.items():
        added = file.message_type.add(name=message)
        for number, (name, kind, type_name, repeated) in enumerate(fields, 1):
            added.field.add(name=name, number=number, type=kind, type_name=type_name or None,
                            label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"delf.{name}"))
                 for name in ("Datum", "Features"))


def _rows(store: FeatureStore, failed: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Names and descriptors, chunk by chunk, in order."""
    for index in range(store.num_chunks):
        chunk = store.chunk(index)
        for name, row, status in zip(chunk.names, chunk.descriptors, chunk.status):
            if failed or status == 0:
                yield name, np.asarray(row, np.float32)
