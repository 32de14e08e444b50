"""Readers of .mat and HDF5 files, run by isolated.py in a process of their own: python -m
dolg.features.containers.

SciPy's reader of .mat files and libhdf5 are compiled code that damaged files crash, keep busy for ever, or
have allocate what memory there is. Each file is read within limits of CPU time and memory that follow from
its size, and a process that a file ends is reported by isolated.py as such a file.
"""
import json
import os
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dolg.errors import UserError
from dolg.features.imported import Imported, joined, local_features, numbers, stacked

# A file may expand to so many bytes, and so many times its size: descriptors hardly compress
_BYTES, _EXPANSION = 64 << 20, 32
# Of CPU time, and so many bytes of the file a second more
_SECONDS, _RATE = 2, 1 << 18
_FIELDS = ("global_descriptor", "keypoints", "descriptors", "scores", "scales")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_matlab(path: Path, key: str) -> np.ndarray:
    """A table of a .mat file, a row (float32) per image; revisitop has a column per image, the original DOLG
    a list of rows, one (1,D) each. Raises UserError."""
    with open(path, "rb") as file:
        head = file.read(512 + len(_HDF5))
    if head.startswith(_HDF5) or head.endswith(_HDF5):      # version 7.3 has it after its own header
        table = _matlab_table_of_hdf5(path, key)
    else:
        from scipy.io import loadmat, whosmat

        _limit_work(path)
        kinds = {name: kind for name, _, kind in whosmat(path)}
        key = _chosen(path, list(kinds), key)
        _check_kind(path, key, kinds[key])
        table = numbers(loadmat(path, variable_names=[key])[key], f"{path}: the table {key}")
    if table.ndim not in (2, 3):
        raise UserError(f"{path}: {key} has the shape {table.shape}: a table has a column per image")
    return table.reshape(len(table), -1) if table.ndim == 3 else table.T


def read_hdf5(path: Path) -> Imported:
    """The images of an HDF5 file as hloc writes it: a group of datasets per image. Raises UserError."""
    import h5py

    _limit_work(path)
    with h5py.File(path, "r") as file:
        found: dict[str, dict[str, np.ndarray]] = {}
        for name in _checked_datasets(file, path):
            image, _, field = name.rpartition("/")      # names of images may have slashes, too
            if image:
                entry = found.setdefault(image, {})
                if field in _FIELDS:
                    entry[field] = numbers(file[name][()], f"{path}: {name}")
    if not found:
        raise UserError(f"{path} has no group per image")
    names = sorted(found)
    rows = {name: found[name]["global_descriptor"].reshape(-1) for name in names
            if "global_descriptor" in found[name]}
    has_local = any("keypoints" in entry for entry in found.values())
    if not rows and not has_local:
        raise UserError(f"{path} has neither global_descriptor nor keypoints in any group")
    if rows:
        none = np.full(len(next(iter(rows.values()))), np.nan, np.float32)
        descriptors = stacked(path, names, [rows.get(name, none) for name in names])
    else:
        descriptors = np.empty((len(names), 0), np.float32)
    parts = [_hloc_features(f"{path}: {name}", found[name]) for name in names]
    return Imported(names, descriptors, joined(path, parts) if has_local else None)


