"""Feature stores of the tests' tables."""
from pathlib import Path

import numpy as np
import pytest

from dolg.features.store import FeatureStore, StoreWriter


@pytest.fixture
def make_store(tmp_path):
    """`make_store(name, table, chunk_size)` writes a store; rows of NaN are images that failed."""

    def make(name: str, table: np.ndarray, chunk_size: int = 10, names=None, **more) -> FeatureStore:
        path: Path = tmp_path / name
        writer = StoreWriter(path, names or [f"{name} {row}" for row in range(len(table))],
                             table.shape[1], chunk_size,
                             {"model": "toy", "weights_digest": "abc", **more.pop("provenance", {})},
                             **more)
        writer.create()
        for chunk in range(writer.num_chunks):
            rows = writer.rows(chunk)
            part = table[rows.start:rows.stop]
            failed = np.flatnonzero(np.isnan(part).any(axis=1)).tolist()
            writer.write_chunk(chunk, part, {row: f"no photo {row}" for row in failed})
        return FeatureStore(path)

    return make
