"""What reranking reads of a database of a million images: a part of benchmarks/rerank.py.

A store of 3,907 chunks of 256 images, 1000 local features of 128 dimensions each, 264 KB an image: one
chunk, linked under all names, so that it fits on a disk. For 70 queries the features of 400 images, drawn
at random, are read as a reranker reads them. Of the mapped files only the pages of these images come into
memory.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.rerank.images import StoredImages
from dolg.rerank.interface import PairReranker, Stage, rerank_list

QUERIES, TOP, CHUNK, CHUNKS, LOCALS, DIM = 70, 400, 256, 3907, 1000, 128


class Reader(PairReranker):
    """Reads what a reranker would, and says how much that was."""

    name, settings = "reader", {}

    def __init__(self, database: StoredImages):
        super().__init__()
        self.database, self.read = database, 0

    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        self.database.descriptors(candidates)
        for row in candidates.tolist():
            table = self.database.local(row)
            self.read += len(table.descriptors) * (2 * DIM + 8 + 4 + 4)
        return np.zeros(len(candidates))


def make_store(folder: Path) -> FeatureStore:
    rng = np.random.default_rng(0)
    writer = StoreWriter(folder, [str(number) for number in range(CHUNK)], DIM, CHUNK, {}, DIM)
    count = CHUNK * LOCALS
    local = LocalTable(np.arange(0, count + 1, LOCALS), rng.standard_normal((count, DIM)).astype(np.float32),
                       np.zeros((count, 2), np.float32), np.ones(count, np.float32),
                       np.ones(count, np.float32))
    writer.write_chunk(0, rng.standard_normal((CHUNK, DIM)).astype(np.float32), {}, local)
    for number in range(1, CHUNKS):
        os.link(writer.chunk_file(0), writer.chunk_file(number))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"count": {CHUNK}', f'"count": {CHUNK * CHUNKS}'))
    return FeatureStore(folder)


def measure_memory(args: argparse.Namespace) -> None:
    """Prints what was read, and the memory that it took beyond what was in use before."""
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store")
        database, rng = StoredImages([store]), np.random.default_rng(1)
        reader = Reader(database)
        Path("/proc/self/clear_refs").write_text("5")       # forget the peak
        before, start = resident("RssAnon"), time.perf_counter()
        for query in range(QUERIES):
            rows = rng.choice(len(database), TOP, replace=False)
            rerank_list([Stage(reader, TOP)], query, rows, np.zeros(TOP))
        seconds, after = time.perf_counter() - start, resident("RssAnon")
        size = sum(entry.stat().st_size for entry in os.scandir(store.path))
    print(f"memory: {QUERIES} x {TOP} candidates of {CHUNK * CHUNKS:,} images, {LOCALS} local features of "
          f"{DIM} dimensions each\n  a store of {size / 1e9:.0f} GB: {reader.read / 1e9:.1f} GB of features "
          f"read in {seconds:.1f} s; memory of its own grew by {after - before:.0f} MB, the peak with mapped "
          f"files, which the system may drop, was {resident('VmHWM'):.0f} MB", flush=True)


def resident(key: str) -> float:
    """MB of this process, by /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
