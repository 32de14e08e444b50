"""Images with local features, in arrays and in stores."""
from pathlib import Path

import numpy as np
import pytest

from dolg.features.store import FeatureStore, LocalTable, StoreWriter


def unit(table: np.ndarray) -> np.ndarray:
    return (table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def local_table(rng, count: int, dim: int = 8) -> LocalTable:
    """So many random local features of an image."""
    return LocalTable(np.array([0, count]), unit(rng.standard_normal((count, dim))),
                      rng.uniform(0, 200, (count, 2)).astype(np.float32),
                      rng.choice([0.5, 1.0, 2.0], count).astype(np.float32),
                      np.sort(rng.random(count).astype(np.float32))[::-1])


@pytest.fixture(scope="session")
def make_local():
    return local_table


@pytest.fixture
def write_store(tmp_path):
    """`write_store(name, table, local, chunk_size)`: a store of descriptors (rows of NaN are images that
    failed) and, if given, of a LocalTable for each image."""

    def write(name: str, table: np.ndarray, local=None, chunk_size: int = 8, names=None,
              **provenance) -> FeatureStore:
        path: Path = tmp_path / name
        writer = StoreWriter(path, names or [f"{name} {row}" for row in range(len(table))],
                             table.shape[1], chunk_size, {"weights_digest": "abc", **provenance},
                             local[0].descriptors.shape[1] if local else 0)
        writer.create()
        for chunk in range(writer.num_chunks):
            rows = writer.rows(chunk)
            part = table[rows.start:rows.stop]
            failed = np.flatnonzero(np.isnan(part).any(axis=1)).tolist()
            tables = local and LocalTable.joined(
                [(t.descriptors, t.xy, t.scales, t.scores) for t in local[rows.start:rows.stop]])
            writer.write_chunk(chunk, part, {row: "no photo" for row in failed}, tables)
        return FeatureStore(path)

    return write
