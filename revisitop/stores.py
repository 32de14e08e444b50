"""Reading a feature store, a folder of descriptors, memory-mapped, with NumPy only.

    manifest.json               {"format": "dolg-feature-store", "version": 1, "count", "dim",
                                "chunk_size", and what made the descriptors}
    chunk-000000.safetensors    images 0 .. chunk_size - 1: `global` float32 or float16 (n,D),
                                `status` uint8 (n,), metadata "images", a JSON
                                {"names": [...], "errors": {"row": "reason"}}, and perhaps more

Image i lies in chunk i // chunk_size, row i % chunk_size. Status 0 is fine; any other marks an
image that failed, whose descriptor is NaN.
"""
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

FORMAT, VERSION = "dolg-feature-store", 1

# Little-endian, as safetensors has it
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


# What is read at first of a file: nearly every header is shorter
_MOST_HEADERS = 2**15


class StoreError(ValueError):
    """A store that cannot be used; one line says what is wrong with it."""


class Chunk:
    """One file of a store: nothing but its header is read before it is used, and then mapped.

    file: its path; rows, dim: the shape that `global` must have. Raises StoreError for a file
    that is damaged, cut off or of another shape.
    """

    def __init__(self, file: str, rows: int, dim: int):
        self.file = file
        try:
            # A Python file would take longer to open than a chunk to read
            self._handle = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
            self._size = os.fstat(self._handle).st_size
            self._start, self._header = self._read_header()
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error}") from None
        self._global = self._place("global", ("F32", "F16"), (rows, dim))
        self._status = self._place("status", ("U8",), (rows,))
        self.shape = (rows, dim)

    def _read_header(self) -> tuple[int, dict]:
        """Where the data begin, and what the file says is in them."""
        content = os.pread(self._handle, _MOST_HEADERS, 0)
        if not content:
            raise StoreError(f"{self.file} cannot be read: it is empty")
        start = 8 + int.from_bytes(content[:8], "little")
        if start > self._size:
            raise StoreError(f"{self.file} is cut off or no safetensors file: its header of "
                             f"{start - 8} bytes is longer than the file")
        try:
            header = json.loads(content[8:start] if start <= len(content)
                                else os.pread(self._handle, start - 8, 8))
        except (ValueError, RecursionError):
            raise StoreError(
                f"{self.file} is no safetensors file: its header is not JSON") from None
        if not isinstance(header, dict):
            raise StoreError(f"{self.file} is no safetensors file: its header is no table")
        return start, header

    @cached_property
    def _bytes(self) -> mmap.mmap:
        try:
            return mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StoreError(f"{self.file} cannot be read: {error}") from None

    @property
    def descriptors(self) -> np.ndarray:
        """(n,D), mapped and read-only; NaN where an image failed."""
        return self._mapped(*self._global, self.shape)

    @property
    def status(self) -> np.ndarray:
        """(n,) uint8, 0 where the image is fine."""
        return self._mapped(*self._status, self.shape[:1])

    def read(self, first: int, descriptors: np.ndarray, status: np.ndarray) -> None:
        """Copy the rows from `first` on to `descriptors` (n,D) and `status` (n,), contiguous; for
        reading once this is faster than the mapping."""
        for (place, dtype), out in ((self._global, descriptors), (self._status, status)):
            source = out if dtype == out.dtype else np.empty(out.shape, dtype)
            place += first * dtype.itemsize * math.prod(out.shape[1:])
            try:
                count = os.preadv(self._handle, [memoryview(source).cast("B")], place)
            except OSError as error:
                raise StoreError(f"{self.file} cannot be read: {error}") from None
            if count != source.nbytes:
                raise StoreError(f"{self.file} became shorter while it was read")
            if source is not out:
                out[:] = source

    def tensor(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        """A tensor of the file, mapped and read-only; it must have one of `dtypes`, and `shape`."""
        return self._mapped(*self._place(name, dtypes, shape), shape)

    def _mapped(self, place: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(self._bytes, dtype, math.prod(shape), place).reshape(shape)

    def _place(self, name: str, dtypes: tuple[str, ...],
               shape: tuple[int, ...]) -> tuple[int, np.dtype]:
        """Where a tensor begins in the file, and its type."""
        entry = self._header.get(name)
        try:
            dtype, found = entry["dtype"], tuple(entry["shape"])
            begin, end = map(int, entry["data_offsets"])
        except (TypeError, KeyError, ValueError):
            raise StoreError(f"{self.file} has no tensor {name!r}") from None
        if dtype not in dtypes or found != shape:
            raise StoreError(f"{self.file} has {name!r} as {dtype} {found}, where the manifest "
                             f"asks for {' or '.join(dtypes)} {shape}")
        data_type = np.dtype(DTYPES[dtype])
        if begin < 0 or end - begin != math.prod(shape) * data_type.itemsize:
            raise StoreError(f"{self.file} is damaged: {name!r} has bytes {begin} to {end}")
        if self._start + end > self._size:
            raise StoreError(f"{self.file} is cut off: it has {self._size} bytes, {name!r} "
                             f"ends at {self._start + end}; delete the file and extract it again")
        return self._start + begin, data_type

    @cached_property
    def _images(self) -> dict:
        try:
            images = json.loads(self._header["__metadata__"]["images"])
            well_formed = (len(images["names"]) == len(self.status)
                           and all(isinstance(name, str) for name in images["names"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            well_formed = False
        if not well_formed:
            raise StoreError(f"{self.file} does not name its {len(self.status)} images")
        return images

    @property
    def names(self) -> list[str]:
        return self._images["names"]

    @property
    def digest(self) -> str | None:
        """SHA-256 that the chunk's tensors had when they were written, if it says so."""
        return self._images.get("digest")

    def errors(self) -> list[tuple[str, str]]:
        """Name and reason of each image that failed."""
        reasons = self._images.get("errors") or {}
        return [(self.names[row], str(reasons.get(str(row), "no reason given")))
                for row in np.flatnonzero(self.status)]

    def warnings(self) -> list[tuple[str, str]]:
        """Name and what is to be said of each image that was described all the same, such as a cut file."""
        return [(self.names[int(row)], str(reason))
                for row, reason in (self._images.get("warnings") or {}).items()]


class Store:
    """A finished store, for reading. Opening it reads the manifest and looks for the chunks.

    `path`, `manifest` (dict), `count` (images), `dim`, `chunk_size`; `names` and `status` are
    read from the chunks when first asked for. Raises StoreError for a folder that is no store
    or lacks chunks, and, on reading, for chunks that are damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.count: int = self.manifest["count"]
        self.dim: int = self.manifest["dim"]
        self.chunk_size: int = self.manifest["chunk_size"]
        self._check_chunks()

    @property
    def num_chunks(self) -> int:
        return -(-self.count // self.chunk_size)

    def chunk(self, index: int) -> Chunk:
        """The chunk with images index * chunk_size and following."""
        rows = min(self.chunk_size, self.count - index * self.chunk_size)
        return Chunk(os.path.join(self.path, chunk_name(index)), rows, self.dim)

    def chunks(self) -> Iterator[np.ndarray]:
        """The descriptors, chunk by chunk: mapped (n,D), float32 or float16, NaN where failed."""
        return (self.chunk(index).descriptors for index in range(self.num_chunks))

    @cached_property
    def names(self) -> list[str]:
        return [name for index in range(self.num_chunks) for name in self.chunk(index).names]

    @cached_property
    def status(self) -> np.ndarray:
        """(count,) uint8: 0 where the image is fine."""
        # Copies: what is mapped keeps its file open, and there are thousands
        parts = [self.chunk(index).status.copy() for index in range(self.num_chunks)]
        return np.concatenate([np.empty(0, np.uint8), *parts])

    def errors(self) -> list[tuple[str, str]]:
        """Name and reason of each image that failed, in order."""
        return [error for index in range(self.num_chunks) for error in self.chunk(index).errors()]

    def warnings(self) -> list[tuple[str, str]]:
        """Name and what is to be said of each image that was described all the same, in order."""
        return [warning for index in range(self.num_chunks) for warning in self.chunk(index).warnings()]

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """The descriptors (len(wanted), D), float32, of some rows.

        Raises StoreError for a value that is not finite in a row whose image did not fail.
        """
        wanted = np.asarray(wanted, np.int64)
        table = np.empty((len(wanted), self.dim), np.float32)
        for index in np.unique(wanted // self.chunk_size):
            here = np.flatnonzero(wanted // self.chunk_size == index)
            table[here] = self.chunk(int(index)).descriptors[wanted[here] % self.chunk_size]
        broken = ~np.isfinite(table).all(axis=1) & (self.status[wanted] == 0)
        if broken.any():
            raise self.not_finite(int(wanted[broken][0]))
        return table

    def not_finite(self, row: int) -> StoreError:
        """What to raise where a row is not marked as failed, and yet no descriptor."""
        return StoreError(f"{self.path}: the descriptor of {self.names[row]!r} (row {row}) has "
                          "values that are not finite, but the image is not marked as failed; "
                          "extract it again")

    def _check_chunks(self) -> None:
        present = set(os.listdir(self.path))
        missing = [name for name in map(chunk_name, range(self.num_chunks)) if name not in present]
        if missing:
            more = ", ..." if len(missing) > 3 else ""
            first = int(missing[0][6:-12]) * self.chunk_size
            raise StoreError(
                f"store {self.path} lacks {len(missing)} of {self.num_chunks} chunks "
                f"({', '.join(missing[:3])}{more}; the first is of images {first} to "
                f"{min(first + self.chunk_size, self.count) - 1}): finish the extraction")


def chunk_name(index: int) -> str:
    return f"chunk-{index:06d}.safetensors"


def read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path} is not a feature store: cannot read {file} "
                         f"({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not a feature store: {file} is not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{path} is not a feature store: {file} does not say {FORMAT!r} as its "
                         "format")
    if manifest.get("version") != VERSION:
        raise StoreError(f"store {path} has version {manifest.get('version')!r} of the format; "
                         f"this program reads {VERSION}")
    for key, least in (("count", 0), ("dim", 0), ("chunk_size", 1)):
        value = manifest.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise StoreError(f"{file} has {value!r} as {key}: it must be a whole number from "
                             f"{least}")
    return manifest
