"""Reading a feature store, a folder of descriptors, memory-mapped, with NumPy only.

    manifest.json               {"format": "dolg-feature-store", "version": 1, "count", "dim",
                                "chunk_size", and what made the descriptors}
    chunk-000000.safetensors    images 0 .. chunk_size - 1: `global` float32 or float16 (n,D),
                                `status` uint8 (n,), metadata "images", a JSON
                                {"names": [...], "errors": {"row": "reason"}}, and perhaps more

Image i lies in chunk i // chunk_size, row i % chunk_size. Status 0 is fine; any other marks an
image that failed, whose descriptor is NaN.

Chunks since 2026 also have `sums` uint32 (n,), see `row_sums`, and their "images" begin with "seal" (see
`sealed`), "store" (`settings.settings_digest`) and "index": a chunk that is damaged, or of another store or
another place in it, is refused when it is opened or read. Chunks without all of these are taken as they are.
"""
import hashlib
import json
import math
import mmap
import os
import re
import stat
import weakref
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from revisitop.settings import settings_digest

FORMAT, VERSION = "dolg-feature-store", 1

# Little-endian, as safetensors has it
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
          "I8": "|i1", "U32": "<u4", "U8": "|u1", "BOOL": "|b1"}


# What is read at first of a file: nearly every header is shorter. The longest that safetensors takes
_MOST_HEADERS, _LONGEST_HEADER = 2**15, 100_000_000
_LONGEST_MANIFEST = 2**24
# More images or dimensions than any store has
_MOST = 2**48
# How the "images" of a sealed chunk begin, and the file up to the seal, after the header's length
_SEALED = re.compile(r'\{"seal": "([0-9a-f]{64})", "store": "([0-9a-f]{64})", "index": (\d{1,18}), ')
# Of these a changed bit takes one away
_MARKS = ('"seal": "', '"store": "', '"index": ')
_BEFORE_SEAL = b'{"__metadata__":{"images":"{\\"seal\\": \\"'
_SEAL = slice(8 + len(_BEFORE_SEAL), 8 + len(_BEFORE_SEAL) + 64)
NO_SEAL = 64 * "0"


class StoreError(ValueError):
    """A store that cannot be used; one line says what is wrong with it."""


def row_sums(descriptors: np.ndarray, status: np.ndarray) -> np.ndarray:
    """Sums (n,) uint32 of the bits of each of descriptors (n,D), read as unsigned numbers, and of its
    status. Another value of a single bit makes another sum."""
    words = descriptors.view(f"<u{descriptors.dtype.itemsize}")
    return np.add.reduce(words, axis=1, dtype=np.uint32) + status