def _hloc_features(what: str, entry: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The local features of a group. hloc's descriptors have a column per keypoint."""
    there = [field for field in _FIELDS[1:] if field in entry]
    if not there:
        return local_features(what, np.empty((0, 0)), np.empty((0, 2)), None, np.empty(0))
    lacking = [field for field in _FIELDS[1:4] if field not in entry]
    if lacking:
        raise UserError(f"{what} has {', '.join(there)}, but no {' and no '.join(lacking)}")
    return local_features(what, entry["descriptors"].T, entry["keypoints"], entry.get("scales"),
                          entry["scores"])


def _matlab_table_of_hdf5(path: Path, key: str) -> np.ndarray:
    """A table of version 7.3, which has MATLAB's columns as rows."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} is a .mat file of version 7.3, which needs the package h5py: pip install "
                        "h5py") from None
    _limit_work(path)
    with h5py.File(path, "r") as file:
        _checked_datasets(file, path)
        key = _chosen(path, [name for name in file if not name.startswith("#")], key)
        if not isinstance(file[key], h5py.Dataset):
            raise UserError(f"{path}: {key} is not a table of numbers")
        kind = np.asarray(file[key].attrs.get("MATLAB_class", b"double")).item().decode()
        _check_kind(path, key, "empty" if "MATLAB_empty" in file[key].attrs else kind)
        return numbers(file[key][()], f"{path}: the table {key}").T


def _checked_datasets(file, path: Path) -> list[str]:
    """The names of all datasets of an open HDF5 file.

    Raises UserError where the file leads to other files, which would copy what the user may read into a
    store, or claims more than a file of its size holds.
    """
    import h5py

    # Links are not followed: a soft link may lead to an external one
    hard = h5py.h5l.TYPE_HARD
    link = file.id.links.visit(lambda name, info: None if info.type == hard else name, info=True)
    if link is not None:
        raise UserError(f"{path}: {os.fsdecode(link)} is a link; only data in the file itself are read")
    names, left = [], _allowed_bytes(path)

    def visit(name: str, item) -> None:
        nonlocal left
        if not isinstance(item, h5py.Dataset):
            return
        layout = item.id.get_create_plist()
        if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
            raise UserError(f"{path}: the data of {name} lie in other files, which are not read")
        left -= item.id.get_space().get_simple_extent_npoints() * item.id.get_type().get_size()
        if left < 0:
            raise UserError(f"{path} claims more data than a file of {path.stat().st_size} bytes may hold")
        names.append(name)

    file.visititems(visit)
    return names


def _chosen(path: Path, tables: list[str], key: str) -> str:
    if not key and len(tables) == 1:
        return tables[0]
    if key not in tables:
        raise UserError(f"{path} holds the tables {', '.join(sorted(tables))}: say which with --key")
    return key


def _check_kind(path: Path, key: str, kind: str) -> None:
    """Of text and truth values, the numbers would be read."""
    if kind not in ("double", "single") and not re.fullmatch("u?int(8|16|32|64)", kind):
        raise UserError(f"{path}: the table {key} is of MATLAB's kind '{kind}'; descriptors are real numbers")


def _allowed_bytes(path: Path) -> int:
    return _BYTES + _EXPANSION * path.stat().st_size


def _limit_work(path: Path) -> None:
    """Bound the CPU time and the memory of this process from now on; the libraries are imported before."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    seconds = usage.ru_utime + usage.ru_stime + _SECONDS + path.stat().st_size / _RATE
    # What is read, its copy as float32, the joined table, and room to work
    for kind, most in ((resource.RLIMIT_CPU, int(seconds) + 1),
                       (resource.RLIMIT_AS, used + 3 * _allowed_bytes(path) + _BYTES)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _arrays(path: Path, key: str) -> dict[str, np.ndarray]:
    if path.suffix == ".mat":
        return {"table": read_matlab(path, key)}
    try:
        found = read_hdf5(path)
    except ImportError:
        raise UserError("HDF5 files need the package h5py: pip install h5py") from None
    local = vars(found.local) if found.local else {}
    return {"names": np.frombuffer(json.dumps(found.names).encode(), np.uint8), "global": found.descriptors,
            **local}


def main() -> None:
    """Read the files that lines of standard input name, as isolated.py says; write a line about each, and
    its arrays as .npy."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)       # what a library prints is not an answer
        for line in sys.stdin:
            request = json.loads(line)
            path = Path(request["path"])
            arrays: dict[str, np.ndarray] = {}
            try:
                arrays = _arrays(path, request["key"])
                answer = {"arrays": list(arrays)}
            except UserError as error:
                answer = {"error": str(error)}
            except Exception as error:      # damaged bytes make these libraries raise almost anything
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                answer = {"error": f"{path} is damaged, or not a file of its kind ({reason})"}
            out.write(json.dumps(answer).encode() + b"\n")
            pipe = SimpleNamespace(write=out.write)     # NumPy seeks in what it takes for a file
            for array in arrays.values():
                np.lib.format.write_array(pipe, np.ascontiguousarray(array), allow_pickle=False)
            out.flush()


if __name__ == "__main__":
    main()
