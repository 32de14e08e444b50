"""Feature files of other codes: .npy, .mat, HDF5 and TensorFlow's DELG, damaged or made up.

They are imported as tools/store.py imports them, but for one thing: the process that reads .mat and HDF5
files is kept from file to file, and started again after a file that ended it (which the command reports as
a refusal).
"""
import io
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.fuzz.harness import Target
from dolg.errors import UserError
from dolg.features import formats
from dolg.features.isolated import Reader


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with a few bits, bytes, words or runs changed, or cut."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 1024))
        # Most files keep their length: readers look no further at one that has lost some
        match rng.choices(range(6), (4, 4, 4, 4, 0.5, 0.5))[0]:
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 2:
                width = min(rng.choice((2, 4, 8)), len(data) - at)
                value = rng.choice((0, 1, -1, 2 ** 31, 2 ** 31 - 1, 2 ** 63 - 1, 2 ** 40,
                                    rng.getrandbits(64)))
                data[at:at + width] = (value % 256 ** width).to_bytes(width, rng.choice(("little", "big")))
            case 3:
                other, length = rng.randrange(len(data)), rng.randrange(1, 64)
                run = data[other:other + length][:len(data) - at]
                data[at:at + len(run)] = run
            case 4:
                del data[at:at + rng.randrange(1, 64)]
            case 5:
                del data[at:]
        if not data:
            break
    return bytes(data)


# ------------------------------------------------------------------ .npy

def _npy(rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        header = _npy_header(rng).encode("latin1", "replace")
        version = rng.choice((1, 1, 1, 2, 3, 0, 255))
        length = rng.choice((len(header), len(header), len(header), 0, 65535, 2 ** 31))
        size = length.to_bytes(2 if version == 1 and length < 65536 else 4, "little")
        values = rng.randbytes(rng.choice((0, 8, 96)))
        return "f.npy", b"\x93NUMPY" + bytes([version, 0]) + size + header + values
    return "f.npy", damaged(rng, rng.choice(_npy_files()))


def _npy_header(rng: random.Random) -> str:
    kinds = ["'<f4'", "'>f8'", "'<f2'", "'|O'", "'<c8'", "'|b1'", "'<M8[s]'", "'<U4'", "'|S0'", "'|V8'",
             "'<i9'", "''", "[('a', '<f4')]", "('<f4', (2, 3))", "'<f16'", "None",
             "{'names': [], 'formats': []}", "[" * 300]
    numbers = ["0", "1", "4", "6", "-1", "3L", "1e3", "True", str(2 ** 31), str(2 ** 62), "9" * 30, "9" * 5000,
               "(" * 400, "-" * 3000 + "1"]
    shape = ", ".join(rng.choice(numbers) for _ in range(rng.choice((0, 1, 2, 2, 2, 3, 40))))
    header = (f"{{'descr': {rng.choice(kinds)}, 'fortran_order': {rng.choice(('False', 'True', '1', 'None'))}, "
              f"'shape': ({shape},), }}")
    return header if rng.random() < 0.8 else damaged(rng, header.encode()).decode("latin1")


@cache
def _npy_files() -> list[bytes]:
    table = np.random.default_rng(0).normal(size=(6, 8))
    arrays = [table.astype("<f4"), table.astype(">f8"), table.astype("<f2"), np.asfortranarray(table),
              (table * 9).astype("<i4"), table > 0, table.astype("<c16"), table.astype("<U5")]
    return [_saved(np.save, array) for array in arrays]


# ------------------------------------------------------------------ .mat

def _mat(rng: random.Random) -> tuple[str, bytes]:
    return "f.mat", damaged(rng, rng.choice(_mat_files()))


@cache
def _mat_files() -> list[bytes]:
    from scipy.io import savemat
    from scipy.sparse import csc_array

    table = np.random.default_rng(0).normal(size=(8, 6))
    cells = np.empty(2, object)
    cells[:] = [table[:1], "text"]
    contents = [{"X": table}, {"X": table.astype(np.float32)}, {"X": [row[None] for row in table]},
                {"X": (table * 9).astype(np.int16)}, {"X": csc_array(table > 1)}, {"X": "text"}, {"X": cells},
                {"X": {"a": table[:2], "b": "text"}}, {"X": table > 0}, {"X": table + 1j}]
    kinds = ({}, {"do_compression": True}, {"oned_as": "row", "long_field_names": True})
    files = [_saved(savemat, content, **options) for content in contents for options in kinds]
    files += [_saved(savemat, {"X": table.astype(kind)}, format="4") for kind in ("f8", "f4", "i4")]
    return files + [_matlab_73(table)]


def _matlab_73(table: np.ndarray) -> bytes:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=512) as file:
        file["X"] = table.T
        file["X"].attrs["MATLAB_class"] = np.bytes_("double")
    content = bytearray(stream.getvalue())
    content[:19] = b"MATLAB 7.3 MAT-file"
    return bytes(content)