def sealed(content: bytes) -> bytes:
    """A chunk's file, whose "images" begin with NO_SEAL as "seal", with its seal: the SHA-256 of the
    header, its length and its padding included, as it was with NO_SEAL."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[:_SEAL.start] + _seal_of(content[:start]) + content[_SEAL.stop:]


def _seal_of(header: bytes) -> bytes:
    digest = hashlib.sha256(header[:_SEAL.start])
    digest.update(NO_SEAL.encode())
    digest.update(header[_SEAL.stop:])
    return digest.hexdigest().encode()


class Chunk:
    """One file of a store: nothing but its header is read before it is used, and then mapped.

    file: its path; rows, dim: the shape that `global` must have, None: as many rows as it has; of: the store (`settings_digest`) and the
    place in it that it must be of, if it says any. Raises StoreError for a file that is damaged, cut off,
    of another shape or another store.
    """

    def __init__(self, file: str, rows: int | None, dim: int, of: tuple[str, int] | None = None):
        self.file = file
        try:
            # A Python file would take longer to open than a chunk to read; a pipe would wait for ever
            self._handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            weakref.finalize(self, os.close, self._handle)
            about = os.fstat(self._handle)
            if not stat.S_ISREG(about.st_mode):
                raise StoreError(f"{file} cannot be read: it is not a regular file")
            self._size = about.st_size
            content, self._header = self._read_header()
            self._start, self.is_sealed = len(content), self._check_seal(content, of)
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error}") from None
        self._check_layout()
        if rows is None:
            shape = self._header.get("status", {}).get("shape")
            rows = shape[0] if isinstance(shape, list) and shape else 0
        self._global = self._place("global", ("F32", "F16"), (rows, dim))
        self._status = self._place("status", ("U8",), (rows,))
        self._sums = self._place("sums", ("U32",), (rows,)) if self.is_sealed else None
        self.shape = (rows, dim)

    def _read_header(self) -> tuple[bytes, dict]:
        """What is before the data, and what it says is in them."""
        content = os.pread(self._handle, _MOST_HEADERS, 0)
        if not content:
            raise StoreError(f"{self.file} cannot be read: it is empty")
        start = 8 + int.from_bytes(content[:8], "little")
        if start > self._size:
            raise StoreError(f"{self.file} is cut off or not a safetensors file: its header of "
                             f"{start - 8} bytes is longer than the file")
        if start > _LONGEST_HEADER:
            raise StoreError(f"{self.file} is not a safetensors file: its header has {start - 8} bytes, "
                             f"the longest that is allowed is {_LONGEST_HEADER}")
        content = content[:start] if start <= len(content) else os.pread(self._handle, start, 0)
        try:
            header = json.loads(content[8:])
        except (ValueError, RecursionError):
            raise StoreError(
                f"{self.file} is not a safetensors file: its header is not JSON") from None
        if not isinstance(header, dict):
            raise StoreError(f"{self.file} is not a safetensors file: its header is not a table")
        return content, header

    def _check_seal(self, content: bytes, of: tuple[str, int] | None) -> bool:
        """Whether the file is sealed. Raises StoreError for a header that is not as it was written, or is of
        another store."""
        found = _SEALED.match(self._text)
        if not found and not any(mark in self._text for mark in _MARKS):
            return False        # from before chunks were sealed
        if not found or content[_SEAL] != _seal_of(content):
            raise StoreError(f"{self.file} is damaged: its header is not as it was written; delete it and "
                             "extract again")
        if of is None:
            return True
        store, index = found[2], int(found[3])
        if store != of[0]:
            raise StoreError(f"{self.file} is of another store, or the manifest was changed: it was not "
                             "made with the settings and the first image of this store; delete it and "
                             "extract again")
        if index != of[1]:
            raise StoreError(f"{self.file} is chunk {index} of this store, and in the place of chunk "
                             f"{of[1]}; delete it and extract again")
        return True

    def _check_layout(self) -> None:
        """Raise StoreError unless the tensors fill the file, one after another."""
        if self.is_sealed:      # the header is as it was written
            ends = [entry["data_offsets"][1] for name, entry in self._header.items() if name != "__metadata__"]
            if max(ends) == self._size - self._start:
                return
        try:
            spans = sorted((*entry["data_offsets"], name) for name, entry in self._header.items()
                           if name != "__metadata__")
            whole = all(type(end) is int for *ends, _ in spans for end in ends)
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole or any(len(span) != 3 for span in spans):
            raise StoreError(f"{self.file} is damaged: its header does not say where its tensors are")
        end, available = 0, self._size - self._start
        for begin, stop, name in spans:
            if begin != end or stop < begin:
                raise StoreError(f"{self.file} is damaged: {name!r} has bytes {begin} to {stop}, and the "
                                 f"tensor before it ends at {end}")
            end = stop
        if end > available:
            raise StoreError(f"{self.file} is cut off: it has {self._size} bytes, its tensors end at "
                             f"{self._start + end}; delete the file and extract it again")
        if end < available:
            raise StoreError(f"{self.file} is damaged: {available - end} bytes follow its tensors; delete "
                             "it and extract again")

    @property
    def _text(self) -> str:
        """What the file says of its images, in JSON."""
        metadata = self._header.get("__metadata__")
        images = metadata.get("images") if isinstance(metadata, dict) else None
        return images if isinstance(images, str) else ""

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

    @cached_property
    def status(self) -> np.ndarray:
        """(n,) uint8, read-only, 0 where the image is fine."""
        return self._read(self._status, self.shape[:1])

    @cached_property
    def _written_sums(self) -> np.ndarray:
        return self._read(self._sums, self.shape[:1])

    def read(self, first: int, descriptors: np.ndarray, status: np.ndarray) -> None:
        """Copy the rows from `first` on to `descriptors` (n,D) and `status` (n,), contiguous; for
        reading once this is faster than the mapping. Raises StoreError for rows that are damaged."""
        (place, stored), rows = self._global, slice(first, first + len(status))
        source = descriptors if stored == descriptors.dtype else np.empty(descriptors.shape, stored)
        self._read_into(source, place + first * stored.itemsize * self.shape[1])
        status[:] = self.status[rows]
        self._check_rows(source, rows)
        if source is not descriptors:
            descriptors[:] = source

    def _read(self, place: tuple[int, np.dtype], shape: tuple[int, ...]) -> np.ndarray:
        """A small tensor as a whole, for which a mapping would take longer."""
        out = np.empty(shape, place[1])
        self._read_into(out, place[0])
        out.flags.writeable = False
        return out

    def _read_into(self, out: np.ndarray, place: int) -> None:
        try:
            count = os.preadv(self._handle, [memoryview(out).cast("B")], place) if out.size else 0
        except OSError as error:
            raise StoreError(f"{self.file} cannot be read: {error}") from None
        if count != out.nbytes:
            raise StoreError(f"{self.file} became shorter while it was read")

    def check(self, rows: np.ndarray | slice = slice(None)) -> None:
        """Raise StoreError where the descriptor or the status of a row is not what was written."""
        if self.is_sealed:
            self._check_rows(self.descriptors[rows], rows)

    def _check_rows(self, descriptors: np.ndarray, rows: np.ndarray | slice) -> None:
        if not self.is_sealed:
            return
        damaged = row_sums(descriptors, self.status[rows]) != self._written_sums[rows]
        if damaged.any():
            raise StoreError(f"{self.file} is damaged: {np.count_nonzero(damaged)} of {len(damaged)} rows "
                             "read have other bits than when they were written; delete it and extract again")

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
            begin, end = entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise StoreError(f"{self.file} has no tensor {name!r}") from None
        if dtype not in dtypes or found != shape:
            raise StoreError(f"{self.file} has {name!r} as {dtype} {found}, where the manifest "
                             f"asks for {' or '.join(dtypes)} {shape}")
        data_type = np.dtype(DTYPES[dtype])
        if end - begin != math.prod(shape) * data_type.itemsize:
            raise StoreError(f"{self.file} is damaged: {name!r} has bytes {begin} to {end}")
        return self._start + begin, data_type

    @cached_property
    def _images(self) -> dict:
        try:
            images = json.loads(self._text)
            count = self.shape[0]
            well_formed = (isinstance(images["names"], list) and len(images["names"]) == count
                           and all(isinstance(name, str) for name in images["names"])
                           and all(0 <= int(row) < count for key in ("errors", "warnings")
                                   for row in (images.get(key) or {}).keys()))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            well_formed = False
        if not well_formed:
            raise StoreError(f"{self.file} does not name its {self.shape[0]} images")
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
        if not self.status.any():
            return []
        reasons = self._images.get("errors") or {}
        return [(self.names[row], str(reasons.get(str(row), "no reason given")))
                for row in np.flatnonzero(self.status)]

    def warnings(self) -> list[tuple[str, str]]:
        """Name and what is to be said of each image that was described all the same, such as a cut file."""
        if '"warnings": ' not in self._text:      # nearly always; to parse all names takes longer
            return []
        return [(self.names[int(row)], str(reason))
                for row, reason in (self._images.get("warnings") or {}).items()]


class Store:
    """A finished store, for reading. Opening it reads the manifest and looks for the chunks.

    `path`, `manifest` (dict), `count` (images), `dim`, `chunk_size`; `names` and `status` are
    read from the chunks when first asked for. `across`: it may be compared with stores that were made
    with other settings. Raises StoreError for a folder that is not a store or lacks chunks, and, on
    reading, for chunks that are damaged or of another store.
    """

    def __init__(self, path: str | Path, across: bool = False):
        self.path, self.across = Path(path), across
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
        return self._open(index, (self._digest, index))

    def _open(self, index: int, of: tuple[str, int] | None = None) -> Chunk:
        rows = min(self.chunk_size, self.count - index * self.chunk_size)
        return Chunk(os.path.join(self.path, chunk_name(index)), rows, self.dim, of)

    @cached_property
    def _digest(self) -> str:
        """By which its chunks know it."""
        return settings_digest(self.manifest, self._open(0).names[0])

    def chunks(self) -> Iterator[np.ndarray]:
        """The descriptors, chunk by chunk: mapped (n,D), float32 or float16, NaN where failed."""
        for index in range(self.num_chunks):
            chunk = self.chunk(index)
            chunk.check()
            yield chunk.descriptors

    @cached_property
    def names(self) -> list[str]:
        return [name for index in range(self.num_chunks) for name in self.chunk(index).names]

    @property
    def status(self) -> np.ndarray:
        """(count,) uint8: 0 where the image is fine."""
        return self._faults[0]

    def errors(self) -> list[tuple[str, str]]:
        """Name and reason of each image that failed, in order."""
        return self._faults[1]

    def warnings(self) -> list[tuple[str, str]]:
        """Name and what is to be said of each image that was described all the same, in order."""
        return self._faults[2]

    @cached_property
    def _faults(self) -> tuple[np.ndarray, list[tuple[str, str]], list[tuple[str, str]]]:
        """`status`, `errors` and `warnings`, in one pass over the chunks, of which there are thousands."""
        status, errors, warnings = np.empty(self.count, np.uint8), [], []
        for index in range(self.num_chunks):
            chunk = self.chunk(index)
            start = index * self.chunk_size
            status[start:start + chunk.shape[0]] = chunk.status
            errors += chunk.errors()
            warnings += chunk.warnings()
        return status, errors, warnings

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """The descriptors (len(wanted), D), float32, of some rows.

        Raises StoreError for a value that is not finite in a row whose image did not fail.
        """
        wanted = np.asarray(wanted, np.int64)
        table = np.empty((len(wanted), self.dim), np.float32)
        for index in np.unique(wanted // self.chunk_size):
            here = np.flatnonzero(wanted // self.chunk_size == index)
            chunk, places = self.chunk(int(index)), wanted[here] % self.chunk_size
            chunk.check(places)
            table[here] = chunk.descriptors[places]
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
        """Raise StoreError for chunks that are missing, and where the first or the last, whatever numbers
        the manifest claims, are not of these: nothing need be larger than the files are."""
        missing, first = missing_chunks(self.path, self.num_chunks)
        if missing:
            more = ", ..." if missing > 3 else ""
            start = first[0] * self.chunk_size
            raise StoreError(
                f"store {self.path} lacks {missing} of {self.num_chunks} chunks "
                f"({', '.join(map(chunk_name, first[:3]))}{more}; the first is of images {start} to "
                f"{min(start + self.chunk_size, self.count) - 1}): finish the extraction")
        if self.count:
            for index in {0, self.num_chunks - 1}:
                self.chunk(index)


def chunk_name(index: int) -> str:
    return f"chunk-{index:06d}.safetensors"


def present_chunks(path: Path, count: int) -> list[int]:
    """Which of the chunks below `count`, which may be any number, are in a folder; ascending."""
    found = (re.fullmatch(r"chunk-(\d{6,15})\.safetensors", name) for name in os.listdir(path))
    present = {int(match[1]) for match in found if match and match[0] == chunk_name(int(match[1]))}
    return sorted(index for index in present if index < count)


def missing_chunks(path: Path, count: int) -> tuple[int, list[int]]:
    """How many of `count` chunks are not in a folder, and the first few of these."""
    present = set(present_chunks(path, count))
    absent = (index for index in range(count) if index not in present)
    return count - len(present), list(islice(absent, 3))


def read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    try:
        if file.exists() and not (file.is_file() and file.stat().st_size <= _LONGEST_MANIFEST):
            raise StoreError(f"{path} is not a feature store: {file} is not a regular file of at most "
                             f"{_LONGEST_MANIFEST} bytes")
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
    for key, least in (("count", 0), ("dim", 0), ("chunk_size", 1), ("local_dim", 0)):
        value = manifest.get(key, 0 if key == "local_dim" else None)
        if type(value) is not int or not least <= value <= _MOST:
            raise StoreError(f"{file} has {str(value)[:40]} as {key}: it must be a whole number from "
                             f"{least} to {_MOST}")
    if manifest.get("local_dim") and manifest.get("local_dtype") not in ("float16", "int8"):
        raise StoreError(f"{file} has {str(manifest.get('local_dtype'))[:40]} as local_dtype: it must be "
                         "float16 or int8")
    return manifest
