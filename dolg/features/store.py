"""The feature store: a folder with a manifest and chunks, each whole or absent.

    manifest.json               what is in it, and what made it
    chunk-000000.safetensors    images 0 .. chunk_size - 1 of the list
        global   float32 (n,D)  descriptors; NaN where the image failed
        status   uint8 (n,)     0: fine, 1: failed
        metadata "images"       JSON {"names": [...], "errors": {"row": "reason"}}

Image i lies in chunk i // chunk_size, row i % chunk_size, whoever computed it.
"""
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import revisitop.stores
from dolg.errors import UserError
from dolg.files import write_atomically

FORMAT, VERSION = "dolg-feature-store", 1
FAILED = 1


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


class StoreWriter:
    """Fills a store chunk by chunk; opened again, it knows what is missing.

    Args:
        path: the folder, made if it is not there.
        names: the images, in order.
        dim, chunk_size: of the descriptors, and images per chunk.
        provenance: what made the descriptors (settings, digests), recorded in the manifest.

    Raises UserError where `path` holds a store of other images or settings, naming them.
    """

    def __init__(self, path: str | Path, names: list[str], dim: int, chunk_size: int,
                 provenance: dict):
        self.path, self.names, self.dim, self.chunk_size = Path(path), names, dim, chunk_size
        manifest = {"format": FORMAT, "version": VERSION, "count": len(names), "dim": dim,
                    "chunk_size": chunk_size, **provenance}
        # As JSON gives it back, so that tuples and lists compare equal
        manifest = json.loads(json.dumps(manifest))
        file = self.path / "manifest.json"
        if file.exists():
            self._check_same(file, manifest)
        else:
            write_atomically(file, json.dumps(manifest, indent=1) + "\n")

    @property
    def num_chunks(self) -> int:
        return -(-len(self.names) // self.chunk_size)

    def chunk_file(self, index: int) -> Path:
        return self.path / f"chunk-{index:06d}.safetensors"

    def rows(self, index: int) -> range:
        """The images of a chunk."""
        start = index * self.chunk_size
        return range(start, min(start + self.chunk_size, len(self.names)))

    def missing_chunks(self) -> list[int]:
        """The chunks that are still to be computed."""
        return [i for i in range(self.num_chunks) if not self.chunk_file(i).exists()]

    def write_chunk(self, index: int, descriptors: np.ndarray, errors: dict[int, str]) -> None:
        """Write a chunk's descriptors (n,D); `errors` gives the reason for each failed row."""
        rows = self.rows(index)
        assert descriptors.shape == (len(rows), self.dim), (descriptors.shape, len(rows), self.dim)
        table, status = np.array(descriptors, np.float32), np.zeros(len(rows), np.uint8)
        for row in errors:
            table[row], status[row] = np.nan, FAILED
        images = {"names": [self.names[i] for i in rows],
                  "errors": {str(row): errors[row] for row in sorted(errors)}}
        # One metadata entry: safetensors writes several in no fixed order, and equal chunks
        # are to be equal files
        write_atomically(self.chunk_file(index), save(
            {"global": table, "status": status}, metadata={"images": json.dumps(images)}))

    @staticmethod
    def _check_same(file: Path, manifest: dict) -> None:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete the folder") from None
        changed = [f"{key} was {_short(before.get(key))}, is {_short(manifest.get(key))}"
                   for key in sorted(set(before) | set(manifest))
                   if before.get(key) != manifest.get(key)]
        if changed:
            raise UserError(f"{file.parent} was made by other settings: {'; '.join(changed)}. "
                            "Give another INFER.OUT_DIR, or delete that folder")


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
