"""Feature stores of the tests' tables."""
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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


@pytest.fixture
def change_row():
    """`change_row(store, row, value)` puts another value into a descriptor, whatever its status."""

    def change(store: FeatureStore, row: int, value: float) -> FeatureStore:
        chunk = store.chunk(row // store.chunk_size)
        tensors, file = load_file(chunk.file), chunk.file
        tensors["global"][row % store.chunk_size] = value
        failed = np.flatnonzero(tensors["status"]).tolist()
        save_file(tensors, file, {"images": json.dumps({
            "names": chunk.names, "errors": {str(row): "no photo" for row in failed}})})
        return FeatureStore(store.path)

    return change
