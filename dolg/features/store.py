"""The feature store: a folder with a manifest and chunks, each whole or absent.

    manifest.json               what is in it, and what made it
    chunk-000000.safetensors    images 0 .. chunk_size - 1 of the list
        global   float32 (n,D)  descriptors; NaN where the image failed
        status   uint8 (n,)     0: fine, 1: failed
        sums     uint32 (n,)    of each row's bits, see revisitop.stores.row_sums; older stores have none
        stamps   int64 (n,3)    size in bytes, time of change in ns and CRC-32 of each image file, -1 where
                                unknown; older stores have none
        metadata "images"       JSON {"seal": SHA-256 of the header, "store": SHA-256 of what the manifest
                                says of how all was made, "index": the chunk's (revisitop.stores explains
                                these three, which older stores lack), "names": [...],
                                "errors": {"row": "reason"},
                                "warnings": {"row": "reason"} (absent where there are none),
                                "digest": SHA-256 of all tensors' bytes, by name}
      and with local features, image after image, the highest attention first:
        local_offsets      int64 (n+1,)     image i's are local_offsets[i] .. local_offsets[i + 1] - 1
        local_descriptors  float16 or int8 (N,C)    unit vectors; int8: times 127 / local_peaks
        local_peaks        float16 (N,)     with int8: the largest entry of each, without its sign
        local_xy           float32 (N,2)    columns and rows in pixels of the original image
        local_scales       float32 (N,)     of the image at which each was found
        local_scores       float32 (N,)     attention

Image i lies in chunk i // chunk_size, row i % chunk_size, whoever computed it.
"""
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

import revisitop.stores
from dolg.errors import UserError
from dolg.files import write_atomically
from revisitop.settings import config_digest, settings_digest
from revisitop.stores import (
    NO_SEAL, Chunk, StoreError, present_chunks, read_manifest, row_sums, sealed)

FORMAT, VERSION = "dolg-feature-store", 1
FAILED = 1
# Recorded, but another value makes no other store: what is known of the images' data set, which may be
# prepared later, or anew; and the keys of config_digest, for reading, which older stores lack
_NOTED = {"data", "config"}
# Of a store to which images are added these change
_OF_THE_LIST = {"count", "images_digest"}
# int8 descriptors are from -127 to 127; what divides them is no less than float16's least number
_LEVELS, _LEAST = 127, 2.0 ** -24