# ------------------------------------------------------------------ HDF5

def _hdf5(rng: random.Random) -> tuple[str, bytes]:
    return "f.h5", damaged(rng, rng.choice(_hdf5_files()))


@cache
def _hdf5_files() -> list[bytes]:
    files = []
    for libver in ("earliest", "earliest", "earliest", "latest"):       # the latest has checksums
        for options in ({}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "fletcher32": True},
                        {"chunks": True, "shuffle": True, "compression": "lzf"}, {"chunks": True, "scaleoffset": 3}):
            files.append(_hloc_file(libver, options, "f4"))
        files += [_hloc_file(libver, {}, "f2"), _hloc_file(libver, {"chunks": True, "maxshape": (None,)}, "f8")]
        files += [_odd_file(libver, oddity) for oddity in _oddities()]
    return files


def _hloc_file(libver: str, options: dict, kind: str) -> bytes:
    import h5py

    rng, stream = np.random.default_rng(0), io.BytesIO()
    with h5py.File(stream, "w", libver=libver) as file:
        for name, count in (("a.jpg", 3), ("dir/b.jpg", 2)):
            group = file.create_group(name)
            for field, shape in (("global_descriptor", (8,)), ("keypoints", (count, 2)),
                                 ("descriptors", (4, count)), ("scores", (count,))):
                own = {**options, "maxshape": (None,) * len(shape)} if "maxshape" in options else options
                group.create_dataset(field, data=rng.normal(size=shape).astype(kind), **own)
            group["keypoints"].attrs["uncertainty"] = 1.0
    return stream.getvalue()


def _odd_file(libver: str, oddity: Callable) -> bytes:
    """An image as it should be, and something else beside it."""
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=libver) as file:
        file["o/global_descriptor"] = np.arange(8.0)
        oddity(file)
    return stream.getvalue()


def _oddities() -> list[Callable]:
    import h5py

    def put(value):
        return lambda file: file.__setitem__("x/global_descriptor", value)

    def link(name: str, value):
        return lambda file: file.__setitem__(name, file[value] if isinstance(value, str) else value)

    sources = h5py.VirtualLayout((8,), "f4")
    sources[:] = h5py.VirtualSource("f.h5", "o/global_descriptor", (8,))
    values = ("text", [b"a", b"b"], np.zeros(2, "f4,i2"), h5py.Empty("f4"), True, 1j, np.zeros((0, 8)), 1.0)
    return [*map(put, values), link("x", "o"), link("o/again", "o"), link("x", h5py.SoftLink("/o")),
            link("x", h5py.ExternalLink("f.h5", "/o")),
            lambda file: file.__setitem__("x/global_descriptor", [file["o"].ref]),
            lambda file: file.create_virtual_dataset("x/global_descriptor", sources),
            lambda file: file.create_dataset("x/global_descriptor", (8,), "f4", external="f.h5"),
            lambda file: file.create_dataset("x/global_descriptor", (2,), h5py.vlen_dtype(np.float32)),
            lambda file: file.create_dataset("x/global_descriptor", (2 ** 40,), "f4", chunks=(2 ** 20,),
                                             compression="gzip"),
            lambda file: file.create_dataset("x/global_descriptor", (2 ** 22,), "f4", chunks=(2 ** 22,))]


# ------------------------------------------------------------------ TensorFlow's DELG

def _delg(rng: random.Random) -> tuple[str, bytes]:
    """A vector of eight numbers, as protocol buffers have it."""
    values = np.arange(1.0, 9.0, dtype="<f4").tobytes()
    return "f.delg_global", damaged(rng, b"\x0a\x02\x08\x08\x12\x22\x0a\x20" + values)


# ------------------------------------------------------------------ reading

def _saved(save, content, **options) -> bytes:
    stream = io.BytesIO()
    save(stream, content, **options)
    return stream.getvalue()


class _Kept:
    """In the place of `Reader`: one for all files, until a file ends it."""

    reader: Reader | None = None

    def __enter__(self) -> Reader:
        if not (_Kept.reader and _Kept.reader.alive):
            _Kept.reader = Reader()
        return _Kept.reader

    def __exit__(self, *_) -> None:
        pass


def _import(path: Path) -> None:
    formats.Reader = _Kept
    imported = formats.import_file(path.parent if path.suffix == ".delg_global" else path)
    imported.normalize()
    imported.warnings()
    imported.summary()


NPY = Target(_npy, _import, (UserError,))
MAT = Target(_mat, _import, (UserError,))
HDF5 = Target(_hdf5, _import, (UserError,))
DELG = Target(_delg, _import, (UserError,))