@dataclass
class LocalTable:
    """Local features of n images, image after image.

    Attributes:
        offsets: (n+1,) int64; image i's are rows offsets[i] .. offsets[i + 1] - 1.
        descriptors: (N,C) float32, of unit length.
        xy: (N,2) float32, columns and rows in pixels of the original image.
        scales, scores: (N,) float32, the scale each was found at, and its attention.
    """

    offsets: np.ndarray
    descriptors: np.ndarray
    xy: np.ndarray
    scales: np.ndarray
    scores: np.ndarray

    @classmethod
    def joined(cls, images: Sequence[tuple[np.ndarray, ...]]) -> "LocalTable":
        """Of descriptors, xy, scales and scores of each image; there may be none of some."""
        dim = max((part[0].shape[1] for part in images), default=0)
        offsets = np.cumsum([0, *(len(part[0]) for part in images)])
        shapes = ((0, dim), (0, 2), (0,), (0,))
        parts = ([part[i] for part in images if len(part[0])] or [np.empty(shape)]
                 for i, shape in enumerate(shapes))
        return cls(offsets, *(np.concatenate(part).astype(np.float32) for part in parts))

    def of_images(self, start: int, stop: int) -> "LocalTable":
        """The features of images start .. stop - 1."""
        offsets = self.offsets[start:stop + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        return LocalTable(offsets - offsets[0], self.descriptors[part], self.xy[part],
                          self.scales[part], self.scores[part])


class DescriptorChunks:
    """The descriptors (count, dim) of a store: iterate for memory-mapped chunks (n, dim), or
    np.asarray(...) for all of them in memory. Failed images are rows of NaN."""

    def __init__(self, store: "FeatureStore"):
        self._store = store
        self.shape = (store.count, store.dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self):
        return iter(self._store.chunks())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = np.empty(self.shape, dtype or np.float32)
        start = 0
        for chunk in self:
            whole[start:start + len(chunk)] = chunk
            start += len(chunk)
        return whole


class FeatureStore(revisitop.stores.Store):
    """A finished store, for reading.

    `names` (list of str), `count`, `dim`, `manifest` (dict), `status` (uint8 per image),
    `errors()` (name and reason per failed image). Raises revisitop.stores.StoreError where the
    folder is no store or not whole.
    """

    def global_descriptors(self) -> DescriptorChunks:
        """All descriptors, streamed by chunk."""
        return DescriptorChunks(self)

    def verify(self) -> None:
        """Read all chunks. Raises StoreError for one of which a bit has changed, which is of another store
        or not as its status says."""
        config = self.manifest.get("config")
        if config is not None and config_digest(config) != self.manifest.get("config_digest"):
            raise StoreError(f"{self.path / 'manifest.json'} was changed: its config_digest is not that of "
                             "its config")
        for index in range(self.num_chunks):
            chunk = self.chunk(index)
            chunk.check()
            chunk.errors()
            fine = np.isfinite(chunk.descriptors).all(axis=1)
            if not fine[chunk.status == 0].all():
                row = int(np.flatnonzero(~fine & (chunk.status == 0))[0])
                raise self.not_finite(index * self.chunk_size + row)
            try:
                digest = _digest(load_file(chunk.file))
            except SafetensorError as error:
                raise StoreError(f"{chunk.file} is damaged ({error}); delete it and extract "
                                 "again") from None
            if chunk.digest not in (None, digest):
                raise StoreError(f"{chunk.file} is damaged: its contents have another digest than "
                                 "when it was written; delete it and extract again")

    def reasons(self) -> dict[int, str]:
        """The reason of each row whose image failed."""
        failed = np.flatnonzero(self.status).tolist()
        return {row: reason for row, (_, reason) in zip(failed, self.errors(), strict=True)}

    @property
    def local_dim(self) -> int:
        """Dimensions of the local features; 0 where there are none."""
        return self.manifest.get("local_dim", 0)

    def local(self, index: int) -> LocalTable:
        """The local features of one image. Raises UserError where the store has none."""
        return self._local(index // self.chunk_size, index % self.chunk_size, 1)

    def local_chunks(self) -> Iterator[np.ndarray]:
        """The descriptors (N,C), float32, of all local features, chunk by chunk. Raises UserError
        where the store has none."""
        self._check_local()
        for index in range(self.num_chunks):
            yield self._local(index, 0, len(self.chunk(index).status)).descriptors

    def _check_local(self) -> None:
        if not self.local_dim:
            raise UserError(f"the store {self.path} has no local features: extract them with "
                            "INFER.LOCAL True")

    def _local(self, chunk: int, row: int, count: int) -> LocalTable:
        """Of `count` images from a row of a chunk on."""
        self._check_local()
        chunk = self.chunk(chunk)
        offsets = chunk.tensor("local_offsets", ("I64",), (len(chunk.status) + 1,))
        if offsets[0] or (np.diff(offsets) < 0).any():
            raise StoreError(f"{chunk.file} is damaged: local_offsets do not ascend from 0")
        total, offsets = int(offsets[-1]), offsets[row:row + count + 1]
        part = slice(int(offsets[0]), int(offsets[-1]))
        descriptors = chunk.tensor("local_descriptors", ("F16", "I8"),
                                   (total, self.local_dim))[part].astype(np.float32)
        if self.manifest["local_dtype"] == "int8":
            peaks = chunk.tensor("local_peaks", ("F16",), (total,))[part, None]
            descriptors *= peaks.astype(np.float32) / _LEVELS
        xy, scales, scores = (chunk.tensor(f"local_{name}", ("F32",), shape)[part] for name, shape in
                              (("xy", (total, 2)), ("scales", (total,)), ("scores", (total,))))
        return LocalTable(offsets - offsets[0], descriptors, xy, scales, scores)


class StoreWriter:
    """Fills a store chunk by chunk; opened again, it knows what is missing.

    Args:
        path: the folder; `create` makes it.
        names: the images, in order.
        dim, chunk_size: of the descriptors, and images per chunk.
        local_dim, local_dtype: of the local features, with 0: none, and "float16" or "int8".
        provenance: what made the descriptors (settings, digests), recorded in the manifest; its "data"
            is what is known of the images' data set.
        grows: the store may have the first of these images only; `create` then adds the others.

    `described` are images that earlier runs have described without a fault, as whoever opens the store again
    may find out.

    Raises UserError where `path` holds a store of other images or settings, naming them, or a chunk that is
    damaged or of another store.
    """

    def __init__(self, path: str | Path, names: Sequence[str], dim: int, chunk_size: int,
                 provenance: dict, local_dim: int = 0, local_dtype: str = "float16", grows: bool = False):
        self.path, self.names, self.dim, self.chunk_size = Path(path), names, dim, chunk_size
        self.local_dim, self.local_dtype = local_dim, local_dtype
        manifest = {"format": FORMAT, "version": VERSION, "count": len(names), "dim": dim,
                    "chunk_size": chunk_size, **provenance}
        if local_dim:
            manifest.update(local_dim=local_dim, local_dtype=local_dtype)
        # As JSON gives it back, so that tuples and lists compare equal
        self.manifest = json.loads(json.dumps(manifest))
        self._file = self.path / "manifest.json"
        # Of written chunks that lack images: the file, and these images
        self._unfinished: dict[int, tuple[tuple, list[int]]] = {}
        self.grows, self.described = grows, np.empty(0, np.int64)
        self._check_same()
        self._check_chunks()

    def create(self) -> None:
        """Make the folder and its manifest, if they are not there, or not of all images yet."""
        if self._file.exists():
            self._check_same()      # another may have made it since
        if self.grows or not self._file.exists():
            write_atomically(self._file, json.dumps(self.manifest, indent=1) + "\n")
            self.grows = False

    @property
    def num_chunks(self) -> int:
        return -(-len(self.names) // self.chunk_size)

    def chunk_file(self, index: int) -> Path:
        return self.path / f"chunk-{index:06d}.safetensors"

    def rows(self, index: int) -> range:
        """The images of a chunk."""
        start = index * self.chunk_size
        return range(start, min(start + self.chunk_size, len(self.names)))

    def describe_again(self, index: int, images: Sequence[int]) -> None:
        """Take a chunk that is there for missing until these images of it are written, by any worker."""
        self._unfinished[index] = self._file_of(index), sorted(images)

    def is_written(self, index: int) -> bool:
        """Whether a chunk is there, with all images that it is to have."""
        file = self._file_of(index)
        return file is not None and self._unfinished.get(index, (None,))[0] != file

    def images_to_do(self, index: int) -> Sequence[int]:
        """The images of a missing chunk that are to be described."""
        file = self._file_of(index)
        return self._unfinished[index][1] if file and index in self._unfinished else self.rows(index)

    def missing_chunks(self) -> list[int]:
        """The chunks that are still to be computed."""
        there = set(os.listdir(self.path)) if self.path.exists() else set()
        return [i for i in range(self.num_chunks) if self.chunk_file(i).name not in there
                or i in self._unfinished and not self.is_written(i)]

    def count_written(self) -> int:
        """Images that are there."""
        missing = sum(len(self.images_to_do(index)) for index in self.missing_chunks())
        return len(self.names) - missing

    def _file_of(self, index: int) -> tuple | None:
        """What tells a chunk's file from one that is put in its place."""
        try:
            found = os.stat(self.chunk_file(index))
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def write_chunk(self, index: int, descriptors: np.ndarray, errors: dict[int, str],
                    local: LocalTable | None = None, warnings: Mapping[int, str] = MappingProxyType({}),
                    stamps: np.ndarray | None = None, images: Sequence[int] | None = None) -> None:
        """Write a chunk's descriptors (n,D).

        `errors` gives the reason for each failed row, `warnings` what is to be said of some rows that were
        described all the same; `stamps` (n,3) int64 are the files' sizes, times and CRC-32. With `images`
        all of these are of some of the chunk's images alone, the others being kept as they are. Raises
        StoreError where the chunk that has them is damaged.
        """
        self.create()
        rows = self.rows(index)
        count = len(rows if images is None else images)
        assert descriptors.shape == (count, self.dim), (descriptors.shape, count, self.dim)
        assert (local is not None) == bool(self.local_dim)
        table, status = np.array(descriptors, np.float32), np.zeros(count, np.uint8)
        for row in errors:
            table[row], status[row] = np.nan, FAILED
        tensors = {"global": table, "status": status}
        if stamps is not None:
            tensors["stamps"] = stamps.astype(np.int64)
        if local is not None:
            tensors.update(_local_tensors(local, self.local_dtype))
        if count < len(rows):
            here = [image - rows.start for image in images]
            before = Written.read(self.chunk_file(index), whole=True)
            tensors = _spliced(before.tensors, tensors, here, len(rows))
            errors, warnings = (
                {**{int(row): text for row, text in old.items() if int(row) not in here},
                 **{here[row]: text for row, text in new.items()}}
                for old, new in ((before.errors, errors), (before.warnings, warnings)))
        tensors["sums"] = row_sums(tensors["global"], tensors["status"])
        # safetensors writes the memory that a view is of
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        store = settings_digest(read_manifest(self.path), self.names[0])
        about = {"seal": NO_SEAL, "store": store, "index": index,
                 "names": [self.names[i] for i in rows],
                 "errors": {str(row): errors[row] for row in sorted(errors)},
                 **({"warnings": {str(row): warnings[row] for row in sorted(warnings)}} if warnings else {}),
                 "digest": _digest(tensors)}
        # One metadata entry: safetensors writes several in no fixed order, and equal chunks
        # are to be equal files
        content = sealed(save(tensors, metadata={"images": json.dumps(about)}))
        try:
            write_atomically(self.chunk_file(index), content)
        except FileNotFoundError:
            if not self.is_written(index):      # else another worker did, and tidied up
                raise

    def remove_leftovers(self) -> None:
        """Remove what killed workers left half-written; for a store that is whole."""
        for file in self.path.glob(".chunk-*.tmp"):
            file.unlink(missing_ok=True)

    def _check_same(self) -> None:
        file, manifest = self._file, self.manifest
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete the folder") from None
        if not isinstance(before, dict):
            raise UserError(f"{file} is not a manifest of a feature store: delete the folder")
        aside = _NOTED | _OF_THE_LIST if self.grows else _NOTED
        changed = [f"{key} was {_short(before.get(key))}, is {_short(manifest.get(key))}"
                   for key in sorted((set(before) | set(manifest)) - aside)
                   if before.get(key) != manifest.get(key)]
        if changed:
            raise UserError(f"{file.parent} was made by other settings: {'; '.join(changed)}. "
                            "Give another INFER.OUT_DIR, or delete that folder")

    def _check_chunks(self) -> None:
        """Raise UserError for a chunk that is there and could not be read as one of this store."""
        if not self._file.exists():
            return
        try:
            digest = settings_digest(read_manifest(self.path), self.names[0] if self.names else "")
            for index in present_chunks(self.path, self.num_chunks):
                Chunk(str(self.chunk_file(index)), None, self.dim, (digest, index))
        except StoreError as error:
            raise UserError(str(error)) from None


@dataclass
class Written:
    """What a chunk's file says of its images, finished or not.

    Attributes:
        names: (n) of them.
        status: (n,) uint8, 0: fine.
        stamps: (n,3) int64, see above; -1 in older stores.
        errors, warnings: by the row, as text.
        tensors: all of them, if asked for.
    """

    names: list[str]
    status: np.ndarray
    stamps: np.ndarray
    errors: dict[str, str]
    warnings: dict[str, str]
    tensors: dict[str, np.ndarray]

    @classmethod
    def read(cls, file: Path, whole: bool = False) -> "Written":
        """Of a file; `whole` reads all tensors, and compares their digest. Raises StoreError where it is
        damaged."""
        try:
            with safe_open(file, framework="numpy") as content:
                about = json.loads(content.metadata()["images"])
                tensors = {name: content.get_tensor(name) for name in content.keys()
                           if whole or name in ("status", "stamps")}
            names, count = about["names"], len(tensors["status"])
            stamps = tensors.get("stamps", np.full((count, 3), -1))
            if len(names) != count or stamps.shape != (count, 3):
                raise ValueError(f"{len(names)} names, {count} states, {stamps.shape} stamps")
            found = cls(names, tensors["status"], stamps, about.get("errors") or {},
                        about.get("warnings") or {}, tensors)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"{file} is damaged ({error}): delete it and extract again") from None
        if whole and about.get("digest") not in (None, _digest(tensors)):
            raise StoreError(f"{file} is damaged: its contents have another digest than when it was written; "
                             "delete it and extract again")
        return found


def _spliced(old: dict[str, np.ndarray], new: dict[str, np.ndarray], rows: Sequence[int],
             count: int) -> dict[str, np.ndarray]:
    """A chunk's tensors for `count` images: `rows` as in `new`, which has no others, the rest as in `old`."""
    # Of each image: where it lies in both tables, one after the other
    source = np.arange(count)
    source[list(rows)] = len(old["status"]) + np.arange(len(rows))
    assert set(range(len(old["status"]), count)) <= set(rows), (len(old["status"]), rows, count)
    old = {"stamps": np.full((len(old["status"]), 3), -1), **old}
    both = {name: np.concatenate([old[name], tensor]) for name, tensor in new.items()
            if name != "local_offsets"}
    spliced = {name: tensor[source] for name, tensor in both.items() if not name.startswith("local_")}
    if "local_offsets" in new:
        counts = np.concatenate([np.diff(old["local_offsets"]), np.diff(new["local_offsets"])])
        starts = np.cumsum(counts) - counts
        features = np.concatenate([np.arange(starts[image], starts[image] + counts[image])
                                   for image in source]).astype(np.int64)
        spliced["local_offsets"] = np.cumsum([0, *counts[source]]).astype(np.int64)
        spliced.update((name, tensor[features]) for name, tensor in both.items() if name.startswith("local_"))
    return spliced


def _digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of all tensors' bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name])
    return digest.hexdigest()


def _local_tensors(local: LocalTable, dtype: str) -> dict[str, np.ndarray]:
    tensors = {"local_offsets": local.offsets.astype(np.int64), "local_xy": local.xy,
               "local_scales": local.scales, "local_scores": local.scores}
    if dtype == "float16":
        return {**tensors, "local_descriptors": local.descriptors.astype(np.float16)}
    # Rounded first, so that what divides is what will multiply
    peaks = np.abs(local.descriptors).max(axis=1, initial=0).astype(np.float16)
    levels = local.descriptors * (_LEVELS / np.maximum(peaks, _LEAST)[:, None].astype(np.float32))
    return {**tensors, "local_peaks": peaks,
            "local_descriptors": levels.round().clip(-_LEVELS, _LEVELS).astype(np.int8)}


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
